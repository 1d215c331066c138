// What attention in float32 and in int8 have in common: a token's view of one head of the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vector_math.h"

namespace textmill {

struct HeadSizes {
    int head_dim, padded;  // padded to whole vectors
    int position;          // numbers of the cache's type that a position takes
};

// The positions of a head that a token attends to. They are read in blocks of sixteen; keys and values
// point to the block that contains the first position. `next_keys` and `next_values` are those of the next
// token or head, to be prefetched: slots are far apart in the cache, which the processor's own prefetching
// cannot foresee.
template <class T>
struct Context {
    HeadSizes sizes;
    int first, last, first_block;
    const T* keys;
    const T* values;
    const T* next_keys = nullptr;
    const T* next_values = nullptr;

    int num_blocks() const { return last / LANES - first_block + 1; }
    int stride() const { return num_blocks() * LANES; }
    size_t block_start(int block) const { return size_t(block) * LANES * sizes.position; }

    // The scores of a block, -inf at positions that the token does not attend to.
    TEXTMILL_INLINE Floats masked(int block, Floats scores) const {
        const int start = (first_block + block) * LANES;
        const Ints where = lane_indices() + broadcast(start);
        const Floats none = broadcast(NEGATIVE_INFINITY);
        scores = select(where < broadcast(first), none, scores);
        return select(where > broadcast(last), none, scores);
    }
};

// Weighted sums of values use as many vectors of columns at once as the registers hold for four queries.
constexpr int MAX_VECTORS = REGISTER_BYTES == 64 ? 4 : 1;

// Stores the first `width` numbers of each query's sums, times the query's factor.
template <int QUERIES, int VECTORS>
inline void store_sums(const Floats (&sum)[QUERIES][VECTORS], const float* factors, int head_dim,
                       int width, float* out) {
    for (int q = 0; q < QUERIES; ++q) {
        float part[VECTORS * LANES];
        for (int v = 0; v < VECTORS; ++v)
            store(part + v * LANES, sum[q][v] * broadcast(factors[q]));
        std::memcpy(out + size_t(q) * head_dim, part, sizeof(float) * width);
    }
}

}  // namespace textmill
