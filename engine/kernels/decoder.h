// A decoder: its layers, its attention, and the order of a step.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "memory.h"
#include "products.h"
#include "rows.h"
#include "sampler.h"
#include "status.h"
#include "team.h"
#include "vectors.h"

namespace textmill {

struct Spec {  // mirrored in native.py
    int32_t num_layers, width, num_heads, num_kv_heads, head_dim, inner, vocabulary;
    int32_t context, num_slots, capacity;  // positions of a text; slots of the cache, and of a slot
    int32_t is_rms, act, is_int8, is_cache_bfloat16, num_threads, max_rows;
    float norm_eps, score_scale;
};

// The spec itself, where no product of its sizes can overflow.
inline const Spec& checked(const Spec& spec) {
    constexpr int64_t MAX_SIZE = 1 << 24, MAX_PRODUCT = 1 << 30;
    constexpr int MAX_THREADS = 4096, MAX_INT8_DEPTH = INT32_MAX / 255 / 127;
    for (int64_t size : {spec.num_layers, spec.width, spec.num_heads, spec.num_kv_heads,
                         spec.head_dim, spec.inner, spec.vocabulary, spec.context, spec.num_slots,
                         spec.capacity, spec.max_rows})
        require(size >= 1 && size <= MAX_SIZE, BAD_SPEC);
    require(spec.num_threads <= MAX_THREADS, BAD_SPEC);
    require(spec.num_heads % spec.num_kv_heads == 0, BAD_SPEC);
    require(spec.capacity % LANES == 0 && spec.context <= spec.capacity, BAD_SPEC);
    require(spec.act == GELU || spec.act == SWIGLU, BAD_SPEC);
    const int64_t heads = int64_t(spec.num_heads) + 2 * int64_t(spec.num_kv_heads);
    require(heads * spec.head_dim <= MAX_PRODUCT, BAD_SPEC);
    require(int64_t(spec.max_rows) * spec.num_kv_heads <= MAX_PRODUCT, BAD_SPEC);
    const double layer = double(spec.num_slots) * spec.num_kv_heads * spec.capacity;
    require(layer * (spec.head_dim + LANES) * sizeof(float) < double(INT64_MAX), BAD_SPEC);
    const int64_t deepest = std::max<int64_t>(
        {spec.width, int64_t(spec.num_heads) * spec.head_dim, spec.inner});
    require(!spec.is_int8 || deepest + SPREAD <= MAX_INT8_DEPTH, BAD_SPEC);
    require(std::isfinite(spec.norm_eps) && std::isfinite(spec.score_scale), BAD_SPEC);
    return spec;
}

// A norm's weight and bias.
struct Norm {
    Block<float> weight, bias;
    bool has_bias = false, is_given = false;
    const float* bias_or_null() const { return has_bias ? bias.get() : nullptr; }
};

struct Layer {
    Norm norms[2];  // before attention, and before the feed-forward part
    Product qkv, out, up, down;
    int window = 0;  // 0: everything before is seen
    void* keys = nullptr;
    void* values = nullptr;
};

enum Phase { PRODUCTS = 0, ATTENTION = 1, OTHER = 2, HEAD = 3, NUM_PHASES = 4 };
enum Part { QKV = 0, OUT = 1, UP = 2, DOWN = 3, NUM_PARTS = 4 };
constexpr int HEAD_LAYER = -1;  // stands for the head and the norm before it

class Decoder {
public:
    explicit Decoder(const Spec& spec)
        : spec_(checked(spec)), team_(std::max(1, spec.num_threads)), layers_(spec.num_layers) {
        const bool int8 = spec.is_int8, gated = spec.act == SWIGLU;
        const int heads = spec.num_heads * spec.head_dim;
        const int kv_heads = spec.num_kv_heads * spec.head_dim;
        for (auto& layer : layers_) {
            layer.qkv = Product(spec.width, heads + 2 * kv_heads, false, int8);
            layer.out = Product(heads, spec.width, false, int8);
            layer.up = Product(spec.width, spec.inner * (gated ? 2 : 1), gated, int8);
            layer.down = Product(spec.inner, spec.width, false, int8);
            for (auto& norm : layer.norms) make_room(norm);
        }
        make_room(final_norm_);
        head_ = Product(spec.width, spec.vocabulary, false, int8);
        head_dim_ = (spec.head_dim + LANES - 1) / LANES * LANES;
        width_ = padded(spec.width);
        qkv_width_ = padded(heads + 2 * kv_heads);
        mixed_width_ = padded(heads);
        inner_width_ = padded(spec.inner);
        widest_ = std::max({width_, mixed_width_, inner_width_});
        const size_t rows = spec.max_rows;
        hidden_ = Block<float>(rows * width_);
        normed_ = Block<float>(rows * width_);
        qkv_ = Block<float>(rows * qkv_width_);
        mixed_ = Block<float>(rows * mixed_width_);
        inner_ = Block<float>(rows * inner_width_);
        small_ = Block<int8_t>(rows * widest_);
        scales_ = Block<float>(rows);
        offsets_ = Block<int32_t>(rows);
        last_steps_ = Block<uint64_t>(spec.num_slots);
        last_positions_ = Block<int32_t>(spec.num_slots);
        const int group = spec.num_heads / spec.num_kv_heads;
        for (int rank = 0; rank < team_.size(); ++rank) {
            scores_.emplace_back(size_t(group) * (spec.capacity + 2 * LANES));
            scratch_.emplace_back(widest_);
        }
    }

