// The C functions that Python calls through ctypes.

#include "interface.h"

#include <algorithm>
#include <string>

#include "decoder.h"
#include "status.h"

using namespace textmill;

namespace {

constexpr char code(int) { return 'i'; }
constexpr char code(int64_t) { return 'l'; }
constexpr char code(const void*) { return 'p'; }

template <class... Arguments>
std::string types_of(Arguments... arguments) {
    return {code(arguments)...};
}

template <class Result, class... Arguments>
std::string signature(const char* name, Result (*)(Arguments...)) {
    return std::string(name) + "(" + types_of(Arguments{}...) + ")\n";
}

std::string description() {
    const auto number = [](const char* name, size_t value) {
        return std::string(name) + " " + std::to_string(value) + "\n";
    };
    return number("version", INTERFACE_VERSION) + number("Spec", sizeof(Spec)) +
           number("SamplingParameters", sizeof(SamplingParameters)) +
           number("CustomParameters", sizeof(CustomParameters)) +
           number("Trace", sizeof(Trace)) +
           signature("textmill_new", textmill_new) + signature("textmill_free", textmill_free) +
           signature("textmill_set_linear", textmill_set_linear) +
           signature("textmill_set_outputs", textmill_set_outputs) +
           signature("textmill_set_norm", textmill_set_norm) +
           signature("textmill_set_cache", textmill_set_cache) +
           signature("textmill_set_rotary", textmill_set_rotary) +
           signature("textmill_forward", textmill_forward) +
           signature("textmill_sample", textmill_sample) +
           signature("textmill_log_softmax", textmill_log_softmax) +
           signature("textmill_seconds", textmill_seconds);
}

// Calls with the decoder and returns a Status.
template <class Call>
int with(void* decoder, const Call& call) noexcept {
    return guarded([&] {
        require(decoder, NULL_POINTER);
        call(*static_cast<Decoder*>(decoder));
    });
}

}  // namespace

const char* textmill_interface() {
    const char* text = nullptr;
    guarded([&] {
        static const std::string once = description();
        text = once.c_str();
    });
    return text;
}

int textmill_new(const Spec* spec, void** decoder) {
    return guarded([&] {
        require(spec && decoder, NULL_POINTER);
        *decoder = nullptr;
        *decoder = new Decoder(*spec);
    });
}

void textmill_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

int textmill_set_linear(void* decoder, int layer, int part, const float* weight, int64_t outputs,
                        int64_t inputs, const float* bias, int64_t num_bias) {
    return with(decoder, [&](Decoder& self) {
        self.set_linear(layer, part, weight, outputs, inputs, bias, num_bias);
    });
}

int textmill_set_outputs(void* decoder, int layer, int part, int64_t first, const float* weight,
                         int64_t outputs, int64_t inputs) {
    return with(decoder, [&](Decoder& self) {
        self.set_outputs(layer, part, first, weight, outputs, inputs);
    });
}

int textmill_set_norm(void* decoder, int layer, int index, const float* weight, int64_t count,
                      const float* bias, int64_t num_bias) {
    return with(decoder, [&](Decoder& self) {
        self.set_norm(layer, index, weight, count, bias, num_bias);
    });
}

int textmill_set_cache(void* decoder, int layer, void* keys, void* values, int64_t count,
                       int window) {
    return with(decoder,
                [&](Decoder& self) { self.set_cache(layer, keys, values, count, window); });
}

int textmill_set_rotary(void* decoder, const float* cos, const float* sin, int64_t positions,
                        int64_t half) {
    return with(decoder, [&](Decoder& self) { self.set_rotary(cos, sin, positions, half); });
}

int textmill_forward(void* decoder, int num_tokens, const float* hidden, const int32_t* positions,
                     const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits) {
    return with(decoder, [&](Decoder& self) {
        self.forward(num_tokens, hidden, positions, slots, num_wanted, wanted, logits);
    });
}

int textmill_sample(void* decoder, int num_rows, const float* logits,
                    const SamplingParameters* parameters, int32_t* tokens, Trace* traces) {
    return with(decoder, [&](Decoder& self) {
        self.sample(num_rows, logits, parameters, tokens, traces);
    });
}

int textmill_log_softmax(void* decoder, int num_rows, const float* logits, float* out) {
    return with(decoder, [&](Decoder& self) { self.log_softmax(num_rows, logits, out); });
}

int textmill_seconds(void* decoder, double* seconds) {
    return with(decoder, [&](Decoder& self) {
        require(seconds, NULL_POINTER);
        std::copy_n(self.seconds(), int(NUM_PHASES), seconds);
    });
}
