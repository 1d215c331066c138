// Prints a hash of each kernel's output for fixed inputs: one line each, its name and FNV-1a in hexadecimal.
//
// Every instruction set, compiler and machine must print the same; kernel_hashes.txt contains the lines. The
// inputs are made by integer arithmetic alone: the distributions of the standard library give other numbers
// with every library.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "activations.h"
#include "attention.h"
#include "interface.h"
#include "logarithm.h"
#include "packed_linear.h"
#include "sampler.h"
#include "status.h"
#include "vector_math.h"

using namespace textmill;

int num_failures = 0;

void check(int status, const char* what) {
    if (status == OK) return;
    ++num_failures;
    std::printf("%s failed with status %d\n", what, status);
}

class Hash {
public:
    void add(const float* values, size_t count) {
        for (size_t i = 0; i < count; ++i)
            if (!std::isfinite(values[i])) ++num_failures;  // NaN would hide everything
        add<float>(values, count);
    }
    template <class T>
    void add(const T* values, size_t count) {
        std::vector<unsigned char> bytes(count * sizeof(T));
        if (count > 0) std::memcpy(bytes.data(), values, bytes.size());
        for (unsigned char byte : bytes) hash_ = (hash_ ^ byte) * 1099511628211ull;
    }
    template <class T>
    void add(const std::vector<T>& values) {
        add(values.data(), values.size());
    }
    void print(const std::string& name) const {
        std::printf("%s %016llx\n", name.c_str(), (unsigned long long)hash_);
    }

private:
    uint64_t hash_ = 14695981039346656037ull;
};

// ---- inputs ----------------------------------------------------------------------------------

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // In [-1, 1), a multiple of 2^-23, so that no conversion rounds.
    float number() { return float(int(next() >> 40) - (1 << 23)) / float(1 << 23); }

private:
    uint64_t state_;
};

// Numbers of at most `scale`, a power of two; a few are 16 times as large, as in real activations.
std::vector<float> numbers(size_t count, uint64_t seed, float scale = 1.0f) {
    Random random(seed);
    std::vector<float> made(count);
    for (size_t i = 0; i < count; ++i) made[i] = random.number() * (i % 97 == 41 ? 16.0f * scale : scale);
    return made;
}

// Rows of `width` numbers, each padded with zeros.
std::vector<float> padded_rows(int rows, int width, uint64_t seed) {
    const std::vector<float> dense = numbers(size_t(rows) * width, seed);
    std::vector<float> made(size_t(rows) * padded_width(width));
    for (int row = 0; row < rows; ++row)
        std::memcpy(&made[size_t(row) * padded_width(width)], &dense[size_t(row) * width],
                    width * sizeof(float));
    return made;
}

// ---- single kernels --------------------------------------------------------------------------

template <class Function>
void hash_function(const char* name, float scale, const Function& function) {
    std::vector<float> x = numbers(4096, 1, scale);
    x[0] = 0.0f;
    x[1] = -0.0f;
    for (size_t i = 0; i < x.size(); i += LANES) store(&x[i], function(load(&x[i])));
    Hash hash;
    hash.add(x);
    hash.print(name);
}

void hash_functions() {
    hash_function("exp", 8.0f, [](Floats x) { return exp(x); });
    hash_function("silu", 2.0f, [](Floats x) { return silu(x); });
    hash_function("gelu", 2.0f, [](Floats x) { return gelu(x); });
    // Plus zero: sets differ in the sign of a zero, on which nothing depends.
    hash_function("round_to_even", 4096.0f,
                  [](Floats x) { return round_to_even(x) + broadcast(0.0f); });
    Random random(2);
    std::vector<double> logarithms;
    for (int i = 0; i < 4096; ++i)
        logarithms.push_back(logarithm(double(random.next() >> 11) / 4096.0 + 0x1p-40));
    Hash hash;
    hash.add(logarithms);
    hash.print("logarithm");
}

