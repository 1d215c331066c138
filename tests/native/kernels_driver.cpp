// Calls every function of the kernels with valid and with invalid arguments, on small shapes.
//
// test_sanitized.py builds it with the kernels' sources under the sanitizers. It prints a line for each wrong
// answer and a digest of all logits and tokens, and exits with 1 if an answer was wrong. Allocations can be
// made to fail one after the other, by an operator new of its own.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "activations.h"
#include "decoder.h"
#include "interface.h"
#include "packed_linear.h"
#include "status.h"
#include "thread_pool.h"

using namespace textmill;

// Clang's runtime for data races defines operator new itself, so allocations cannot be made to fail.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEXTMILL_SANITIZED
#endif
#if defined(__clang__) && __has_feature(thread_sanitizer)
#define TEXTMILL_FIXED_ALLOCATOR
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(TEXTMILL_SANITIZED)
constexpr bool IS_SANITIZED = true;
#else
constexpr bool IS_SANITIZED = false;
#endif
#if defined(__linux__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

// ---- allocations that fail -------------------------------------------------------------------

std::atomic<long> allocations_left{-1};  // negative: none fails

bool may_allocate() {
    long left = allocations_left.load();
    while (left > 0 && !allocations_left.compare_exchange_weak(left, left - 1)) {}
    return left != 0;
}

#if defined(TEXTMILL_FIXED_ALLOCATOR)
constexpr bool CAN_FAIL_ALLOCATIONS = false;
#else
constexpr bool CAN_FAIL_ALLOCATIONS = true;

// Not inlined: the compiler would see malloc and delete side by side, and warn.
#define REPLACED __attribute__((noinline))
REPLACED void* operator new(size_t size) {
    void* found = may_allocate() ? std::malloc(size) : nullptr;
    if (!found) throw std::bad_alloc();
    return found;
}
REPLACED void* operator new(size_t size, std::align_val_t unit) {
    const size_t step = size_t(unit), whole = (size + step - 1) / step * step;
    void* found = may_allocate() ? std::aligned_alloc(step, whole) : nullptr;
    if (!found) throw std::bad_alloc();
    return found;
}
REPLACED void operator delete(void* p) noexcept { std::free(p); }
REPLACED void operator delete(void* p, size_t) noexcept { std::free(p); }
REPLACED void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
REPLACED void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
#endif

// ---- expectations ----------------------------------------------------------------------------

int num_faults = 0;

void expect(int found, int wanted, const std::string& what) {
    if (found == wanted) return;
    ++num_faults;
    std::printf("%s: %d instead of %d\n", what.c_str(), found, wanted);
}

void expect_true(bool is_met, const std::string& what) { expect(is_met, true, what); }

// ---- digest ----------------------------------------------------------------------------------

// FNV-1a of all results of try_steps: compilers and instruction sets that agree to the last bit print the
// same.
uint64_t digest = 14695981039346656037ull;

template <class T>
void add_to_digest(const std::vector<T>& values) {
    std::vector<unsigned char> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    for (unsigned char byte : bytes) digest = (digest ^ byte) * 1099511628211ull;
}

// ---- a small model ---------------------------------------------------------------------------

// Almost normal numbers with a standard deviation of about 0.3. The distributions of the standard library
// give other numbers with every library.
std::vector<float> numbers(size_t count, unsigned seed) {
    std::mt19937 source(seed);
    std::vector<float> made(count);
    for (auto& x : made) {
        int sum = 0;
        for (int i = 0; i < 4; ++i) sum += int(source() >> 16) - 32768;
        x = float(sum) / 131072.0f;
    }
    return made;
}

Spec small_spec(bool is_int8, int activation, int num_threads) {
    Spec spec{};
    spec.num_layers = 2;
    spec.width = 36;  // not a multiple of any vector or block
    spec.num_heads = 5;
    spec.num_kv_heads = 1;
    spec.head_dim = 6;
    spec.inner = 41;
    spec.vocabulary = 301;
    spec.context = 70;
    spec.num_slots = 5;
    spec.capacity = 80;
    spec.is_rms = activation == SWIGLU;
    spec.activation = activation;
    spec.is_int8 = is_int8;
    spec.is_cache_int8 = is_int8;
    spec.num_threads = num_threads;
    spec.max_tokens = 20;
    spec.norm_eps = 1e-5f;
    spec.score_scale = 0.4f;
    return spec;
}

// Every buffer has exactly the required size, so that the sanitizer notices an access beyond it.
struct Model {
    Spec spec;
    std::vector<float> weights[2][4], biases[2][4], norms[2], head, cos, sin;
    std::vector<uint8_t> keys[2], values[2];
    int64_t count;  // of keys and of values of a layer

