#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "activations.h"
#include "attention_int8.h"

namespace textmill {

// ---- loading ---------------------------------------------------------------------------------

// The spec itself, if no product of its sizes can overflow.
static const Spec& checked(const Spec& spec) {
    constexpr int64_t MAX_SIZE = 1 << 24, MAX_PRODUCT = 1 << 30;
    constexpr int MAX_THREADS = 4096, MAX_INT8_DEPTH = INT32_MAX / 255 / 127;
    for (int64_t size : {spec.num_layers, spec.width, spec.num_heads, spec.num_kv_heads,
                         spec.head_dim, spec.inner, spec.vocabulary, spec.context, spec.num_slots,
                         spec.capacity, spec.max_tokens})
        require(size >= 1 && size <= MAX_SIZE, BAD_SPEC);
    require(spec.num_threads <= MAX_THREADS, BAD_SPEC);
    require(spec.num_heads % spec.num_kv_heads == 0, BAD_SPEC);
    require(spec.capacity % LANES == 0 && spec.context <= spec.capacity, BAD_SPEC);
    require(spec.activation == GELU || spec.activation == SWIGLU, BAD_SPEC);
    const int64_t heads = int64_t(spec.num_heads) + 2 * int64_t(spec.num_kv_heads);
    require(heads * spec.head_dim <= MAX_PRODUCT, BAD_SPEC);
    require(int64_t(spec.max_tokens) * spec.num_kv_heads <= MAX_PRODUCT, BAD_SPEC);
    const double layer = double(spec.num_slots) * spec.num_kv_heads * spec.capacity;
    require(layer * (spec.head_dim + LANES) * sizeof(float) < double(INT64_MAX), BAD_SPEC);
    const int64_t max_depth = std::max<int64_t>(
        {spec.width, int64_t(spec.num_heads) * spec.head_dim, spec.inner});
    require(!spec.is_int8 || max_depth + HADAMARD_SIZE <= MAX_INT8_DEPTH, BAD_SPEC);
    require(!spec.is_cache_int8 || spec.head_dim <= MAX_INT8_HEAD_DIM, BAD_SPEC);
    require(std::isfinite(spec.norm_eps) && std::isfinite(spec.score_scale), BAD_SPEC);
    return spec;
}

Decoder::Decoder(const Spec& spec)
    : spec_(checked(spec)),
      pool_(std::max(1, spec.num_threads)),
      attention_(spec, pool_.size()),
      layers_(spec.num_layers) {
    const bool is_int8 = spec.is_int8, is_gated = spec.activation == SWIGLU;
    const int heads = spec.num_heads * spec.head_dim;
    const int kv_heads = spec.num_kv_heads * spec.head_dim;
    for (auto& layer : layers_) {
        layer.qkv = PackedLinear(spec.width, heads + 2 * kv_heads, false, is_int8);
        layer.out = PackedLinear(heads, spec.width, false, is_int8);
        layer.up = PackedLinear(spec.width, spec.inner * (is_gated ? 2 : 1), is_gated, is_int8);
        layer.down = PackedLinear(spec.inner, spec.width, false, is_int8);
        for (auto& norm : layer.norms) allocate(norm);
    }
    allocate(final_norm_);
    head_ = PackedLinear(spec.width, spec.vocabulary, false, is_int8);
    width_ = padded_width(spec.width);
    qkv_width_ = padded_width(heads + 2 * kv_heads);
    mixed_width_ = padded_width(heads);
    inner_width_ = padded_width(spec.inner);
    max_width_ = std::max({width_, mixed_width_, inner_width_});
    const size_t tokens = spec.max_tokens;
    hidden_ = Buffer<float>(tokens * width_);
    normed_ = Buffer<float>(tokens * width_);
    qkv_ = Buffer<float>(tokens * qkv_width_);
    mixed_ = Buffer<float>(tokens * mixed_width_);
    inner_ = Buffer<float>(tokens * inner_width_);
    int8_ = Buffer<uint8_t>(tokens * max_width_);
    scales_ = Buffer<float>(tokens);
    last_steps_ = Buffer<uint64_t>(spec.num_slots);
    last_positions_ = Buffer<int32_t>(spec.num_slots);
    for (int rank = 0; rank < pool_.size(); ++rank) scratch_.emplace_back(max_width_);
}

void Decoder::allocate(Norm& norm) {
    norm.weight = Buffer<float>(padded_width(spec_.width));
    norm.bias = Buffer<float>(padded_width(spec_.width));
}

void Decoder::set_linear(int layer, int part, const float* weight, int64_t outputs, int64_t inputs,
                         const float* bias, int64_t num_bias) {
    PackedLinear& linear = linear_at(layer, part);
    require(weight, NULL_POINTER);
    require(outputs == linear.outputs() && inputs == linear.inputs(), BAD_SHAPE);
    require(num_bias == (bias ? outputs : 0), BAD_SHAPE);
    linear.is_given = false;
    linear.num_given = 0;
    is_complete_ = false;
    pool_.run([&](int rank) {
        linear.pack(share_of(linear.num_blocks(), rank, pool_.size()), weight, bias);
    });
    linear.is_given = true;
}

void Decoder::set_outputs(int layer, int part, int64_t first, const float* weight, int64_t outputs,
                          int64_t inputs) {
    PackedLinear& linear = linear_at(layer, part);
    require(weight, NULL_POINTER);
    const Range blocks = linear.blocks_of(first, outputs);
    require(blocks.first < blocks.end && inputs == linear.inputs(), BAD_SHAPE);
    require(first == 0 || first == linear.num_given, BAD_SHAPE);
    linear.is_given = false;
    linear.num_given = 0;  // until these are packed
    is_complete_ = false;
    pool_.run([&](int rank) {
        const Range share = share_of(blocks.end - blocks.first, rank, pool_.size());
        linear.pack({blocks.first + share.first, blocks.first + share.end}, weight, nullptr,
                    int(first));
    });
    linear.num_given = int(first + outputs);
    linear.is_given = linear.num_given == linear.outputs();
}

void Decoder::set_norm(int layer, int index, const float* weight, int64_t count, const float* bias,
                       int64_t num_bias) {
    Norm& norm = norm_at(layer, index);
    require(weight, NULL_POINTER);
    require(count == spec_.width && num_bias == (bias ? count : 0), BAD_SHAPE);
    std::copy_n(weight, count, norm.weight.get());
    if (bias) std::copy_n(bias, count, norm.bias.get());
    norm.has_bias = bias != nullptr;
    norm.is_given = true;
}

void Decoder::set_cache(int layer, void* keys, void* values, int64_t count, int window) {
    require(layer >= 0 && layer < spec_.num_layers, BAD_LAYER);
    require(keys && values, NULL_POINTER);
    const int64_t heads = int64_t(spec_.num_slots) * spec_.num_kv_heads;
    require(count == heads * spec_.capacity * attention_.position_size(), BAD_SHAPE);
    require(window >= 0, BAD_WINDOW);
    layers_[layer].cache = {keys, values, window};
}

void Decoder::set_rotary(const float* cos, const float* sin, int64_t positions, int64_t half) {
    require(cos && sin, NULL_POINTER);
    require(positions == spec_.context && 2 * half == spec_.head_dim, BAD_SHAPE);
    cos_ = cos;
    sin_ = sin;
}

Norm& Decoder::norm_at(int layer, int index) {
    require(layer >= HEAD_LAYER && layer < spec_.num_layers, BAD_LAYER);
    require(index >= 0 && index < (layer == HEAD_LAYER ? 1 : 2), BAD_PART);
    return layer == HEAD_LAYER ? final_norm_ : layers_[layer].norms[index];
}

PackedLinear& Decoder::linear_at(int layer, int part) {
    require(layer >= HEAD_LAYER && layer < spec_.num_layers, BAD_LAYER);
    require(part >= 0 && part < (layer == HEAD_LAYER ? 1 : NUM_PARTS), BAD_PART);
    if (layer == HEAD_LAYER) return head_;
    PackedLinear* parts[] = {&layers_[layer].qkv, &layers_[layer].out, &layers_[layer].up,
                             &layers_[layer].down};
    return *parts[part];
}

// ---- a step ----------------------------------------------------------------------------------

void Decoder::forward(int num_tokens, const float* hidden, const int32_t* positions,
                      const int32_t* slots, int num_wanted, const int32_t* wanted, float* logits) {
    require(num_tokens >= 0 && num_tokens <= spec_.max_tokens, BAD_COUNT);
    require(num_wanted >= 0 && num_wanted <= num_tokens, BAD_COUNT);
    require_complete();
    if (num_tokens == 0) return;
    require(hidden && positions && slots && (!num_wanted || (wanted && logits)), NULL_POINTER);
    check_positions(num_tokens, positions, slots);
    for (int i = 0; i < num_wanted; ++i)
        require(wanted[i] >= 0 && wanted[i] < num_tokens, BAD_WANTED);
    for (int token = 0; token < num_tokens; ++token)
        std::memcpy(hidden_.get() + size_t(token) * width_, hidden + size_t(token) * spec_.width,
                    sizeof(float) * spec_.width);
    positions_ = positions;
    slots_ = slots;
    num_tokens_ = num_tokens;
    pool_.run([&](int rank) {
        if (rank == 0) last_time_ = std::chrono::steady_clock::now();
        for (auto& layer : layers_) compute_layer(layer, rank);
        if (num_wanted) compute_head(num_wanted, wanted, logits, rank);
    });
}

// Refuses a step while weights or a cache are missing.
void Decoder::require_complete() {
    if (is_complete_) return;
    bool is_all_given = head_.is_given && final_norm_.is_given;
    for (const auto& layer : layers_) {
        for (const auto& norm : layer.norms) is_all_given = is_all_given && norm.is_given;
        for (const auto* linear : {&layer.qkv, &layer.out, &layer.up, &layer.down})
            is_all_given = is_all_given && linear->is_given;
        is_all_given = is_all_given && layer.cache.keys;
    }
    require(is_all_given, NOT_COMPLETE);
    is_complete_ = true;
}

void Decoder::check_positions(int num_tokens, const int32_t* positions, const int32_t* slots) {
    ++num_steps_;
    for (int token = 0; token < num_tokens; ++token) {
        const int slot = slots[token], position = positions[token];
        require(slot >= 0 && slot < spec_.num_slots, BAD_SLOT);
        require(position >= 0 && position < spec_.context, BAD_POSITION);
        const bool is_first = last_steps_[slot] != num_steps_;
        require(is_first || position > last_positions_[slot], BAD_ORDER);
        last_steps_[slot] = num_steps_;
        last_positions_[slot] = position;
    }
}

void Decoder::compute_layer(Layer& layer, int rank) {
    normalize_tokens(layer.norms[0], rank);
    apply(layer.qkv, normed_.get(), width_,
          {qkv_.get(), size_t(qkv_width_), qkv_width_, false, LINEAR}, rank);
    parallel_for(OTHER, rank, num_tokens_,
                 [&](Range tokens) { prepare_attention(layer, tokens); });
    const AttentionStep step{qkv_.get(),          size_t(qkv_width_), mixed_.get(),
                             size_t(mixed_width_), positions_,         slots_,
                             num_tokens_};
    parallel_for(ATTENTION, rank, num_tokens_ * spec_.num_kv_heads, [&](Range pairs) {
        for (int pair = pairs.first; pair < pairs.end; ++pair)
            attention_.attend(layer.cache, step, pair / spec_.num_kv_heads,
                              pair % spec_.num_kv_heads, rank);
    });
    quantize_tokens(mixed_.get(), mixed_width_, rank);
    apply(layer.out, mixed_.get(), mixed_width_,
          {hidden_.get(), size_t(width_), spec_.width, true, LINEAR}, rank);
    normalize_tokens(layer.norms[1], rank);
    apply(layer.up, normed_.get(), width_,
          {inner_.get(), size_t(inner_width_), spec_.inner, false, Activation(spec_.activation)},
          rank);
    quantize_tokens(inner_.get(), inner_width_, rank);
    apply(layer.down, inner_.get(), inner_width_,
          {hidden_.get(), size_t(width_), spec_.width, true, LINEAR}, rank);
}

void Decoder::compute_head(int num_wanted, const int32_t* wanted, float* logits, int rank) {
    parallel_for(OTHER, rank, num_wanted, [&](Range range) {
        for (int i = range.first; i < range.end; ++i)
            normalize_token(final_norm_, wanted[i], i, rank);
    });
    const Inputs inputs = inputs_of(normed_.get(), width_);
    const Outputs outputs{logits, size_t(spec_.vocabulary), spec_.vocabulary, false, LINEAR};
    parallel_for(HEAD, rank, head_.num_blocks(),
                 [&](Range blocks) { head_.multiply(inputs, num_wanted, blocks, outputs); });
}

// Normalizes the hidden state of token `from`, the `to`-th input of the next product.
void Decoder::normalize_token(const Norm& norm, int from, int to, int rank) {
    float* normed = normed_.get() + size_t(to) * width_;
    normalize(hidden_.get() + size_t(from) * width_, spec_.width, spec_.is_rms, spec_.norm_eps,
              norm.weight.get(), norm.bias_or_null(), normed);
    if (spec_.is_int8) quantize_token(normed, width_, to, rank);
}

void Decoder::normalize_tokens(const Norm& norm, int rank) {
    parallel_for(OTHER, rank, num_tokens_, [&](Range tokens) {
        for (int token = tokens.first; token < tokens.end; ++token)
            normalize_token(norm, token, token, rank);
    });
}

void Decoder::quantize_token(const float* from, int width, int token, int rank) {
    quantize(from, width, scratch_[rank].get(), int8_.get() + size_t(token) * max_width_,
             scales_.get() + token);
}

void Decoder::quantize_tokens(const float* from, int width, int rank) {
    if (!spec_.is_int8) return;
    parallel_for(OTHER, rank, num_tokens_, [&](Range tokens) {
        for (int token = tokens.first; token < tokens.end; ++token)
            quantize_token(from + size_t(token) * width, width, token, rank);
    });
}

Inputs Decoder::inputs_of(const float* full, int stride) const {
    return {full, spec_.is_int8 ? max_width_ : stride, int8_.get(), scales_.get()};
}

void Decoder::apply(const PackedLinear& linear, const float* from, int stride,
                    const Outputs& outputs, int rank) {
    const Inputs inputs = inputs_of(from, stride);
    parallel_for(PRODUCTS, rank, linear.num_blocks(),
                 [&](Range blocks) { linear.multiply(inputs, num_tokens_, blocks, outputs); });
}

// Rotates queries and keys by their positions, scales the queries, and appends keys and values to the
// cache.
void Decoder::prepare_attention(Layer& layer, Range tokens) {
    const int dim = spec_.head_dim, heads = spec_.num_heads, kv_heads = spec_.num_kv_heads;
    for (int token = tokens.first; token < tokens.end; ++token) {
        float* queries = qkv_.get() + size_t(token) * qkv_width_;
        float* keys = queries + heads * dim;
        const int position = positions_[token];
        if (cos_)
            for (int head = 0; head < heads + kv_heads; ++head)
                rotate(queries + head * dim, position);
        for (int i = 0; i < heads * dim; ++i) queries[i] *= spec_.score_scale;
        attention_.append(layer.cache, slots_[token], position, keys, keys + kv_heads * dim);
    }
}

void Decoder::rotate(float* head, int position) const {
    const int half = spec_.head_dim / 2;
    const float* cos = cos_ + size_t(position) * half;
    const float* sin = sin_ + size_t(position) * half;
    for (int i = 0; i < half; ++i) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i] + first * sin[i];
    }
}