void hash_activations() {
    for (int width : {64, 100, 576}) {
        const int padded = padded_width(width);
        const auto x = padded_rows(1, width, 3), weight = padded_rows(1, width, 4),
                   bias = padded_rows(1, width, 5);
        Hash norms, rounded;
        for (bool is_rms : {false, true}) {
            std::vector<float> out(padded);
            normalize(x.data(), width, is_rms, 1e-5f, weight.data(), is_rms ? nullptr : bias.data(),
                      out.data());
            norms.add(out.data(), width);
        }
        norms.print("norm " + std::to_string(width));
        std::vector<float> scratch(padded);
        std::vector<uint8_t> bytes(padded);
        std::vector<int8_t> signed_bytes(padded);
        float scale = 0.0f;
        quantize(x.data(), padded, scratch.data(), bytes.data(), &scale);
        for (int i = 0; i < padded; ++i) signed_bytes[i] = int8_t(int(bytes[i]) - ACTIVATION_OFFSET);
        rounded.add(signed_bytes);
        rounded.add(&scale, 1);
        rounded.print("quantize " + std::to_string(width));
    }
}

void hash_product(int inputs, int outputs, Activation activation, bool is_int8) {
    constexpr int MAX_TOKENS = 23;  // no multiple of any tile
    const bool is_gated = activation == SWIGLU;
    const int width = padded_width(inputs), columns = is_gated ? outputs / 2 : outputs;
    PackedLinear linear(inputs, outputs, is_gated, is_int8);
    const auto weight = numbers(size_t(outputs) * inputs, 6, 0.125f), bias = numbers(outputs, 7);
    linear.pack({0, linear.num_blocks()}, weight.data(), bias.data());
    const auto x = padded_rows(MAX_TOKENS, inputs, 8);
    std::vector<uint8_t> bytes(x.size());
    std::vector<float> scratch(width), scales(MAX_TOKENS);
    for (int token = 0; token < MAX_TOKENS; ++token)
        quantize(&x[size_t(token) * width], width, scratch.data(), &bytes[size_t(token) * width],
                 &scales[token]);
    Hash hash;
    for (int num_tokens : {1, 3, 8, MAX_TOKENS}) {
        std::vector<float> out(size_t(num_tokens) * padded_width(columns), 0.5f);
        Inputs given;
        given.full = x.data();
        given.stride = width;
        given.int8 = is_int8 ? bytes.data() : nullptr;
        given.scales = is_int8 ? scales.data() : nullptr;
        linear.multiply(given, num_tokens, {0, linear.num_blocks()},
                        {out.data(), size_t(padded_width(columns)), columns,
                         activation == LINEAR, activation});
        for (int token = 0; token < num_tokens; ++token)
            hash.add(&out[size_t(token) * padded_width(columns)], columns);
    }
    static const char* const NAMES[] = {"linear", "gelu", "swiglu"};
    hash.print(std::string("product ") + (is_int8 ? "int8 " : "float32 ") + NAMES[activation] + " " +
               std::to_string(inputs) + " x " + std::to_string(outputs));
}

