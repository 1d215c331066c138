#include "packed_linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

namespace textmill {

// Products are computed for groups of tokens, whose sums for one block stay in the first-level cache.
constexpr int GROUP_TOKENS = 48;
static_assert(GROUP_TOKENS % Tile::INT8_TOKENS == 0 && GROUP_TOKENS % Tile::FLOAT32_TOKENS == 0);
static_assert(COLUMNS % Tile::OUTPUTS == 0 && Tile::OUTPUTS % LANES == 0 && COLUMNS == 2 * LANES);

struct alignas(64) Sums {
    union {
        int32_t ints[GROUP_TOKENS * COLUMNS];
        float floats[GROUP_TOKENS * COLUMNS];
    };
};

// ---- packing ---------------------------------------------------------------------------------

PackedLinear::PackedLinear(int inputs, int outputs, bool is_gated, bool is_int8)
    : inputs_(inputs), outputs_(outputs), is_gated_(is_gated), is_int8_(is_int8) {
    const int per_block = is_gated ? LANES : COLUMNS;
    num_blocks_ = ((is_gated ? outputs / 2 : outputs) + per_block - 1) / per_block;
    depth_ = is_int8 ? padded_width(inputs) : inputs;
    const size_t columns = size_t(num_blocks_) * COLUMNS;
    if (is_int8) {
        int8_ = Buffer<int8_t>(columns * depth_);
        scales_ = Buffer<float>(columns);
        excess_ = Buffer<int32_t>(columns);
    } else {
        full_ = Buffer<float>(columns * depth_);
    }
    bias_ = Buffer<float>(columns);
}

Range PackedLinear::blocks_of(int64_t first, int64_t count) const {
    const bool is_inside = first >= 0 && count > 0 && first < outputs_ && count <= outputs_ - first;
    if (is_gated_ || !is_inside || first % COLUMNS) return {0, 0};
    const int64_t end = first + count;
    if (end % COLUMNS && end != outputs_) return {0, 0};
    return {int(first / COLUMNS), int((end + COLUMNS - 1) / COLUMNS)};
}

void PackedLinear::pack(Range blocks, const float* weight, const float* bias, int first) {
    for (int block = blocks.first; block < blocks.end; ++block)
        for (int column = 0; column < COLUMNS; ++column) {
            const int output = output_at(block, column);
            const float* weights = output < 0 ? nullptr : weight + size_t(output - first) * inputs_;
            if (weights && bias) bias_[size_t(block) * COLUMNS + column] = bias[output];
            if (!weights) continue;  // the buffers are zeroed
            is_int8_ ? pack_int8(block, column, weights) : pack_float32(block, column, weights);
        }
}

// The output in a column of a block, or -1 in the padding.
int PackedLinear::output_at(int block, int column) const {
    if (!is_gated_) {
        const int output = block * COLUMNS + column;
        return output < outputs_ ? output : -1;
    }
    const int half = outputs_ / 2, output = block * LANES + column % LANES;
    return output < half ? output + (column < LANES ? 0 : half) : -1;
}

// The index of the first weight of the panel that contains a column.
size_t PackedLinear::panel_of(int block, int column) const {
    const int panel = column / Tile::OUTPUTS;
    return (size_t(block) * COLUMNS + panel * Tile::OUTPUTS) * depth_;
}

namespace {

// The largest numbers of some weights, by lane.
struct Maxima {
    Floats single = {}, quad = {};  // see MAX_QUAD_SUM
    Floats not_finite = {};         // 0, or NaN

