// Linear layers whose weights are packed for products with a few tokens, in float32 or int8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "activations.h"
#include "memory.h"
#include "thread_pool.h"

namespace textmill {

constexpr int COLUMNS = 32;  // outputs of a packed block

// The largest sum of the positive ones, and of the negative ones, of the weights of an output for inputs
// n, n + 1, n + 4 and n + 5, and for n + 2, n + 3, n + 6 and n + 7, where n is a multiple of 8.
//
// Activations are unsigned bytes of at most 255. VPMADDUBSW sums two of their products in 16 bits, and
// saturates; the sum of two such sums, by VPADDW, would overflow. Neither happens: all sums of products
// with positive weights are at most 255 * 128 = 32640, and with negative weights at least -32640.
constexpr int MAX_QUAD_SUM = 128;

enum Activation { LINEAR = 0, GELU = 1, SWIGLU = 2 };

// The inputs of a product: in float32, or in int8 with a scale of their own for each token.
struct Inputs {
    const float* full = nullptr;
    int stride = 0;
    const uint8_t* int8 = nullptr;  // see quantize
    const float* scales = nullptr;
};

// The destination of a product's results.
struct Outputs {
    float* data;
    size_t stride;
    int width;     // columns that exist
    bool is_added;  // to the numbers at the destination
    Activation activation;
};

struct Sums;  // of products, before scales and biases

// A weight matrix (outputs, inputs) and its bias, packed in blocks of COLUMNS outputs.
//
// A block consists of panels of Tile::OUTPUTS outputs. An int8 panel is (inputs / 4, outputs, 4) signed
// bytes. Its inputs are transformed by `hadamard`, and each output has a scale. A float32 panel is (inputs,
// outputs). With SWIGLU the first half of a block contains gates, the second half the outputs that they
// multiply.
class PackedLinear {
public:
    PackedLinear() = default;
    PackedLinear(int inputs, int outputs, bool is_gated, bool is_int8);

    int inputs() const { return inputs_; }
    int outputs() const { return outputs_; }
    int num_blocks() const { return num_blocks_; }

    // weight (outputs, inputs), without those before the first output; bias (outputs) or null.
    void pack(Range blocks, const float* weight, const float* bias, int first = 0);

    // The blocks of some outputs, which are packed without the others; without a block if that is impossible.
    Range blocks_of(int64_t first, int64_t count) const;

    // The results of some blocks for the first num_tokens inputs.
    void multiply(const Inputs& inputs, int num_tokens, Range blocks, const Outputs& outputs) const;

    bool is_given = false;  // whether all blocks were packed
    int num_given = 0;      // outputs that were packed in parts, in their order

private:
    int output_at(int block, int column) const;
    size_t panel_of(int block, int column) const;
    void pack_int8(int block, int column, const float* weights);
    void pack_float32(int block, int column, const float* weights);
    template <class Weight, class Input, class Sum>
    void multiply_block(const Weight* weights, const Input* inputs, int stride, int num_tokens,
                        Sum* sums) const;
    template <Activation ACTIVATION>
    void finish(const Inputs& inputs, Range tokens, int block, const Sums& sums,
                const Outputs& outputs) const;

    int inputs_ = 0, outputs_ = 0, depth_ = 0, num_blocks_ = 0;
    bool is_gated_ = false, is_int8_ = false;
    Buffer<int8_t> int8_;
    Buffer<int32_t> excess_;  // ACTIVATION_OFFSET times the sum of an output's weights
    Buffer<float> full_, scales_, bias_;
};

}  // namespace textmill
