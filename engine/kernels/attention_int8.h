// Attention over a cache in int8, with a scale for each position of a head.
//
// A block of sixteen positions is, for keys, (padded head_dim / 2, 16, 2) bytes, for values (8, padded
// head_dim, 2), and ends with a float32 scale for each position: products are summed in pairs. Queries, and
// the weights of values, are rounded to 16 bits, so that only the cache's own rounding matters. All sums of
// products are exact integers.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention_context.h"

namespace textmill {

// The sums of head_dim products of 16 and of 8 bits stay below 2^31: 512 * 32767 * 127.
constexpr int MAX_INT8_HEAD_DIM = 512;
// Blocks of sixteen positions whose weighted values are summed in 32 bits, by the same bound.
constexpr int CHUNK_BLOCKS = MAX_INT8_HEAD_DIM / LANES;
constexpr float MAX_SHORT = 32767.0f;

// A head of a query, a key or a value, padded with zeros.
struct Head {
    alignas(64) float numbers[MAX_INT8_HEAD_DIM];
    float largest = 0.0f, check = 0.0f;  // 0, or NaN where a number is not finite

    // `is_transformed`: by `hadamard`, which distributes outliers over their neighbours and keeps the
    // products of queries and keys.
    Head(const HeadSizes& sizes, const float* from, bool is_transformed) {
        std::copy_n(from, sizes.head_dim, numbers);
        std::fill(numbers + sizes.head_dim, numbers + sizes.padded, 0.0f);
        if (is_transformed) transform(sizes.padded);
        Floats maxima = {}, not_finite = {};
        for (int i = 0; i < sizes.padded; i += LANES) {
            const Floats v = load(numbers + i);
            maxima = maximum(maxima, maximum(v, -v));
            not_finite = not_finite + (v - v);
        }
        largest = horizontal_maximum(maxima);
        check = horizontal_sum(not_finite);
    }

    // Integers of at most `bound`, sixteen from `first` on.
    Ints rounded(int first, float bound) const {
        if (!(check == 0.0f) || !(largest > 1e-30f)) return Ints{};
        return to_ints(round_to_even(load(numbers + first) * broadcast(bound / largest)));
    }

