// The strategies' filters: each sets the weights of the tokens that may not be drawn to zero. A filter that
// keeps every token leaves the weights and their sums untouched.

#include <algorithm>
#include <cmath>

#include "sampler.h"
#include "vector_math.h"

namespace textmill {

constexpr int BUCKET_BITS = 18;  // the orders in a bucket agree in all bits but the last 18

void Sampler::filter(const SamplingParameters& parameters) {
    switch (parameters.strategy) {
        case TOP_K: return filter_top_k(parameters.top_k);
        case TOP_P: return filter_top_p(parameters.mass);
        case MIN_P: return filter_min_p(parameters.min_p);
        case TYPICAL: return filter_typical(parameters.mass);
        case CUSTOM: return filter_custom(parameters);
        default: return;
    }
}

// One filter after the other, in transformers' order, then XTC. Each takes what the one before left as a whole
// distribution. The likeliest token, of weight 1, is kept up to filter_typical.
void Sampler::filter_custom(const SamplingParameters& parameters) {
    if (parameters.top_k > 0) filter_top_k(parameters.top_k);
    filter_top_p(parameters.mass);
    filter_min_p(parameters.min_p);
    filter_typical(parameters.custom->typical_p);
    if (parameters.custom->excludes_top) exclude_top(parameters.custom->xtc_threshold);
}

// The standard deviation of the finite scores (Tang et al., "Top-nsigma: not all logits are you need", 2024).
double Sampler::deviation() const {
    const Floats largest = broadcast(largest_), one = broadcast(1.0f);
    double count = 0.0, sum = 0.0, squares = 0.0;
    for (int block = 0; block < num_blocks_; ++block) {
        Floats counts = {}, distances = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES) {
            const Floats score = load(scores_.get() + i);
            const Ints is_finite = score > broadcast(NEGATIVE_INFINITY);
            counts = counts + select(is_finite, one, Floats{});
            distances = distances + select(is_finite, score - largest, Floats{});
        }
        count += horizontal_sum(counts);
        sum += horizontal_sum(distances);
    }
    const Floats mean = broadcast(float(sum / count));
    for (int block = 0; block < num_blocks_; ++block) {
        Floats own = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES) {
            const Floats score = load(scores_.get() + i), distance = (score - largest) - mean;
            const Ints is_finite = score > broadcast(NEGATIVE_INFINITY);
            own = own + select(is_finite, distance * distance, Floats{});
        }
        squares += horizontal_sum(own);
    }
    return std::sqrt(squares / count);
}

// Makes tokens with a lower score impossible.
void Sampler::drop_below(float bound) {
    const Floats least = broadcast(bound);
    for (int i = 0; i < padded_size_; i += LANES) {
        const Floats score = load(scores_.get() + i);
        store(scores_.get() + i, select(score < least, broadcast(NEGATIVE_INFINITY), score));
    }
}

void Sampler::filter_top_k(int top_k) {
    if (top_k >= vocabulary_) return;
    for (int i = 0; i < padded_size_; i += LANES) {
        // Integers in the order of the floats, reversed: larger scores first.
        const Ints bits = as_ints(load(scores_.get() + i));
        const Words ascending = as_words(bits ^ ((bits >> 31) & broadcast(0x7fffffff)));
        store(order_.get() + i, broadcast(0x7fffffffu) - ascending);
    }
    keep_first([this](int i) { return weights_[i] > 0.0f ? 1.0 : 0.0; }, top_k);
}

void Sampler::filter_top_p(double top_p) {
    if (top_p >= 1.0) return;
    for (int i = 0; i < padded_size_; i += LANES)  // a weight is at most 1, or 0x3f800000
        store(order_.get() + i, broadcast(0x3f800000u) - as_words(load(weights_.get() + i)));
    keep_first([this](int i) { return double(weights_[i]); }, top_p * total_);
}

void Sampler::filter_min_p(float min_p) {
    if (min_p <= 0.0f) return;
    const Floats bound = broadcast(min_p);  // the likeliest token has weight 1
    for (int i = 0; i < padded_size_; i += LANES) {
        const Floats weight = load(weights_.get() + i);
        store(weights_.get() + i, select(weight < bound, Floats{}, weight));
    }
    sum_blocks();
}

