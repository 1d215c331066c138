// Functions of vectors, written once on the primitives of simd/.
#pragma once

#include <limits>

#include "simd/simd.h"

namespace textmill {

constexpr float NEGATIVE_INFINITY = -std::numeric_limits<float>::infinity();

constexpr int CACHE_LINE_BYTES = 64;

// Asks for the second-level cache to hold an address by the time that it is read. Any address may be
// given, valid or not.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

inline Ints lane_indices() {
    alignas(64) static constexpr int32_t INDICES[LANES] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                           8, 9, 10, 11, 12, 13, 14, 15};
    return load_vector<Ints>(INDICES);
}

inline float horizontal_sum(Floats v) {
    float part[LANES];
    store(part, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

inline int32_t horizontal_sum(Ints v) {
    int32_t part[LANES], sum = 0;
    store(part, v);
    for (int32_t n : part) sum += n;
    return sum;
}

inline bool any_lane(Ints condition) {
    int32_t part[LANES], any = 0;
    store(part, condition);
    for (int32_t n : part) any |= n;
    return any != 0;
}

inline float horizontal_maximum(Floats v) {
    float part[LANES];
    store(part, v);
    float largest = part[0];
    for (float x : part) largest = x > largest ? x : largest;
    return largest;
}

// The lanes whose indices differ by DISTANCE, a power of two, exchanged.
template <int DISTANCE>
TEXTMILL_INLINE FloatRegister exchange_lanes(FloatRegister v) {
#if defined(__AVX512F__)
#define TEXTMILL_LANES(D)                                                                      \
    0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D, 4 ^ D, 5 ^ D, 6 ^ D, 7 ^ D, 8 ^ D, 9 ^ D, 10 ^ D, 11 ^ D,      \
        12 ^ D, 13 ^ D, 14 ^ D, 15 ^ D
#elif defined(__AVX2__)
#define TEXTMILL_LANES(D) 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D, 4 ^ D, 5 ^ D, 6 ^ D, 7 ^ D
#else
#define TEXTMILL_LANES(D) 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D
#endif
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(v, v, TEXTMILL_LANES(DISTANCE));
#else
    return __builtin_shuffle(v, IntRegister{TEXTMILL_LANES(DISTANCE)});
#endif
#undef TEXTMILL_LANES
}

template <int DISTANCE, class Half>
TEXTMILL_INLINE Pair<Half> exchange_lanes(const Pair<Half>& v) {
    if constexpr (sizeof(Half) == DISTANCE * sizeof(float)) return {v.high, v.low};
    else return {exchange_lanes<DISTANCE>(v.low), exchange_lanes<DISTANCE>(v.high)};
}

template <int DISTANCE>
inline Floats hadamard_stage(Floats v) {
    const Floats partner = exchange_lanes<DISTANCE>(v);
    return partner + select((lane_indices() & broadcast(DISTANCE)) == Ints{}, v, -v);
}

// The transform of sixteen numbers, without its factor of 1/4.
inline Floats hadamard(Floats v) {
    return hadamard_stage<8>(hadamard_stage<4>(hadamard_stage<2>(hadamard_stage<1>(v))));
}

constexpr int HADAMARD_SIZE = 64;

// The Walsh-Hadamard transform of 64 numbers in place, without its factor of 1/8. It distributes outliers
// over their neighbours before rounding. The transform is its own inverse, so the product of two
// transformed vectors is the product of the vectors (Ashkboos et al., "QuaRot", 2024).
inline void hadamard(Floats* v) {
    for (int distance = 1; distance < 4; distance *= 2)
        for (int i = 0; i < 4; ++i)
            if (!(i & distance)) {
                const Floats a = v[i], b = v[i + distance];
                v[i] = a + b;
                v[i + distance] = a - b;
            }
    for (int i = 0; i < 4; ++i) v[i] = hadamard(v[i]);
}

// exp by Cody and Waite's range reduction and a polynomial. It returns 0 below -87, and exp(88) above 88.
inline Floats exp(Floats x) {
    const Floats clamped = clamp_for_exp(x);
    const Floats n = round_to_even(clamped * broadcast(1.44269504088896341f));
    Floats r = multiply_add(n, broadcast(-0.693359375f), clamped);
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    Floats p = broadcast(1.9875691500e-4f);
    p = multiply_add(p, r, broadcast(1.3981999507e-3f));
    p = multiply_add(p, r, broadcast(8.3334519073e-3f));
    p = multiply_add(p, r, broadcast(4.1665795894e-2f));
    p = multiply_add(p, r, broadcast(1.6666665459e-1f));
    p = multiply_add(p, r, broadcast(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + broadcast(1.0f);
    return scale_for_exp(p, n, x);
}

inline Floats silu(Floats x) { return x / (exp(-x) + broadcast(1.0f)); }

// GELU in its tanh form; tanh(u) = 1 - 2 / (exp(2u) + 1).
inline Floats gelu(Floats x) {
    const Floats cube = x * x * x;
    const Floats u =
        broadcast(0.7978845608028654f) * multiply_add(broadcast(0.044715f), cube, x);
    const Floats tanh_u = broadcast(1.0f) - broadcast(2.0f) / (exp(u + u) + broadcast(1.0f));
    return broadcast(0.5f) * x * (broadcast(1.0f) + tanh_u);
}

}  // namespace textmill
