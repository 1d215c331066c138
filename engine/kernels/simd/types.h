// Vectors of sixteen numbers, as the compilers' vector extensions define them. With AVX-512 a vector is
// one register; for other instruction sets the compiler uses several.
#pragma once

#include <cstdint>
#include <cstring>

namespace textmill {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), may_alias));

inline Floats broadcast(float x) { return x - Floats{}; }

inline Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

}  // namespace textmill