    explicit Model(const Spec& of) : spec(of) {
        const int heads = spec.num_heads * spec.head_dim, kv = spec.num_kv_heads * spec.head_dim;
        const int gates = spec.activation == SWIGLU ? 2 : 1;
        const int shapes[4][2] = {{heads + 2 * kv, spec.width},
                                  {spec.width, heads},
                                  {spec.inner * gates, spec.width},
                                  {spec.width, spec.inner}};
        count = int64_t(spec.num_slots) * spec.num_kv_heads * spec.capacity *
                ((spec.head_dim + 15) / 16 * 16 + (spec.is_cache_int8 ? 4 : 0));
        for (int layer = 0; layer < 2; ++layer) {
            for (int part = 0; part < 4; ++part) {
                const auto [outputs, inputs] = shapes[part];
                weights[layer][part] = numbers(size_t(outputs) * inputs, layer * 4 + part);
                biases[layer][part] = numbers(outputs, 50 + part);
            }
            const size_t bytes = count * (spec.is_cache_int8 ? 1 : 4);
            keys[layer].resize(bytes);
            values[layer].resize(bytes);
        }
        norms[0] = numbers(spec.width, 60);
        norms[1] = numbers(spec.width, 61);
        head = numbers(size_t(spec.vocabulary) * spec.width, 62);
        cos = numbers(size_t(spec.context) * spec.head_dim / 2, 63);
        sin = numbers(size_t(spec.context) * spec.head_dim / 2, 64);
    }

    // The first answer that is not OK.
    int load(void* decoder) {
        int code = OK;
        const auto keep = [&](int answer) { code = code == OK ? answer : code; };
        for (int layer = 0; layer < 2; ++layer) {
            for (int part = 0; part < 4; ++part) {
                const int64_t outputs = biases[layer][part].size();
                const int64_t inputs = weights[layer][part].size() / outputs;
                const bool has_bias = layer == 0;
                keep(textmill_set_linear(decoder, layer, part, weights[layer][part].data(), outputs,
                                          inputs, has_bias ? biases[layer][part].data() : nullptr,
                                          has_bias ? outputs : 0));
            }
            for (int index = 0; index < 2; ++index)
                keep(textmill_set_norm(decoder, layer, index, norms[0].data(), spec.width,
                                       spec.is_rms ? nullptr : norms[1].data(),
                                       spec.is_rms ? 0 : spec.width));
            keep(textmill_set_cache(decoder, layer, keys[layer].data(), values[layer].data(), count,
                                    layer * 9));
        }
        keep(textmill_set_norm(decoder, -1, 0, norms[0].data(), spec.width, nullptr, 0));
        for (int first = 0; first < spec.vocabulary; first += 96)
            keep(textmill_set_outputs(decoder, -1, 0, first, head.data() + size_t(first) * spec.width,
                                      std::min(96, spec.vocabulary - first), spec.width));
        if (spec.activation == SWIGLU)
            keep(textmill_set_rotary(decoder, cos.data(), sin.data(), spec.context,
                                       spec.head_dim / 2));
        return code;
    }
};

struct Step {
    std::vector<float> hidden;
    std::vector<int32_t> positions, slots, wanted;
    std::vector<float> logits;

    Step(const Spec& spec, int count, int first = 0) {
        hidden = numbers(size_t(count) * spec.width, 70 + first);
        for (int row = 0; row < count; ++row) {
            slots.push_back(row % spec.num_slots);
            positions.push_back(first + row / spec.num_slots);
            wanted.push_back(row);
        }
        logits.resize(size_t(count) * spec.vocabulary);
    }
    int run(void* decoder) {
        return textmill_forward(decoder, int(slots.size()), hidden.data(), positions.data(),
                                slots.data(), int(wanted.size()), wanted.data(), logits.data());
    }
};

constexpr int NUM_KINDS = CUSTOM + 1;

const CustomParameters& custom_parameters() {
    static const int32_t biased[] = {4, 300}, breakers[] = {7};
    static const float biases[] = {1.5f, -100.0f};
    static const CustomParameters custom = [] {
        CustomParameters own{};
        own.bias_ids = biased;
        own.biases = biases;
        own.num_biases = 2;
        own.breaker_ids = breakers;
        own.num_breakers = 1;
        own.num_generated = 0;
        own.frequency_penalty = 0.5f;
        own.presence_penalty = -0.25f;
        own.dry_multiplier = 0.8;
        own.dry_base = 1.75;
        own.dry_allowed_length = 1;
        own.top_n_sigma = 3.0f;
        own.typical_p = 0.95;
        own.xtc_threshold = 0.05;
        own.excludes_top = 1;
        return own;
    }();
    return custom;
}

SamplingParameters parameters_of(int kind, const std::vector<int32_t>& seen) {
    SamplingParameters own{};
    own.custom = kind == CUSTOM ? &custom_parameters() : nullptr;
    own.strategy = kind;
    own.top_k = 7;
    own.num_seen = int(seen.size());
    own.seen = seen.empty() ? nullptr : seen.data();
    own.is_traced = 1;
    own.temperature = 0.8f;
    own.repetition_penalty = 1.2f;
    own.min_p = 0.1f;
    own.uniform = 0.999999;
    own.mass = 0.9;
    return own;
}

std::vector<int32_t> sample(void* decoder, const Step& rows, int& code,
                            std::vector<Trace>* described = nullptr) {
    static const std::vector<int32_t> seen = {0, 5, 300}, none;
    const int count = int(rows.slots.size());
    std::vector<SamplingParameters> parameters;
    for (int row = 0; row < count; ++row) parameters.push_back(parameters_of(row % NUM_KINDS, row % 2 ? seen : none));
    std::vector<int32_t> tokens(count, -9);
    std::vector<Trace> traces(count);
    code = textmill_sample(decoder, count, rows.logits.data(), parameters.data(), tokens.data(),
                           traces.data());
    if (described) *described = traces;
    return tokens;
}

