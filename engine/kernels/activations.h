// Operations on one token's activations between linear layers: norms, and rounding to int8.
#pragma once

#include <cstdint>

#include "vector_math.h"

namespace textmill {

// Activations are padded with zeros to this width, so that vectors may read beyond the end.
inline int padded_width(int width) {
    return (width + HADAMARD_SIZE - 1) / HADAMARD_SIZE * HADAMARD_SIZE;
}

// The factor by which numbers are multiplied before they are rounded to int8. It is 0 where the largest
// number is so small that 127 / largest would be infinite.
inline float inverse_scale(float largest) { return largest > 1e-30f ? 127.0f / largest : 0.0f; }

// RMSNorm or LayerNorm of x (width); bias may be null.
void normalize(const float* x, int width, bool is_rms, float eps, const float* weight,
               const float* bias, float* out);

// Transforms x (width, a multiple of HADAMARD_SIZE) into scratch, and rounds it to integers of at most
// 127, which are stored plus ACTIVATION_OFFSET.
//
// *scale is the scale of these activations alone; it is not finite where x is not.
void quantize(const float* x, int width, float* scratch, uint8_t* out, float* scale);

}  // namespace textmill
