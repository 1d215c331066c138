// Primitives for x86-64 with AVX-512, and with VNNI where the processor has it.
#pragma once

#include <immintrin.h>

#include "generic.h"

namespace textmill {

// a * b + c, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

inline Floats round_to_even(Floats x) {
    return (Floats)_mm512_roundscale_ps((__m512)x,
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Bounded above only: scale_for_exp discards the lanes below the range. NaN stays NaN.
inline Floats clamp_for_exp(Floats x) {
    return (Floats)_mm512_min_ps((__m512)broadcast(88.0f), (__m512)x);
}

inline Floats scale_for_exp(Floats fraction, Floats n, Floats x) {
    const __mmask16 is_kept =
        _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(-87.0f), _CMP_NLT_UQ);
    return (Floats)_mm512_maskz_scalef_ps(is_kept, (__m512)fraction, (__m512)n);
}

#if defined(__AVX512VNNI__)
constexpr bool HAS_INT8_DOT = true;

inline Ints dot4(Ints sum, const uint8_t* weights, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(weights),
                                     _mm512_set1_epi32(four));
}
#else
using generic::dot4;
using generic::HAS_INT8_DOT;
#endif

inline void store_int8(int8_t* to, Ints n) {
    _mm512_mask_cvtepi32_storeu_epi8(to, 0xffff, (__m512i)n);
}

inline void pause_spinning() { _mm_pause(); }

}  // namespace textmill