// A parallel loop of the pool, whose time is added to a phase.
template <class Work>
void Decoder::parallel_for(Phase phase, int rank, int count, const Work& work) {
    pool_.parallel_for(rank, count, work);
    if (rank != 0) return;
    const auto now = std::chrono::steady_clock::now();
    seconds_[phase] += std::chrono::duration<double>(now - last_time_).count();
    last_time_ = now;
}

// ---- sampling --------------------------------------------------------------------------------

void Decoder::sample(int num_rows, const float* logits, const SamplingParameters* parameters,
                     int32_t* tokens, Trace* traces) {
    require(num_rows >= 0, BAD_COUNT);
    if (num_rows == 0) return;
    require(logits && parameters && tokens, NULL_POINTER);
    for (int row = 0; row < num_rows; ++row) {
        const SamplingParameters& own = parameters[row];
        require(has_pointers(own) && (!own.is_traced || traces), NULL_POINTER);
        require(is_in_range(own), BAD_SAMPLING);
    }
    for_each_row(num_rows, [&](Sampler& sampler, int row) {
        tokens[row] = sampler.sample(logits + size_t(row) * spec_.vocabulary, parameters[row],
                                     parameters[row].is_traced ? traces + row : nullptr);
    });
}

void Decoder::log_softmax(int num_rows, const float* logits, float* out) {
    require(num_rows >= 0, BAD_COUNT);
    if (num_rows == 0) return;
    require(logits && out, NULL_POINTER);
    for_each_row(num_rows, [&](Sampler& sampler, int row) {
        const size_t start = size_t(row) * spec_.vocabulary;
        sampler.log_softmax(logits + start, out + start);
    });
}

// Calls work(sampler, row) in the threads of the pool, each with its own sampler.
template <class Work>
void Decoder::for_each_row(int num_rows, const Work& work) {
    while (int(samplers_.size()) < pool_.size()) samplers_.emplace_back(spec_.vocabulary);
    pool_.run([&](int rank) {
        pool_.parallel_for(rank, num_rows, [&](Range rows) {
            for (int row = rows.first; row < rows.end; ++row) work(samplers_[rank], row);
        });
    });
}

}  // namespace textmill