void* new_decoder(const Spec& spec) {
    void* decoder = nullptr;
    expect(textmill_new(&spec, &decoder), OK, "textmill_new");
    return decoder;
}

// ---- tests -----------------------------------------------------------------------------------

// Logits and tokens are the same in one step, in single steps, and with several threads.
void try_steps(bool is_int8, int activation) {
    const std::string name = std::string(is_int8 ? "int8" : "float32") + ", activation " + std::to_string(activation);
    std::vector<float> wanted;
    std::vector<int32_t> tokens;
    for (int num_threads : {1, 2, 5}) {
        Model model(small_spec(is_int8, activation, num_threads));
        void* decoder = new_decoder(model.spec);
        expect(model.load(decoder), OK, name);
        Step first(model.spec, 20);
        expect(first.run(decoder), OK, name);
        Step deep(model.spec, 1, 69);  // the context's last position
        deep.wanted.clear();
        expect(deep.run(decoder), OK, name + ", no logits wanted");
        int code;
        std::vector<Trace> traces;
        const auto found = sample(decoder, first, code, &traces);
        expect(code, OK, name + ", sample");
        std::vector<float> logarithms(first.logits.size());
        expect(textmill_log_softmax(decoder, 20, first.logits.data(), logarithms.data()), OK,
               name + ", log_softmax");
        double total = 0.0;
        for (int i = 0; i < model.spec.vocabulary; ++i) total += std::exp(double(logarithms[i]));
        expect_true(std::fabs(total - 1.0) < 1e-5, name + ": the probabilities add up to 1");
        for (int token : found) expect_true(token >= 0 && token < 301, name + ", a token");
        if (wanted.empty()) {
            wanted = first.logits;
            tokens = found;
            add_to_digest(wanted);
            add_to_digest(tokens);
            add_to_digest(traces);
            add_to_digest(logarithms);
        }
        expect_true(wanted == first.logits, name + ": the same logits by any number of threads");
        expect_true(tokens == found, name + ": the same tokens by any number of threads");
        Step again(model.spec, 20);  // each in a step of its own
        for (int row = 0; row < 20; ++row) {
            const int32_t zero = 0;
            expect(textmill_forward(decoder, 1, again.hidden.data() + size_t(row) * model.spec.width,
                                    &again.positions[row], &again.slots[row], 1, &zero,
                                    again.logits.data() + size_t(row) * model.spec.vocabulary),
                   OK, name);
        }
        expect_true(wanted == again.logits, name + ": the same logits alone");
        double seconds[4];
        expect(textmill_seconds(decoder, seconds), OK, name + ", seconds");
        textmill_free(decoder);
    }
}

// The transform of numbers (a multiple of HADAMARD_SIZE), which is its own inverse up to a factor.
std::vector<float> transformed(std::vector<float> x) {
    for (size_t i = 0; i < x.size(); i += HADAMARD_SIZE) {
        Floats v[4];
        for (int j = 0; j < 4; ++j) v[j] = load(&x[i + j * LANES]);
        hadamard(v);
        for (int j = 0; j < 4; ++j) store(&x[i + j * LANES], v[j]);
    }
    return x;
}

// Products whose sums in 16 bits are as large as the rule for weights permits: after the transform all
// weights and inputs have one magnitude, and signs that add up. The digest compares the sums with those of
// the instruction sets that sum in 32 bits.
void try_largest_products() {
    constexpr int DEPTH = 2 * HADAMARD_SIZE;
    const auto signs = [](int kind, unsigned seed) {
        const auto random = numbers(DEPTH, seed);
        std::vector<float> made(DEPTH);
        for (int i = 0; i < DEPTH; ++i) {
            const bool is_first = i % 4 < 2;  // of the four that are summed in 16 bits
            const bool is_negative = kind == 0 ? false : kind == 1 ? true : kind == 2 ? is_first
                                     : kind == 3 ? i % 2 : random[i] < 0.0f;
            made[i] = is_negative ? -1.0f : 1.0f;
        }
        return made;
    };
    for (int weight_kind = 0; weight_kind < 5; ++weight_kind)
        for (int input_kind = 0; input_kind < 5; ++input_kind) {
            std::vector<float> weights;
            std::vector<double> wanted(COLUMNS, 0.0);
            const auto inputs = signs(input_kind, 7);
            for (int output = 0; output < COLUMNS; ++output) {
                const auto row = signs(weight_kind, output);
                for (int i = 0; i < DEPTH; ++i) wanted[output] += double(row[i]) * inputs[i];
                for (float x : transformed(row)) weights.push_back(x);
            }
            PackedLinear linear(DEPTH, COLUMNS, false, true);
            linear.pack({0, linear.num_blocks()}, weights.data(), nullptr);
            std::vector<float> scratch(DEPTH), results(COLUMNS);
            std::vector<uint8_t> bytes(DEPTH);
            float scale;
            quantize(transformed(inputs).data(), DEPTH, scratch.data(), bytes.data(), &scale);
            Inputs given;
            given.stride = DEPTH;
            given.int8 = bytes.data();
            given.scales = &scale;
            linear.multiply(given, 1, {0, 1},
                            {results.data(), size_t(COLUMNS), COLUMNS, false, LINEAR});
            for (int output = 0; output < COLUMNS; ++output)
                expect_true(std::fabs(results[output] / HADAMARD_SIZE - wanted[output]) < 0.02 * DEPTH,
                            "the largest products");
            add_to_digest(results);
        }
}

