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

#include "decoder.h"
#include "status.h"

using namespace textmill;

namespace {

// Call with the decoder, and answer a Status.
template <class Call>
int on(void* decoder, const Call& call) noexcept {
    return guarded([&] {
        require(decoder, NULL_POINTER);
        call(*static_cast<Decoder*>(decoder));
    });
}

}  // namespace

extern "C" {

// Whether this processor multiplies small integers faster than floats.
int textmill_has_int8_dot() {
#if defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

// The new decoder is written to *decoder, null where there is none.
int textmill_new(const Spec* spec, void** decoder) {
    return guarded([&] {
        require(spec && decoder, NULL_POINTER);
        *decoder = nullptr;
        *decoder = new Decoder(*spec);
    });
}

void textmill_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

// layer -1 is the head; part is one of Part. weight (outputs, inputs); bias (num_bias), or null and
// a count of 0.
int textmill_set_product(void* decoder, int layer, int part, const float* weight, int64_t outputs,
                         int64_t inputs, const float* bias, int64_t num_bias) {
    return on(decoder, [&](Decoder& own) {
        own.set_product(layer, part, weight, outputs, inputs, bias, num_bias);
    });
}

// layer -1 is the norm before the head, index 0 there; else 0 is before attention and 1 after it.
int textmill_set_norm(void* decoder, int layer, int index, const float* weight, int64_t count,
                      const float* bias, int64_t num_bias) {
    return on(decoder, [&](Decoder& own) {
        own.set_norm(layer, index, weight, count, bias, num_bias);
    });
}

// Where a layer's keys and values are: (slots, kv heads, capacity, head_dim padded to 16) each, count
// numbers in all; they must outlive the decoder.
int textmill_set_layer(void* decoder, int layer, void* keys, void* values, int64_t count,
                       int window) {
    return on(decoder, [&](Decoder& own) { own.set_layer(layer, keys, values, count, window); });
}

// Tables (positions, half): (context, head_dim / 2); they must outlive the decoder.
int textmill_set_rotation(void* decoder, const float* cos, const float* sin, int64_t positions,
                          int64_t half) {
    return on(decoder, [&](Decoder& own) { own.set_rotation(cos, sin, positions, half); });
}

// At most max_rows rows of hidden states (num_rows, width), each at a position of a slot, through all
// layers; a slot's rows are in the order of their positions. Logits (num_wanted, vocabulary) are
// computed for the rows named in wanted.
int textmill_forward(void* decoder, int num_rows, const float* hidden, const int32_t* positions,
                     const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits) {
    return on(decoder, [&](Decoder& own) {
        own.forward(num_rows, hidden, positions, slots, num_wanted, wanted, logits);
    });
}

// A token for each row of logits (num_rows, vocabulary); -1 where a row has NaN or no largest number.
// traces has room for num_rows, or is null; only those that are asked for are written.
int textmill_choose(void* decoder, int num_rows, const float* logits, const Draw* draws,
                    int32_t* tokens, Trace* traces) {
    return on(decoder,
              [&](Decoder& own) { own.choose(num_rows, logits, draws, tokens, traces); });
}

// Seconds spent since the start: products, attention, the rest of the layers, head.
int textmill_seconds(void* decoder, double* seconds) {
    return on(decoder, [&](Decoder& own) {
        require(seconds, NULL_POINTER);
        std::copy_n(own.seconds(), int(NUM_PHASES), seconds);
    });
}
}