// Keeps the tokens whose surprise is closest to the entropy.
void Sampler::filter_typical(double typical_p) {
    if (typical_p >= 1.0) return;
    double mean = 0.0;  // of the scores, by weight
    for (int block = 0; block < num_blocks_; ++block) {
        Floats sum = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES) {
            const Floats weight = load(weights_.get() + i);
            const Floats term = weight * load(scores_.get() + i);
            sum = sum + select(weight > broadcast(0.0f), term, Floats{});
        }
        mean += horizontal_sum(sum);
    }
    const Floats center = broadcast(float(mean / total_));
    for (int i = 0; i < padded_size_; i += LANES) {
        const Floats difference = load(scores_.get() + i) - center;
        const Floats distance = select(difference < broadcast(0.0f), -difference, difference);
        const Words is_possible = as_words(load(weights_.get() + i) > broadcast(0.0f));
        store(order_.get() + i, (as_words(distance) & is_possible) | ~is_possible);
    }
    keep_first([this](int i) { return double(weights_[i]); }, typical_p * total_);
}

// Keeps the first tokens by order whose values add up to `wanted`; of equals those with the lower ids.
//
// The values are summed in buckets by the first bits of the orders; only the bucket in which the sum reaches
// `wanted` is sorted.
template <class Value>
void Sampler::keep_first(const Value& value, double wanted) {
    std::fill(buckets_.get(), buckets_.get() + (size_t(1) << (32 - BUCKET_BITS)), 0.0);
    uint32_t first = ~0u, last = 0;
    for_each_possible([&](int i) {
        const double own = value(i);
        if (!(own > 0.0)) return;
        const uint32_t bucket = order_[i] >> BUCKET_BITS;
        buckets_[bucket] += own;
        first = std::min(first, bucket);
        last = std::max(last, bucket);
    });
    double sum = 0.0;
    uint32_t bucket = first;
    while (bucket < last && sum + buckets_[bucket] < wanted) sum += buckets_[bucket++];
    members_.clear();
    for_each_possible([&](int i) {
        if (order_[i] >> BUCKET_BITS == bucket && value(i) > 0.0)
            members_.push_back(uint64_t(order_[i]) << 32 | uint32_t(i));
    });
    std::sort(members_.begin(), members_.end());
    uint64_t bound = members_.front();
    for (uint64_t member : members_) {
        bound = member;
        sum += value(int(uint32_t(member)));
        if (sum >= wanted) break;
    }
    drop_after(uint32_t(bound >> 32), int(uint32_t(bound)));
}

// Calls with each token of the blocks that have a weight: few, after a filter.
template <class Call>
void Sampler::for_each_possible(const Call& call) const {
    for (int block = 0; block < num_blocks_; ++block) {
        if (!(sums_[block] > 0.0f)) continue;
        const int end = std::min(vocabulary_, (block + 1) * BLOCK_TOKENS);
        for (int i = block * BLOCK_TOKENS; i < end; ++i) call(i);
    }
}

// Sets the weights of all tokens after one of them to zero.
void Sampler::drop_after(uint32_t order, int id) {
    for (int i = 0; i < padded_size_; i += LANES) {
        const Words own = load_vector<Words>(order_.get() + i);
        const Ints is_before = lane_indices() < broadcast(id + 1 - i);
        const Ints is_kept =
            (own < broadcast(order)) | ((own == broadcast(order)) & is_before);
        const Words weight = as_words(load(weights_.get() + i)) & as_words(is_kept);
        store(weights_.get() + i, as_floats(weight));
    }
    sum_blocks();
}

// Excludes the tokens with at least a share of the probability, except the least likely of them, of equals the
// last (p-e-w, "Exclude Top Choices (XTC)", 2024).
void Sampler::exclude_top(double threshold) {
    const float bound = float(threshold * total_);
    int least = -1, count = 0;
    for (int block = 0; block < num_blocks_; ++block) {
        Floats own = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES)
            own = maximum(own, load(weights_.get() + i));
        if (horizontal_maximum(own) < bound) continue;
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; ++i) {
            if (weights_[i] < bound || !(weights_[i] > 0.0f)) continue;
            ++count;
            if (least < 0 || weights_[i] <= weights_[least]) least = i;
        }
    }
    if (count < 2) return;
    const float kept = weights_[least];
    for (int i = 0; i < padded_size_; i += LANES) {
        const Floats weight = load(weights_.get() + i);
        store(weights_.get() + i, select(weight < broadcast(bound), weight, Floats{}));
    }
    weights_[least] = kept;
    sum_blocks();
}

}  // namespace textmill