void hash_attention(bool is_int8, int num_kv_heads, int window, int head_dim) {
    constexpr int POSITIONS = 77, SLOTS = 2;
    Spec spec{};
    spec.num_layers = 1;
    spec.num_heads = 6;
    spec.num_kv_heads = num_kv_heads;
    spec.head_dim = head_dim;
    spec.context = POSITIONS;
    spec.num_slots = SLOTS;
    spec.capacity = 96;
    spec.is_cache_int8 = is_int8;
    spec.num_threads = 1;
    spec.score_scale = 0.25f;
    Attention attention(spec, 1);
    const int padded = attention.position_size(), width = spec.num_heads * head_dim;
    std::vector<float> keys(size_t(SLOTS) * num_kv_heads * spec.capacity * padded), values(keys.size());
    LayerCache cache{keys.data(), values.data(), window};  // room for float32 is enough for int8
    const int kv_width = num_kv_heads * head_dim;
    const auto key_rows = numbers(size_t(POSITIONS) * kv_width + padded, 9);
    const auto value_rows = numbers(size_t(POSITIONS) * kv_width + padded, 10);
    for (int slot = 0; slot < SLOTS; ++slot)
        for (int position = 0; position < POSITIONS; ++position)
            attention.append(cache, slot, position, &key_rows[size_t(position) * kv_width],
                             &value_rows[size_t(position) * kv_width]);
    const std::vector<int32_t> positions = {0, 1, 15, 16, 40, POSITIONS - 1}, slots = {0, 1, 0, 1, 1, 0};
    const int count = int(positions.size());
    const auto queries = numbers(size_t(count) * width + padded, 11);
    std::vector<float> out(size_t(count) * width + padded);
    const AttentionStep step{queries.data(), size_t(width), out.data(), size_t(width),
                             positions.data(), slots.data(), count};
    for (int token = 0; token < count; ++token)
        for (int head = 0; head < num_kv_heads; ++head) attention.attend(cache, step, token, head, 0);
    Hash hash;
    hash.add(out.data(), size_t(count) * width);
    hash.print(std::string("attention ") + (is_int8 ? "int8" : "float32") + ", " +
               std::to_string(num_kv_heads) + " key-value heads of " + std::to_string(head_dim) +
               (window ? ", window " + std::to_string(window) : ""));
}

// Each step of the strategy custom in some of the draws, in all combinations of neighbours.
void hash_custom(Sampler& sampler, const std::vector<float>& logits) {
    constexpr int DRAWS = 256;
    Random random(14);
    std::vector<int32_t> seen;
    for (int i = 0; i < 200; ++i) seen.push_back(int32_t(random.next() % 5) * 250);
    const std::vector<int32_t> biased = {1, 250, 1002}, breakers = {500, 77};
    const std::vector<float> biases = {2.5f, -0.75f, 6.0f};
    Hash hash;
    for (int draw = 0; draw < DRAWS; ++draw) {
        CustomParameters steps{};
        steps.bias_ids = biased.data();
        steps.biases = biases.data();
        steps.num_biases = draw % 2 ? int(biased.size()) : 0;
        steps.breaker_ids = breakers.data();
        steps.num_breakers = draw / 2 % 3;
        steps.num_generated = draw % 9;
        steps.frequency_penalty = float(draw % 5 - 2) * 0.3f;
        steps.presence_penalty = float(draw % 7 - 3) * 0.2f;
        steps.dry_multiplier = draw / 4 % 2 ? 0.8 : 0.0;
        steps.dry_base = 1.75;
        steps.dry_allowed_length = 1 + draw % 3;
        steps.dry_range = draw % 11 * 13;
        steps.top_n_sigma = draw / 8 % 2 ? 0.7f + 0.1f * float(draw % 13) : 0.0f;
        steps.typical_p = draw / 16 % 2 ? 0.9 : 1.0;
        steps.xtc_threshold = 0.01;
        steps.excludes_top = draw / 32 % 2;
        SamplingParameters own{};
        own.custom = &steps;
        own.strategy = draw % 17 ? CUSTOM : GREEDY;
        own.top_k = draw / 64 % 2 ? 2 + draw % 60 : 0;
        own.mass = draw / 128 % 2 ? 0.8 : 1.0;
        own.min_p = draw % 3 ? 0.0f : 0.01f;
        own.num_seen = draw % 6 ? int(seen.size()) - draw % 4 : 9;
        own.seen = seen.data();
        own.is_traced = 1;
        own.temperature = 0.5f + 0.125f * float(draw % 8);
        own.repetition_penalty = draw % 4 ? 1.25f : 1.0f;
        own.uniform = double(random.next() >> 11) * 0x1p-53;
        Trace trace{};
        const int token = sampler.sample(logits.data(), own, &trace);
        if (token == NO_TOKEN) ++num_failures;
        hash.add(&token, 1);
        hash.add(&trace, 1);
    }
    hash.print("sample custom");
}

