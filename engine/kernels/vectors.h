// Sixteen numbers at a time, and functions of them. With AVX-512 a vector is a register; elsewhere
// the compiler makes several of it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace textmill {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), may_alias));

inline Floats all(float x) { return x - Floats{}; }
inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// Ask for what lies at an address, to be in the second-level cache when it is needed. No address is
// wrong.
inline void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }
constexpr int LINE_BYTES = 64;  // of a cache

inline Floats fused(Floats a, Floats b, Floats c) {  // a * b + c
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// Four products of small integers a lane, added to the lane: unsigned weights, signed activations.
inline Ints dot4(Ints sum, const uint8_t* weights, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(weights),
                                     _mm512_set1_epi32(four));
#else
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) sum[lane] += int32_t(weights[4 * lane + i]) * int32_t(x[i]);
    return sum;
#endif
}

inline float sum_of(Floats v) {
    float part[LANES];
    store(part, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

inline float largest_of(Floats v) {
    float part[LANES];
    store(part, v);
    float largest = part[0];
    for (float x : part) largest = x > largest ? x : largest;
    return largest;
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats rounded(Floats x) {  // to even, for |x| < 2^22
    const Floats magic = all(12582912.0f);
    return (x + magic) - magic;
}

// exp by Cody and Waite's reduction and a polynomial; below -87 it is 0, above 88 as at 88.
inline Floats exp_of(Floats x) {
#if defined(__AVX512F__)
    const Floats clamped = _mm512_min_ps(all(88.0f), x);  // NaN stays NaN
    const Floats n = _mm512_roundscale_ps(clamped * all(1.44269504088896341f),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Floats clamped = larger(all(-87.0f), x < 88.0f ? x : all(88.0f));
    const Floats n = rounded(clamped * all(1.44269504088896341f));
#endif
    Floats r = fused(n, all(-0.693359375f), clamped);
    r = fused(n, all(2.12194440e-4f), r);
    Floats p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + all(1.0f);
#if defined(__AVX512F__)
    const auto is_kept = _mm512_cmp_ps_mask(x, all(-87.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(is_kept, p, n);
#else
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    const Floats result = p * (Floats)exponent;
    return x < all(-87.0f) ? Floats{} : (x != x ? x : result);
#endif
}

inline Floats silu(Floats x) { return x / (exp_of(-x) + all(1.0f)); }

inline Floats gelu(Floats x) {  // in its tanh form; tanh(u) = 1 - 2 / (exp(2u) + 1)
    const Floats cube = x * x * x;
    const Floats u = all(0.7978845608028654f) * fused(all(0.044715f), cube, x);
    const Floats tanh_u = all(1.0f) - all(2.0f) / (exp_of(u + u) + all(1.0f));
    return all(0.5f) * x * (all(1.0f) + tanh_u);
}

}  // namespace textmill
