// The strategies' filters: each sets the weights of the tokens that may not be drawn to zero. A filter that
// keeps every token leaves the weights and their sums untouched.

#include <algorithm>

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
        default: return;
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
    keep_first([](int) { return 1.0; }, top_k);
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
    for (int i = 0; i < vocabulary_; ++i) {
        const uint32_t bucket = order_[i] >> BUCKET_BITS;
        buckets_[bucket] += value(i);
        first = std::min(first, bucket);
        last = std::max(last, bucket);
    }
    double sum = 0.0;
    uint32_t bucket = first;
    while (bucket < last && sum + buckets_[bucket] < wanted) sum += buckets_[bucket++];
    members_.clear();
    for (int i = 0; i < vocabulary_; ++i)
        if (order_[i] >> BUCKET_BITS == bucket)
            members_.push_back(uint64_t(order_[i]) << 32 | uint32_t(i));
    std::sort(members_.begin(), members_.end());
    uint64_t bound = members_.front();
    for (uint64_t member : members_) {
        bound = member;
        sum += value(int(uint32_t(member)));
        if (sum >= wanted) break;
    }
    drop_after(uint32_t(bound >> 32), int(uint32_t(bound)));
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

}  // namespace textmill
