#include "attention.h"

#include <algorithm>
#include <cstring>

#include "vector_math.h"

namespace textmill {

Attention::Attention(const Spec& spec, int num_threads)
    : num_heads_(spec.num_heads),
      num_kv_heads_(spec.num_kv_heads),
      head_dim_(spec.head_dim),
      padded_dim_((spec.head_dim + LANES - 1) / LANES * LANES),
      capacity_(spec.capacity),
      is_bfloat16_(spec.is_cache_bfloat16) {
    const size_t group = num_heads_ / num_kv_heads_;
    for (int rank = 0; rank < num_threads; ++rank)
        scores_.emplace_back(group * (capacity_ + 2 * LANES));
}

void Attention::append(const LayerCache& cache, int slot, int position, const float* keys,
                       const float* values) const {
    for (int kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
        const size_t head = size_t(slot) * num_kv_heads_ + kv_head;
        const float* key = keys + kv_head * head_dim_;
        const float* value = values + kv_head * head_dim_;
        if (is_bfloat16_) append_head<Bfloat16>(cache, head, position, key, value);
        else append_head<float>(cache, head, position, key, value);
    }
}

template <class T>
void Attention::append_head(const LayerCache& cache, size_t head, int position, const float* key,
                            const float* value) const {
    const size_t start = head * capacity_ * padded_dim_;
    T* keys = static_cast<T*>(cache.keys) + start +
              size_t(position / LANES) * LANES * padded_dim_ + position % LANES;
    T* values = static_cast<T*>(cache.values) + start + size_t(position) * padded_dim_;
    for (int i = 0; i < head_dim_; ++i) {
        store_rounded(keys + size_t(i) * LANES, key[i]);
        store_rounded(values + i, value[i]);
    }
}

void Attention::attend(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                       int rank) {
    if (is_bfloat16_) attend_group<Bfloat16>(cache, step, token, kv_head, rank);
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

// The positions of a head that a token attends to. They are read in blocks of sixteen; keys and values
// point to the block that contains the first position.
template <class T>
struct Attention::Context {
    int first, last, first_block;
    const T* keys;
    const T* values;
    int num_blocks() const { return last / LANES - first_block + 1; }
};

template <class T>
Attention::Context<T> Attention::context_of(const LayerCache& cache, const AttentionStep& step,
                                            int token, int kv_head) const {
    const int last = step.positions[token];
    const int first = cache.window ? std::max(0, last - cache.window + 1) : 0;
    const int block = first / LANES;
    const size_t start = (size_t(step.slots[token]) * num_kv_heads_ + kv_head) * capacity_;
    const size_t offset = (start + size_t(block) * LANES) * padded_dim_;
    return {first, last, block, static_cast<const T*>(cache.keys) + offset,
            static_cast<const T*>(cache.values) + offset};
}

// The arguments of sum_values. Positions are relative to the first block.
template <class T>
struct Attention::ValueSums {
    const T* values;
    const T* next_values;  // to be prefetched
    const float* weights;  // (queries, stride)
    int stride, first, last;
    const float* inverse_sums;  // 1 / the sum of each query's weights
    float* out;
    int width;
};

// Attention of a few queries that share keys and values. The slots are far apart in the cache, which the
// processor's own prefetching cannot foresee: while keys and values of this token and head are used, as
// many of the next pair are prefetched.
template <class T, int QUERIES>
void Attention::attend_queries(const LayerCache& cache, const AttentionStep& step, int token,
                               int kv_head, int first_query, int rank) {
    const int group = num_heads_ / num_kv_heads_;
    const auto context = context_of<T>(cache, step, token, kv_head);
    const int next_pair =
        std::min(token * num_kv_heads_ + kv_head + 1, step.num_tokens * num_kv_heads_ - 1);
    const auto next =
        context_of<T>(cache, step, next_pair / num_kv_heads_, next_pair % num_kv_heads_);
    const size_t query = size_t(kv_head * group + first_query) * head_dim_;
    const int stride = context.num_blocks() * LANES;
    float* scores = scores_[rank].get();
    Floats maxima[QUERIES];
    score<T, QUERIES>(context, next.keys, step.queries + token * step.query_stride + query, scores,
                      maxima);
    float inverse_sums[QUERIES];
    for (int q = 0; q < QUERIES; ++q) {
        const Floats top = broadcast(horizontal_maximum(maxima[q]));
        Floats total = {};
        for (int i = 0; i < stride; i += LANES) {
            const Floats weight = exp(load(scores + q * stride + i) - top);
            total = total + weight;
            store(scores + q * stride + i, weight);
        }
        inverse_sums[q] = 1.0f / horizontal_sum(total);
    }
    float* out = step.out + token * step.out_stride + query;
    const int skipped = context.first_block * LANES;
    for (int i = 0; i < head_dim_; i += 4 * LANES) {
        const ValueSums<T> of{context.values + i,
                              next.values + i,
                              scores,
                              stride,
                              context.first - skipped,
                              context.last - skipped,
                              inverse_sums,
                              out + i,
                              std::min(4 * LANES, head_dim_ - i)};
        switch ((of.width + LANES - 1) / LANES) {
            case 1: sum_values<T, QUERIES, 1>(of); break;
            case 2: sum_values<T, QUERIES, 2>(of); break;
            case 3: sum_values<T, QUERIES, 3>(of); break;
            default: sum_values<T, QUERIES, 4>(of);
        }
    }
}

// Scores (QUERIES, num_blocks * 16) of all positions of the context, -inf where a position is masked; and
// their maxima by lane.
template <class T, int QUERIES>
void Attention::score(const Context<T>& context, const T* next_keys, const float* queries,
                      float* scores, Floats* maxima) const {
    constexpr int PER_LINE = CACHE_LINE_BYTES / (LANES * sizeof(T));
    const Floats lanes = to_floats(lane_indices());
    const Floats masked = broadcast(NEGATIVE_INFINITY);
    const int num_blocks = context.num_blocks(), stride = num_blocks * LANES;
    for (int q = 0; q < QUERIES; ++q) maxima[q] = masked;
    for (int block = 0; block < num_blocks; ++block) {
        Floats sum[QUERIES] = {};
        const size_t start = size_t(block) * LANES * padded_dim_;
        for (int i = 0; i < head_dim_; ++i) {
            const size_t at = start + size_t(i) * LANES;
            if (i % PER_LINE == 0) prefetch(next_keys + at);
            const Floats column = load_float32(context.keys + at);
            TEXTMILL_UNROLL
            for (int q = 0; q < QUERIES; ++q)
                sum[q] = multiply_add(broadcast(queries[q * head_dim_ + i]), column, sum[q]);
        }
        const Floats where = lanes + broadcast(float((context.first_block + block) * LANES));
        for (int q = 0; q < QUERIES; ++q) {
            sum[q] = select(where < broadcast(float(context.first)), masked, sum[q]);
            sum[q] = select(where > broadcast(float(context.last)), masked, sum[q]);
            maxima[q] = maximum(maxima[q], sum[q]);
            store(scores + q * stride + block * LANES, sum[q]);
        }
    }
}

// Weighted sums of values, for at most VECTORS * LANES columns of a head.
template <class T, int QUERIES, int VECTORS>
void Attention::sum_values(const ValueSums<T>& of) const {
    Floats sum[QUERIES][VECTORS] = {};
    for (int position = of.first; position <= of.last; ++position) {
        const size_t start = size_t(position) * padded_dim_;
        Floats parts[VECTORS];
        for (int v = 0; v < VECTORS; ++v) parts[v] = load_float32(of.values + start + v * LANES);
        for (size_t v = 0; v < VECTORS; v += CACHE_LINE_BYTES / (LANES * sizeof(T)))
            prefetch(of.next_values + start + v * LANES);
        for (int q = 0; q < QUERIES; ++q) {
            const Floats weight = broadcast(of.weights[q * of.stride + position]);
            for (int v = 0; v < VECTORS; ++v)
                sum[q][v] = multiply_add(weight, parts[v], sum[q][v]);
        }
    }
    for (int q = 0; q < QUERIES; ++q) {
        float part[VECTORS * LANES];
        for (int v = 0; v < VECTORS; ++v)
            store(part + v * LANES, sum[q][v] * broadcast(of.inverse_sums[q]));
        std::memcpy(of.out + q * head_dim_, part, sizeof(float) * of.width);
    }
}

}  // namespace textmill
