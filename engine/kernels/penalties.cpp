// What the strategy custom does to the scores before the temperature: biases and penalties.

#include <algorithm>

#include "sampler.h"
#include "status.h"

namespace textmill {

constexpr int MAX_DRY_TOKENS = 50;  // longer repetitions count as so long, or the penalty would overflow

// Applies them to the scores; false if these contain NaN afterwards.
bool Sampler::adjust(const SamplingParameters& parameters) {
    const CustomParameters& own = *parameters.custom;
    const auto is_token = [&](int32_t id) { return id >= 0 && id < vocabulary_; };
    // All are checked before the first change, because a failure must not leave marks behind.
    require(std::all_of(parameters.seen, parameters.seen + parameters.num_seen, is_token), BAD_TOKEN);
    require(std::all_of(own.bias_ids, own.bias_ids + own.num_biases, is_token), BAD_TOKEN);
    for (int i = 0; i < own.num_biases; ++i) scores_[own.bias_ids[i]] += own.biases[i];
    if (parameters.repetition_penalty != 1.0f) penalize_seen(parameters);
    if (own.frequency_penalty != 0.0f || own.presence_penalty != 0.0f) penalize_counts(parameters);
    if (own.dry_multiplier > 0.0) penalize_repetitions(parameters);
    return refresh_maxima();
}

// The repetition penalty, once for each token.
void Sampler::penalize_seen(const SamplingParameters& parameters) {
    const float penalty = parameters.repetition_penalty;
    const int32_t *first = parameters.seen, *end = first + parameters.num_seen;
    for (const int32_t* id = first; id != end; ++id) {
        if (marks_[*id]) continue;
        marks_[*id] = 1;
        float& score = scores_[*id];
        score = score < 0 ? score * penalty : score / penalty;
    }
    for (const int32_t* id = first; id != end; ++id) marks_[*id] = 0;
}

// OpenAI's penalties: their number times the frequency penalty, plus the presence penalty, of the generated tokens.
void Sampler::penalize_counts(const SamplingParameters& parameters) {
    const CustomParameters& own = *parameters.custom;
    const int32_t* end = parameters.seen + parameters.num_seen;
    const int32_t* first = end - own.num_generated;
    for (const int32_t* id = first; id != end; ++id) ++marks_[*id];
    for (const int32_t* id = first; id != end; ++id) {
        if (!marks_[*id]) continue;
        scores_[*id] -= float(marks_[*id]) * own.frequency_penalty + own.presence_penalty;
        marks_[*id] = 0;
    }
}

// DRY (p-e-w, "DRY: a modern repetition penalty", 2024): for each place at which the text's last tokens occurred
// before, the token that followed there is penalized, by the length of the longest such repetition.
//
// The lengths are the Z-function of the text read backwards, so that the time is proportional to the text.
void Sampler::penalize_repetitions(const SamplingParameters& parameters) {
    const CustomParameters& own = *parameters.custom;
    const int count = own.dry_range > 0 ? std::min(own.dry_range, parameters.num_seen) : parameters.num_seen;
    const auto token = [&](int i) { return parameters.seen[parameters.num_seen - 1 - i]; };
    const auto is_breaker = [&](int32_t id) {
        return std::find(own.breaker_ids, own.breaker_ids + own.num_breakers, id) !=
               own.breaker_ids + own.num_breakers;
    };
    int limit = 0;  // the tokens after the last breaker
    while (limit < std::min(count, MAX_DRY_TOKENS) && !is_breaker(token(limit))) ++limit;
    if (limit < own.dry_allowed_length) return;
    matched_.resize(count);
    repeated_.clear();
    repeated_.reserve(count);
    for (int i = 1, left = 0, right = 0; i < count; ++i) {
        int length = i < right ? std::min(right - i, matched_[i - left]) : 0;
        while (i + length < count && token(length) == token(i + length)) ++length;
        if (i + length > right) left = i, right = i + length;
        matched_[i] = length;
        length = std::min(length, limit);
        const int32_t next = token(i - 1);
        if (length < own.dry_allowed_length || is_breaker(next)) continue;
        if (!marks_[next]) repeated_.push_back(next);
        marks_[next] = std::max(marks_[next], length);
    }
    for (int32_t id : repeated_) {
        double penalty = own.dry_multiplier;
        for (int length = own.dry_allowed_length; length < marks_[id]; ++length) penalty *= own.dry_base;
        scores_[id] -= float(penalty);
        marks_[id] = 0;
    }
}

}  // namespace textmill
