// The primitives of the instruction set that the compiler was asked for.
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

// Unrolls the next loop, whose bound is a template parameter.
#if defined(__clang__)
#define TEXTMILL_UNROLL _Pragma("unroll")
#else
#define TEXTMILL_UNROLL _Pragma("GCC unroll 16")
#endif