    // weight (outputs, inputs), bias (outputs) or null with a count of 0.
    void set_product(int layer, int part, const float* weight, int64_t outputs, int64_t inputs,
                     const float* bias, int64_t num_bias) {
        Product& product = product_of(layer, part);
        require(weight, NULL_POINTER);
        require(outputs == product.outputs && inputs == product.inputs, BAD_SHAPE);
        require(num_bias == (bias ? outputs : 0), BAD_SHAPE);
        product.is_given = false;
        is_complete_ = false;
        team_.run([&](int rank) {
            product.fill(share(product.num_blocks, rank, team_.size()), weight, bias);
        });
        product.is_given = true;
    }

    // weight (count), bias (count) or null with a count of 0.
    void set_norm(int layer, int index, const float* weight, int64_t count, const float* bias,
                  int64_t num_bias) {
        Norm& norm = norm_of(layer, index);
        require(weight, NULL_POINTER);
        require(count == spec_.width && num_bias == (bias ? count : 0), BAD_SHAPE);
        std::copy_n(weight, count, norm.weight.get());
        if (bias) std::copy_n(bias, count, norm.bias.get());
        norm.has_bias = bias != nullptr;
        norm.is_given = true;
    }

    // keys and values have room for count numbers each.
    void set_layer(int layer, void* keys, void* values, int64_t count, int window) {
        require(layer >= 0 && layer < spec_.num_layers, BAD_LAYER);
        require(keys && values, NULL_POINTER);
        const int64_t regions = int64_t(spec_.num_slots) * spec_.num_kv_heads;
        require(count == regions * spec_.capacity * head_dim_, BAD_SHAPE);
        require(window >= 0, BAD_WINDOW);
        layers_[layer].keys = keys;
        layers_[layer].values = values;
        layers_[layer].window = window;
    }

    void set_rotation(const float* cos, const float* sin, int64_t positions, int64_t half) {
        require(cos && sin, NULL_POINTER);
        require(positions == spec_.context && 2 * half == spec_.head_dim, BAD_SHAPE);
        cos_ = cos;
        sin_ = sin;
    }

    // One step; see textmill_forward.
    void forward(int num_rows, const float* hidden, const int32_t* positions, const int32_t* slots,
                 int num_wanted, const int32_t* wanted, float* logits) {
        require(num_rows >= 0 && num_rows <= spec_.max_rows, BAD_COUNT);
        require(num_wanted >= 0 && num_wanted <= num_rows, BAD_COUNT);
        require_complete();
        if (num_rows == 0) return;
        require(hidden && positions && slots && (!num_wanted || (wanted && logits)), NULL_POINTER);
        check_places(num_rows, positions, slots);
        for (int i = 0; i < num_wanted; ++i)
            require(wanted[i] >= 0 && wanted[i] < num_rows, BAD_ROW);
        for (int row = 0; row < num_rows; ++row)
            std::memcpy(hidden_.get() + size_t(row) * width_, hidden + size_t(row) * spec_.width,
                        sizeof(float) * spec_.width);
        positions_ = positions;
        slots_ = slots;
        num_rows_ = num_rows;
        team_.run([&](int rank) {
            clock_start(rank);
            for (auto& layer : layers_) step(layer, rank);
            if (num_wanted) predict(num_wanted, wanted, logits, rank);
        });
    }