void hash_sampling() {
    constexpr int VOCABULARY = 1003, DRAWS = 40;
    std::vector<float> logits = numbers(VOCABULARY, 12, 4.0f);
    for (float& logit : logits) logit = logit > 4.0f || logit < -4.0f ? 3.5f : logit;  // no sure winner
    const std::vector<int32_t> seen = {3, 41, 1002};
    Sampler sampler(VOCABULARY);
    static const char* const NAMES[] = {"greedy", "sampling", "top_k", "top_p", "min_p", "typical"};
    for (int strategy = GREEDY; strategy <= TYPICAL; ++strategy) {
        Random random(13);
        Hash hash;
        for (int draw = 0; draw < DRAWS; ++draw) {
            SamplingParameters own{};
            own.strategy = strategy;
            own.top_k = 1 + draw;
            own.num_seen = draw % 2 ? int(seen.size()) : 0;
            own.seen = seen.data();
            own.is_traced = 1;
            own.temperature = draw % 5 ? 0.5f + 0.125f * float(draw % 8) : 1.0f;
            own.repetition_penalty = 1.25f;
            own.min_p = 0.0625f;
            own.uniform = double(random.next() >> 11) * 0x1p-53;
            own.mass = 0.25 + double(draw) / 64.0;
            Trace trace{};
            const int token = sampler.sample(logits.data(), own, &trace);
            hash.add(&token, 1);
            hash.add(&trace, 1);
        }
        hash.print(std::string("sample ") + NAMES[strategy]);
    }
    hash_custom(sampler, logits);
    std::vector<float> out(VOCABULARY);
    sampler.log_softmax(logits.data(), out.data());
    Hash hash;
    hash.add(out);
    hash.print("log_softmax");
}

// ---- whole decoders --------------------------------------------------------------------------

struct Family {
    const char* name;
    int32_t num_kv_heads, is_rms, activation;
    float score_scale;
    bool has_bias, has_rotary;
    int window;  // of every second layer
};

