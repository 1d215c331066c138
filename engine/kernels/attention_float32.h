// Attention over a cache in float32.
//
// Keys are stored as (positions / 16, padded head_dim, 16), so that sixteen scores are summed side by
// side; values as (positions, padded head_dim).
#pragma once

#include "attention_context.h"

namespace textmill {

// Stores a position's key and value, (head_dim) each, in a head's part of the cache.
inline void append_head(const HeadSizes& sizes, float* keys, float* values, int position,
                        const float* key, const float* value) {
    keys += size_t(position / LANES) * LANES * sizes.padded + position % LANES;
    values += size_t(position) * sizes.padded;
    for (int i = 0; i < sizes.head_dim; ++i) {
        keys[size_t(i) * LANES] = key[i];
        values[i] = value[i];
    }
}

// Scores (QUERIES, context.stride()), and their maxima by lane.
template <int QUERIES>
void score(const Context<float>& context, const float* queries, float* scores, Floats* maxima) {
    const int num_blocks = context.num_blocks(), head_dim = context.sizes.head_dim;
    for (int q = 0; q < QUERIES; ++q) maxima[q] = broadcast(NEGATIVE_INFINITY);
    for (int block = 0; block < num_blocks; ++block) {
        Floats sum[QUERIES] = {};
        const float* keys = context.keys + context.block_start(block);
        const float* next = context.next_keys + context.block_start(block);
        for (int i = 0; i < head_dim; ++i, keys += LANES, next += LANES) {
            prefetch(next);
            const Floats column = load(keys);
            TEXTMILL_UNROLL
            for (int q = 0; q < QUERIES; ++q)
                sum[q] = multiply_add(broadcast(queries[q * head_dim + i]), column, sum[q]);
        }
        for (int q = 0; q < QUERIES; ++q) {
            const Floats own = context.masked(block, sum[q]);
            maxima[q] = maximum(maxima[q], own);
            store(scores + q * context.stride() + block * LANES, own);
        }
    }
}

// Sums of `width` columns of the values from `column` on, weighted by weights (QUERIES, context.stride()),
// times a factor of each query.
template <int QUERIES, int VECTORS>
void sum_columns(const Context<float>& context, const float* weights, const float* factors,
                 int column, int width, float* out) {
    const int skipped = context.first_block * LANES, stride = context.stride();
    Floats sum[QUERIES][VECTORS] = {};
    for (int position = context.first - skipped; position <= context.last - skipped; ++position) {
        const size_t start = size_t(position) * context.sizes.padded + column;
        Floats parts[VECTORS];
        TEXTMILL_UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            parts[v] = load(context.values + start + v * LANES);
            prefetch(context.next_values + start + v * LANES);
        }
        TEXTMILL_UNROLL
        for (int q = 0; q < QUERIES; ++q) {
            const Floats weight = broadcast(weights[q * stride + position]);
            TEXTMILL_UNROLL
            for (int v = 0; v < VECTORS; ++v)
                sum[q][v] = multiply_add(weight, parts[v], sum[q][v]);
        }
    }
    store_sums(sum, factors, context.sizes.head_dim, width, out);
}

}  // namespace textmill