    // A token a row; see textmill_choose.
    void choose(int num_rows, const float* logits, const Draw* draws, int32_t* tokens,
                Trace* traces) {
        require(num_rows >= 0, BAD_COUNT);
        if (num_rows == 0) return;
        require(logits && draws && tokens, NULL_POINTER);
        for (int row = 0; row < num_rows; ++row) {
            const Draw& draw = draws[row];
            require((!draw.num_seen || draw.seen) && (!draw.wants_trace || traces), NULL_POINTER);
            require(is_in_range(draw), BAD_DRAW);
        }
        while (int(samplers_.size()) < team_.size()) samplers_.emplace_back(spec_.vocabulary);
        team_.run([&](int rank) {
            team_.divide(rank, num_rows, [&](Range rows) {
                for (int row = rows.first; row < rows.end; ++row)
                    tokens[row] = samplers_[rank].choose(
                        logits + size_t(row) * spec_.vocabulary, draws[row],
                        draws[row].wants_trace ? traces + row : nullptr);
            });
        });
    }

    const double* seconds() const { return seconds_; }

private:
    void make_room(Norm& norm) {
        norm.weight = Block<float>(padded(spec_.width));
        norm.bias = Block<float>(padded(spec_.width));
    }

    // What would be computed of weights or a cache that were not given is not asked for.
    void require_complete() {
        if (is_complete_) return;
        bool all_given = head_.is_given && final_norm_.is_given;
        for (const auto& layer : layers_) {
            for (const auto& norm : layer.norms) all_given = all_given && norm.is_given;
            for (const auto* product : {&layer.qkv, &layer.out, &layer.up, &layer.down})
                all_given = all_given && product->is_given;
            all_given = all_given && layer.keys;
        }
        require(all_given, NOT_COMPLETE);
        is_complete_ = true;
    }

    void check_places(int num_rows, const int32_t* positions, const int32_t* slots) {
        ++num_steps_;
        for (int row = 0; row < num_rows; ++row) {
            const int slot = slots[row], position = positions[row];
            require(slot >= 0 && slot < spec_.num_slots, BAD_SLOT);
            require(position >= 0 && position < spec_.context, BAD_POSITION);
            const bool is_first = last_steps_[slot] != num_steps_;
            require(is_first || position > last_positions_[slot], BAD_ORDER);
            last_steps_[slot] = num_steps_;
            last_positions_[slot] = position;
        }
    }

    Norm& norm_of(int layer, int index) {
        require(layer >= HEAD_LAYER && layer < spec_.num_layers, BAD_LAYER);
        require(index >= 0 && index < (layer == HEAD_LAYER ? 1 : 2), BAD_PART);
        return layer == HEAD_LAYER ? final_norm_ : layers_[layer].norms[index];
    }

    Product& product_of(int layer, int part) {
        require(layer >= HEAD_LAYER && layer < spec_.num_layers, BAD_LAYER);
        require(part >= 0 && part < (layer == HEAD_LAYER ? 1 : NUM_PARTS), BAD_PART);
        if (layer == HEAD_LAYER) return head_;
        Product* parts[] = {&layers_[layer].qkv, &layers_[layer].out, &layers_[layer].up,
                            &layers_[layer].down};
        return *parts[part];
    }

    void step(Layer& layer, int rank) {
        divide(OTHER, rank, num_rows_, [&](Range rows) {
            norm_rows(layer.norms[0], rows, rank);
        });
        apply(layer.qkv, normed_.get(), width_,
              {qkv_.get(), size_t(qkv_width_), qkv_width_, false, LINEAR}, rank);
        divide(OTHER, rank, num_rows_, [&](Range rows) { place_rows(layer, rows); });
        divide(ATTENTION, rank, num_rows_ * spec_.num_kv_heads, [&](Range pairs) {
            for (int pair = pairs.first; pair < pairs.end; ++pair) {
                const int row = pair / spec_.num_kv_heads, head = pair % spec_.num_kv_heads;
                if (spec_.is_cache_bfloat16) attend<Bfloat16>(layer, row, head, rank);
                else attend<float>(layer, row, head, rank);
            }
        });
        round_rows(mixed_.get(), mixed_width_, rank);
        apply(layer.out, mixed_.get(), mixed_width_,
              {hidden_.get(), size_t(width_), spec_.width, true, LINEAR}, rank);
        divide(OTHER, rank, num_rows_, [&](Range rows) {
            norm_rows(layer.norms[1], rows, rank);
        });
        apply(layer.up, normed_.get(), width_,
              {inner_.get(), size_t(inner_width_), spec_.inner, false, Act(spec_.act)}, rank);
        round_rows(inner_.get(), inner_width_, rank);
        apply(layer.down, inner_.get(), inner_width_,
              {hidden_.get(), size_t(width_), spec_.width, true, LINEAR}, rank);
    }