void try_weights_that_are_not_numbers() {
    for (bool is_int8 : {false, true}) {
        Model model(small_spec(is_int8, SWIGLU, 2));
        model.head[3] = std::numeric_limits<float>::quiet_NaN();
        model.head[model.spec.width] = std::numeric_limits<float>::infinity();
        for (int i = 0; i < model.spec.width; ++i) model.head[2 * model.spec.width + i] = 1e-40f;
        void* decoder = new_decoder(model.spec);
        expect(model.load(decoder), OK, "odd weights");
        Step rows(model.spec, 3);
        for (int i = 0; i < model.spec.width; ++i) rows.hidden[i] = 1e-40f;
        expect(rows.run(decoder), OK, "odd weights");
        expect_true(std::isnan(rows.logits[0]), "a weight that is NaN");
        expect_true(!std::isfinite(rows.logits[301 + 1]), "a weight that is infinite");
        expect_true(std::fabs(rows.logits[301 + 2]) < 1e-30f, "weights that are next to nothing");
        int code;
        expect(sample(decoder, rows, code)[0], NO_TOKEN, "NaN has no token");
        std::vector<float> logarithms(rows.logits.size());
        expect(textmill_log_softmax(decoder, 3, rows.logits.data(), logarithms.data()), OK,
               "odd weights");
        expect_true(std::isnan(logarithms[0]) && std::isnan(logarithms[301 - 1]),
                    "NaN has no probabilities");
        textmill_free(decoder);
    }
}

void try_bad_specs() {
    void* decoder = nullptr;
    const Spec good = small_spec(true, SWIGLU, 1);
    expect(textmill_new(nullptr, &decoder), NULL_POINTER, "no spec");
    expect(textmill_new(&good, nullptr), NULL_POINTER, "nowhere to write to");
    const auto refused = [&](const char* what, auto change) {
        Spec spec = good;
        change(spec);
        expect(textmill_new(&spec, &decoder), BAD_SPEC, what);
        expect_true(decoder == nullptr, what);
    };
    for (int32_t Spec::* size :
         {&Spec::num_layers, &Spec::width, &Spec::num_heads, &Spec::num_kv_heads, &Spec::head_dim,
          &Spec::inner, &Spec::vocabulary, &Spec::context, &Spec::num_slots, &Spec::capacity,
          &Spec::max_tokens})
        for (int32_t wrong : {0, -1, INT32_MIN, INT32_MAX})
            refused("a size", [&](Spec& spec) { spec.*size = wrong; });
    refused("heads that do not divide", [](Spec& spec) { spec.num_kv_heads = 2; });
    refused("a capacity between blocks", [](Spec& spec) { spec.capacity = 81; });
    refused("a context beyond the capacity", [](Spec& spec) { spec.context = 81; });
    refused("an unknown activation", [](Spec& spec) { spec.activation = 3; });
    refused("no activation", [](Spec& spec) { spec.activation = LINEAR; });
    refused("too many threads", [](Spec& spec) { spec.num_threads = 1 << 20; });
    refused("heads that overflow", [](Spec& spec) { spec.num_heads = spec.head_dim = 1 << 20; });
    refused("rows that overflow", [](Spec& spec) {
        spec.max_tokens = spec.num_heads = spec.num_kv_heads = 1 << 20;
    });
    refused("a cache that overflows", [](Spec& spec) {
        spec.num_slots = spec.capacity = 1 << 24;
        spec.head_dim = 1 << 16;
    });
    refused("sums that overflow in int8", [](Spec& spec) { spec.inner = 70000; });
    refused("a norm without a number", [](Spec& spec) { spec.norm_eps = NAN; });
}

