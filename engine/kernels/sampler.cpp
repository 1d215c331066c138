#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "logarithm.h"
#include "status.h"
#include "vector_math.h"

namespace textmill {

constexpr int NUM_BUCKETS = 1 << 14;  // see keep_first

bool is_finite_and_positive(double number) { return std::isfinite(number) && number > 0.0; }

bool is_finite_and_not_negative(double number) { return std::isfinite(number) && number >= 0.0; }

bool is_in_range(const CustomParameters& of, const SamplingParameters& with) {
    return of.num_biases >= 0 && of.num_breakers >= 0 && of.num_generated >= 0 &&
           of.num_generated <= with.num_seen && std::isfinite(of.frequency_penalty) &&
           std::isfinite(of.presence_penalty) && is_finite_and_not_negative(of.dry_multiplier) &&
           is_finite_and_positive(of.dry_base) && of.dry_allowed_length >= 1 &&
           of.dry_range >= 0 && is_finite_and_not_negative(of.top_n_sigma) && with.top_k >= 0 &&
           with.mass > 0.0 && of.typical_p > 0.0 && is_finite_and_positive(of.xtc_threshold);
}

bool is_in_range(const SamplingParameters& of) {
    const bool has_mass = of.strategy == TOP_P || of.strategy == TYPICAL;
    const bool has_min_p = of.strategy == MIN_P || of.strategy == CUSTOM;
    const bool may_be_custom = of.strategy == CUSTOM || of.strategy == GREEDY;
    return of.strategy >= GREEDY && of.strategy <= CUSTOM && of.num_seen >= 0 &&
           (of.custom ? may_be_custom && is_in_range(*of.custom, of) : of.strategy != CUSTOM) &&
           (of.num_seen == 0 || is_finite_and_positive(of.repetition_penalty)) &&
           (of.strategy == GREEDY || is_finite_and_not_negative(of.temperature)) &&
           (of.strategy != TOP_K || of.top_k >= 1) && (!has_mass || of.mass > 0.0) &&
           (!has_min_p || (of.min_p >= 0.0f && of.min_p <= 1.0f)) &&
           of.uniform >= 0.0 && of.uniform < 1.0;
}

bool has_pointers(const SamplingParameters& of) {
    return (!of.num_seen || of.seen) &&
           (!of.custom ||
            ((!of.custom->num_biases || (of.custom->bias_ids && of.custom->biases)) &&
             (!of.custom->num_breakers || of.custom->breaker_ids)));
}

Sampler::Sampler(int vocabulary)
    : vocabulary_(vocabulary),
      num_blocks_((vocabulary + BLOCK_TOKENS - 1) / BLOCK_TOKENS),
      padded_size_(num_blocks_ * BLOCK_TOKENS),
      scores_(padded_size_),
      weights_(padded_size_),
      order_(padded_size_),
      sums_(num_blocks_),
      maxima_(num_blocks_),
      own_maxima_(num_blocks_),
      buckets_(NUM_BUCKETS),
      marks_(vocabulary) {}

int Sampler::sample(const float* logits, const SamplingParameters& parameters, Trace* trace) {
    if (!load_scores(logits) || !std::isfinite(largest_)) return NO_TOKEN;
    if (trace) describe(logits, trace);
    const CustomParameters* custom = parameters.custom;
    const bool is_cut = custom && custom->top_n_sigma > 0.0f && parameters.strategy != GREEDY;
    const double spread = is_cut ? custom->top_n_sigma * deviation() : 0.0;
    const bool is_usable = custom ? adjust(parameters)
                                  : !parameters.num_seen || penalize(logits, parameters);
    if (!is_usable || !std::isfinite(largest_)) return NO_TOKEN;
    if (is_cut) drop_below(float(largest_ - spread));
    int token;
    if (parameters.strategy == GREEDY) {
        token = argmax();
    } else {
        softmax(parameters.temperature);
        filter(parameters);
        token = draw(parameters.uniform);
    }
    if (trace) explain(logits, parameters, token, trace);
    return token;
}

void Sampler::log_softmax(const float* logits, float* out) {
    if (!load_scores(logits) || !std::isfinite(largest_)) {
        std::fill_n(out, vocabulary_, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    softmax(1.0f);  // the scores are relative to the largest from here on
    const float log_sum = float(logarithm(total_));
    for (int i = 0; i < vocabulary_; ++i) out[i] = scores_[i] - log_sum;
}

// Copies the logits into the scores, padded to whole blocks; false if they contain NaN.
bool Sampler::load_scores(const float* logits) {
    const int whole = vocabulary_ / BLOCK_TOKENS * BLOCK_TOKENS;
    std::copy(logits + whole, logits + vocabulary_, scores_.get() + whole);
    std::fill(scores_.get() + vocabulary_, scores_.get() + padded_size_, NEGATIVE_INFINITY);
    return find_maxima([&](int i) {
        if (i >= whole) return load(scores_.get() + i);
        const Floats v = load(logits + i);
        store(scores_.get() + i, v);
        return v;
    });
}

// Applies the repetition penalty to the scores; false if they contain NaN afterwards.
bool Sampler::penalize(const float* logits, const SamplingParameters& parameters) {
    const float penalty = parameters.repetition_penalty;
    for (int i = 0; i < parameters.num_seen; ++i) {
        const int token = parameters.seen[i];
        require(token >= 0 && token < vocabulary_, BAD_TOKEN);
        const float value = logits[token];
        scores_[token] = value < 0 ? value * penalty : value / penalty;
    }
    return refresh_maxima();
}

// After a change of the scores; false if they contain NaN.
bool Sampler::refresh_maxima() {
    return find_maxima([&](int i) { return load(scores_.get() + i); });
}

// The largest score of each block and of the row, from a function that gives sixteen scores; false if they
// contain NaN.
template <class Scores>
bool Sampler::find_maxima(const Scores& scores) {
    Floats row = broadcast(NEGATIVE_INFINITY);
    Ints is_nan = {};
    for (int block = 0; block < num_blocks_; ++block) {
        Floats own = broadcast(NEGATIVE_INFINITY);
        for (int i = 0; i < BLOCK_TOKENS; i += LANES) {
            const Floats v = scores(block * BLOCK_TOKENS + i);
            own = maximum(own, v);
            is_nan = is_nan | (v != v);
        }
        maxima_[block] = horizontal_maximum(own);
        row = maximum(row, own);
    }
    largest_ = horizontal_maximum(row);
    return !any_lane(is_nan);
}

// The lowest id with the largest score.
int Sampler::argmax() const {
    int block = 0;
    while (maxima_[block] != largest_) ++block;
    int token = block * BLOCK_TOKENS;
    while (scores_[token] != largest_) ++token;
    return token;
}

// Sets the weights to exp((score - largest) / temperature), and the scores to the argument of exp.
void Sampler::softmax(float temperature) {
    const Floats largest = broadcast(largest_);
    const Floats inverse =
        broadcast(1.0f / std::max(temperature, std::numeric_limits<float>::min()));
    for (int block = 0; block < num_blocks_; ++block) {
        Floats sum = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES) {
            const Floats x = (load(scores_.get() + i) - largest) * inverse;
            const Floats weight = exp(x);
            store(scores_.get() + i, x);
            store(weights_.get() + i, weight);
            sum = sum + weight;
        }
        sums_[block] = horizontal_sum(sum);
    }
    sum_total();
}

void Sampler::sum_blocks() {
    for (int block = 0; block < num_blocks_; ++block) {
        Floats sum = {};
        for (int i = block * BLOCK_TOKENS; i < (block + 1) * BLOCK_TOKENS; i += LANES)
            sum = sum + load(weights_.get() + i);
        sums_[block] = horizontal_sum(sum);
    }
    sum_total();
}

void Sampler::sum_total() {
    total_ = 0.0;
    for (int block = 0; block < num_blocks_; ++block) total_ += sums_[block];
}

// The first token at which the running sum of the weights exceeds uniform * total; the last possible one of
// the block where rounding keeps the sum below that.
int Sampler::draw(double uniform) const {
    const double target = uniform * total_;
    double sum = 0.0;
    int block = 0;
    while (block < num_blocks_ - 1 && sum + sums_[block] <= target) sum += sums_[block++];
    const int end = (block + 1) * BLOCK_TOKENS;
    for (int i = block * BLOCK_TOKENS; i < end; ++i) {
        sum += weights_[i];
        if (sum > target) return i;
    }
    return last_possible_before(end);
}

int Sampler::last_possible_before(int end) const {
    int i = end - 1;
    while (i > 0 && !(weights_[i] > 0.0f)) --i;
    if (weights_[i] > 0.0f) return i;
    while (!(weights_[i] > 0.0f)) ++i;
    return i;
}

}  // namespace textmill
