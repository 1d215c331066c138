// Primitives for 64-bit ARM with NEON, and with its dot products of bytes where the target has them.
#pragma once

#include <arm_neon.h>

#include "generic.h"

namespace textmill {

using generic::clamp_for_exp;
using generic::pause_spinning;
using generic::scale_for_exp;

TEXTMILL_INLINE FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
    return (FloatRegister)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

TEXTMILL_INLINE FloatRegister round_to_even(FloatRegister x) {
    return (FloatRegister)vrndnq_f32((float32x4_t)x);
}

TEXTMILL_INLINE ShortRegister widen(const int8_t* from) {
    return (ShortRegister)vmovl_s8(vld1_s8(from));
}

TEXTMILL_INLINE IntRegister dot2(IntRegister sum, ShortRegister numbers, int32_t pair) {
    const int16x8_t pairs = vreinterpretq_s16_s32(vdupq_n_s32(pair));
    const int16x8_t own = (int16x8_t)numbers;
    const int32x4_t low = vmull_s16(vget_low_s16(own), vget_low_s16(pairs));
    const int32x4_t high = vmull_high_s16(own, pairs);
    return (IntRegister)vaddq_s32((int32x4_t)sum, vpaddq_s32(low, high));
}

// See generic.h. The sums of a tile fill most of the registers.
struct Tile {
    static constexpr int OUTPUTS = 16, INT8_TOKENS = 4, FLOAT32_TOKENS = 6;
};

TEXTMILL_INLINE int8x16_t broadcast4(const uint8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
using generic::ACTIVATION_OFFSET;

TEXTMILL_INLINE IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    const auto bytes = [](const uint8_t* from) { return vreinterpretq_u8_s8(broadcast4(from)); };
    const int32x4_t four = vusdotq_s32((int32x4_t)sum, bytes(x), vld1q_s8(weights));
    return (IntRegister)vusdotq_s32(four, bytes(x + 4), vld1q_s8(weights + stride));
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int ACTIVATION_OFFSET = 0;  // both factors are signed

TEXTMILL_INLINE IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    const int32x4_t four = vdotq_s32((int32x4_t)sum, broadcast4(x), vld1q_s8(weights));
    return (IntRegister)vdotq_s32(four, broadcast4(x + 4), vld1q_s8(weights + stride));
}
#else
constexpr int ACTIVATION_OFFSET = 0;

// Sums of two products in 16 bits: at most 2 * 127 * 127.
TEXTMILL_INLINE IntRegister dot8(IntRegister sum, const int8_t* weights, size_t stride,
                                 const uint8_t* x) {
    const int8x16_t first = vld1q_s8(weights), second = vld1q_s8(weights + stride);
    const int8x16_t a = broadcast4(x), b = broadcast4(x + 4);
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(first));
    int16x8_t high = vmull_high_s8(a, first);
    low = vmlal_s8(low, vget_low_s8(b), vget_low_s8(second));
    high = vmlal_high_s8(high, b, second);
    return (IntRegister)vaddq_s32((int32x4_t)sum,
                                  vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
#endif

}  // namespace textmill