void try_bad_weights() {
    Model model(small_spec(false, SWIGLU, 2));
    void* decoder = new_decoder(model.spec);
    const float* some = model.head.data();
    const int width = model.spec.width;
    Step rows(model.spec, 4);
    expect(rows.run(decoder), NOT_COMPLETE, "a step before the weights");
    const auto product = [&](int layer, int part, const float* weight, int64_t outputs,
                             int64_t inputs, const float* bias, int64_t num_bias) {
        return textmill_set_linear(decoder, layer, part, weight, outputs, inputs, bias, num_bias);
    };
    for (int layer : {-2, 2, INT32_MIN, INT32_MAX}) {
        expect(product(layer, 0, some, 42, width, nullptr, 0), BAD_LAYER, "a product's layer");
        expect(textmill_set_norm(decoder, layer, 0, some, width, nullptr, 0), BAD_LAYER, "a norm");
        expect(textmill_set_cache(decoder, layer, model.keys[0].data(), model.values[0].data(),
                                  model.count, 0), BAD_LAYER, "a cache's layer");
    }
    expect(textmill_set_cache(decoder, -1, model.keys[0].data(), model.values[0].data(), model.count,
                              0), BAD_LAYER, "the head has no cache");
    for (int part : {-1, 4, INT32_MAX}) {
        expect(product(0, part, some, 42, width, nullptr, 0), BAD_PART, "a product's part");
        expect(textmill_set_norm(decoder, 0, part, some, width, nullptr, 0), BAD_PART, "a norm's");
    }
    expect(product(-1, 1, some, 301, width, nullptr, 0), BAD_PART, "a second head");
    expect(textmill_set_norm(decoder, -1, 1, some, width, nullptr, 0), BAD_PART, "a second norm");
    expect(product(-1, 0, nullptr, 301, width, nullptr, 0), NULL_POINTER, "no weight");
    expect(product(-1, 0, some, 300, width, nullptr, 0), BAD_SHAPE, "too few outputs");
    expect(product(-1, 0, some, 302, width, nullptr, 0), BAD_SHAPE, "too many outputs");
    expect(product(-1, 0, some, 301, width - 1, nullptr, 0), BAD_SHAPE, "too few inputs");
    expect(product(-1, 0, some, 301, width, some, 300), BAD_SHAPE, "a short bias");
    expect(product(-1, 0, some, 301, width, nullptr, 301), BAD_SHAPE, "a bias that is not there");
    expect(product(-1, 0, some, -301, -width, some, INT64_MIN), BAD_SHAPE, "negative counts");
    const auto outputs = [&](int layer, int part, int64_t first, const float* weight, int64_t count,
                             int64_t inputs) {
        return textmill_set_outputs(decoder, layer, part, first, weight, count, inputs);
    };
    expect(outputs(2, 0, 0, some, 32, width), BAD_LAYER, "outputs of a layer that is not there");
    expect(outputs(-1, 1, 0, some, 32, width), BAD_PART, "outputs of a second head");
    expect(outputs(-1, 0, 0, nullptr, 32, width), NULL_POINTER, "outputs without weights");
    expect(outputs(-1, 0, 0, some, 32, width + 1), BAD_SHAPE, "outputs of too many inputs");
    expect(outputs(0, 2, 0, some, 32, width), BAD_SHAPE, "outputs of a gated layer");
    expect(outputs(-1, 0, 0, some, 0, width), BAD_SHAPE, "no outputs");
    expect(outputs(-1, 0, 0, some, 31, width), BAD_SHAPE, "a part of a block");
    expect(outputs(-1, 0, 0, some, 302, width), BAD_SHAPE, "more outputs than there are");
    for (int64_t first : {int64_t(-32), int64_t(1), int64_t(320), INT64_MIN, INT64_MAX})
        expect(outputs(-1, 0, first, some, 32, width), BAD_SHAPE, "outputs that are not there");
    expect(outputs(-1, 0, 0, some, INT64_MAX, width), BAD_SHAPE, "outputs beyond all numbers");
    expect(outputs(-1, 0, 32, some, 32, width), BAD_SHAPE, "outputs before the first ones");
    expect(outputs(-1, 0, 0, some, 64, width), OK, "the first outputs");
    expect(outputs(-1, 0, 32, some, 32, width), BAD_SHAPE, "outputs twice");
    expect(outputs(-1, 0, 96, some, 32, width), BAD_SHAPE, "a gap");
    expect(rows.run(decoder), NOT_COMPLETE, "a step after a part of the head");
    expect(textmill_set_norm(decoder, 0, 0, nullptr, width, nullptr, 0), NULL_POINTER, "no norm");
    expect(textmill_set_norm(decoder, 0, 0, some, width - 1, nullptr, 0), BAD_SHAPE, "a short norm");
    expect(textmill_set_norm(decoder, 0, 0, some, width, some, 1), BAD_SHAPE, "its short bias");
    expect(textmill_set_cache(decoder, 0, nullptr, model.values[0].data(), model.count, 0),
           NULL_POINTER, "no keys");
    expect(textmill_set_cache(decoder, 0, model.keys[0].data(), model.values[0].data(),
                              model.count - 1, 0), BAD_SHAPE, "a small cache");
    expect(textmill_set_cache(decoder, 0, model.keys[0].data(), model.values[0].data(), model.count,
                              -1), BAD_WINDOW, "a negative window");
    expect(textmill_set_rotary(decoder, nullptr, some, 70, 3), NULL_POINTER, "no cosines");
    expect(textmill_set_rotary(decoder, some, some, 69, 3), BAD_SHAPE, "a short table");
    expect(textmill_set_rotary(decoder, some, some, 70, 2), BAD_SHAPE, "a narrow table");
    expect(rows.run(decoder), NOT_COMPLETE, "what was refused is not given");
    textmill_free(decoder);
}

