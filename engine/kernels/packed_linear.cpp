#include "packed_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace textmill {

constexpr int MAX_TILE_TOKENS = 12;  // 24 accumulators of the 32 registers

// ---- packing ---------------------------------------------------------------------------------

PackedLinear::PackedLinear(int inputs, int outputs, bool is_gated, bool is_int8)
    : inputs_(inputs), outputs_(outputs), is_gated_(is_gated), is_int8_(is_int8) {
    const int per_block = is_gated ? LANES : COLUMNS;
    num_blocks_ = ((is_gated ? outputs / 2 : outputs) + per_block - 1) / per_block;
    depth_ = is_int8 ? padded_width(inputs) : inputs;
    const size_t columns = size_t(num_blocks_) * COLUMNS;
    if (is_int8) {
        int8_ = Buffer<uint8_t>(columns * depth_);
        scales_ = Buffer<float>(columns);
    } else {
        full_ = Buffer<float>(columns * depth_);
    }
    bias_ = Buffer<float>(columns);
}

void PackedLinear::pack(Range blocks, const float* weight, const float* bias) {
    for (int block = blocks.first; block < blocks.end; ++block)
        for (int column = 0; column < COLUMNS; ++column) {
            const int output = output_at(block, column);
            const float* weights = output < 0 ? nullptr : weight + size_t(output) * inputs_;
            if (weights && bias) bias_[size_t(block) * COLUMNS + column] = bias[output];
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

void PackedLinear::pack_int8(int block, int column, const float* weights) {
    std::vector<float> row(depth_);
    if (weights) std::copy_n(weights, inputs_, row.begin());
    float largest = 0.0f;
    for (int k = 0; k < depth_; k += HADAMARD_SIZE) {
        Floats v[4];
        std::memcpy(v, row.data() + k, sizeof v);
        hadamard(v);
        for (auto& part : v) part *= broadcast(1.0f / HADAMARD_SIZE);  // both factors of 1/8
        std::memcpy(row.data() + k, v, sizeof v);
    }
    float check = 0.0f;  // or NaN, which makes every result of the output NaN
    for (float value : row) {
        largest = std::max(largest, std::fabs(value));
        check += value - value;
    }
    scales_[size_t(block) * COLUMNS + column] = largest / 127.0f + check;
    const float inverse = check == 0.0f ? inverse_scale(largest) : 0.0f;
    uint8_t* to = int8_.get() + size_t(block) * COLUMNS * depth_ + column * 4;
    for (int k = 0; k < depth_; ++k) {
        const float value = check == 0.0f ? std::nearbyint(row[k] * inverse) : 0.0f;
        to[size_t(k / 4) * COLUMNS * 4 + k % 4] = uint8_t(int(value) + 128);
    }
}

void PackedLinear::pack_float32(int block, int column, const float* weights) {
    float* to = full_.get() + size_t(block) * COLUMNS * depth_ + column;
    for (int k = 0; weights && k < inputs_; ++k) to[size_t(k) * COLUMNS] = weights[k];
}

// ---- products --------------------------------------------------------------------------------

namespace {

// A tile contains the products of one block with a few tokens. While it is computed, half a block is
// prefetched from another address.
template <int TOKENS>
void tile_int8(const uint8_t* weights, int depth, const int8_t* x, int stride, int32_t* out,
               const uint8_t* prefetched) {
    Ints sum[TOKENS][2];
    for (auto& token : sum) token[0] = token[1] = Ints{};
    for (int k = 0; k < depth; k += 4, weights += COLUMNS * 4, prefetched += CACHE_LINE_BYTES) {
        prefetch(prefetched);
        TEXTMILL_UNROLL
        for (int token = 0; token < TOKENS; ++token) {
            const int8_t* four = x + size_t(token) * stride + k;
            sum[token][0] = dot4(sum[token][0], weights, four);
            sum[token][1] = dot4(sum[token][1], weights + 64, four);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

template <int TOKENS>
void tile_float32(const float* weights, int depth, const float* x, int stride, float* out,
                  const float* prefetched) {
    Floats sum[TOKENS][2];
    for (auto& token : sum) token[0] = token[1] = Floats{};
    for (int k = 0; k < depth; ++k, weights += COLUMNS, prefetched += COLUMNS / 2) {
        prefetch(prefetched);
        const Floats left = load(weights), right = load(weights + LANES);
        TEXTMILL_UNROLL
        for (int token = 0; token < TOKENS; ++token) {
            const Floats factor = broadcast(x[size_t(token) * stride + k]);
            sum[token][0] = multiply_add(factor, left, sum[token][0]);
            sum[token][1] = multiply_add(factor, right, sum[token][1]);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

using Int8Tile = void (*)(const uint8_t*, int, const int8_t*, int, int32_t*, const uint8_t*);
using Float32Tile = void (*)(const float*, int, const float*, int, float*, const float*);
constexpr Int8Tile INT8_TILES[MAX_TILE_TOKENS] = {
    tile_int8<1>, tile_int8<2>, tile_int8<3>, tile_int8<4>,  tile_int8<5>,  tile_int8<6>,
    tile_int8<7>, tile_int8<8>, tile_int8<9>, tile_int8<10>, tile_int8<11>, tile_int8<12>};
constexpr Float32Tile FLOAT32_TILES[MAX_TILE_TOKENS] = {
    tile_float32<1>, tile_float32<2>,  tile_float32<3>,  tile_float32<4>,
    tile_float32<5>, tile_float32<6>,  tile_float32<7>,  tile_float32<8>,
    tile_float32<9>, tile_float32<10>, tile_float32<11>, tile_float32<12>};

}  // namespace

void PackedLinear::multiply(const Inputs& inputs, int num_tokens, Range blocks,
                            const Outputs& outputs) const {
    const int num_tiles = (num_tokens + MAX_TILE_TOKENS - 1) / MAX_TILE_TOKENS;
    for (int block = blocks.first; block < blocks.end; ++block) {
        const size_t size = size_t(COLUMNS) * depth_, start = block * size;
        const bool has_next = num_tiles > 1 && block + 1 < num_blocks_;
        for (int tile = 0; tile < num_tiles; ++tile) {
            // The first two tiles prefetch the next block. With a single tile the processor's own
            // prefetching of a plain stream is as good.
            const size_t prefetched =
                has_next && tile < 2 ? start + size + tile * (size / 2) : start;
            multiply_block(inputs, share_of(num_tokens, tile, num_tiles), block, prefetched,
                           outputs);
        }
    }
}

// One tile; `prefetched` is an index into the packed weights.
void PackedLinear::multiply_block(const Inputs& inputs, Range tokens, int block, size_t prefetched,
                                  const Outputs& outputs) const {
    alignas(64) int32_t ints[MAX_TILE_TOKENS * COLUMNS];
    alignas(64) float floats[MAX_TILE_TOKENS * COLUMNS];
    const int count = tokens.end - tokens.first;
    const size_t start = size_t(block) * COLUMNS * depth_;
    const size_t input = size_t(tokens.first) * inputs.stride;
    if (is_int8_)
        INT8_TILES[count - 1](int8_.get() + start, depth_, inputs.int8 + input, inputs.stride, ints,
                              int8_.get() + prefetched);
    else
        FLOAT32_TILES[count - 1](full_.get() + start, depth_, inputs.full + input, inputs.stride,
                                 floats, full_.get() + prefetched);
    for (int i = 0; i < count; ++i) {
        const int token = tokens.first + i;
        Floats left, right;
        if (is_int8_) {
            Ints sums[2];
            std::memcpy(sums, ints + i * COLUMNS, sizeof sums);
            const float* scales = scales_.get() + size_t(block) * COLUMNS;
            const Floats scale = broadcast(inputs.scales[token]);
            const int32_t offset = inputs.offsets[token];
            left = __builtin_convertvector(sums[0] - offset, Floats) * scale * load(scales);
            right =
                __builtin_convertvector(sums[1] - offset, Floats) * scale * load(scales + LANES);
        } else {
            left = load(floats + i * COLUMNS);
            right = load(floats + i * COLUMNS + LANES);
        }
        finish(block, left, right, outputs.data + token * outputs.stride, outputs);
    }
}

// Adds the bias, applies the activation and stores one token's results of a block.
void PackedLinear::finish(int block, Floats left, Floats right, float* out,
                          const Outputs& outputs) const {
    const float* bias = bias_.get() + size_t(block) * COLUMNS;
    left = left + load(bias);
    right = right + load(bias + LANES);
    Floats results[2] = {left, right};
    int columns = COLUMNS;
    if (outputs.activation == SWIGLU) {
        results[0] = silu(left) * right;
        columns = LANES;
    } else if (outputs.activation == GELU) {
        results[0] = gelu(left);
        results[1] = gelu(right);
    }
    const int first = block * columns, count = std::min(columns, outputs.width - first);
    float* to = out + first;
    if (count == columns) {
        for (int i = 0; i < columns / LANES; ++i)
            store(to + i * LANES,
                  outputs.is_added ? load(to + i * LANES) + results[i] : results[i]);
    } else {
        float part[COLUMNS];
        std::memcpy(part, results, sizeof part);
        for (int i = 0; i < count; ++i) to[i] = outputs.is_added ? to[i] + part[i] : part[i];
    }
}

}  // namespace textmill