    void add(Floats v) {
        const Floats positive = maximum(v, Floats{}), negative = maximum(-v, Floats{});
        single = maximum(single, maximum(positive, negative));
        quad = maximum(quad, maximum(quad_sums(positive), quad_sums(negative)));
        not_finite = not_finite + (v - v);
    }
    static Floats quad_sums(Floats v) {
        const Floats pairs = v + exchange_lanes<1>(v);
        return pairs + exchange_lanes<4>(pairs);
    }
};

}  // namespace

// Rounding changes the sum of four weights by at most 2.
void PackedLinear::pack_int8(int block, int column, const float* weights) {
    std::vector<float> row(depth_);
    std::copy_n(weights, inputs_, row.begin());
    Maxima maxima;
    for (int k = 0; k < depth_; k += HADAMARD_SIZE) {
        Floats v[4];
        for (int i = 0; i < 4; ++i) v[i] = load(row.data() + k + i * LANES);
        hadamard(v);
        for (int i = 0; i < 4; ++i) {
            const Floats part = v[i] * broadcast(1.0f / HADAMARD_SIZE);  // both factors of 1/8
            maxima.add(part);
            store(row.data() + k + i * LANES, part);
        }
    }
    // 0, or NaN, which makes every result of the output NaN.
    const float check = horizontal_sum(maxima.not_finite);
    const float scale = std::max(horizontal_maximum(maxima.single) / 127.0f,
                                 horizontal_maximum(maxima.quad) / float(MAX_QUAD_SUM - 2));
    const size_t index = size_t(block) * COLUMNS + column;
    scales_[index] = scale + check;
    if (!(check == 0.0f)) return;
    const Floats inverse = broadcast(scale > 1e-32f ? 1.0f / scale : 0.0f);
    Ints sum = {};
    std::vector<uint8_t> rounded(depth_);
    for (int k = 0; k < depth_; k += LANES) {
        const Ints n = to_ints(round_to_even(load(row.data() + k) * inverse));
        sum = sum + n;
        store(rounded.data() + k, to_bytes(n));
    }
    excess_[index] = horizontal_sum(sum) * ACTIVATION_OFFSET;
    int8_t* to = int8_.get() + panel_of(block, column) + column % Tile::OUTPUTS * 4;
    for (int k = 0; k < depth_; k += 4, to += Tile::OUTPUTS * 4)
        std::memcpy(to, rounded.data() + k, 4);
}

void PackedLinear::pack_float32(int block, int column, const float* weights) {
    float* to = full_.get() + panel_of(block, column) + column % Tile::OUTPUTS;
    for (int k = 0; k < inputs_; ++k) to[size_t(k) * Tile::OUTPUTS] = weights[k];
}

// ---- products --------------------------------------------------------------------------------

namespace {

constexpr int REGISTERS = Tile::OUTPUTS / REGISTER_LANES;  // of a token's sums in a tile

// Stores (TOKENS, REGISTERS) registers in rows of COLUMNS numbers.
template <int TOKENS, class Register, class Number>
TEXTMILL_INLINE void store_sums(const Register (&sum)[TOKENS][REGISTERS], Number* out) {
    TEXTMILL_UNROLL
    for (int token = 0; token < TOKENS; ++token)
        TEXTMILL_UNROLL
        for (int r = 0; r < REGISTERS; ++r)
            std::memcpy(out + token * COLUMNS + r * REGISTER_LANES, &sum[token][r],
                        sizeof(Register));
}

// A tile contains the products of one panel with a few tokens. While it is computed, half of the next panel
// is prefetched from `prefetched`.
template <int TOKENS>
void multiply_tile(const int8_t* weights, int depth, const uint8_t* x, int stride, int32_t* out,
                   const int8_t* prefetched) {
    constexpr int FOUR = Tile::OUTPUTS * 4;  // bytes of four inputs
    IntRegister sum[TOKENS][REGISTERS] = {};
    for (int k = 0; k < depth; k += 8, weights += 2 * FOUR, prefetched += FOUR) {
        TEXTMILL_UNROLL
        for (int byte = 0; byte < FOUR; byte += CACHE_LINE_BYTES) prefetch(prefetched + byte);
        TEXTMILL_UNROLL
        for (int token = 0; token < TOKENS; ++token)
            TEXTMILL_UNROLL
            for (int r = 0; r < REGISTERS; ++r)
                sum[token][r] = dot8(sum[token][r], weights + r * REGISTER_BYTES, FOUR,
                                     x + size_t(token) * stride + k);
    }
    store_sums(sum, out);
}

template <int TOKENS>
void multiply_tile(const float* weights, int depth, const float* x, int stride, float* out,
                   const float* prefetched) {
    FloatRegister sum[TOKENS][REGISTERS] = {};
    for (int k = 0; k < depth; ++k, weights += Tile::OUTPUTS, prefetched += Tile::OUTPUTS / 2) {
        prefetch(prefetched);
        FloatRegister column[REGISTERS];
        TEXTMILL_UNROLL
        for (int r = 0; r < REGISTERS; ++r)
            column[r] = load_vector<FloatRegister>(weights + r * REGISTER_LANES);
        TEXTMILL_UNROLL
        for (int token = 0; token < TOKENS; ++token) {
            const auto factor = Broadcast<FloatRegister>::of(x[size_t(token) * stride + k]);
            TEXTMILL_UNROLL
            for (int r = 0; r < REGISTERS; ++r)
                sum[token][r] = multiply_add(factor, column[r], sum[token][r]);
        }
    }
    store_sums(sum, out);
}

template <class Weight, class Input, class Sum>
using TileFunction = void (*)(const Weight*, int, const Input*, int, Sum*, const Weight*);

// The functions for 1, 2, … tokens.
template <class Weight, class Input, class Sum, size_t... N>
constexpr std::array<TileFunction<Weight, Input, Sum>, sizeof...(N)> tiles(
    std::index_sequence<N...>) {
    return {static_cast<TileFunction<Weight, Input, Sum>>(multiply_tile<int(N) + 1>)...};
}

template <class Weight>
constexpr int TILE_TOKENS = sizeof(Weight) == 1 ? Tile::INT8_TOKENS : Tile::FLOAT32_TOKENS;

}  // namespace

void PackedLinear::multiply(const Inputs& inputs, int num_tokens, Range blocks,
                            const Outputs& outputs) const {
    Sums sums;
    for (int block = blocks.first; block < blocks.end; ++block) {
        const size_t start = panel_of(block, 0);
        for (int first = 0; first < num_tokens; first += GROUP_TOKENS) {
            const Range group{first, std::min(first + GROUP_TOKENS, num_tokens)};
            const int count = group.end - group.first;
            const size_t input = size_t(group.first) * inputs.stride;
            if (is_int8_)
                multiply_block(int8_.get() + start, inputs.int8 + input, inputs.stride, count,
                               sums.ints);
            else
                multiply_block(full_.get() + start, inputs.full + input, inputs.stride, count,
                               sums.floats);
            switch (outputs.activation) {
                case SWIGLU: finish<SWIGLU>(inputs, group, block, sums, outputs); break;
                case GELU: finish<GELU>(inputs, group, block, sums, outputs); break;
                default: finish<LINEAR>(inputs, group, block, sums, outputs);
            }
        }
    }
}

// The sums (num_tokens, COLUMNS) of a block.
template <class Weight, class Input, class Sum>
void PackedLinear::multiply_block(const Weight* weights, const Input* inputs, int stride,
                                  int num_tokens, Sum* sums) const {
    static constexpr auto TILES =
        tiles<Weight, Input, Sum>(std::make_index_sequence<TILE_TOKENS<Weight>>{});
    const int num_tiles = (num_tokens + int(TILES.size()) - 1) / int(TILES.size());
    const size_t size = size_t(Tile::OUTPUTS) * depth_;
    for (int column = 0; column < COLUMNS; column += Tile::OUTPUTS, weights += size)
        for (int tile = 0; tile < num_tiles; ++tile) {
            // The first two tiles prefetch the next panel. With a single tile the processor's own
            // prefetching of a plain stream is as good.
            const bool has_next = num_tiles > 1 && tile < 2;
            const Weight* prefetched = has_next ? weights + size + tile * (size / 2) : weights;
            const Range tokens = share_of(num_tokens, tile, num_tiles);
            TILES[tokens.end - tokens.first - 1](
                weights, depth_, inputs + size_t(tokens.first) * stride, stride,
                sums + tokens.first * COLUMNS + column, prefetched);
        }
}

// Scales the sums, adds the bias, applies the activation and stores the results of some tokens.
template <Activation ACTIVATION>
void PackedLinear::finish(const Inputs& inputs, Range tokens, int block, const Sums& sums,
                          const Outputs& outputs) const {
    constexpr int WIDTH = ACTIVATION == SWIGLU ? LANES : COLUMNS;
    const size_t first = size_t(block) * COLUMNS;
    const int count = std::min(WIDTH, outputs.width - block * WIDTH);
    for (int token = tokens.first; token < tokens.end; ++token) {
        const size_t at = size_t(token - tokens.first) * COLUMNS;
        Floats parts[2];
        for (int half = 0; half < 2; ++half) {
            const size_t column = first + half * LANES;
            if (is_int8_) {
                const Ints ints = load_vector<Ints>(sums.ints + at + half * LANES) -
                                  load_vector<Ints>(excess_.get() + column);
                const Floats scale = broadcast(inputs.scales[token]);
                parts[half] = to_floats(ints) * scale * load(scales_.get() + column);
            } else {
                parts[half] = load(sums.floats + at + half * LANES);
            }
            parts[half] = parts[half] + load(bias_.get() + column);
        }
        if constexpr (ACTIVATION == SWIGLU) parts[0] = silu(parts[0]) * parts[1];
        if constexpr (ACTIVATION == GELU)
            for (auto& part : parts) part = gelu(part);
        float* to = outputs.data + token * outputs.stride + size_t(block) * WIDTH;
        if (count == WIDTH) {
            for (int i = 0; i < WIDTH / LANES; ++i)
                store(to + i * LANES,
                      outputs.is_added ? load(to + i * LANES) + parts[i] : parts[i]);
        } else {
            float last[COLUMNS];
            for (int i = 0; i < 2; ++i) store(last + i * LANES, parts[i]);
            for (int i = 0; i < count; ++i) to[i] = outputs.is_added ? to[i] + last[i] : last[i];
        }
    }
}

}  // namespace textmill