void try_bad_steps() {
    Model model(small_spec(true, SWIGLU, 2));
    void* decoder = new_decoder(model.spec);
    expect(model.load(decoder), OK, "weights");
    const auto refused = [&](int code, const char* what, auto change) {
        Step rows(model.spec, 20);
        change(rows);
        expect(rows.run(decoder), code, what);
    };
    for (int slot : {-1, 5, INT32_MIN, INT32_MAX})
        refused(BAD_SLOT, "a slot", [&](Step& rows) { rows.slots[19] = slot; });
    for (int position : {-1, 70, 79, 80, INT32_MIN, INT32_MAX})
        refused(BAD_POSITION, "a position", [&](Step& rows) { rows.positions[19] = position; });
    refused(BAD_ORDER, "a position twice", [](Step& rows) { rows.positions[19] = 2; });
    refused(BAD_ORDER, "a position too late", [](Step& rows) { rows.positions[0] = 3; });
    for (int row : {-1, 20, INT32_MIN, INT32_MAX})
        refused(BAD_WANTED, "a wanted row", [&](Step& rows) { rows.wanted[7] = row; });
    refused(OK, "a row that is wanted twice", [](Step& rows) { rows.wanted[7] = 8; });
    Step rows(model.spec, 20);
    const auto step = [&](int num_rows, int num_wanted) {
        return textmill_forward(decoder, num_rows, rows.hidden.data(), rows.positions.data(),
                                rows.slots.data(), num_wanted, rows.wanted.data(),
                                rows.logits.data());
    };
    for (int count : {-1, 21, INT32_MIN, INT32_MAX}) {
        expect(step(count, 0), BAD_COUNT, "a number of rows");
        expect(step(20, count), BAD_COUNT, "a number of wanted rows");
    }
    expect(step(3, 4), BAD_COUNT, "more wanted than there are");
    expect(step(0, 0), OK, "no rows");
    expect(textmill_forward(decoder, 0, nullptr, nullptr, nullptr, 0, nullptr, nullptr), OK, "none");
    expect(textmill_forward(decoder, 1, nullptr, rows.positions.data(), rows.slots.data(), 0, nullptr,
                            nullptr), NULL_POINTER, "no hidden states");
    expect(textmill_forward(decoder, 1, rows.hidden.data(), rows.positions.data(), rows.slots.data(),
                            1, nullptr, rows.logits.data()), NULL_POINTER, "no wanted rows");
    expect(textmill_forward(decoder, 1, rows.hidden.data(), rows.positions.data(), rows.slots.data(),
                            1, rows.wanted.data(), nullptr), NULL_POINTER, "no room for logits");
    expect(textmill_forward(nullptr, 0, nullptr, nullptr, nullptr, 0, nullptr, nullptr),
           NULL_POINTER, "no decoder");
    expect(textmill_seconds(decoder, nullptr), NULL_POINTER, "no room for seconds");
    expect(step(20, 20), OK, "a good step after all that");
    textmill_free(decoder);
    textmill_free(nullptr);
}

// The fields of the strategy custom, and the strategies that may have them.
template <class Answer>
void try_bad_custom(const Answer& answer) {
    const auto custom_answer = [&](auto change, int kind = CUSTOM) {
        CustomParameters own = custom_parameters();
        change(own);
        return answer(kind, [&](SamplingParameters& with) { with.custom = &own; });
    };
    using Own = CustomParameters;
    expect(answer(CUSTOM, [](SamplingParameters& own) { own.custom = nullptr; }), BAD_SAMPLING, "custom without its fields");
    for (int kind : {SAMPLING, TOP_K, TOP_P, MIN_P, TYPICAL})
        expect(custom_answer([](Own&) {}, kind), BAD_SAMPLING, "fields of another strategy");
    expect(custom_answer([](Own&) {}, GREEDY), OK, "greedy with penalties");
    for (int32_t id : {-1, 301, INT32_MIN, INT32_MAX})
        expect(custom_answer([&](Own& own) { own.bias_ids = &id, own.num_biases = 1; }), BAD_TOKEN, "a biased token");
    expect(custom_answer([](Own& own) { own.bias_ids = nullptr; }), NULL_POINTER, "no biased tokens");
    expect(custom_answer([](Own& own) { own.biases = nullptr; }), NULL_POINTER, "no biases");
    expect(custom_answer([](Own& own) { own.breaker_ids = nullptr; }), NULL_POINTER, "no breakers");
    expect(custom_answer([](Own& own) { own.num_biases = -1; }), BAD_SAMPLING, "a count of biases");
    expect(custom_answer([](Own& own) { own.num_breakers = -1; }), BAD_SAMPLING, "a count of breakers");
    for (int count : {-1, 2})
        expect(custom_answer([&](Own& own) { own.num_generated = count; }), BAD_SAMPLING, "a count of new tokens");
    expect(custom_answer([](Own& own) { own.dry_allowed_length = 0; }), BAD_SAMPLING, "allowed length");
    expect(custom_answer([](Own& own) { own.dry_range = -1; }), BAD_SAMPLING, "range");
    for (double number : {double(NAN), double(INFINITY), -1.0}) {
        expect(custom_answer([&](Own& own) { own.dry_multiplier = number; }), BAD_SAMPLING, "multiplier");
        expect(custom_answer([&](Own& own) { own.dry_base = number; }), BAD_SAMPLING, "base");
        expect(custom_answer([&](Own& own) { own.xtc_threshold = number; }), BAD_SAMPLING, "threshold");
        expect(custom_answer([&](Own& own) { own.top_n_sigma = float(number); }), BAD_SAMPLING, "deviations");
    }
    for (float number : {NAN, INFINITY}) {
        expect(custom_answer([&](Own& own) { own.frequency_penalty = number; }), BAD_SAMPLING, "frequency");
        expect(custom_answer([&](Own& own) { own.presence_penalty = number; }), BAD_SAMPLING, "presence");
    }
    for (double number : {double(NAN), 0.0}) {
        expect(custom_answer([&](Own& own) { own.typical_p = number; }), BAD_SAMPLING, "typical_p");
        expect(answer(CUSTOM, [&](SamplingParameters& own) { own.mass = number; }), BAD_SAMPLING, "top_p");
    }
    expect(answer(CUSTOM, [](SamplingParameters& own) { own.top_k = -1; }), BAD_SAMPLING, "top_k");
    expect(answer(CUSTOM, [](SamplingParameters& own) { own.min_p = NAN; }), BAD_SAMPLING, "min_p");
    expect(answer(CUSTOM, [](SamplingParameters& own) { own.top_k = 0; }), OK, "no top_k");
    expect(custom_answer([](Own& own) { own.dry_base = 1e300, own.dry_multiplier = 1e300; }), OK, "an infinite penalty");
}

