// A decoder: its layers, and the order of a step. It knows nothing of families, token ids or text.
//
// The arithmetic of one token does not depend on the other tokens of the step: every sum over a token's
// activations, and every weighted sum over its context, runs in one order, which is the same on every
// instruction set. The contraction of products and sums is switched off (-ffp-contract=off), so that the
// compiler cannot decide otherwise for some tile sizes; where a fused operation is meant, it is written.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "interface.h"
#include "memory.h"
#include "packed_linear.h"
#include "sampler.h"
#include "thread_pool.h"

namespace textmill {

struct Norm {
    Buffer<float> weight, bias;
    bool has_bias = false, is_given = false;
    const float* bias_or_null() const { return has_bias ? bias.get() : nullptr; }
};

struct Layer {
    Norm norms[2];  // before attention, and before the feed-forward part
    PackedLinear qkv, out, up, down;
    LayerCache cache;
};

enum Phase { PRODUCTS = 0, ATTENTION = 1, OTHER = 2, HEAD = 3, NUM_PHASES = 4 };
enum Part { QKV = 0, OUT = 1, UP = 2, DOWN = 3, NUM_PARTS = 4 };
constexpr int HEAD_LAYER = -1;  // the number of the head and of the norm before it

// The methods are those of interface.h; they throw a Failure where a function returns a Status.
class Decoder {
public:
    explicit Decoder(const Spec& spec);

    void set_outputs(int layer, int part, int64_t first, const float* weight, int64_t outputs,
                     int64_t inputs);
    void set_linear(int layer, int part, const float* weight, int64_t outputs, int64_t inputs,
                    const float* bias, int64_t num_bias);
    void set_norm(int layer, int index, const float* weight, int64_t count, const float* bias,
                  int64_t num_bias);
    void set_cache(int layer, void* keys, void* values, int64_t count, int window);
    void set_rotary(const float* cos, const float* sin, int64_t positions, int64_t half);

    void forward(int num_tokens, const float* hidden, const int32_t* positions,
                 const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits);
    void sample(int num_rows, const float* logits, const SamplingParameters* parameters,
                int32_t* tokens, Trace* traces);

    void log_softmax(int num_rows, const float* logits, float* out);

    const double* seconds() const { return seconds_; }  // (NUM_PHASES)

private:
    void allocate(Norm& norm);
    Norm& norm_at(int layer, int index);
    PackedLinear& linear_at(int layer, int part);
    void require_complete();
    void check_positions(int num_tokens, const int32_t* positions, const int32_t* slots);

    void compute_layer(Layer& layer, int rank);
    void compute_head(int num_wanted, const int32_t* wanted, float* logits, int rank);
    void normalize_token(const Norm& norm, int from, int to, int rank);
    void normalize_tokens(const Norm& norm, int rank);
    void quantize_token(const float* from, int width, int token, int rank);
    void quantize_tokens(const float* from, int width, int rank);
    void apply(const PackedLinear& linear, const float* from, int stride, const Outputs& outputs,
               int rank);
    void prepare_attention(Layer& layer, Range tokens);
    void rotate(float* head, int position) const;
    Inputs inputs_of(const float* full, int stride) const;
    template <class Work>
    void for_each_row(int num_rows, const Work& work);
    template <class Work>
    void parallel_for(Phase phase, int rank, int count, const Work& work);

    const Spec spec_;
    ThreadPool pool_;
    Attention attention_;
    std::vector<Layer> layers_;
    Norm final_norm_;
    PackedLinear head_;
    int width_, qkv_width_, mixed_width_, inner_width_, max_width_;  // padded
    // Activations (max_tokens, padded width), and their rounded form with its scales.
    Buffer<float> hidden_, normed_, qkv_, mixed_, inner_, scales_;
    Buffer<uint8_t> int8_;
    bool is_complete_ = false;
    uint64_t num_steps_ = 0;
    Buffer<uint64_t> last_steps_;  // by slot: the last step with a token of it, and its position
    Buffer<int32_t> last_positions_;
    std::vector<Buffer<float>> scratch_;  // by thread
    std::vector<Sampler> samplers_;       // by thread
    const float* cos_ = nullptr;
    const float* sin_ = nullptr;
    const int32_t* positions_ = nullptr;  // of the current step
    const int32_t* slots_ = nullptr;
    int num_tokens_ = 0;
    double seconds_[NUM_PHASES] = {};
    std::chrono::steady_clock::time_point last_time_;
};

}  // namespace textmill
