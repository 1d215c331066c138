// The primitives in plain C++, for every instruction set.
//
// A header of an instruction set defines all of these names in namespace textmill, with intrinsics or by
// a using-declaration of the function here.
#pragma once

#include <cstdint>
#include <cstring>
#include <thread>

#include "types.h"

namespace textmill::generic {

constexpr bool HAS_INT8_DOT = false;  // whether int8 products are faster than float32 products

// a * b + c, rounded twice. Only AVX-512 rounds once.
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }

// To the nearest integer, ties to even; for |x| < 2^22.
inline Floats round_to_even(Floats x) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: its unit in the last place is 1
    return (x + magic) - magic;
}

// The argument of exp within the range in which its result is a normal number.
inline Floats clamp_for_exp(Floats x) {
    return maximum(broadcast(-87.0f), x < broadcast(88.0f) ? x : broadcast(88.0f));
}

// fraction * 2^n, the last step of exp(x): 0 for x < -87, NaN for NaN.
inline Floats scale_for_exp(Floats fraction, Floats n, Floats x) {
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    const Floats result = fraction * (Floats)exponent;
    return x < broadcast(-87.0f) ? Floats{} : (x != x ? x : result);
}

// Adds four products of small integers to each lane: weights (16, 4) unsigned, x (4) signed.
inline Ints dot4(Ints sum, const uint8_t* weights, const int8_t* x) {
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) sum[lane] += int32_t(weights[4 * lane + i]) * int32_t(x[i]);
    return sum;
}

// Stores sixteen integers in [-128, 127] as bytes.
inline void store_int8(int8_t* to, Ints n) {
    for (int lane = 0; lane < LANES; ++lane) to[lane] = int8_t(n[lane]);
}

// Called between two looks at a condition that another thread will meet soon.
inline void pause_spinning() { std::this_thread::yield(); }

}  // namespace textmill::generic
