// From a row of logits to a token, by the row's own strategy; and why it was that one.
//
// logits → repetition penalty → temperature → the strategy's cut → one draw by the inverse of the
// distribution function in the order of ids, as engine.sampling.torch_sampler does it in PyTorch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "memory.h"
#include "status.h"
#include "team.h"
#include "vectors.h"

namespace textmill {

enum Kind { GREEDY = 0, SAMPLING = 1, TOP_K = 2, TOP_P = 3, MIN_P = 4, TYPICAL = 5 };

struct Draw {  // mirrored in engine/sampling/native_sampler.py
    int32_t kind, top_k, num_seen, wants_trace;
    const int32_t* seen;  // tokens that the penalty is for
    float temperature, penalty, min_p;
    double share;  // in [0, 1): the uniform number
    double mass;   // of the nucleus or the typical set
};
static_assert(sizeof(Draw) == 56);

constexpr int ALTERNATIVES = 20;
constexpr int UNSOUND = -1;  // instead of a token, where a row has NaN or no largest number

struct Trace {  // mirrored in engine/sampling/native_sampler.py
    int32_t rank;
    float logprob, probability, entropy;
    int32_t ids[ALTERNATIVES];
    float logprobs[ALTERNATIVES], probabilities[ALTERNATIVES];
};
static_assert(sizeof(Trace) == 256);

// Parameters outside of their range could leave nothing to draw, or not a number.
inline bool is_in_range(const Draw& draw) {
    const bool has_mass = draw.kind == TOP_P || draw.kind == TYPICAL;
    return draw.kind >= GREEDY && draw.kind <= TYPICAL && draw.num_seen >= 0 &&
           (draw.num_seen == 0 || (std::isfinite(draw.penalty) && draw.penalty > 0.0f)) &&
           (draw.kind == GREEDY || (std::isfinite(draw.temperature) && draw.temperature >= 0.0f)) &&
           (draw.kind != TOP_K || draw.top_k >= 1) && (!has_mass || draw.mass > 0.0) &&
           (draw.kind != MIN_P || (draw.min_p >= 0.0f && draw.min_p <= 1.0f)) &&
           draw.share >= 0.0 && draw.share < 1.0;
}

constexpr int PART = 256;  // what sums or searches a row takes parts of so many tokens first

// One thread's room for a row.
class Sampler {
public:
    explicit Sampler(int vocabulary)
        : size_(vocabulary),
          num_parts_((vocabulary + PART - 1) / PART),
          scores_(size_t(num_parts_) * PART),
          weights_(size_t(num_parts_) * PART),
          order_(size_t(num_parts_) * PART),
          sums_(num_parts_),
          most_(num_parts_),
          own_most_(num_parts_),
          buckets_(size_t(1) << (32 - BUCKET_BITS)) {}

    int choose(const float* logits, const Draw& draw, Trace* trace) {
        if (!take(logits) || !std::isfinite(largest_)) return UNSOUND;
        if (trace) describe(logits, trace);
        if (draw.num_seen) {
            for (int i = 0; i < draw.num_seen; ++i) {
                require(draw.seen[i] >= 0 && draw.seen[i] < size_, BAD_TOKEN);
                const float value = logits[draw.seen[i]];
                scores_[draw.seen[i]] = value < 0 ? value * draw.penalty : value / draw.penalty;
            }
            const bool is_sound = find_largest([&](int i) { return load(scores_.get() + i); });
            if (!is_sound || !std::isfinite(largest_)) return UNSOUND;
        }
        int token;
        if (draw.kind == GREEDY) {
            token = first_largest();
        } else {
            weigh(draw.temperature);
            cut(draw);
            token = drawn(draw.share);
        }
        if (trace) explain(logits, draw, token, trace);
        return token;
    }

private:
    static constexpr float LOWEST = -std::numeric_limits<float>::infinity();
    static constexpr int BUCKET_BITS = 18;  // a bucket's members agree in all bits but the last 18

    // Scores are the logits at first; false where there is NaN.
    bool take(const float* logits) {
        const int num_whole = size_ / PART;
        std::copy(logits + num_whole * PART, logits + size_, scores_.get() + num_whole * PART);
        std::fill(scores_.get() + size_, scores_.get() + size_t(num_parts_) * PART, LOWEST);
        return find_largest([&](int i) {
            if (i >= num_whole * PART) return load(scores_.get() + i);
            const Floats v = load(logits + i);
            store(scores_.get() + i, v);
            return v;
        });
    }

    // The largest of scores that come sixteen at a time, all in all and of each part; false where
    // there is NaN.
    template <class Scores>
    bool find_largest(const Scores& scores) {
        Floats most = all(LOWEST);
        Ints spoilt = {};
        for (int part = 0; part < num_parts_; ++part) {
            Floats own = all(LOWEST);
            for (int i = 0; i < PART; i += LANES) {
                const Floats v = scores(part * PART + i);
                own = larger(own, v);
                spoilt |= v != v;
            }
            most_[part] = largest_of(own);
            most = larger(most, own);
        }
        largest_ = largest_of(most);
        for (int lane = 0; lane < LANES; ++lane)
            if (spoilt[lane]) return false;
        return true;
    }

