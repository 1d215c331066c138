// The natural logarithm, the same bits everywhere: libm's differ between processors in the last bit.
#pragma once

#include <cstdint>
#include <cstring>

namespace textmill {

// The logarithm of a positive normal number: its exponent's, plus the mantissa's by the series
// log(m) = 2 (s + s^3 / 3 + s^5 / 5 + …) for s = (m - 1) / (m + 1). The error is about 1e-16, relative where
// the result is above 1 and absolute elsewhere.
inline double logarithm(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    int exponent = int(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffff) | 0x3ff0000000000000;
    double mantissa;
    std::memcpy(&mantissa, &bits, sizeof mantissa);
    if (mantissa > 1.4142135623730951) {  // so that |s| is below 0.1716
        mantissa *= 0.5;
        ++exponent;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s;
    double sum = 0.0;
    for (int power = 21; power > 0; power -= 2) sum = sum * square + 1.0 / power;
    return exponent * 0.6931471805599453 + 2.0 * s * sum;
}

}  // namespace textmill
