// What is done to a row between products: norms, and rounding to int8.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "products.h"
#include "vectors.h"

namespace textmill {

// Rows are padded with zeros, so that vectors may run over their end.
inline int padded(int width) { return (width + SPREAD - 1) / SPREAD * SPREAD; }

void normalise(const float* x, int width, bool is_rms, float eps, const float* weight,
               const float* bias, float* out) {
    float mean = 0.0f;
    if (!is_rms) {
        Floats sum = {};
        for (int i = 0; i < width; i += LANES) sum = sum + load(x + i);
        mean = sum_of(sum) / float(width);
    }
    Floats squares = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Floats off = load(x + i) - all(mean);
        squares = fused(off, off, squares);
    }
    float square = sum_of(squares);
    for (; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const Floats factor = all(1.0f / std::sqrt(square / float(width) + eps)), middle = all(mean);
    for (i = 0; i < width; i += LANES) {  // the padding of weight and bias is zero
        Floats v = (load(x + i) - middle) * factor * load(weight + i);
        if (bias) v = v + load(bias + i);
        store(out + i, v);
    }
}

// Spread a row into scratch and round it to int8 with its own scale; a row that is not finite gets
// a scale that is not.
void quantise(const float* x, int width, float* scratch, int8_t* out, float* scale,
              int32_t* offset) {
    Floats most = {}, spoilt = {};
    for (int i = 0; i < width; i += SPREAD) {
        Floats v[4];
        std::memcpy(v, x + i, sizeof v);
        spread(v);
        std::memcpy(scratch + i, v, sizeof v);
        for (Floats part : v) {
            most = larger(most, larger(part, -part));
            spoilt = spoilt + (part - part);  // 0, or NaN
        }
    }
    const float largest = largest_of(most), check = sum_of(spoilt);
    const Floats inverse = all(check == 0.0f ? inverse_scale(largest) : 0.0f);
    Ints sum = {};
    for (int i = 0; i < width; i += LANES) {
        const Floats v = check == 0.0f ? rounded(load(scratch + i) * inverse) : Floats{};
        const Ints n = __builtin_convertvector(v, Ints);
        sum = sum + n;
#if defined(__AVX512F__)
        _mm512_mask_cvtepi32_storeu_epi8(out + i, 0xffff, (__m512i)n);
#else
        for (int lane = 0; lane < LANES; ++lane) out[i + lane] = int8_t(n[lane]);
#endif
    }
    int32_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    *scale = largest / 127.0f + check;
    *offset = total * 128;
}

}  // namespace textmill