    int first_largest() const {
        int part = 0;
        while (most_[part] != largest_) ++part;
        int token = part * PART;
        while (scores_[token] != largest_) ++token;
        return token;
    }

    // Weights by the temperature; scores become what the exponential was taken of.
    void weigh(float temperature) {
        const Floats most = all(largest_);
        const Floats inverse = all(1.0f / std::max(temperature, std::numeric_limits<float>::min()));
        for (int part = 0; part < num_parts_; ++part) {
            Floats sum = {};
            for (int i = part * PART; i < (part + 1) * PART; i += LANES) {
                const Floats x = (load(scores_.get() + i) - most) * inverse;
                const Floats weight = exp_of(x);
                store(scores_.get() + i, x);
                store(weights_.get() + i, weight);
                sum = sum + weight;
            }
            sums_[part] = sum_of(sum);
        }
        total();
    }

    void sum_parts() {
        for (int part = 0; part < num_parts_; ++part) {
            Floats sum = {};
            for (int i = part * PART; i < (part + 1) * PART; i += LANES)
                sum = sum + load(weights_.get() + i);
            sums_[part] = sum_of(sum);
        }
        total();
    }

    void total() {
        total_ = 0.0;
        for (int part = 0; part < num_parts_; ++part) total_ += sums_[part];
    }

    // Set to zero what the strategy may not draw; a cut that leaves nothing out changes nothing.
    void cut(const Draw& draw) {
        const int end = num_parts_ * PART;
        switch (draw.kind) {
            case TOP_K:
                if (draw.top_k >= size_) return;
                // Larger scores first: floats as integers of the same order, turned round.
                for (int i = 0; i < end; i += LANES) {
                    const Ints bits = (Ints)load(scores_.get() + i);
                    const Words ordered = (Words)(bits ^ ((bits >> 31) & 0x7fffffff));
                    store_order(i, 0x7fffffffu - ordered);
                }
                return keep_first([](int) { return 1.0; }, draw.top_k);
            case TOP_P:
                if (draw.mass >= 1.0) return;
                for (int i = 0; i < end; i += LANES)  // a weight is at most 1
                    store_order(i, 0x3f800000u - (Words)load(weights_.get() + i));
                return keep_first([this](int i) { return double(weights_[i]); },
                                  draw.mass * total_);
            case MIN_P: {
                if (draw.min_p <= 0.0f) return;
                const Floats bound = all(draw.min_p);  // the likeliest has 1
                for (int i = 0; i < end; i += LANES) {
                    const Floats weight = load(weights_.get() + i);
                    store(weights_.get() + i, weight < bound ? Floats{} : weight);
                }
                return sum_parts();
            }
            case TYPICAL: return cut_typical(draw);
            default: return;
        }
    }

    // Tokens about as surprising as expected first.
    void cut_typical(const Draw& draw) {
        if (draw.mass >= 1.0) return;
        const int end = num_parts_ * PART;
        double mean = 0.0;  // of the exponents
        for (int part = 0; part < num_parts_; ++part) {
            Floats sum = {};
            for (int i = part * PART; i < (part + 1) * PART; i += LANES) {
                const Floats weight = load(weights_.get() + i);
                sum = sum + (weight > 0.0f ? weight * load(scores_.get() + i) : Floats{});
            }
            mean += sum_of(sum);
        }
        const Floats middle = all(float(mean / total_));
        for (int i = 0; i < end; i += LANES) {
            const Floats off = load(scores_.get() + i) - middle;
            const Floats distance = off < 0.0f ? -off : off;
            const Floats weight = load(weights_.get() + i);
            store_order(i, weight > 0.0f ? (Words)distance : ~Words{});
        }
        keep_first([this](int i) { return double(weights_[i]); }, draw.mass * total_);
    }

    void store_order(int i, Words order) { std::memcpy(order_.get() + i, &order, sizeof order); }

    // Keep the first tokens by order, of equals the lower ids, that together are worth as much.
    template <class Worth>
    void keep_first(const Worth& worth, double wanted) {
        std::fill(buckets_.get(), buckets_.get() + (size_t(1) << (32 - BUCKET_BITS)), 0.0);
        uint32_t first = ~0u, last = 0;
        for (int i = 0; i < size_; ++i) {
            const uint32_t bucket = order_[i] >> BUCKET_BITS;
            buckets_[bucket] += worth(i);
            first = std::min(first, bucket);
            last = std::max(last, bucket);
        }
        double have = 0.0;
        uint32_t bucket = first;
        while (bucket < last && have + buckets_[bucket] < wanted) have += buckets_[bucket++];
        members_.clear();
        for (int i = 0; i < size_; ++i)
            if (order_[i] >> BUCKET_BITS == bucket)
                members_.push_back(uint64_t(order_[i]) << 32 | uint32_t(i));
        std::sort(members_.begin(), members_.end());
        uint64_t bound = members_.front();
        for (uint64_t member : members_) {
            bound = member;
            have += worth(int(uint32_t(member)));
            if (have >= wanted) break;
        }
        drop_after(uint32_t(bound >> 32), int(uint32_t(bound)));
    }