    float scale(float bound) const { return largest / bound + check; }

private:
    void transform(int padded) {
        if (padded % HADAMARD_SIZE) {
            for (int i = 0; i < padded; i += LANES)
                store(numbers + i, hadamard(load(numbers + i)) * broadcast(0.25f));
            return;
        }
        for (int i = 0; i < padded; i += HADAMARD_SIZE) {
            Floats v[4];
            for (int j = 0; j < 4; ++j) v[j] = load(numbers + i + j * LANES);
            hadamard(v);
            for (int j = 0; j < 4; ++j)
                store(numbers + i + j * LANES, v[j] * broadcast(0.125f));
        }
    }
};

inline void append_head(const HeadSizes& sizes, int8_t* keys, int8_t* values, int position,
                        const float* key, const float* value) {
    const size_t start = size_t(position / LANES) * LANES * sizes.position;
    const size_t scales = start + size_t(LANES) * sizes.padded;
    const int lane = position % LANES;
    const Head own_key(sizes, key, true), own_value(sizes, value, false);
    for (int i = 0; i < sizes.padded; i += LANES) {
        uint8_t bytes[LANES];
        store(bytes, to_bytes(own_key.rounded(i, 127.0f)));
        for (int j = 0; j < LANES; j += 2)
            std::memcpy(keys + start + size_t(i + j) * LANES + 2 * lane, bytes + j, 2);
        store(bytes, to_bytes(own_value.rounded(i, 127.0f)));
        int8_t* to = values + start + (size_t(lane / 2) * sizes.padded + i) * 2 + lane % 2;
        for (int j = 0; j < LANES; ++j) to[2 * j] = int8_t(bytes[j]);
    }
    const float key_scale = own_key.scale(127.0f), value_scale = own_value.scale(127.0f);
    std::memcpy(keys + scales + lane * sizeof(float), &key_scale, sizeof(float));
    std::memcpy(values + scales + lane * sizeof(float), &value_scale, sizeof(float));
}

// The scales of a block's positions.
inline Floats scales_of(const HeadSizes& sizes, const int8_t* block) {
    return load_vector<Floats>(block + size_t(LANES) * sizes.padded);
}

template <int QUERIES>
void score(const Context<int8_t>& context, const float* queries, float* scores, Floats* maxima) {
    const HeadSizes& sizes = context.sizes;
    alignas(64) int32_t pairs[QUERIES][MAX_INT8_HEAD_DIM / 2];  // of 16 bits each
    float query_scales[QUERIES];
    for (int q = 0; q < QUERIES; ++q) {
        const Head query(sizes, queries + size_t(q) * sizes.head_dim, true);
        for (int i = 0; i < sizes.padded; i += LANES) {
            const Shorts shorts = to_shorts(query.rounded(i, MAX_SHORT));
            store_vector(pairs[q] + i / 2, shorts);
        }
        query_scales[q] = query.scale(MAX_SHORT);
        maxima[q] = broadcast(NEGATIVE_INFINITY);
    }
    const int num_blocks = context.num_blocks(), num_pairs = sizes.padded / 2;
    for (int block = 0; block < num_blocks; ++block) {
        const int8_t* keys = context.keys + context.block_start(block);
        const int8_t* next = context.next_keys + context.block_start(block);
        Ints sum[QUERIES] = {};
        for (int i = 0; i < num_pairs; i += 2, next += CACHE_LINE_BYTES) {
            prefetch(next);
            TEXTMILL_UNROLL
            for (int j = 0; j < 2; ++j) {
                const ShortPairs two = widen_pairs(keys + size_t(i + j) * 2 * LANES);
                TEXTMILL_UNROLL
                for (int q = 0; q < QUERIES; ++q) sum[q] = dot2(sum[q], two, pairs[q][i + j]);
            }
        }
        prefetch(next);
        const Floats key_scales = scales_of(sizes, keys);
        for (int q = 0; q < QUERIES; ++q) {
            const Floats own = context.masked(
                block, to_floats(sum[q]) * (broadcast(query_scales[q]) * key_scales));
            maxima[q] = maximum(maxima[q], own);
            store(scores + q * context.stride() + block * LANES, own);
        }
    }
}

// Multiplies a query's weights by the scales of the values, and rounds them to 16 bits, with one scale for
// all of them. Returns that scale; it is not finite where a weight is not.
inline float round_weights(const Context<int8_t>& context, float* weights, int16_t* rounded) {
    const int num_blocks = context.num_blocks();
    Floats maxima = {}, not_finite = {};
    for (int block = 0; block < num_blocks; ++block) {
        const Floats weight = load(weights + block * LANES);
        const Floats scale = scales_of(context.sizes, context.values + context.block_start(block));
        // The scale of a position that is not attended to may be anything.
        const Floats own = select(weight == Floats{}, Floats{}, weight * scale);
        maxima = maximum(maxima, own);
        not_finite = not_finite + (own - own);
        store(weights + block * LANES, own);
    }
    const float largest = horizontal_maximum(maxima), check = horizontal_sum(not_finite);
    const bool is_used = check == 0.0f && largest > 1e-30f;
    const Floats inverse = broadcast(is_used ? MAX_SHORT / largest : 0.0f);
    for (int i = 0; i < num_blocks * LANES; i += LANES) {
        const Floats own = is_used ? round_to_even(load(weights + i) * inverse) : Floats{};
        store(rounded + i, to_shorts(to_ints(own)));
    }
    return largest / MAX_SHORT + check;
}

template <int QUERIES, int VECTORS>
void sum_columns(const Context<int8_t>& context, const int16_t* weights, const float* factors,
                 int column, int width, float* out) {
    const HeadSizes& sizes = context.sizes;
    const int num_blocks = context.num_blocks(), stride = context.stride();
    Floats total[QUERIES][VECTORS] = {};
    for (int first = 0; first < num_blocks; first += CHUNK_BLOCKS) {
        Ints sum[QUERIES][VECTORS] = {};
        for (int block = first; block < std::min(first + CHUNK_BLOCKS, num_blocks); ++block) {
            const size_t start = context.block_start(block) + size_t(column) * 2;
            for (int pair = 0; pair < LANES / 2; ++pair) {
                const size_t at = start + size_t(pair) * sizes.padded * 2;
                ShortPairs parts[VECTORS];
                TEXTMILL_UNROLL
                for (int v = 0; v < VECTORS; ++v) {
                    parts[v] = widen_pairs(context.values + at + v * LANES * 2);
                    prefetch(context.next_values + at + v * LANES * 2);
                }
                TEXTMILL_UNROLL
                for (int q = 0; q < QUERIES; ++q) {
                    int32_t two;
                    std::memcpy(&two, weights + q * stride + block * LANES + pair * 2, sizeof two);
                    TEXTMILL_UNROLL
                    for (int v = 0; v < VECTORS; ++v) sum[q][v] = dot2(sum[q][v], parts[v], two);
                }
            }
        }
        for (int q = 0; q < QUERIES; ++q)
            for (int v = 0; v < VECTORS; ++v) total[q][v] = total[q][v] + to_floats(sum[q][v]);
    }
    store_sums(total, factors, sizes.head_dim, width, out);
}

}  // namespace textmill
