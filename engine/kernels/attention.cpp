#include "attention.h"

#include <algorithm>
#include <type_traits>

#include "attention_float32.h"
#include "attention_int8.h"

namespace textmill {

static HeadSizes sizes_of(const Spec& spec) {
    const int padded = (spec.head_dim + LANES - 1) / LANES * LANES;
    return {spec.head_dim, padded, padded + (spec.is_cache_int8 ? int(sizeof(float)) : 0)};
}

Attention::Attention(const Spec& spec, int num_threads)
    : num_heads_(spec.num_heads),
      num_kv_heads_(spec.num_kv_heads),
      capacity_(spec.capacity),
      is_int8_(spec.is_cache_int8),
      sizes_(sizes_of(spec)) {
    const size_t group = num_heads_ / num_kv_heads_;
    for (int rank = 0; rank < num_threads; ++rank) {
        scores_.emplace_back(group * (capacity_ + 2 * LANES));
        if (is_int8_) rounded_.emplace_back(group * (capacity_ + 2 * LANES));
    }
}

void Attention::append(const LayerCache& cache, int slot, int position, const float* keys,
                       const float* values) const {
    if (is_int8_) append_heads<int8_t>(cache, slot, position, keys, values);
    else append_heads<float>(cache, slot, position, keys, values);
}

template <class T>
void Attention::append_heads(const LayerCache& cache, int slot, int position, const float* keys,
                             const float* values) const {
    for (int kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
        const size_t head = size_t(slot) * num_kv_heads_ + kv_head;
        const size_t start = head * capacity_ * sizes_.position;
        append_head(sizes_, static_cast<T*>(cache.keys) + start,
                    static_cast<T*>(cache.values) + start, position,
                    keys + kv_head * sizes_.head_dim, values + kv_head * sizes_.head_dim);
    }
}

void Attention::attend(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                       int rank) {
    if (is_int8_) attend_group<int8_t>(cache, step, token, kv_head, rank);
    else attend_group<float>(cache, step, token, kv_head, rank);
}

template <class T>
void Attention::attend_group(const LayerCache& cache, const AttentionStep& step, int token,
                             int kv_head, int rank) {
    const int group = num_heads_ / num_kv_heads_;
    for (int first = 0; first < group; first += 4) switch (std::min(4, group - first)) {
            case 1: attend_queries<T, 1>(cache, step, token, kv_head, first, rank); break;
            case 2: attend_queries<T, 2>(cache, step, token, kv_head, first, rank); break;
            case 3: attend_queries<T, 3>(cache, step, token, kv_head, first, rank); break;
            default: attend_queries<T, 4>(cache, step, token, kv_head, first, rank);
        }
}

template <class T>
Context<T> Attention::context_of(const LayerCache& cache, const AttentionStep& step, int token,
                                 int kv_head) const {
    const int last = step.positions[token];
    const int first = cache.window ? std::max(0, last - cache.window + 1) : 0;
    const int block = first / LANES;
    const size_t start = (size_t(step.slots[token]) * num_kv_heads_ + kv_head) * capacity_;
    const size_t offset = (start + size_t(block) * LANES) * sizes_.position;
    return {sizes_, first, last, block, static_cast<const T*>(cache.keys) + offset,
            static_cast<const T*>(cache.values) + offset};
}

// Sums of all columns of the values, a few vectors at a time.
template <int QUERIES, class T, class Weight>
static void sum_values(const Context<T>& context, const Weight* weights, const float* factors,
                       float* out) {
    const int head_dim = context.sizes.head_dim;
    for (int column = 0; column < head_dim; column += MAX_VECTORS * LANES) {
        const int width = std::min(MAX_VECTORS * LANES, head_dim - column);
        const auto sum = [&](auto vectors) {
            sum_columns<QUERIES, vectors()>(context, weights, factors, column, width, out + column);
        };
        if constexpr (MAX_VECTORS == 1) sum(std::integral_constant<int, 1>());
        else switch ((width + LANES - 1) / LANES) {
                case 1: sum(std::integral_constant<int, 1>()); break;
                case 2: sum(std::integral_constant<int, 2>()); break;
                case 3: sum(std::integral_constant<int, 3>()); break;
                default: sum(std::integral_constant<int, 4>());
            }
    }
}

// Attention of a few queries that share keys and values.
template <class T, int QUERIES>
void Attention::attend_queries(const LayerCache& cache, const AttentionStep& step, int token,
                               int kv_head, int first_query, int rank) {
    auto context = context_of<T>(cache, step, token, kv_head);
    const int next_pair =
        std::min(token * num_kv_heads_ + kv_head + 1, step.num_tokens * num_kv_heads_ - 1);
    const auto next =
        context_of<T>(cache, step, next_pair / num_kv_heads_, next_pair % num_kv_heads_);
    context.next_keys = next.keys;
    context.next_values = next.values;
    const int group = num_heads_ / num_kv_heads_, stride = context.stride();
    const size_t query = size_t(kv_head * group + first_query) * sizes_.head_dim;
    float* scores = scores_[rank].get();
    Floats maxima[QUERIES];
    score<QUERIES>(context, step.queries + token * step.query_stride + query, scores, maxima);
    float factors[QUERIES];
    for (int q = 0; q < QUERIES; ++q) {
        const Floats top = broadcast(horizontal_maximum(maxima[q]));
        Floats total = {};
        for (int i = 0; i < stride; i += LANES) {
            const Floats weight = exp(load(scores + q * stride + i) - top);
            total = total + weight;
            store(scores + q * stride + i, weight);
        }
        factors[q] = 1.0f / horizontal_sum(total);
    }
    float* out = step.out + token * step.out_stride + query;
    if constexpr (sizeof(T) == 1) {
        int16_t* rounded = rounded_[rank].get();
        for (int q = 0; q < QUERIES; ++q)
            factors[q] *= round_weights(context, scores + q * stride, rounded + q * stride);
        sum_values<QUERIES>(context, rounded, factors, out);
    } else {
        sum_values<QUERIES>(context, scores, factors, out);
    }
}

}  // namespace textmill
