// The primitives of the instruction set that the compiler was asked for, and of pairs by their halves.
#pragma once

#if defined(__AVX512F__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__ARM_NEON)
#include "neon.h"
#else
#include "generic.h"
namespace textmill {
using namespace generic;
}
#endif

namespace textmill {

// a * b + c, rounded once on every instruction set.
template <class Half>
TEXTMILL_INLINE Pair<Half> multiply_add(const Pair<Half>& a, const Pair<Half>& b,
                                        const Pair<Half>& c) {
    return {multiply_add(a.low, b.low, c.low), multiply_add(a.high, b.high, c.high)};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> round_to_even(const Pair<Half>& x) {
    return {round_to_even(x.low), round_to_even(x.high)};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> clamp_for_exp(const Pair<Half>& x) {
    return {clamp_for_exp(x.low), clamp_for_exp(x.high)};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> scale_for_exp(const Pair<Half>& fraction, const Pair<Half>& n,
                                         const Pair<Half>& x) {
    return {scale_for_exp(fraction.low, n.low, x.low), scale_for_exp(fraction.high, n.high, x.high)};
}

}  // namespace textmill

// Unrolls the next loop, whose bound is a template parameter.
#if defined(__clang__)
#define TEXTMILL_UNROLL _Pragma("unroll")
#else
#define TEXTMILL_UNROLL _Pragma("GCC unroll 16")
#endif
