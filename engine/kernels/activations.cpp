#include "activations.h"

#include <cmath>

namespace textmill {

void normalize(const float* x, int width, bool is_rms, float eps, const float* weight,
               const float* bias, float* out) {
    float mean = 0.0f;
    if (!is_rms) {
        Floats sum = {};
        for (int i = 0; i < width; i += LANES) sum = sum + load(x + i);
        mean = horizontal_sum(sum) / float(width);
    }
    Floats squares = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Floats deviation = load(x + i) - broadcast(mean);
        squares = multiply_add(deviation, deviation, squares);
    }
    float square = horizontal_sum(squares);
    for (; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const Floats factor = broadcast(1.0f / std::sqrt(square / float(width) + eps));
    const Floats center = broadcast(mean);
    for (i = 0; i < width; i += LANES) {  // the padding of weight and bias is zero
        Floats v = (load(x + i) - center) * factor * load(weight + i);
        if (bias) v = v + load(bias + i);
        store(out + i, v);
    }
}

void quantize(const float* x, int width, float* scratch, uint8_t* out, float* scale) {
    Floats maxima = {}, not_finite = {};
    for (int i = 0; i < width; i += HADAMARD_SIZE) {
        Floats v[4];
        for (int j = 0; j < 4; ++j) v[j] = load(x + i + j * LANES);
        hadamard(v);
        for (int j = 0; j < 4; ++j) {
            store(scratch + i + j * LANES, v[j]);
            maxima = maximum(maxima, maximum(v[j], -v[j]));
            not_finite = not_finite + (v[j] - v[j]);  // 0, or NaN
        }
    }
    const float largest = horizontal_maximum(maxima), check = horizontal_sum(not_finite);
    const Floats inverse = broadcast(check == 0.0f ? inverse_scale(largest) : 0.0f);
    for (int i = 0; i < width; i += LANES) {
        const Floats v =
            check == 0.0f ? round_to_even(load(scratch + i) * inverse) : Floats{};
        store(out + i, to_bytes(to_ints(v) + broadcast(ACTIVATION_OFFSET)));
    }
    *scale = largest / 127.0f + check;
}

}  // namespace textmill
