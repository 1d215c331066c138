// From a row of logits to a token by the row's own strategy, and the trace of the decision.
//
// logits → penalties → temperature → the strategy's filters → one draw by the inverse of the distribution
// function in the order of ids. engine/sampling/torch_sampler.py does the same in PyTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "interface.h"
#include "memory.h"

namespace textmill {

// Whether all parameters are within their ranges; others could leave no token to draw, or NaN.
bool is_in_range(const SamplingParameters& parameters);

// Whether no array is missing.
bool has_pointers(const SamplingParameters& parameters);

constexpr int BLOCK_TOKENS = 256;  // sums and searches of a row first go over blocks of so many tokens

// Samples one row at a time; each thread has its own.
class Sampler {
public:
    explicit Sampler(int vocabulary);

    // A token, or NO_TOKEN where logits (vocabulary) contain NaN or have no finite maximum. `trace` may be
    // null.
    int sample(const float* logits, const SamplingParameters& parameters, Trace* trace);

    // log(softmax(logits)), both (vocabulary); NaN everywhere if logits contain NaN or have no finite
    // maximum.
    void log_softmax(const float* logits, float* out);

private:
    // sampler.cpp
    bool load_scores(const float* logits);
    bool penalize(const float* logits, const SamplingParameters& parameters);
    bool refresh_maxima();
    template <class Scores>
    bool find_maxima(const Scores& scores);
    int argmax() const;
    void softmax(float temperature);
    void sum_blocks();
    void sum_total();
    int draw(double uniform) const;
    int last_possible_before(int end) const;

    // penalties.cpp
    bool adjust(const SamplingParameters& parameters);
    void penalize_seen(const SamplingParameters& parameters);
    void penalize_counts(const SamplingParameters& parameters);
    void penalize_repetitions(const SamplingParameters& parameters);

    // logits_filters.cpp
    double deviation() const;
    void drop_below(float bound);
    void filter(const SamplingParameters& parameters);
    void filter_custom(const SamplingParameters& parameters);
    void filter_top_k(int top_k);
    void filter_top_p(double top_p);
    void filter_min_p(float min_p);
    void filter_typical(double typical_p);
    void exclude_top(double threshold);
    template <class Value>
    void keep_first(const Value& value, double wanted);
    template <class Call>
    void for_each_possible(const Call& call) const;
    void drop_after(uint32_t order, int id);

    // trace.cpp
    void describe(const float* logits, Trace* trace);
    void find_likeliest(const float* logits, Trace* trace);
    void explain(const float* logits, const SamplingParameters& parameters, int token,
                 Trace* trace) const;

    const int vocabulary_, num_blocks_, padded_size_;
    Buffer<float> scores_;     // logits, then the arguments of the exponential
    Buffer<float> weights_;    // proportional to the probabilities; 0 outside of the filter
    Buffer<uint32_t> order_;   // the order in which a filter keeps tokens, smallest first
    Buffer<float> sums_;       // of each block's weights
    Buffer<float> maxima_;     // of each block's scores
    Buffer<float> own_maxima_; // of each block's logits, before the penalty
    Buffer<double> buckets_;
    std::vector<uint64_t> members_;
    std::vector<int> found_;
    Buffer<int32_t> marks_;  // of each token, zero between calls
    std::vector<int32_t> matched_, repeated_;  // see penalize_repetitions
    float largest_ = 0.0f;
    double total_ = 0.0, log_sum_ = 0.0;
};

}  // namespace textmill
