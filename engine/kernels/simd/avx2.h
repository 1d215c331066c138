// Primitives for x86-64 with AVX2 and FMA, and with AVX-VNNI where the target has it.
#pragma once

#include <immintrin.h>

#include "generic.h"

namespace textmill {

using generic::ACTIVATION_OFFSET;
using generic::clamp_for_exp;
using generic::scale_for_exp;

TEXTMILL_INLINE FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
    return (FloatRegister)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

TEXTMILL_INLINE FloatRegister round_to_even(FloatRegister x) {
    return (FloatRegister)_mm256_round_ps((__m256)x,
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

TEXTMILL_INLINE __m256i broadcast4(const uint8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

TEXTMILL_INLINE IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    const __m256i first = load_vector<__m256i>(weights);
    const __m256i second = load_vector<__m256i>(weights + stride);
#if defined(__AVXVNNI__)
    const __m256i four = _mm256_dpbusd_avx_epi32((__m256i)sum, broadcast4(x), first);
    return (IntRegister)_mm256_dpbusd_avx_epi32(four, broadcast4(x + 4), second);
#else
    // Neither these sums of two products nor the sums of two such sums leave 16 bits: see MAX_QUAD_SUM.
    const __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(broadcast4(x), first),
                                              _mm256_maddubs_epi16(broadcast4(x + 4), second));
    return (IntRegister)_mm256_add_epi32(
        (__m256i)sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
#endif
}

TEXTMILL_INLINE ShortRegister widen(const int8_t* from) {
    return (ShortRegister)_mm256_cvtepi8_epi16(load_vector<__m128i>(from));
}

TEXTMILL_INLINE IntRegister dot2(IntRegister sum, ShortRegister numbers, int32_t pair) {
    const __m256i pairs = _mm256_set1_epi32(pair);
#if defined(__AVXVNNI__)
    return (IntRegister)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)numbers, pairs);
#else
    return (IntRegister)_mm256_add_epi32((__m256i)sum,
                                         _mm256_madd_epi16((__m256i)numbers, pairs));
#endif
}

// See generic.h. The sums of a tile fill most of the registers.
struct Tile {
    static constexpr int OUTPUTS = 16, INT8_TOKENS = 4, FLOAT32_TOKENS = 6;
};

TEXTMILL_INLINE void pause_spinning() { _mm_pause(); }

}  // namespace textmill