void try_bad_sampling() {
    Model model(small_spec(false, SWIGLU, 3));
    void* decoder = new_decoder(model.spec);
    expect(model.load(decoder), OK, "weights");
    Step rows(model.spec, NUM_KINDS);
    expect(rows.run(decoder), OK, "a step");
    const std::vector<int32_t> good = {1}, low = {-1}, high = {301}, far = {INT32_MIN};
    const auto answer = [&](int row, auto change) {
        std::vector<SamplingParameters> parameters;
        for (int kind = 0; kind < NUM_KINDS; ++kind) parameters.push_back(parameters_of(kind, good));
        change(parameters[row]);
        std::vector<int32_t> tokens(NUM_KINDS);
        std::vector<Trace> traces(NUM_KINDS);
        return textmill_sample(decoder, NUM_KINDS, rows.logits.data(), parameters.data(), tokens.data(),
                               traces.data());
    };
    for (const auto* seen : {&low, &high, &far})
        expect(answer(4, [&](SamplingParameters& own) { own.seen = seen->data(); }), BAD_TOKEN, "a seen token");
    expect(answer(0, [](SamplingParameters& own) { own.seen = nullptr; }), NULL_POINTER, "no seen tokens");
    expect(answer(0, [](SamplingParameters& own) { own.num_seen = -1; }), BAD_SAMPLING, "a negative count");
    for (int kind : {-1, NUM_KINDS, INT32_MAX})
        expect(answer(0, [&](SamplingParameters& own) { own.strategy = kind; }), BAD_SAMPLING, "a strategy");
    for (float number : {NAN, INFINITY, -1.0f})
        expect(answer(1, [&](SamplingParameters& own) { own.temperature = number; }), BAD_SAMPLING, "temperature");
    for (float number : {NAN, INFINITY, -1.0f, 0.0f})
        expect(answer(1, [&](SamplingParameters& own) { own.repetition_penalty = number; }), BAD_SAMPLING, "penalty");
    for (double number : {double(NAN), 0.0, -1.0})
        expect(answer(TOP_P, [&](SamplingParameters& own) { own.mass = number; }), BAD_SAMPLING, "mass");
    for (double number : {double(NAN), -0.1, 1.0, double(INFINITY)})
        expect(answer(1, [&](SamplingParameters& own) { own.uniform = number; }), BAD_SAMPLING, "share");
    for (float number : {NAN, -0.1f, 1.1f})
        expect(answer(MIN_P, [&](SamplingParameters& own) { own.min_p = number; }), BAD_SAMPLING, "min_p");
    for (int number : {0, -1, INT32_MIN})
        expect(answer(TOP_K, [&](SamplingParameters& own) { own.top_k = number; }), BAD_SAMPLING, "top_k");
    expect(answer(TOP_K, [](SamplingParameters& own) { own.top_k = INT32_MAX; }), OK, "all tokens");
    expect(answer(1, [](SamplingParameters& own) { own.temperature = 0.0f; }), OK, "no temperature");
    expect(answer(1, [](SamplingParameters& own) { own.repetition_penalty = 1e-38f; }), OK, "infinite by the penalty");
    try_bad_custom(answer);
    SamplingParameters own = parameters_of(GREEDY, good);
    int32_t token;
    expect(textmill_sample(decoder, -1, rows.logits.data(), &own, &token, nullptr), BAD_COUNT,
           "a number of rows");
    expect(textmill_sample(decoder, 0, nullptr, nullptr, nullptr, nullptr), OK, "no rows");
    expect(textmill_sample(decoder, 1, rows.logits.data(), &own, &token, nullptr), NULL_POINTER,
           "no room for a trace");
    own.is_traced = 0;
    expect(textmill_sample(decoder, 1, rows.logits.data(), &own, &token, nullptr), OK, "no trace");
    std::vector<float> out(301);
    expect(textmill_log_softmax(nullptr, 1, rows.logits.data(), out.data()), NULL_POINTER, "no decoder");
    expect(textmill_log_softmax(decoder, 1, nullptr, out.data()), NULL_POINTER, "no logits");
    expect(textmill_log_softmax(decoder, 1, rows.logits.data(), nullptr), NULL_POINTER, "no result");
    expect(textmill_log_softmax(decoder, -1, rows.logits.data(), out.data()), BAD_COUNT, "no rows");
    expect(textmill_log_softmax(decoder, 0, nullptr, nullptr), OK, "no rows");
    textmill_free(decoder);
}

