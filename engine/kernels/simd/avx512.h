// Primitives for x86-64 with AVX-512F, BW, VL and DQ, and with VNNI where the target has it.
#pragma once

#include <immintrin.h>

#include "generic.h"

namespace textmill {

using generic::ACTIVATION_OFFSET;

TEXTMILL_INLINE FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
    return (FloatRegister)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

TEXTMILL_INLINE FloatRegister round_to_even(FloatRegister x) {
    return (FloatRegister)_mm512_roundscale_ps((__m512)x,
                                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Bounded above only: scale_for_exp discards the lanes below the range. NaN stays NaN.
TEXTMILL_INLINE FloatRegister clamp_for_exp(FloatRegister x) {
    return (FloatRegister)_mm512_min_ps(_mm512_set1_ps(88.0f), (__m512)x);
}

TEXTMILL_INLINE FloatRegister scale_for_exp(FloatRegister fraction, FloatRegister n,
                                            FloatRegister x) {
    const __mmask16 is_kept =
        _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return (FloatRegister)_mm512_maskz_scalef_ps(is_kept, (__m512)fraction, (__m512)n);
}

TEXTMILL_INLINE __m512i broadcast4(const uint8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

TEXTMILL_INLINE IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    const __m512i first = _mm512_loadu_si512(weights);
    const __m512i second = _mm512_loadu_si512(weights + stride);
#if defined(__AVX512VNNI__)
    const __m512i four = _mm512_dpbusd_epi32((__m512i)sum, broadcast4(x), first);
    return (IntRegister)_mm512_dpbusd_epi32(four, broadcast4(x + 4), second);
#else
    const __m512i products = _mm512_add_epi16(_mm512_maddubs_epi16(broadcast4(x), first),
                                              _mm512_maddubs_epi16(broadcast4(x + 4), second));
    return (IntRegister)_mm512_add_epi32(
        (__m512i)sum, _mm512_madd_epi16(products, _mm512_set1_epi16(1)));
#endif
}

TEXTMILL_INLINE ShortRegister widen(const int8_t* from) {
    return (ShortRegister)_mm512_cvtepi8_epi16(load_vector<__m256i>(from));
}

TEXTMILL_INLINE IntRegister dot2(IntRegister sum, ShortRegister numbers, int32_t pair) {
    const __m512i pairs = _mm512_set1_epi32(pair);
#if defined(__AVX512VNNI__)
    return (IntRegister)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)numbers, pairs);
#else
    return (IntRegister)_mm512_add_epi32((__m512i)sum,
                                         _mm512_madd_epi16((__m512i)numbers, pairs));
#endif
}

// See generic.h. The sums of a tile fill most of the registers.
struct Tile {
    static constexpr int OUTPUTS = 32, INT8_TOKENS = 12, FLOAT32_TOKENS = 12;
};

TEXTMILL_INLINE void pause_spinning() { _mm_pause(); }

}  // namespace textmill
