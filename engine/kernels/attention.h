// Attention of a step's tokens over the key-value cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention_context.h"
#include "interface.h"
#include "memory.h"

namespace textmill {

// One layer's keys and values, each (slots, kv heads, capacity, position size) of float or int8_t, in the
// order of attention_float32.h or attention_int8.h.
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

    // Numbers of the cache's type that a position of a head takes.
    int position_size() const { return sizes_.position; }

    // Stores a token's keys and values, (kv heads, head_dim) each.
    void append(const LayerCache& cache, int slot, int position, const float* keys,
                const float* values) const;

    // Attention of one token's queries that share a key-value head; `rank` is the calling thread's.
    void attend(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                int rank);

private:
    template <class T>
    void append_heads(const LayerCache& cache, int slot, int position, const float* keys,
                      const float* values) const;
    template <class T>
    void attend_group(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                      int rank);
    template <class T, int QUERIES>
    void attend_queries(const LayerCache& cache, const AttentionStep& step, int token, int kv_head,
                        int first_query, int rank);
    template <class T>
    Context<T> context_of(const LayerCache& cache, const AttentionStep& step, int token,
                          int kv_head) const;

    const int num_heads_, num_kv_heads_, capacity_;
    const bool is_int8_;
    const HeadSizes sizes_;
    std::vector<Buffer<float>> scores_;     // by thread
    std::vector<Buffer<int16_t>> rounded_;  // by thread
};

}  // namespace textmill
