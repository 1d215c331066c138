// The trace of a sampled token: its probability, its rank, and the likeliest alternatives.

#include <algorithm>
#include <functional>

#include "logarithm.h"
#include "sampler.h"
#include "vector_math.h"

namespace textmill {

// Describes the model's own distribution, before penalty and temperature.
void Sampler::describe(const float* logits, Trace* trace) {
    std::copy_n(maxima_.get(), num_blocks_, own_maxima_.get());
    const Floats largest = broadcast(largest_);
    double sum = 0.0, mean = 0.0;
    for (int block = 0; block < num_blocks_; ++block) {
        Floats weights = {}, terms = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES) {
            const Floats x = load(scores_.get() + i) - largest, weight = exp(x);
            weights = weights + weight;
            terms = terms + select(weight > broadcast(0.0f), weight * x, Floats{});
        }
        sum += horizontal_sum(weights);
        mean += horizontal_sum(terms);
    }
    const double log_sum = logarithm(sum);  // sum is 1 or more
    log_sum_ = largest_ + log_sum;
    trace->entropy = float(log_sum - mean / sum);
    find_likeliest(logits, trace);
}

// The n likeliest tokens are within the n blocks that have the largest maxima.
void Sampler::find_likeliest(const float* logits, Trace* trace) {
    const int count = std::min(NUM_ALTERNATIVES, vocabulary_);
    std::vector<float> maxima(maxima_.get(), maxima_.get() + num_blocks_);
    float bound = NEGATIVE_INFINITY;
    if (num_blocks_ > count) {
        std::nth_element(maxima.begin(), maxima.begin() + count - 1, maxima.end(),
                         std::greater<float>());
        bound = maxima[count - 1];
    }
    found_.clear();
    for (int block = 0; block < num_blocks_; ++block) {
        if (maxima_[block] < bound) continue;
        const int end = std::min(vocabulary_, (block + 1) * BLOCK_TOKENS);
        for (int i = block * BLOCK_TOKENS; i < end; ++i)
            if (logits[i] >= bound) found_.push_back(i);
    }
    std::partial_sort(found_.begin(), found_.begin() + count, found_.end(), [&](int a, int b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    for (int i = 0; i < NUM_ALTERNATIVES; ++i) {
        trace->ids[i] = i < count ? found_[i] : -1;
        trace->logprobs[i] = i < count ? float(logits[found_[i]] - log_sum_) : 0.0f;
    }
}

// Adds the rank of the sampled token, and the probabilities after the filter.
void Sampler::explain(const float* logits, const SamplingParameters& parameters, int token,
                      Trace* trace) const {
    const float value = logits[token];
    trace->logprob = float(value - log_sum_);
    int rank = 0;  // including the token itself
    for (int block = 0; block < num_blocks_; ++block) {
        if (own_maxima_[block] < value) continue;
        const int end = std::min(vocabulary_, (block + 1) * BLOCK_TOKENS);
        for (int i = block * BLOCK_TOKENS; i < end; ++i)
            rank += i <= token ? logits[i] >= value : logits[i] > value;
    }
    trace->rank = rank;
    const auto probability = [&](int id) {
        if (parameters.strategy == GREEDY) return id == token ? 1.0f : 0.0f;
        return float(weights_[id] / total_);
    };
    trace->probability = probability(token);
    for (int i = 0; i < NUM_ALTERNATIVES && trace->ids[i] >= 0; ++i)
        trace->probabilities[i] = probability(trace->ids[i]);
}

}  // namespace textmill