    void predict(int num_wanted, const int32_t* wanted, float* logits, int rank) {
        divide(OTHER, rank, num_wanted, [&](Range rows) {
            for (int i = rows.first; i < rows.end; ++i) {
                const float* row = hidden_.get() + size_t(wanted[i]) * width_;
                float* normed = normed_.get() + size_t(i) * width_;
                normalise(row, spec_.width, spec_.is_rms, spec_.norm_eps, final_norm_.weight.get(),
                          final_norm_.bias_or_null(), normed);
                if (spec_.is_int8) round_row(normed, width_, i, rank);
            }
        });
        const Rows rows = rows_of(normed_.get(), width_);
        const Target target{logits, size_t(spec_.vocabulary), spec_.vocabulary, false, LINEAR};
        divide(HEAD, rank, head_.num_blocks,
               [&](Range blocks) { multiply(head_, rows, num_wanted, blocks, target); });
    }

    void norm_rows(const Norm& norm, Range rows, int rank) {
        for (int row = rows.first; row < rows.end; ++row) {
            float* normed = normed_.get() + size_t(row) * width_;
            normalise(hidden_.get() + size_t(row) * width_, spec_.width, spec_.is_rms,
                      spec_.norm_eps, norm.weight.get(), norm.bias_or_null(), normed);
            if (spec_.is_int8) round_row(normed, width_, row, rank);
        }
    }

    void round_rows(const float* from, int width, int rank) {
        if (!spec_.is_int8) return;
        divide(OTHER, rank, num_rows_, [&](Range rows) {
            for (int row = rows.first; row < rows.end; ++row)
                round_row(from + size_t(row) * width, width, row, rank);
        });
    }

    void round_row(const float* from, int width, int row, int rank) {
        quantise(from, width, scratch_[rank].get(), small_.get() + size_t(row) * widest_,
                 scales_.get() + row, offsets_.get() + row);
    }

    Rows rows_of(const float* full, int stride) const {
        return {full, spec_.is_int8 ? widest_ : stride, small_.get(), scales_.get(),
                offsets_.get()};
    }

    void apply(const Product& product, const float* from, int stride, const Target& target,
               int rank) {
        const Rows rows = rows_of(from, stride);
        divide(PRODUCTS, rank, product.num_blocks,
               [&](Range blocks) { multiply(product, rows, num_rows_, blocks, target); });
    }

    // Turn queries and keys by their positions, and put keys and values into the cache.
    void place_rows(Layer& layer, Range rows) {
        const int dim = spec_.head_dim, heads = spec_.num_heads, kv_heads = spec_.num_kv_heads;
        for (int row = rows.first; row < rows.end; ++row) {
            float* query = qkv_.get() + size_t(row) * qkv_width_;
            float* key = query + heads * dim;
            const float* value = key + kv_heads * dim;
            const int position = positions_[row];
            if (cos_)
                for (int head = 0; head < heads + kv_heads; ++head)
                    rotate(query + head * dim, position);
            for (int i = 0; i < heads * dim; ++i) query[i] *= spec_.score_scale;
            for (int head = 0; head < kv_heads; ++head) {
                const size_t at = size_t(slots_[row]) * kv_heads + head;
                if (spec_.is_cache_bfloat16)
                    place<Bfloat16>(layer, at, position, key + head * dim, value + head * dim);
                else
                    place<float>(layer, at, position, key + head * dim, value + head * dim);
            }
        }
    }

    void rotate(float* head, int position) const {
        const int half = spec_.head_dim / 2;
        const float* cos = cos_ + size_t(position) * half;
        const float* sin = sin_ + size_t(position) * half;
        for (int i = 0; i < half; ++i) {
            const float first = head[i], second = head[i + half];
            head[i] = first * cos[i] - second * sin[i];
            head[i + half] = second * cos[i] + first * sin[i];
        }
    }

