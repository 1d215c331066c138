// Vectors of sixteen numbers: one register, or a pair of halves that each are a register or a pair.
//
// Every instruction set computes with the same sixteen lanes in the same order, so that sums over lanes
// have the same roundings everywhere. The compilers' own vectors of 64 bytes would do the same, but where
// they are wider than a register, compilers move them through memory.
#pragma once

#include <cstdint>
#include <cstring>

namespace textmill {

constexpr int LANES = 16;

#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX2__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
constexpr int REGISTER_LANES = REGISTER_BYTES / 4;

typedef float FloatRegister __attribute__((vector_size(REGISTER_BYTES)));
typedef int32_t IntRegister __attribute__((vector_size(REGISTER_BYTES)));
typedef uint32_t WordRegister __attribute__((vector_size(REGISTER_BYTES)));
typedef int16_t ShortRegister __attribute__((vector_size(REGISTER_BYTES)));
typedef int16_t HalfShortRegister __attribute__((vector_size(REGISTER_BYTES / 2)));
typedef uint8_t ByteRegister __attribute__((vector_size(REGISTER_BYTES / 4)));

#define TEXTMILL_INLINE inline __attribute__((always_inline))

template <class Half>
struct Pair {
    Half low, high;
};

template <class Register, int BYTES = 64 / REGISTER_BYTES>
struct Sixteen {
    using Type = Pair<typename Sixteen<Register, BYTES / 2>::Type>;
};
template <class Register>
struct Sixteen<Register, 1> {
    using Type = Register;
};

using Floats = Sixteen<FloatRegister>::Type;
using Ints = Sixteen<IntRegister>::Type;
using Words = Sixteen<WordRegister>::Type;
using Bytes = Sixteen<ByteRegister>::Type;
using Shorts = Sixteen<HalfShortRegister>::Type;
using ShortPairs = Sixteen<ShortRegister>::Type;  // two for each lane

// ---- operators of pairs ------------------------------------------------------------------------

// A comparison's lanes are -1 where it holds and 0 elsewhere, as those of the compilers' vectors.
#define TEXTMILL_BINARY(op)                                                              \
    template <class Half>                                                                \
    TEXTMILL_INLINE auto operator op(const Pair<Half>& a, const Pair<Half>& b) {         \
        return Pair<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high};         \
    }
TEXTMILL_BINARY(+)
TEXTMILL_BINARY(-)
TEXTMILL_BINARY(*)
TEXTMILL_BINARY(/)
TEXTMILL_BINARY(&)
TEXTMILL_BINARY(|)
TEXTMILL_BINARY(^)
TEXTMILL_BINARY(<)
TEXTMILL_BINARY(>)
TEXTMILL_BINARY(==)
TEXTMILL_BINARY(!=)
#undef TEXTMILL_BINARY

