// Weights, packed for products with a few rows, in float32 or int8.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "team.h"
#include "vectors.h"

namespace textmill {

constexpr int SPREAD = 64;

// The Walsh-Hadamard transform of 64 numbers, without its factor of 1/8. It spreads what stands out
// over its neighbours before rounding, and since it is its own inverse, a product of two spread
// vectors is the product of the vectors (Ashkboos et al., "QuaRot", 2024).
inline void spread(Floats* v) {
    for (int distance = 1; distance < 4; distance *= 2)
        for (int i = 0; i < 4; ++i)
            if (!(i & distance)) {
                const Floats a = v[i], b = v[i + distance];
                v[i] = a + b;
                v[i + distance] = a - b;
            }
    for (int i = 0; i < 4; ++i)
        for (int distance = 1; distance < LANES; distance *= 2) {
            const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
            const Floats partner = __builtin_shuffle(v[i], lanes ^ distance);
            v[i] = partner + ((lanes & distance) == 0 ? v[i] : -v[i]);
        }
}

// What numbers are multiplied by to be rounded to int8; where even the largest is as good as nothing,
// 127 / largest would be infinite.
inline float inverse_scale(float largest) { return largest > 1e-30f ? 127.0f / largest : 0.0f; }

constexpr int COLUMNS = 32;   // outputs of a packed block
constexpr int MAX_ROWS = 12;  // rows of a tile: 24 accumulators of the 32 registers

enum Act { LINEAR = 0, GELU = 1, SWIGLU = 2 };

// A weight matrix (outputs, inputs), packed in blocks of COLUMNS outputs. In int8 a block is
// (inputs / 4, 2, 16, 4) unsigned, 128 standing for 0, with a scale an output, the inputs spread; in
// float32 it is (inputs, 32). With SWIGLU the first half of a block are gates, the second what they open.
struct Product {
    int inputs = 0, outputs = 0, depth = 0, num_blocks = 0;
    bool is_gated = false, is_int8 = false, is_given = false;
    Block<uint8_t> small;
    Block<float> full, scales, bias;

    Product() = default;
    Product(int inputs, int outputs, bool is_gated, bool is_int8)
        : inputs(inputs), outputs(outputs), is_gated(is_gated), is_int8(is_int8) {
        const int per_block = is_gated ? LANES : COLUMNS;
        num_blocks = ((is_gated ? outputs / 2 : outputs) + per_block - 1) / per_block;
        depth = is_int8 ? (inputs + SPREAD - 1) / SPREAD * SPREAD : inputs;
        const size_t padded = size_t(num_blocks) * COLUMNS;
        if (is_int8) {
            small = Block<uint8_t>(padded * depth);
            scales = Block<float>(padded);
        } else {
            full = Block<float>(padded * depth);
        }
        bias = Block<float>(padded);
    }

    // The output that stands in a column of a block, or -1.
    int output_at(int block, int column) const {
        if (!is_gated) {
            const int output = block * COLUMNS + column;
            return output < outputs ? output : -1;
        }
        const int half = outputs / 2, output = block * LANES + column % LANES;
        return output < half ? output + (column < LANES ? 0 : half) : -1;
    }

    void fill(Range blocks, const float* weight, const float* given_bias) {
        for (int block = blocks.first; block < blocks.end; ++block)
            for (int column = 0; column < COLUMNS; ++column) {
                const int output = output_at(block, column);
                const float* row = output < 0 ? nullptr : weight + size_t(output) * inputs;
                const size_t place = size_t(block) * COLUMNS + column;
                if (row && given_bias) bias[place] = given_bias[output];
                is_int8 ? fill_small(block, column, row) : fill_full(block, column, row);
            }
    }

private:
    void fill_small(int block, int column, const float* given) {
        std::vector<float> row(depth);
        if (given) std::copy_n(given, inputs, row.begin());
        float largest = 0.0f;
        for (int k = 0; k < depth; k += SPREAD) {
            Floats v[4];
            std::memcpy(v, row.data() + k, sizeof v);
            spread(v);
            for (auto& part : v) part *= all(1.0f / SPREAD);  // both factors of 1/8
            std::memcpy(row.data() + k, v, sizeof v);
        }
        float check = 0.0f;  // or NaN, which then is every result of the output
        for (float value : row) {
            largest = std::max(largest, std::fabs(value));
            check += value - value;
        }
        scales[size_t(block) * COLUMNS + column] = largest / 127.0f + check;
        const float inverse = check == 0.0f ? inverse_scale(largest) : 0.0f;
        uint8_t* to = small.get() + size_t(block) * COLUMNS * depth + column * 4;
        for (int k = 0; k < depth; ++k) {
            const float value = check == 0.0f ? std::nearbyint(row[k] * inverse) : 0.0f;
            to[size_t(k / 4) * COLUMNS * 4 + k % 4] = uint8_t(int(value) + 128);
        }
    }

