// Primitives for x86-64 with AVX2.
#pragma once

#include <immintrin.h>

#include "generic.h"

namespace textmill {

using generic::clamp_for_exp;
using generic::HAS_INT8_DOT;
using generic::multiply_add;
using generic::round_to_even;
using generic::scale_for_exp;
using generic::store_int8;

// Sums of 16-bit products: unlike VPMADDUBSW, VPMADDWD does not saturate here.
inline Ints dot4(Ints sum, const uint8_t* weights, const int8_t* x) {
    const __m256i even = _mm256_set1_epi32((x[0] & 0xffff) | int(uint32_t(x[2]) << 16));
    const __m256i odd = _mm256_set1_epi32((x[1] & 0xffff) | int(uint32_t(x[3]) << 16));
    __m256i halves[2];
    std::memcpy(halves, &sum, sizeof halves);
    for (int i = 0; i < 2; ++i) {
        __m256i bytes;
        std::memcpy(&bytes, weights + 32 * i, sizeof bytes);
        const __m256i low = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
        const __m256i high = _mm256_srli_epi16(bytes, 8);
        const __m256i products =
            _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        halves[i] = _mm256_add_epi32(halves[i], products);
    }
    std::memcpy(&sum, halves, sizeof sum);
    return sum;
}

inline void pause_spinning() { _mm_pause(); }

}  // namespace textmill
