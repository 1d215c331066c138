// A decoder: its layers, its attention, and the order of a step.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "memory.h"
#include "products.h"
#include "rows.h"
#include "sampler.h"
#include "team.h"
#include "vectors.h"

namespace textmill {

struct Spec {  // mirrored in native.py
    int32_t num_layers, width, num_heads, num_kv_heads, head_dim, inner, vocabulary, capacity;
    int32_t is_rms, act, is_int8, is_cache_bfloat16, num_threads, max_rows;
    float norm_eps, score_scale;
};

struct Layer {
    Block<float> norm1, norm1_bias, norm2, norm2_bias;
    bool has_norm_bias = false;
    Product qkv, out, up, down;
    int window = 0;  // 0: everything before is seen
    void* keys = nullptr;
    void* values = nullptr;
};

enum Phase { PRODUCTS = 0, ATTENTION = 1, OTHER = 2, HEAD = 3, NUM_PHASES = 4 };
enum Part { QKV = 0, OUT = 1, UP = 2, DOWN = 3 };

class Decoder {
public:
    explicit Decoder(const Spec& spec)
        : spec_(spec), team_(std::max(1, spec.num_threads)), layers_(spec.num_layers) {
        const bool int8 = spec.is_int8, gated = spec.act == SWIGLU;
        const int heads = spec.num_heads * spec.head_dim;
        const int kv_heads = spec.num_kv_heads * spec.head_dim;
        for (auto& layer : layers_) {
            layer.qkv = Product(spec.width, heads + 2 * kv_heads, false, int8);
            layer.out = Product(heads, spec.width, false, int8);
            layer.up = Product(spec.width, spec.inner * (gated ? 2 : 1), gated, int8);
            layer.down = Product(spec.inner, spec.width, false, int8);
            for (auto* vector : {&layer.norm1, &layer.norm1_bias, &layer.norm2, &layer.norm2_bias})
                *vector = Block<float>(padded(spec.width));
        }
        final_norm_ = Block<float>(padded(spec.width));
        final_bias_ = Block<float>(padded(spec.width));
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
        const int group = spec.num_heads / spec.num_kv_heads;
        for (int rank = 0; rank < team_.size(); ++rank) {
            scores_.emplace_back(size_t(group) * (spec.capacity + 2 * LANES));
            scratch_.emplace_back(widest_);
        }
    }

    void set_product(int layer, int part, const float* weight, const float* bias) {
        Product& product = product_of(layer, part);
        team_.run([&](int rank) {
            product.fill(share(product.num_blocks, rank, team_.size()), weight, bias);
        });
    }

    void set_norms(int layer, const float* first, const float* first_bias, const float* second,
                   const float* second_bias) {
        const size_t bytes = sizeof(float) * spec_.width;
        if (layer < 0) {
            std::memcpy(final_norm_.get(), first, bytes);
            if (first_bias) std::memcpy(final_bias_.get(), first_bias, bytes);
            has_final_bias_ = first_bias != nullptr;
            return;
        }
        Layer& to = layers_[layer];
        std::memcpy(to.norm1.get(), first, bytes);
        std::memcpy(to.norm2.get(), second, bytes);
        if (first_bias) std::memcpy(to.norm1_bias.get(), first_bias, bytes);
        if (second_bias) std::memcpy(to.norm2_bias.get(), second_bias, bytes);
        to.has_norm_bias = first_bias != nullptr;
    }

    void set_layer(int layer, void* keys, void* values, int window) {
        layers_[layer].keys = keys;
        layers_[layer].values = values;
        layers_[layer].window = window;
    }

    void set_rotation(const float* cos, const float* sin) {
        cos_ = cos;
        sin_ = sin;
    }

    // One step; see textmill_forward.
    void forward(int num_rows, const float* hidden, const int32_t* positions, const int32_t* slots,
                 int num_wanted, const int32_t* wanted, float* logits) {
        for (int row = 0; row < num_rows; ++row)
            std::memcpy(hidden_.get() + size_t(row) * width_, hidden + size_t(row) * spec_.width,
                        sizeof(float) * spec_.width);
        positions_ = positions;
        slots_ = slots;
        num_rows_ = num_rows;
        if (num_wanted > num_rows) throw std::bad_alloc();
        team_.run([&](int rank) {
            clock_start(rank);
            for (auto& layer : layers_) step(layer, rank);
            if (num_wanted) predict(num_wanted, wanted, logits, rank);
        });
    }

    // A token a row; see textmill_choose.
    void choose(int num_rows, const float* logits, const Draw* draws, int32_t* tokens,
                Trace* traces) {
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
    Product& product_of(int layer, int part) {
        if (layer < 0) return head_;
        Product* parts[] = {&layers_[layer].qkv, &layers_[layer].out, &layers_[layer].up,
                            &layers_[layer].down};
        return *parts[part];
    }

    void step(Layer& layer, int rank) {
        divide(OTHER, rank, num_rows_, [&](Range rows) {
            norm_rows(layer.norm1, layer.has_norm_bias ? &layer.norm1_bias : nullptr, rows, rank);
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
            norm_rows(layer.norm2, layer.has_norm_bias ? &layer.norm2_bias : nullptr, rows, rank);
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
                normalise(row, spec_.width, spec_.is_rms, spec_.norm_eps, final_norm_.get(),
                          has_final_bias_ ? final_bias_.get() : nullptr, normed);
                if (spec_.is_int8) round_row(normed, width_, i, rank);
            }
        });
        const Rows rows = rows_of(normed_.get(), width_);
        const Target target{logits, size_t(spec_.vocabulary), spec_.vocabulary, false, LINEAR};
        divide(HEAD, rank, head_.num_blocks,
               [&](Range blocks) { multiply(head_, rows, num_wanted, blocks, target); });
    }

    void norm_rows(const Block<float>& weight, const Block<float>* bias, Range rows, int rank) {
        for (int row = rows.first; row < rows.end; ++row) {
            float* normed = normed_.get() + size_t(row) * width_;
            normalise(hidden_.get() + size_t(row) * width_, spec_.width, spec_.is_rms,
                      spec_.norm_eps, weight.get(), bias ? bias->get() : nullptr, normed);
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
    Block<float> final_norm_, final_bias_;
    bool has_final_bias_ = false;
    Product head_;
    int head_dim_, width_, qkv_width_, mixed_width_, inner_width_, widest_;
    Block<float> hidden_, normed_, qkv_, mixed_, inner_, scales_;
    Block<int8_t> small_;
    Block<int32_t> offsets_;
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