    void fill_full(int block, int column, const float* row) {
        float* to = full.get() + size_t(block) * COLUMNS * depth + column;
        for (int k = 0; row && k < inputs; ++k) to[size_t(k) * COLUMNS] = row[k];
    }
};

// Rows that go into a product: themselves in float32, or rounded with a scale of their own.
struct Rows {
    const float* full = nullptr;
    int stride = 0;
    const int8_t* small = nullptr;
    const float* scales = nullptr;
    const int32_t* offsets = nullptr;  // 128 times a row's sum: what unsigned weights add too much
};

// A tile is a block's products with a few rows. Meanwhile half a block is fetched from ahead.
template <int ROWS>
void tile_small(const uint8_t* weights, int depth, const int8_t* x, int stride, int32_t* out,
                const uint8_t* ahead) {
    Ints sum[ROWS][2];
    for (auto& row : sum) row[0] = row[1] = Ints{};
    for (int k = 0; k < depth; k += 4, weights += COLUMNS * 4, ahead += LINE_BYTES) {
        fetch(ahead);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            const int8_t* four = x + size_t(row) * stride + k;
            sum[row][0] = dot4(sum[row][0], weights, four);
            sum[row][1] = dot4(sum[row][1], weights + 64, four);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

template <int ROWS>
void tile_full(const float* weights, int depth, const float* x, int stride, float* out,
               const float* ahead) {
    Floats sum[ROWS][2];
    for (auto& row : sum) row[0] = row[1] = Floats{};
    for (int k = 0; k < depth; ++k, weights += COLUMNS, ahead += COLUMNS / 2) {
        fetch(ahead);
        const Floats left = load(weights), right = load(weights + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            const Floats factor = all(x[size_t(row) * stride + k]);
            sum[row][0] = fused(factor, left, sum[row][0]);
            sum[row][1] = fused(factor, right, sum[row][1]);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

using SmallTile = void (*)(const uint8_t*, int, const int8_t*, int, int32_t*, const uint8_t*);
using FullTile = void (*)(const float*, int, const float*, int, float*, const float*);
constexpr SmallTile SMALL_TILES[MAX_ROWS] = {
    tile_small<1>, tile_small<2>, tile_small<3>, tile_small<4>,  tile_small<5>,  tile_small<6>,
    tile_small<7>, tile_small<8>, tile_small<9>, tile_small<10>, tile_small<11>, tile_small<12>};
constexpr FullTile FULL_TILES[MAX_ROWS] = {
    tile_full<1>, tile_full<2>, tile_full<3>, tile_full<4>,  tile_full<5>,  tile_full<6>,
    tile_full<7>, tile_full<8>, tile_full<9>, tile_full<10>, tile_full<11>, tile_full<12>};

// Where a product's results go.
struct Target {
    float* out;
    size_t stride;
    int width;       // columns that exist
    bool adds;       // to what stands there
    Act act;
};

void finish_row(const Product& product, int block, Floats left, Floats right, float* out,
                const Target& target) {
    const float* bias = product.bias.get() + size_t(block) * COLUMNS;
    left = left + load(bias);
    right = right + load(bias + LANES);
    Floats results[2] = {left, right};
    int columns = COLUMNS;
    if (target.act == SWIGLU) {
        results[0] = silu(left) * right;
        columns = LANES;
    } else if (target.act == GELU) {
        results[0] = gelu(left);
        results[1] = gelu(right);
    }
    const int first = block * columns, count = std::min(columns, target.width - first);
    float* to = out + first;
    if (count == columns) {
        for (int i = 0; i < columns / LANES; ++i)
            store(to + i * LANES, target.adds ? load(to + i * LANES) + results[i] : results[i]);
    } else {
        float part[COLUMNS];
        std::memcpy(part, results, sizeof part);
        for (int i = 0; i < count; ++i) to[i] = target.adds ? to[i] + part[i] : part[i];
    }
}

// The blocks of a product that fall to one thread, for all rows.
void multiply(const Product& product, const Rows& rows, int num_rows, Range blocks,
              const Target& target) {
    const int num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    alignas(64) int32_t ints[MAX_ROWS * COLUMNS];
    alignas(64) float floats[MAX_ROWS * COLUMNS];
    for (int block = blocks.first; block < blocks.end; ++block) {
        const size_t size = size_t(COLUMNS) * product.depth, at = block * size;
        const bool has_next = num_tiles > 1 && block + 1 < product.num_blocks;
        for (int tile = 0; tile < num_tiles; ++tile) {
            // The first two tiles fetch the next block. Where there is but one tile, the processor
            // sees a plain stream and does as well by itself.
            const size_t ahead = has_next && tile < 2 ? at + size + tile * (size / 2) : at;
            const Range of = share(num_rows, tile, num_tiles);
            const int count = of.end - of.first;
            if (product.is_int8)
                SMALL_TILES[count - 1](product.small.get() + at, product.depth,
                                       rows.small + size_t(of.first) * rows.stride, rows.stride,
                                       ints, product.small.get() + ahead);
            else
                FULL_TILES[count - 1](product.full.get() + at, product.depth,
                                      rows.full + size_t(of.first) * rows.stride, rows.stride,
                                      floats, product.full.get() + ahead);
            for (int i = 0; i < count; ++i) {
                const int row = of.first + i;
                Floats left, right;
                if (product.is_int8) {
                    Ints sums[2];
                    std::memcpy(sums, ints + i * COLUMNS, sizeof sums);
                    const float* scales = product.scales.get() + size_t(block) * COLUMNS;
                    const Floats scale = all(rows.scales[row]);
                    const int32_t offset = rows.offsets[row];
                    left = __builtin_convertvector(sums[0] - offset, Floats) * scale * load(scales);
                    right = __builtin_convertvector(sums[1] - offset, Floats) * scale *
                            load(scales + LANES);
                } else {
                    left = load(floats + i * COLUMNS);
                    right = load(floats + i * COLUMNS + LANES);
                }
                finish_row(product, block, left, right, target.out + row * target.stride, target);
            }
        }
    }
}

}  // namespace textmill
