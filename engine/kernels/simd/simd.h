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

template <class Half>
TEXTMILL_INLINE Pair<Half> dot2(const Pair<Half>& sum, const auto& numbers, int32_t pair) {
    return {dot2(sum.low, numbers.low, pair), dot2(sum.high, numbers.high, pair)};
}

template <class Numbers>
struct Widen {
    static TEXTMILL_INLINE Numbers of(const int8_t* from) { return widen(from); }
};
template <class Half>
struct Widen<Pair<Half>> {
    static TEXTMILL_INLINE Pair<Half> of(const int8_t* from) {
        return {Widen<Half>::of(from), Widen<Half>::of(from + sizeof(Half) / 2)};
    }
};

// Sixteen bits for each of 32 signed bytes, two for each lane.
TEXTMILL_INLINE ShortPairs widen_pairs(const int8_t* from) { return Widen<ShortPairs>::of(from); }

}  // namespace textmill

// Unrolls the next loop, whose bound is a template parameter.
#if defined(__clang__)
#define TEXTMILL_UNROLL _Pragma("unroll")
#else
#define TEXTMILL_UNROLL _Pragma("GCC unroll 16")
#endif
