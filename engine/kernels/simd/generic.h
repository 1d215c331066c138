// The primitives in plain C++, for every instruction set.
//
// A header of an instruction set defines all of these names in namespace textmill for its registers, with
// intrinsics or by a using-declaration of the function here. All definitions of a name give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>

#include "types.h"

namespace textmill::generic {

// Not inlined: copies of these loops in every caller would take the compilers minutes.
#define TEXTMILL_CALLED static __attribute__((noinline, unused))

// a * b + c, rounded once. The product is exact in double; the sum is rounded to odd, so that rounding it
// again to float is correct (Boldo and Melquiond, "Emulation of a FMA and Correctly Rounded Sums", 2008).
inline float fused_multiply_add(float a, float b, float c) {
    const double product = double(a) * double(b), addend = c, sum = product + addend;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (addend - part);
    if (error == 0.0 || !std::isfinite(sum)) return float(sum);
    uint64_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    if (!(bits & 1)) bits += (error > 0.0) == (sum > 0.0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, sizeof odd);
    return float(odd);
}

TEXTMILL_CALLED FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
    for (int lane = 0; lane < REGISTER_LANES; ++lane)
        c[lane] = fused_multiply_add(a[lane], b[lane], c[lane]);
    return c;
}

// To the nearest integer, ties to even; for |x| < 2^22.
inline FloatRegister round_to_even(FloatRegister x) {
    const FloatRegister magic = 12582912.0f - FloatRegister{};  // 1.5 * 2^23: its last place is 1
    return (x + magic) - magic;
}

// The argument of exp within the range in which its result is a normal number.
inline FloatRegister clamp_for_exp(FloatRegister x) {
    const FloatRegister least = -87.0f - FloatRegister{}, most = 88.0f - FloatRegister{};
    return maximum(least, x < most ? x : most);
}

// fraction * 2^n, the last step of exp(x): 0 for x < -87, NaN for NaN.
inline FloatRegister scale_for_exp(FloatRegister fraction, FloatRegister n, FloatRegister x) {
    const FloatRegister least = -87.0f - FloatRegister{};
    const IntRegister exponent = (to_ints(n) + 127) << 23;
    const FloatRegister result = fraction * (FloatRegister)exponent;
    return x < least ? FloatRegister{} : (x != x ? x : result);
}

// Integers in [-127, 127] are multiplied by weights as n + ACTIVATION_OFFSET, which is unsigned.
constexpr int ACTIVATION_OFFSET = 128;

// Adds eight products to each lane's sum: weights (2, lanes, 4) signed, with the first four of x and the
// last four, x (8) unsigned. See MAX_QUAD_SUM for the bounds of the weights.
TEXTMILL_CALLED IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    for (int half = 0; half < 2; ++half, weights += stride, x += 4)
        for (int lane = 0; lane < REGISTER_LANES; ++lane)
            for (int i = 0; i < 4; ++i) sum[lane] += int(weights[4 * lane + i]) * int(x[i]);
    return sum;
}

// Sixteen bits for each of REGISTER_BYTES / 2 signed bytes.
inline ShortRegister widen(const int8_t* from) {
    typedef int8_t HalfBytes __attribute__((vector_size(REGISTER_BYTES / 2)));
    return __builtin_convertvector(load_vector<HalfBytes>(from), ShortRegister);
}

// Adds two products to each lane's sum: numbers (lanes, 2) with the two of a pair, in its lower and its
// higher sixteen bits.
TEXTMILL_CALLED IntRegister dot2(IntRegister sum, ShortRegister numbers, int32_t pair) {
    const int first = int16_t(pair), second = pair >> 16;
    for (int lane = 0; lane < REGISTER_LANES; ++lane)
        sum[lane] += numbers[2 * lane] * first + numbers[2 * lane + 1] * second;
    return sum;
}

// The tile of a product, whose sums fill most of the registers.
struct Tile {
    static constexpr int OUTPUTS = 16, INT8_TOKENS = 2, FLOAT32_TOKENS = 2;
};

// Called between two looks at a condition that another thread will meet soon.
inline void pause_spinning() { std::this_thread::yield(); }

}  // namespace textmill::generic