template <class Half>
TEXTMILL_INLINE Pair<Half> operator-(const Pair<Half>& a) {
    return {-a.low, -a.high};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> operator~(const Pair<Half>& a) {
    return {~a.low, ~a.high};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> operator<<(const Pair<Half>& a, int bits) {
    return {a.low << bits, a.high << bits};
}
template <class Half>
TEXTMILL_INLINE Pair<Half> operator>>(const Pair<Half>& a, int bits) {
    return {a.low >> bits, a.high >> bits};
}

// ---- functions of registers, and of pairs by their halves ---------------------------------------

TEXTMILL_INLINE FloatRegister as_floats(IntRegister v) { return (FloatRegister)v; }
TEXTMILL_INLINE FloatRegister as_floats(WordRegister v) { return (FloatRegister)v; }
TEXTMILL_INLINE IntRegister as_ints(FloatRegister v) { return (IntRegister)v; }
TEXTMILL_INLINE IntRegister as_ints(WordRegister v) { return (IntRegister)v; }
TEXTMILL_INLINE WordRegister as_words(FloatRegister v) { return (WordRegister)v; }
TEXTMILL_INLINE WordRegister as_words(IntRegister v) { return (WordRegister)v; }
TEXTMILL_INLINE FloatRegister to_floats(IntRegister v) {
    return __builtin_convertvector(v, FloatRegister);
}
TEXTMILL_INLINE IntRegister to_ints(FloatRegister v) {  // towards zero
    return __builtin_convertvector(v, IntRegister);
}
TEXTMILL_INLINE ByteRegister to_bytes(IntRegister v) {  // the lowest eight bits
    return __builtin_convertvector(v, ByteRegister);
}

TEXTMILL_INLINE HalfShortRegister to_shorts(IntRegister v) {  // the lowest sixteen bits
    return __builtin_convertvector(v, HalfShortRegister);
}

#define TEXTMILL_BY_HALVES(function)                                                     \
    template <class Half>                                                                \
    TEXTMILL_INLINE auto function(const Pair<Half>& v) {                                 \
        return Pair<decltype(function(v.low))>{function(v.low), function(v.high)};       \
    }
TEXTMILL_BY_HALVES(as_floats)
TEXTMILL_BY_HALVES(as_ints)
TEXTMILL_BY_HALVES(as_words)
TEXTMILL_BY_HALVES(to_floats)
TEXTMILL_BY_HALVES(to_ints)
TEXTMILL_BY_HALVES(to_bytes)
TEXTMILL_BY_HALVES(to_shorts)
#undef TEXTMILL_BY_HALVES

template <class Vector>
struct Broadcast {
    template <class Number>
    static TEXTMILL_INLINE Vector of(Number x) {
        return x - Vector{};
    }
};
template <class Half>
struct Broadcast<Pair<Half>> {
    template <class Number>
    static TEXTMILL_INLINE Pair<Half> of(Number x) {
        return {Broadcast<Half>::of(x), Broadcast<Half>::of(x)};
    }
};

TEXTMILL_INLINE Floats broadcast(float x) { return Broadcast<Floats>::of(x); }
TEXTMILL_INLINE Ints broadcast(int32_t x) { return Broadcast<Ints>::of(x); }
TEXTMILL_INLINE Words broadcast(uint32_t x) { return Broadcast<Words>::of(x); }

// For each lane a where the condition's lane is -1, and b where it is 0.
TEXTMILL_INLINE FloatRegister select(IntRegister condition, FloatRegister a, FloatRegister b) {
    return condition ? a : b;
}
template <class Condition, class Half>
TEXTMILL_INLINE Pair<Half> select(const Pair<Condition>& condition, const Pair<Half>& a,
                                  const Pair<Half>& b) {
    return {select(condition.low, a.low, b.low), select(condition.high, a.high, b.high)};
}

// ---- memory ---------------------------------------------------------------------------------------

// Register by register: compilers copy whole pairs in smaller pieces, and a register that is read from them
// waits until all are written.
template <class Vector>
struct Memory {
    static TEXTMILL_INLINE Vector load(const char* from) {
        Vector v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }
    static TEXTMILL_INLINE void store(char* to, const Vector& v) { std::memcpy(to, &v, sizeof v); }
};
template <class Half>
struct Memory<Pair<Half>> {
    static TEXTMILL_INLINE Pair<Half> load(const char* from) {
        return {Memory<Half>::load(from), Memory<Half>::load(from + sizeof(Half))};
    }
    static TEXTMILL_INLINE void store(char* to, const Pair<Half>& v) {
        Memory<Half>::store(to, v.low);
        Memory<Half>::store(to + sizeof(Half), v.high);
    }
};

template <class Vector>
TEXTMILL_INLINE Vector load_vector(const void* from) {
    return Memory<Vector>::load(static_cast<const char*>(from));
}
template <class Vector>
TEXTMILL_INLINE void store_vector(void* to, const Vector& v) {
    Memory<Vector>::store(static_cast<char*>(to), v);
}
TEXTMILL_INLINE Floats load(const float* from) { return load_vector<Floats>(from); }
TEXTMILL_INLINE void store(float* to, const Floats& v) { store_vector(to, v); }
TEXTMILL_INLINE void store(int32_t* to, const Ints& v) { store_vector(to, v); }
TEXTMILL_INLINE void store(uint32_t* to, const Words& v) { store_vector(to, v); }
TEXTMILL_INLINE void store(int16_t* to, const Shorts& v) { store_vector(to, v); }
TEXTMILL_INLINE void store(uint8_t* to, const Bytes& v) { store_vector(to, v); }

// b where neither is larger, so NaN in b is kept and NaN in a is dropped.
TEXTMILL_INLINE FloatRegister maximum(FloatRegister a, FloatRegister b) { return a > b ? a : b; }
template <class Half>
TEXTMILL_INLINE Pair<Half> maximum(const Pair<Half>& a, const Pair<Half>& b) {
    return {maximum(a.low, b.low), maximum(a.high, b.high)};
}

}  // namespace textmill