    void drop_after(uint32_t order, int id) {
        const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int i = 0; i < num_parts_ * PART; i += LANES) {
            Words own;
            std::memcpy(&own, order_.get() + i, sizeof own);
            const Ints is_kept = (own < order) | ((own == order) & (lanes + i <= id));
            const Words weight = (Words)load(weights_.get() + i) & (Words)is_kept;
            store(weights_.get() + i, (Floats)weight);
        }
        sum_parts();
    }

    // Where the running sum passes a share of the whole; by rounding it may never do.
    int drawn(double share) const {
        const double target = share * total_;
        double sum = 0.0;
        int part = 0;
        while (part < num_parts_ - 1 && sum + sums_[part] <= target) sum += sums_[part++];
        int token = last_before((part + 1) * PART);
        for (int i = part * PART; i < (part + 1) * PART; ++i) {
            sum += weights_[i];
            if (sum > target) return i;
        }
        return token;
    }

    int last_before(int end) const {
        int i = end - 1;
        while (i > 0 && !(weights_[i] > 0.0f)) --i;
        if (weights_[i] > 0.0f) return i;
        while (!(weights_[i] > 0.0f)) ++i;
        return i;
    }

    // The model's own distribution, before penalty and temperature.
    void describe(const float* logits, Trace* trace) {
        std::copy_n(most_.get(), num_parts_, own_most_.get());
        const Floats most = all(largest_);
        double sum = 0.0, mean = 0.0;
        for (int part = 0; part < num_parts_; ++part) {
            Floats weights = {}, terms = {};
            for (int i = part * PART; i < (part + 1) * PART; i += LANES) {
                const Floats x = load(scores_.get() + i) - most, weight = exp_of(x);
                weights = weights + weight;
                terms = terms + (weight > 0.0f ? weight * x : Floats{});
            }
            sum += sum_of(weights);
            mean += sum_of(terms);
        }
        log_sum_ = largest_ + std::log(sum);
        trace->entropy = float(std::log(sum) - mean / sum);
        find_likeliest(logits, trace);
    }

    // The likeliest tokens lie in as many parts, those with the largest maxima.
    void find_likeliest(const float* logits, Trace* trace) {
        const int count = std::min(ALTERNATIVES, size_);
        std::vector<float> maxima(most_.get(), most_.get() + num_parts_);
        float bound = LOWEST;
        if (num_parts_ > count) {
            std::nth_element(maxima.begin(), maxima.begin() + count - 1, maxima.end(),
                             std::greater<float>());
            bound = maxima[count - 1];
        }
        found_.clear();
        for (int part = 0; part < num_parts_; ++part) {
            if (most_[part] < bound) continue;
            for (int i = part * PART; i < std::min(size_, (part + 1) * PART); ++i)
                if (logits[i] >= bound) found_.push_back(i);
        }
        std::partial_sort(found_.begin(), found_.begin() + count, found_.end(), [&](int a, int b) {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        });
        for (int i = 0; i < ALTERNATIVES; ++i) {
            trace->ids[i] = i < count ? found_[i] : -1;
            trace->logprobs[i] = i < count ? float(logits[found_[i]] - log_sum_) : 0.0f;
        }
    }

    void explain(const float* logits, const Draw& draw, int token, Trace* trace) const {
        const float value = logits[token];
        trace->logprob = float(value - log_sum_);
        int rank = 0;  // the token itself counts once
        for (int part = 0; part < num_parts_; ++part) {
            if (own_most_[part] < value) continue;
            for (int i = part * PART; i < std::min(size_, (part + 1) * PART); ++i)
                rank += i <= token ? logits[i] >= value : logits[i] > value;
        }
        trace->rank = rank;
        const auto probability = [&](int id) {
            if (draw.kind == GREEDY) return id == token ? 1.0f : 0.0f;
            return float(weights_[id] / total_);
        };
        trace->probability = probability(token);
        for (int i = 0; i < ALTERNATIVES && trace->ids[i] >= 0; ++i)
            trace->probabilities[i] = probability(trace->ids[i]);
    }

    int size_, num_parts_;
    Block<float> scores_, weights_;
    Block<uint32_t> order_;  // which tokens a cut keeps first, smallest first
    Block<float> sums_, most_;  // of each part
    Block<float> own_most_;     // the model's own, where a penalty came after
    Block<double> buckets_;
    std::vector<uint64_t> members_;
    std::vector<int> found_;
    float largest_ = 0.0f;
    double total_ = 0.0, log_sum_ = 0.0;
};

}  // namespace textmill