// Every allocation fails once, in any thread; afterwards the results are as before.
void try_short_memory(int num_threads) {
    Model model(small_spec(true, SWIGLU, num_threads));
    long num_made = 0;
    for (;; ++num_made) {
        void* decoder = nullptr;
        allocations_left = num_made;
        const int code = textmill_new(&model.spec, &decoder);
        allocations_left = -1;
        if (code == OK) {
            textmill_free(decoder);
            break;
        }
        expect(code, NO_MEMORY, "textmill_new");
        expect_true(decoder == nullptr, "no decoder");
    }
    expect_true(num_made > 20, "textmill_new allocates");
    void* decoder = new_decoder(model.spec);
    long num_given = 0;  // of many allocations, so in growing steps
    for (;; num_given += 1 + num_given / 8) {
        allocations_left = num_given;
        const int code = model.load(decoder);
        allocations_left = -1;
        if (code == OK) break;
        expect(code, NO_MEMORY, "weights");
    }
    expect_true(num_given > 5, "packing allocates");
    Step rows(model.spec, 20), wanted(model.spec, 20);
    expect(wanted.run(decoder), OK, "a step");
    int code;
    const auto tokens = sample(decoder, wanted, code);
    expect(code, OK, "sample");
    textmill_free(decoder);
    decoder = new_decoder(model.spec);  // without samplers so far
    expect(model.load(decoder), OK, "weights");
    for (long left = 0; left < 3; ++left) {
        allocations_left = left;
        const int answer = rows.run(decoder);
        allocations_left = -1;
        expect_true(answer == OK || answer == NO_MEMORY, "a step");
    }
    expect(rows.run(decoder), OK, "a step");
    std::vector<SamplingParameters> parameters;
    const std::vector<int32_t> seen = {0, 5, 300};
    for (int row = 0; row < 20; ++row) parameters.push_back(parameters_of(row % NUM_KINDS, row % 2 ? seen : std::vector<int32_t>{}));
    for (int row = 1; row < 20; row += 2) parameters[row].seen = seen.data();
    std::vector<int32_t> found(20);
    std::vector<Trace> traces(20);
    long num_sampled = 0;
    for (;; ++num_sampled) {
        allocations_left = num_sampled;
        const int answer = textmill_sample(decoder, 20, rows.logits.data(), parameters.data(),
                                           found.data(), traces.data());
        allocations_left = -1;
        if (answer == OK) break;
        expect(answer, NO_MEMORY, "sample");
    }
    expect_true(num_sampled > 5, "sampling allocates");
    expect_true(found == tokens, "the same tokens after all failures");
    expect_true(rows.logits == wanted.logits, "the same logits after all failures");
    textmill_free(decoder);
}

// A task that throws in one thread: before, between and behind barriers.
void try_failures_in_threads() {
    for (int size : {1, 2, 4}) {
        ThreadPool pool(size);
        for (int round = 0; round < 48; ++round) {
            const int bad = round % size, stage = round % 4;
            std::atomic<int> done{0};
            const auto task = [&](int rank) {
                for (int now = 0; now < 3; ++now) {
                    if (rank == bad && stage == now) throw std::runtime_error("here");
                    pool.parallel_for(rank, 40, [&](Range parts) {
                        done += parts.end - parts.first;
                        if (stage == 3 && now == 1 && parts.first <= 20 && parts.end > 20)
                            throw std::bad_alloc();
                    });
                }
            };
            expect(guarded([&] { pool.run(task); }), stage == 3 ? NO_MEMORY : UNEXPECTED, "a task");
            done = 0;
            expect(guarded([&] {
                       pool.run([&](int rank) {
                           for (int now = 0; now < 3; ++now)
                               pool.parallel_for(rank, 40, [&](Range parts) {
                                   done += parts.end - parts.first;
                               });
                       });
                   }), OK, "the next task");
            expect(done, 120, "its parts");
        }
    }
}

// The system refuses more threads. Only without sanitizers, which reserve addresses.
void try_no_threads() {
#if defined(__linux__)
    if (IS_SANITIZED || std::getenv("TEXTMILL_EMULATED")) return;  // an emulator needs addresses too
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const rlimit limit{size_t(256) << 20, size_t(256) << 20};  // about 30 stacks of 8 MiB
        setrlimit(RLIMIT_AS, &limit);
        Spec spec = small_spec(true, SWIGLU, 500);
        void* decoder = nullptr;
        const int code = textmill_new(&spec, &decoder);
        _exit(code == NO_THREADS && decoder == nullptr ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    expect(status, 0, "no threads are left");
#endif
}

// Any argument leaves out what an emulator does not do as Linux does.
int main(int num_arguments, char**) {
    for (bool is_int8 : {false, true})
        for (int activation : {int(GELU), int(SWIGLU)}) try_steps(is_int8, activation);
    try_largest_products();
    try_weights_that_are_not_numbers();
    try_bad_specs();
    try_bad_weights();
    try_bad_steps();
    try_bad_sampling();
    if (CAN_FAIL_ALLOCATIONS) {
        try_short_memory(1);
        try_short_memory(3);
    }
    try_failures_in_threads();
    if (num_arguments == 1) try_no_threads();
    std::printf("digest %016llx\n%d wrong answers\n", (unsigned long long)digest, num_faults);
    return num_faults != 0;
}