    // Keys lie as (positions / 16, head_dim, 16), so that sixteen scores are summed side by side;
    // values as (positions, head_dim).
    template <class T>
    void place(Layer& layer, size_t at, int position, const float* key, const float* value) const {
        const size_t region = at * spec_.capacity * head_dim_;
        T* keys = static_cast<T*>(layer.keys) + region +
                  size_t(position / LANES) * LANES * head_dim_ + position % LANES;
        T* values = static_cast<T*>(layer.values) + region + size_t(position) * head_dim_;
        for (int i = 0; i < spec_.head_dim; ++i) {
            narrow(keys + size_t(i) * LANES, key[i]);
            narrow(values + i, value[i]);
        }
    }

    template <class T>
    void attend(const Layer& layer, int row, int head, int rank) {
        const int group = spec_.num_heads / spec_.num_kv_heads;
        for (int first = 0; first < group; first += 4) switch (std::min(4, group - first)) {
                case 1: attend_heads<T, 1>(layer, row, head, first, rank); break;
                case 2: attend_heads<T, 2>(layer, row, head, first, rank); break;
                case 3: attend_heads<T, 3>(layer, row, head, first, rank); break;
                default: attend_heads<T, 4>(layer, row, head, first, rank);
            }
    }

    // What a row sees of a head, from the block of sixteen positions in which it begins.
    template <class T>
    struct Seen {
        int first, first_block;
        const T* keys;
        const T* values;
    };

    template <class T>
    Seen<T> seen(const Layer& layer, int row, int head) const {
        const int first = layer.window ? std::max(0, positions_[row] - layer.window + 1) : 0;
        const int block = first / LANES;
        const size_t region = (size_t(slots_[row]) * spec_.num_kv_heads + head) * spec_.capacity;
        const size_t at = (region + size_t(block) * LANES) * head_dim_;
        return {first, block, static_cast<const T*>(layer.keys) + at,
                static_cast<const T*>(layer.values) + at};
    }

    // Attention of a few queries that share keys and values. Texts lie far apart in the cache, and
    // the processor foresees no such jump: keys and values of the next pair of row and head are
    // fetched while those of this one are used, as many as these are.
    template <class T, int QUERIES>
    void attend_heads(const Layer& layer, int row, int head, int first_query, int rank) {
        const int dim = spec_.head_dim, position = positions_[row];
        const int group = spec_.num_heads / spec_.num_kv_heads;
        const auto [first, first_block, keys, values] = seen<T>(layer, row, head);
        const int num_blocks = position / LANES - first_block + 1;
        const int next_pair = std::min(row * spec_.num_kv_heads + head + 1,
                                       num_rows_ * spec_.num_kv_heads - 1);
        const Seen<T> next = seen<T>(layer, next_pair / spec_.num_kv_heads,
                                     next_pair % spec_.num_kv_heads);
        const size_t query_at = size_t(head * group + first_query) * dim;
        const float* query = qkv_.get() + size_t(row) * qkv_width_ + query_at;
        float* out = mixed_.get() + size_t(row) * mixed_width_ + query_at;
        const int stride = num_blocks * LANES;
        float* scores = scores_[rank].get();

        Floats most[QUERIES];
        for (auto& m : most) m = all(-std::numeric_limits<float>::infinity());
        const Floats lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int block = 0; block < num_blocks; ++block) {
            Floats sum[QUERIES] = {};
            const size_t at = size_t(block) * LANES * head_dim_;
            const T* key = keys + at;
            for (int i = 0; i < dim; ++i) {
                if (i % (LINE_BYTES / (LANES * sizeof(T))) == 0)
                    fetch(next.keys + at + size_t(i) * LANES);
                const Floats column = widened(key + size_t(i) * LANES);
#pragma GCC unroll 4
                for (int q = 0; q < QUERIES; ++q)
                    sum[q] = fused(all(query[q * dim + i]), column, sum[q]);
            }
            const Floats where = lanes + all(float((first_block + block) * LANES));
            for (int q = 0; q < QUERIES; ++q) {
                const Floats hidden = all(-std::numeric_limits<float>::infinity());
                sum[q] = where < all(float(first)) ? hidden : sum[q];
                sum[q] = where > all(float(position)) ? hidden : sum[q];
                most[q] = larger(most[q], sum[q]);
                store(scores + q * stride + block * LANES, sum[q]);
            }
        }
        float inverse[QUERIES];
        for (int q = 0; q < QUERIES; ++q) {
            const Floats top = all(largest_of(most[q]));
            Floats total = {};
            for (int i = 0; i < stride; i += LANES) {
                const Floats weight = exp_of(load(scores + q * stride + i) - top);
                total = total + weight;
                store(scores + q * stride + i, weight);
            }
            inverse[q] = 1.0f / sum_of(total);
        }
        const int skipped = first_block * LANES;
        for (int i = 0; i < dim; i += 4 * LANES) {
            const Mix<T> of{values + i, next.values + i, scores, stride, first - skipped,
                            position - skipped, inverse, out + i, std::min(4 * LANES, dim - i)};
            switch ((of.width + LANES - 1) / LANES) {
                case 1: mix<T, QUERIES, 1>(of); break;
                case 2: mix<T, QUERIES, 2>(of); break;
                case 3: mix<T, QUERIES, 3>(of); break;
                default: mix<T, QUERIES, 4>(of);
            }
        }
    }

