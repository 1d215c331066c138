// A decoder's step on the cores of a CPU, from hidden states to logits.
//
// Built by build.py with the machine's own compiler and called through ctypes; the C functions at
// the end are all that Python sees. Knows nothing of tokens, families or strategies.
//
// No row's arithmetic depends on its neighbours: every sum over a row runs in one order, whatever
// stands beside it, and so does every weighted sum over a text's positions. Contraction of products
// and sums is switched off (-ffp-contract=off), so that the compiler cannot decide otherwise for
// some tile sizes; where a fused operation is meant, it is written.

#include <algorithm>
#include <exception>

#include "decoder.h"

using namespace textmill;

extern "C" {

// Whether this processor multiplies small integers faster than floats.
int textmill_has_int8_dot() {
#if defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

// Null when memory is short.
void* textmill_new(const Spec* spec) {
    try {
        return new Decoder(*spec);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void textmill_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

// layer -1 is the head; part is one of Part. weight (outputs, inputs), bias (outputs) or null.
void textmill_set_product(void* decoder, int layer, int part, const float* weight,
                          const float* bias) {
    static_cast<Decoder*>(decoder)->set_product(layer, part, weight, bias);
}

// layer -1 is the norm before the head.
void textmill_set_norms(void* decoder, int layer, const float* first, const float* first_bias,
                        const float* second, const float* second_bias) {
    static_cast<Decoder*>(decoder)->set_norms(layer, first, first_bias, second, second_bias);
}

// Where a layer's keys and values live: (slots, kv heads, capacity, head_dim padded to 16) each.
void textmill_set_layer(void* decoder, int layer, void* keys, void* values, int window) {
    static_cast<Decoder*>(decoder)->set_layer(layer, keys, values, window);
}

// Tables (context, head_dim / 2); they must outlive the decoder.
void textmill_set_rotation(void* decoder, const float* cos, const float* sin) {
    static_cast<Decoder*>(decoder)->set_rotation(cos, sin);
}

// Rows of hidden states (num_rows, width), each at a position of a slot, through all layers; a
// slot's rows stand in the order of their positions. Logits (num_wanted, vocabulary) are computed
// for the rows named in wanted.
void textmill_forward(void* decoder, int num_rows, const float* hidden, const int32_t* positions,
                      const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits) {
    static_cast<Decoder*>(decoder)->forward(num_rows, hidden, positions, slots, num_wanted, wanted,
                                            logits);
}

// A token for each row of logits (num_rows, vocabulary); -1 where a row has NaN or no largest number.
// traces has room for num_rows; only those that are asked for are written.
void textmill_choose(void* decoder, int num_rows, const float* logits, const Draw* draws,
                     int32_t* tokens, Trace* traces) {
    static_cast<Decoder*>(decoder)->choose(num_rows, logits, draws, tokens, traces);
}

// Seconds spent since the start: products, attention, the rest of the layers, head.
void textmill_seconds(void* decoder, double* seconds) {
    std::copy_n(static_cast<Decoder*>(decoder)->seconds(), int(NUM_PHASES), seconds);
}
}
