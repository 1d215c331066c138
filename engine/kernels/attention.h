// Attention of a step's tokens over the key-value cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "interface.h"
#include "memory.h"

namespace textmill {

// One layer's keys and values, each (slots, kv heads, capacity, padded head_dim) float32 or bfloat16.
// Within a slot's head, keys are stored as (positions / 16, padded head_dim, 16), so that sixteen scores
// are summed side by side; values as (positions, padded head_dim).
struct LayerCache {
    void* keys = nullptr;
    void* values = nullptr;
    int window = 0;  // positions that a token attends to; 0 for all earlier ones
};

// The tokens of a step: queries (num_tokens, query_stride), already rotated and scaled.
struct AttentionStep {
    const float* queries;
    size_t query_stride;
    float* out;
    size_t out_stride;
    const int32_t* positions;
    const int32_t* slots;
    int num_tokens;
};

class Attention {
public:
    Attention(const Spec& spec, int num_threads);

    // head_dim, padded to whole vectors.
    int padded_dim() const { return padded_dim_; }

    // Stores a token's keys and values, (kv heads, head_dim) each.
    void append(const LayerCache& cache, int slot, int position, const float* keys,
                const float* values) const;

    // Attention of one token's queries that share a key-value head; `rank` is the calling thread's.
    void attend(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                int rank);

private:
    template <class T>
    struct Context;
    template <class T>
    struct ValueSums;

    template <class T>
    void append_head(const LayerCache& cache, size_t head, int position, const float* key,
                     const float* value) const;
    template <class T>
    void attend_group(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                      int rank);
    template <class T, int QUERIES>
    void attend_queries(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                        int first_query, int rank);
    template <class T>
    Context<T> context_of(const LayerCache& cache, const AttentionStep& step, int token,
                          int kv_head) const;
    template <class T, int QUERIES>
    void score(const Context<T>& context, const T* next_keys, const float* queries, float* scores,
               Floats* maxima) const;
    template <class T, int QUERIES, int VECTORS>
    void sum_values(const ValueSums<T>& of) const;

    const int num_heads_, num_kv_heads_, head_dim_, padded_dim_, capacity_;
    const bool is_bfloat16_;
    std::vector<Buffer<float>> scores_;  // by thread
};

}  // namespace textmill
