// Linear layers whose weights are packed for products with a few tokens, in float32 or int8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "activations.h"
#include "memory.h"
#include "thread_pool.h"

namespace textmill {

constexpr int COLUMNS = 32;  // outputs of a packed block

enum Activation { LINEAR = 0, GELU = 1, SWIGLU = 2 };

// The inputs of a product: in float32, or in int8 with a scale of their own for each token.
struct Inputs {
    const float* full = nullptr;
    int stride = 0;
    const int8_t* int8 = nullptr;
    const float* scales = nullptr;
    const int32_t* offsets = nullptr;  // see quantize
};

// The destination of a product's results.
struct Outputs {
    float* data;
    size_t stride;
    int width;     // columns that exist
    bool is_added;  // to the numbers at the destination
    Activation activation;
};

// A weight matrix (outputs, inputs) and its bias, packed in blocks of COLUMNS outputs.
//
// An int8 block is (inputs / 4, 2, 16, 4) unsigned bytes, in which 128 represents 0. Its inputs are
// transformed by `hadamard`, and each output has a scale. A float32 block is (inputs, 32). With SWIGLU the
// first half of a block contains gates, the second half the outputs that they multiply.
class PackedLinear {
public:
    PackedLinear() = default;
    PackedLinear(int inputs, int outputs, bool is_gated, bool is_int8);

    int inputs() const { return inputs_; }
    int outputs() const { return outputs_; }
    int num_blocks() const { return num_blocks_; }

    // weight (outputs, inputs); bias (outputs) or null.
    void pack(Range blocks, const float* weight, const float* bias);

    // The results of some blocks for the first num_tokens inputs.
    void multiply(const Inputs& inputs, int num_tokens, Range blocks, const Outputs& outputs) const;

    bool is_given = false;  // whether all blocks were packed

private:
    int output_at(int block, int column) const;
    void pack_int8(int block, int column, const float* weights);
    void pack_float32(int block, int column, const float* weights);
    void multiply_block(const Inputs& inputs, Range tokens, int block, size_t prefetched,
                        const Outputs& outputs) const;
    void finish(int block, Floats left, Floats right, float* out, const Outputs& outputs) const;

    int inputs_ = 0, outputs_ = 0, depth_ = 0, num_blocks_ = 0;
    bool is_gated_ = false, is_int8_ = false;
    Buffer<uint8_t> int8_;
    Buffer<float> full_, scales_, bias_;
};

}  // namespace textmill
