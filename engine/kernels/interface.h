// Everything that Python sees of the kernels: the shared structs and the C functions.
//
// engine/kernels/interface.py lists the same structs and functions. When the library is loaded, it compares
// its list with textmill_interface(), which is made of the declarations here.
#pragma once

#include <cstdint>

namespace textmill {

// Raised when the meaning of a function or a field changes but its type does not.
constexpr int INTERFACE_VERSION = 5;

struct Spec {
    int32_t num_layers, width, num_heads, num_kv_heads, head_dim, inner, vocabulary;
    int32_t context, num_slots, capacity;  // positions of a sequence; slots; positions of a slot
    int32_t is_rms, activation, is_int8, is_cache_int8, num_threads, max_tokens;
    float norm_eps, score_scale;
};

enum Strategy { GREEDY = 0, SAMPLING = 1, TOP_K = 2, TOP_P = 3, MIN_P = 4, TYPICAL = 5, CUSTOM = 6 };

// The steps that only the strategy custom has. Those of `SamplingParameters` apply to it too, a filter at its
// neutral value excepted: top_k 0, mass (top_p) 1, min_p 0, typical_p 1.
struct CustomParameters {
    const int32_t* bias_ids;     // token ids, and what is added to their logits
    const float* biases;
    const int32_t* breaker_ids;  // tokens that no repetition continues across (DRY)
    double dry_multiplier, dry_base;  // multiplier 0: no DRY
    double typical_p, xtc_threshold;
    float frequency_penalty, presence_penalty, top_n_sigma;  // top_n_sigma 0: no cut
    int32_t num_biases, num_breakers, num_generated;  // num_generated: the last ones of `seen`
    int32_t dry_allowed_length, dry_range;  // dry_range: the last ones of `seen`; 0: all
    int32_t excludes_top;  // whether XTC's coin fell on its side
};

struct SamplingParameters {  // of one batch entry
    int32_t strategy, top_k, num_seen, is_traced;
    const int32_t* seen;  // token ids to which the penalties apply, in the order of the text
    float temperature, repetition_penalty, min_p;
    double uniform;  // the random number, in [0, 1)
    double mass;     // top_p, or typical_p
    const CustomParameters* custom;  // of the strategy custom, also where it is greedy; otherwise null
};

constexpr int NUM_ALTERNATIVES = 20;
constexpr int NO_TOKEN = -1;  // the result where logits contain NaN or have no finite maximum

struct Trace {
    int32_t rank;
    float logprob, probability, entropy;
    int32_t ids[NUM_ALTERNATIVES];
    float logprobs[NUM_ALTERNATIVES], probabilities[NUM_ALTERNATIVES];
};

}  // namespace textmill

#pragma GCC visibility push(default)
extern "C" {

// The version, the sizes of the structs and the types of the functions, one a line; null when memory is
// short.
const char* textmill_interface();

// The functions below return a Status.

// Writes the new decoder to *decoder, or null.
int textmill_new(const textmill::Spec* spec, void** decoder);

void textmill_free(void* decoder);

// layer -1 is the head; part is a decoder's Part. weight (outputs, inputs); bias (num_bias), or null and
// a count of 0.
int textmill_set_linear(void* decoder, int layer, int part, const float* weight, int64_t outputs,
                        int64_t inputs, const float* bias, int64_t num_bias);

// Some outputs of a linear layer that has no bias and is not gated; weight (outputs, inputs). The calls for a
// layer are in the order of its outputs; first is a multiple of 32, and so is the number of outputs except for
// the last ones.
int textmill_set_outputs(void* decoder, int layer, int part, int64_t first, const float* weight,
                         int64_t outputs, int64_t inputs);

// Index 0 is the norm before attention, 1 the one after it. Layer -1 has only index 0, the norm before
// the head.
int textmill_set_norm(void* decoder, int layer, int index, const float* weight, int64_t count,
                      const float* bias, int64_t num_bias);

// A layer's keys and values, (slots, kv heads, capacity, position size) each, with `count` numbers in all.
// The size is head_dim, padded to a multiple of 16, and 4 more with an int8 cache. They must outlive the decoder.
int textmill_set_cache(void* decoder, int layer, void* keys, void* values, int64_t count, int window);

// Tables (positions, half): (context, head_dim / 2). They must outlive the decoder.
int textmill_set_rotary(void* decoder, const float* cos, const float* sin, int64_t positions,
                        int64_t half);

// Passes at most max_tokens hidden states (num_tokens, width), each at a position of a slot, through all
// layers. The tokens of a slot are in the order of their positions. Logits (num_wanted, vocabulary) are
// computed for the tokens whose indices are in `wanted`.
int textmill_forward(void* decoder, int num_tokens, const float* hidden, const int32_t* positions,
                     const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits);

// Writes a token for each row of logits (num_rows, vocabulary), or NO_TOKEN. `traces` has room for
// num_rows, or is null; only those of rows with is_traced are written.
int textmill_sample(void* decoder, int num_rows, const float* logits,
                    const textmill::SamplingParameters* parameters, int32_t* tokens,
                    textmill::Trace* traces);

// Writes log(softmax(logits)) to `out`, both (num_rows, vocabulary).
int textmill_log_softmax(void* decoder, int num_rows, const float* logits, float* out);

// Seconds since the start, (4): in products, attention, the rest of the layers, and the head.
int textmill_seconds(void* decoder, double* seconds);
}
#pragma GCC visibility pop
