// Primitives for 64-bit ARM, whose compilers make NEON instructions of the plain C++.
#pragma once

#include "generic.h"

namespace textmill {

using generic::clamp_for_exp;
using generic::dot4;
using generic::HAS_INT8_DOT;
using generic::multiply_add;
using generic::pause_spinning;
using generic::round_to_even;
using generic::scale_for_exp;
using generic::store_int8;

}  // namespace textmill