void hash_decoder(const Family& family, bool is_int8) {
    constexpr int LAYERS = 3, TOKENS = 30;
    Spec spec{};
    spec.num_layers = LAYERS;
    spec.width = 200;
    spec.num_heads = 6;
    spec.num_kv_heads = family.num_kv_heads;
    spec.head_dim = 24;
    spec.inner = 330;
    spec.vocabulary = 801;
    spec.context = 80;
    spec.num_slots = 3;
    spec.capacity = 80;
    spec.is_rms = family.is_rms;
    spec.activation = family.activation;
    spec.is_int8 = is_int8;
    spec.is_cache_int8 = is_int8;
    spec.num_threads = 2;
    spec.max_tokens = TOKENS;
    spec.norm_eps = 1e-5f;
    spec.score_scale = family.score_scale;
    const int heads = spec.num_heads * spec.head_dim, kv = spec.num_kv_heads * spec.head_dim;
    const int gates = spec.activation == SWIGLU ? 2 : 1;
    const int64_t shapes[4][2] = {{heads + 2 * kv, spec.width}, {spec.width, heads},
                                  {spec.inner * gates, spec.width}, {spec.width, spec.inner}};
    void* decoder = nullptr;
    check(textmill_new(&spec, &decoder), "textmill_new");
    const int64_t count = int64_t(spec.num_slots) * spec.num_kv_heads * spec.capacity *
                          ((spec.head_dim + LANES - 1) / LANES * LANES + (is_int8 ? 4 : 0));
    std::vector<std::vector<float>> kept;  // caches and tables, until the end
    const auto keep = [&](std::vector<float> made) {
        kept.push_back(std::move(made));
        return kept.back().data();
    };
    const auto scale = numbers(spec.width, 20), shift = numbers(spec.width, 21, 0.125f);
    const float* norm_bias = family.is_rms ? nullptr : shift.data();
    const int64_t num_norm_bias = family.is_rms ? 0 : spec.width;
    for (int layer = 0; layer < LAYERS; ++layer) {
        for (int part = 0; part < 4; ++part) {
            const auto [outputs, inputs] = shapes[part];
            const auto weight = numbers(size_t(outputs * inputs), 30 + layer * 4 + part, 0.125f);
            const auto bias = numbers(size_t(outputs), 50 + layer * 4 + part, 0.125f);
            check(textmill_set_linear(decoder, layer, part, weight.data(), outputs, inputs,
                                      family.has_bias ? bias.data() : nullptr,
                                      family.has_bias ? outputs : 0), "textmill_set_linear");
        }
        for (int index = 0; index < 2; ++index)
            check(textmill_set_norm(decoder, layer, index, scale.data(), spec.width, norm_bias,
                                    num_norm_bias), "textmill_set_norm");
        float* keys = keep(std::vector<float>(count));
        float* values = keep(std::vector<float>(count));
        check(textmill_set_cache(decoder, layer, keys, values, count, layer % 2 ? family.window : 0),
              "textmill_set_cache");
    }
    check(textmill_set_norm(decoder, -1, 0, scale.data(), spec.width, norm_bias, num_norm_bias),
          "textmill_set_norm");
    const auto head = numbers(size_t(spec.vocabulary) * spec.width, 70, 0.125f);
    check(textmill_set_linear(decoder, -1, 0, head.data(), spec.vocabulary, spec.width, nullptr, 0),
          "textmill_set_linear");
    const int half = spec.head_dim / 2;
    const float* cos = keep(numbers(size_t(spec.context) * half, 71));
    const float* sin = keep(numbers(size_t(spec.context) * half, 72));
    if (family.has_rotary)
        check(textmill_set_rotary(decoder, cos, sin, spec.context, half), "textmill_set_rotary");
    Hash hash;
    std::vector<int32_t> positions, slots, wanted;
    for (int token = 0; token < TOKENS; ++token) {
        positions.push_back(token / spec.num_slots);
        slots.push_back(token % spec.num_slots);
        wanted.push_back(token);
    }
    std::vector<float> logits(size_t(TOKENS) * spec.vocabulary);
    for (int step = 0; step < 3; ++step) {  // a prompt of ten tokens in each slot, then two more
        const int num_tokens = step == 0 ? TOKENS : spec.num_slots;
        const auto hidden = numbers(size_t(num_tokens) * spec.width, 80 + step);
        check(textmill_forward(decoder, num_tokens, hidden.data(), positions.data(), slots.data(),
                               num_tokens, wanted.data(), logits.data()), "textmill_forward");
        hash.add(logits.data(), size_t(num_tokens) * spec.vocabulary);
        for (int slot = 0; slot < spec.num_slots; ++slot) {
            slots[slot] = slot;
            positions[slot] = TOKENS / spec.num_slots + step;
        }
    }
    textmill_free(decoder);
    hash.print(std::string("logits ") + family.name + " " + (is_int8 ? "int8" : "float32"));
}

int main() {
    hash_functions();
    hash_activations();
    for (bool is_int8 : {false, true}) {
        for (Activation activation : {LINEAR, GELU, SWIGLU}) {
            hash_product(200, 90, activation, is_int8);
            hash_product(1536, 64, activation, is_int8);
        }
        hash_attention(is_int8, 6, 0, 24);
        hash_attention(is_int8, 2, 0, 64);
        hash_attention(is_int8, 6, 20, 64);
        hash_decoder({"gpt_neo", 6, false, GELU, 1.0f, true, false, 12}, is_int8);
        hash_decoder({"gpt2", 6, false, GELU, 0.2041241452f, true, false, 0}, is_int8);
        hash_decoder({"llama", 2, true, SWIGLU, 0.2041241452f, false, true, 0}, is_int8);
    }
    hash_sampling();
    return num_failures != 0;
}