    // Positions are counted from the first block's begin.
    template <class T>
    struct Mix {
        const T* values;
        const T* next_values;
        const float* weights;  // (queries, stride)
        int stride, first, last;
        const float* inverse;  // of the weights' sum, a query
        float* out;
        int width;
    };

    // Weighted sums of values, for at most VECTORS * LANES of a head's columns.
    template <class T, int QUERIES, int VECTORS>
    void mix(const Mix<T>& of) const {
        Floats sum[QUERIES][VECTORS] = {};
        for (int position = of.first; position <= of.last; ++position) {
            const size_t at = size_t(position) * head_dim_;
            Floats parts[VECTORS];
            for (int v = 0; v < VECTORS; ++v) parts[v] = widened(of.values + at + v * LANES);
            for (size_t v = 0; v < VECTORS; v += LINE_BYTES / (LANES * sizeof(T)))
                fetch(of.next_values + at + v * LANES);
            for (int q = 0; q < QUERIES; ++q) {
                const Floats weight = all(of.weights[q * of.stride + position]);
                for (int v = 0; v < VECTORS; ++v) sum[q][v] = fused(weight, parts[v], sum[q][v]);
            }
        }
        for (int q = 0; q < QUERIES; ++q) {
            float part[VECTORS * LANES];
            for (int v = 0; v < VECTORS; ++v)
                store(part + v * LANES, sum[q][v] * all(of.inverse[q]));
            std::memcpy(of.out + q * spec_.head_dim, part, sizeof(float) * of.width);
        }
    }

    void clock_start(int rank) {
        if (rank == 0) last_ = std::chrono::steady_clock::now();
    }

    // Share out work, wait for the others, and book the time on a phase.
    template <class Work>
    void divide(Phase phase, int rank, int count, const Work& work) {
        team_.divide(rank, count, work);
        if (rank != 0) return;
        const auto now = std::chrono::steady_clock::now();
        seconds_[phase] += std::chrono::duration<double>(now - last_).count();
        last_ = now;
    }

    const Spec spec_;
    Team team_;
    std::vector<Layer> layers_;
    Norm final_norm_;
    Product head_;
    int head_dim_, width_, qkv_width_, mixed_width_, inner_width_, widest_;
    Block<float> hidden_, normed_, qkv_, mixed_, inner_, scales_;
    Block<int8_t> small_;
    Block<int32_t> offsets_;
    bool is_complete_ = false;
    uint64_t num_steps_ = 0;
    Block<uint64_t> last_steps_;  // by slot: the step that had a row of it last, and the row's position
    Block<int32_t> last_positions_;
    std::vector<Block<float>> scores_, scratch_;  // one a thread
    std::vector<Sampler> samplers_;               // the same
    const float* cos_ = nullptr;
    const float* sin_ = nullptr;
    const int32_t* positions_ = nullptr;
    const int32_t* slots_ = nullptr;
    int num_rows_ = 0;
    double seconds_[NUM_PHASES] = {};
    std::chrono::steady_clock::time_point last_;
};

}  // namespace textmill
