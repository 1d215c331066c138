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
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

namespace {

// ---- vectors ------------------------------------------------------------------------------------

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), may_alias));

inline Floats all(float x) { return x - Floats{}; }
inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Floats fused(Floats a, Floats b, Floats c) {  // a * b + c
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// Four products of small integers a lane, added to the lane: unsigned weights, signed activations.
inline Ints dot4(Ints sum, const uint8_t* weights, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(weights),
                                     _mm512_set1_epi32(four));
#else
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) sum[lane] += int32_t(weights[4 * lane + i]) * int32_t(x[i]);
    return sum;
#endif
}

inline float sum_of(Floats v) {
    float part[LANES];
    store(part, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

inline float largest_of(Floats v) {
    float part[LANES];
    store(part, v);
    float largest = part[0];
    for (float x : part) largest = x > largest ? x : largest;
    return largest;
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats rounded(Floats x) {  // to even, for |x| < 2^22
    const Floats magic = all(12582912.0f);
    return (x + magic) - magic;
}

// exp by Cody and Waite's reduction and a polynomial; below -87 it is 0.
inline Floats exp_of(Floats x) {
    const Floats clamped = larger(all(-87.0f), x < 88.0f ? x : all(88.0f));
    const Floats n = rounded(clamped * all(1.44269504088896341f));
    Floats r = fused(n, all(-0.693359375f), clamped);
    r = fused(n, all(2.12194440e-4f), r);
    Floats p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + all(1.0f);
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    const Floats result = p * (Floats)exponent;
    return x < all(-87.0f) ? Floats{} : (x != x ? x : result);
}

inline Floats silu(Floats x) { return x / (exp_of(-x) + all(1.0f)); }

inline Floats gelu(Floats x) {  // in its tanh form; tanh(u) = 1 - 2 / (exp(2u) + 1)
    const Floats cube = x * x * x;
    const Floats u = all(0.7978845608028654f) * fused(all(0.044715f), cube, x);
    const Floats tanh_u = all(1.0f) - all(2.0f) / (exp_of(u + u) + all(1.0f));
    return all(0.5f) * x * (all(1.0f) + tanh_u);
}

// ---- what the cache holds ----------------------------------------------------------------------

typedef uint16_t Bfloat16;

inline Floats widened(const float* p) { return load(p); }
inline Floats widened(const Bfloat16* p) {
    Halves v;
    std::memcpy(&v, p, sizeof v);
    return (Floats)(__builtin_convertvector(v, Words) << 16);
}
inline void narrow(float* p, float x) { *p = x; }
inline void narrow(Bfloat16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) bits |= 0x00400000;  // NaN stays NaN
    else bits += 0x7fff + ((bits >> 16) & 1);
    *p = Bfloat16(bits >> 16);
}

// ---- threads ------------------------------------------------------------------------------------

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

struct Range {
    int first, end;
};

inline Range share(int count, int rank, int size) {
    return {int(int64_t(count) * rank / size), int(int64_t(count) * (rank + 1) / size)};
}

// A few threads that run one function together, share out its parts, and meet at barriers within it.
//
// Parts go to whoever asks first, and who waits long sleeps instead of spinning: where another
// process has taken one of the cores, the others then do most of the work, and a thread that lost
// its core is moved to the one that fell free. Threads that wake each other tend to be put on one
// core, where they would take turns for ever; who finds itself beside another moves away.
class Team {
public:
    explicit Team(int size) : size_(size), cores_(new std::atomic<int>[size]) {
        for (int rank = 0; rank < size; ++rank) cores_[rank] = -1 - rank;
        for (int rank = 1; rank < size; ++rank) helpers_.emplace_back([this, rank] { serve(rank); });
    }
    ~Team() {
        task_ = nullptr;
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }
    int size() const { return size_; }

    void run(const std::function<void(int)>& task) {
        part_ways(0);
        task_ = &task;
        epoch_.fetch_add(1, std::memory_order_release);
        if (size_ > 1) epoch_.notify_all();
        task(0);
        meet(0);
    }

    // Call work(part) for parts of a count that nobody else does; all threads come here with the
    // same arguments, and leave when everything is done.
    template <class Work>
    void divide(int rank, int count, const Work& work) {
        const int size = std::max(1, count / (size_ * 6));
        std::atomic<int>& next = next_[phase_.load(std::memory_order_acquire) % 2];
        for (int first; (first = next.fetch_add(size, std::memory_order_relaxed)) < count;)
            work(Range{first, std::min(count, first + size)});
        meet(rank);
    }

private:
    static constexpr int SPINS = 2000;  // some 30 microseconds; most waits are shorter

    // Wait until all have come here.
    void meet(int rank) {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            next_[phase % 2].store(0, std::memory_order_relaxed);  // the next phase has the other
            phase_.store(phase + 1, std::memory_order_release);
            if (size_ > 1) phase_.notify_all();
            return;
        }
        await(phase_, phase, rank);
    }

    void await(std::atomic<uint32_t>& value, uint32_t old, int rank) {
        for (int spins = 0; spins < SPINS; ++spins) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
        part_ways(rank);
        value.wait(old, std::memory_order_acquire);
    }

    // Leave a core on which a thread of lower rank was seen last.
    void part_ways(int rank) {
#if defined(__linux__)
        const int core = sched_getcpu();
        cores_[rank].store(core, std::memory_order_relaxed);
        for (int other = 0; other < rank; ++other) {
            if (cores_[other].load(std::memory_order_relaxed) != core) continue;
            cpu_set_t allowed, rest;
            if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
            rest = allowed;
            CPU_CLR(core, &rest);
            if (CPU_COUNT(&rest) == 0) return;
            sched_setaffinity(0, sizeof rest, &rest);
            sched_setaffinity(0, sizeof allowed, &allowed);
            cores_[rank].store(sched_getcpu(), std::memory_order_relaxed);
            return;
        }
#else
        (void)rank;
#endif
    }

    void serve(int rank) {
        for (uint32_t seen = 0;;) {
            while (epoch_.load(std::memory_order_acquire) == seen) await(epoch_, seen, rank);
            seen = epoch_.load(std::memory_order_acquire);
            if (task_ == nullptr) return;
            part_ways(rank);
            (*task_)(rank);
            meet(rank);
        }
    }

    const int size_;
    std::unique_ptr<std::atomic<int>[]> cores_;  // where each rank was seen last
    std::vector<std::thread> helpers_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<int> next_[2] = {0, 0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

// ---- memory -------------------------------------------------------------------------------------

// Zeroed memory on huge pages where the system has them: weights are read from end to end.
template <class T>
class Block {
public:
    Block() = default;
    explicit Block(size_t count) {
        const size_t page = size_t(2) << 20, unit = count * sizeof(T) >= page ? page : 64;
        const size_t bytes = (std::max<size_t>(count * sizeof(T), 1) + unit - 1) / unit * unit;
        data_.reset(static_cast<T*>(std::aligned_alloc(unit, bytes)));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        if (unit == page) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
        std::memset(data_.get(), 0, bytes);
    }
    T* get() const { return data_.get(); }
    T& operator[](size_t index) const { return data_.get()[index]; }

private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
};

// ---- rounding -----------------------------------------------------------------------------------

constexpr int SPREAD = 64;

// The Walsh-Hadamard transform of 64 numbers, without its factor of 1/8. It spreads what stands out
// over its neighbours before rounding, and since it is its own inverse, a product of two spread
// vectors is the product of the vectors (Ashkboos et al., "QuaRot", 2024).
inline void spread(Floats* v) {
    for (int distance = 1; distance < 4; distance *= 2)
        for (int i = 0; i < 4; ++i)
            if (!(i & distance)) {
                const Floats a = v[i], b = v[i + distance];
                v[i] = a + b;
                v[i + distance] = a - b;
            }
    for (int i = 0; i < 4; ++i)
        for (int distance = 1; distance < LANES; distance *= 2) {
            const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
            const Floats partner = __builtin_shuffle(v[i], lanes ^ distance);
            v[i] = partner + ((lanes & distance) == 0 ? v[i] : -v[i]);
        }
}

// ---- products -----------------------------------------------------------------------------------

constexpr int COLUMNS = 32;   // outputs of a packed block
constexpr int MAX_ROWS = 12;  // rows of a tile: 24 accumulators of the 32 registers

enum Act { LINEAR = 0, GELU = 1, SWIGLU = 2 };

// A weight matrix (outputs, inputs), packed in blocks of COLUMNS outputs. In int8 a block is
// (inputs / 4, 2, 16, 4) unsigned, 128 standing for 0, with a scale an output, the inputs spread; in
// float32 it is (inputs, 32). With SWIGLU the first half of a block are gates, the second what they open.
struct Product {
    int inputs = 0, outputs = 0, depth = 0, num_blocks = 0;
    bool is_gated = false, is_int8 = false;
    Block<uint8_t> small;
    Block<float> full, scales, bias;

    Product() = default;
    Product(int inputs, int outputs, bool is_gated, bool is_int8)
        : inputs(inputs), outputs(outputs), is_gated(is_gated), is_int8(is_int8) {
        const int per_block = is_gated ? LANES : COLUMNS;
        num_blocks = ((is_gated ? outputs / 2 : outputs) + per_block - 1) / per_block;
        depth = is_int8 ? (inputs + SPREAD - 1) / SPREAD * SPREAD : inputs;
        const size_t padded = size_t(num_blocks) * COLUMNS;
        if (is_int8) {
            small = Block<uint8_t>(padded * depth);
            scales = Block<float>(padded);
        } else {
            full = Block<float>(padded * depth);
        }
        bias = Block<float>(padded);
    }

    // The output that stands in a column of a block, or -1.
    int output_at(int block, int column) const {
        if (!is_gated) {
            const int output = block * COLUMNS + column;
            return output < outputs ? output : -1;
        }
        const int half = outputs / 2, output = block * LANES + column % LANES;
        return output < half ? output + (column < LANES ? 0 : half) : -1;
    }

    void fill(Range blocks, const float* weight, const float* given_bias) {
        for (int block = blocks.first; block < blocks.end; ++block)
            for (int column = 0; column < COLUMNS; ++column) {
                const int output = output_at(block, column);
                const float* row = output < 0 ? nullptr : weight + size_t(output) * inputs;
                const size_t place = size_t(block) * COLUMNS + column;
                if (row && given_bias) bias[place] = given_bias[output];
                is_int8 ? fill_small(block, column, row) : fill_full(block, column, row);
            }
    }

private:
    void fill_small(int block, int column, const float* given) {
        std::vector<float> row(depth);
        if (given) std::copy_n(given, inputs, row.begin());
        float largest = 0.0f;
        for (int k = 0; k < depth; k += SPREAD) {
            Floats v[4];
            std::memcpy(v, row.data() + k, sizeof v);
            spread(v);
            for (auto& part : v) part *= all(1.0f / SPREAD);  // both factors of 1/8
            std::memcpy(row.data() + k, v, sizeof v);
        }
        for (float value : row) largest = std::max(largest, std::fabs(value));
        scales[size_t(block) * COLUMNS + column] = largest / 127.0f;
        const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        uint8_t* to = small.get() + size_t(block) * COLUMNS * depth + column * 4;
        for (int k = 0; k < depth; ++k) {
            const float value = std::nearbyint(row[k] * inverse);
            to[size_t(k / 4) * COLUMNS * 4 + k % 4] = uint8_t(int(value) + 128);
        }
    }

    void fill_full(int block, int column, const float* row) {
        float* to = full.get() + size_t(block) * COLUMNS * depth + column;
        for (int k = 0; row && k < inputs; ++k) to[size_t(k) * COLUMNS] = row[k];
    }
};

// Rows that go into a product: themselves in float32, or rounded with a scale of their own.
struct Rows {
    const float* full = nullptr;
    int stride = 0;
    const int8_t* small = nullptr;
    const float* scales = nullptr;
    const int32_t* offsets = nullptr;  // 128 times a row's sum: what unsigned weights add too much
};

template <int ROWS>
void tile_small(const uint8_t* weights, int depth, const int8_t* x, int stride, int32_t* out) {
    Ints sum[ROWS][2];
    for (auto& row : sum) row[0] = row[1] = Ints{};
    for (int k = 0; k < depth; k += 4, weights += COLUMNS * 4) {
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            const int8_t* four = x + size_t(row) * stride + k;
            sum[row][0] = dot4(sum[row][0], weights, four);
            sum[row][1] = dot4(sum[row][1], weights + 64, four);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

template <int ROWS>
void tile_full(const float* weights, int depth, const float* x, int stride, float* out) {
    Floats sum[ROWS][2];
    for (auto& row : sum) row[0] = row[1] = Floats{};
    for (int k = 0; k < depth; ++k, weights += COLUMNS) {
        const Floats left = load(weights), right = load(weights + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            const Floats factor = all(x[size_t(row) * stride + k]);
            sum[row][0] = fused(factor, left, sum[row][0]);
            sum[row][1] = fused(factor, right, sum[row][1]);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

using SmallTile = void (*)(const uint8_t*, int, const int8_t*, int, int32_t*);
using FullTile = void (*)(const float*, int, const float*, int, float*);
constexpr SmallTile SMALL_TILES[MAX_ROWS] = {
    tile_small<1>, tile_small<2>, tile_small<3>, tile_small<4>,  tile_small<5>,  tile_small<6>,
    tile_small<7>, tile_small<8>, tile_small<9>, tile_small<10>, tile_small<11>, tile_small<12>};
constexpr FullTile FULL_TILES[MAX_ROWS] = {
    tile_full<1>, tile_full<2>, tile_full<3>, tile_full<4>,  tile_full<5>,  tile_full<6>,
    tile_full<7>, tile_full<8>, tile_full<9>, tile_full<10>, tile_full<11>, tile_full<12>};

// Where a product's results go.
struct Target {
    float* out;
    size_t stride;
    int width;       // columns that exist
    bool adds;       // to what stands there
    Act act;
};

void finish_row(const Product& product, int block, Floats left, Floats right, float* out,
                const Target& target) {
    const float* bias = product.bias.get() + size_t(block) * COLUMNS;
    left = left + load(bias);
    right = right + load(bias + LANES);
    Floats results[2] = {left, right};
    int columns = COLUMNS;
    if (target.act == SWIGLU) {
        results[0] = silu(left) * right;
        columns = LANES;
    } else if (target.act == GELU) {
        results[0] = gelu(left);
        results[1] = gelu(right);
    }
    const int first = block * columns, count = std::min(columns, target.width - first);
    float* to = out + first;
    if (count == columns) {
        for (int i = 0; i < columns / LANES; ++i)
            store(to + i * LANES, target.adds ? load(to + i * LANES) + results[i] : results[i]);
    } else {
        float part[COLUMNS];
        std::memcpy(part, results, sizeof part);
        for (int i = 0; i < count; ++i) to[i] = target.adds ? to[i] + part[i] : part[i];
    }
}

// The blocks of a product that fall to one thread, for all rows.
void multiply(const Product& product, const Rows& rows, int num_rows, Range blocks,
              const Target& target) {
    const int num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    alignas(64) int32_t ints[MAX_ROWS * COLUMNS];
    alignas(64) float floats[MAX_ROWS * COLUMNS];
    for (int block = blocks.first; block < blocks.end; ++block) {
        const size_t at = size_t(block) * COLUMNS * product.depth;
        for (int tile = 0; tile < num_tiles; ++tile) {
            const Range of = share(num_rows, tile, num_tiles);
            const int count = of.end - of.first;
            if (product.is_int8)
                SMALL_TILES[count - 1](product.small.get() + at, product.depth,
                                       rows.small + size_t(of.first) * rows.stride, rows.stride,
                                       ints);
            else
                FULL_TILES[count - 1](product.full.get() + at, product.depth,
                                      rows.full + size_t(of.first) * rows.stride, rows.stride,
                                      floats);
            for (int i = 0; i < count; ++i) {
                const int row = of.first + i;
                Floats left, right;
                if (product.is_int8) {
                    Ints sums[2];
                    std::memcpy(sums, ints + i * COLUMNS, sizeof sums);
                    const float* scales = product.scales.get() + size_t(block) * COLUMNS;
                    const Floats scale = all(rows.scales[row]);
                    const int32_t offset = rows.offsets[row];
                    left = __builtin_convertvector(sums[0] - offset, Floats) * scale * load(scales);
                    right = __builtin_convertvector(sums[1] - offset, Floats) * scale *
                            load(scales + LANES);
                } else {
                    left = load(floats + i * COLUMNS);
                    right = load(floats + i * COLUMNS + LANES);
                }
                finish_row(product, block, left, right, target.out + row * target.stride, target);
            }
        }
    }
}

// ---- rows ---------------------------------------------------------------------------------------

// Rows are padded with zeros, so that vectors may run over their end.
inline int padded(int width) { return (width + SPREAD - 1) / SPREAD * SPREAD; }

void normalise(const float* x, int width, bool is_rms, float eps, const float* weight,
               const float* bias, float* out) {
    float mean = 0.0f;
    if (!is_rms) {
        Floats sum = {};
        for (int i = 0; i < width; i += LANES) sum = sum + load(x + i);
        mean = sum_of(sum) / float(width);
    }
    Floats squares = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Floats off = load(x + i) - all(mean);
        squares = fused(off, off, squares);
    }
    float square = sum_of(squares);
    for (; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const Floats factor = all(1.0f / std::sqrt(square / float(width) + eps)), middle = all(mean);
    for (i = 0; i < width; i += LANES) {  // the padding of weight and bias is zero
        Floats v = (load(x + i) - middle) * factor * load(weight + i);
        if (bias) v = v + load(bias + i);
        store(out + i, v);
    }
}

// Spread a row into scratch and round it to int8 with its own scale; a row that is not finite gets
// a scale that is not.
void quantise(const float* x, int width, float* scratch, int8_t* out, float* scale,
              int32_t* offset) {
    Floats most = {}, spoilt = {};
    for (int i = 0; i < width; i += SPREAD) {
        Floats v[4];
        std::memcpy(v, x + i, sizeof v);
        spread(v);
        std::memcpy(scratch + i, v, sizeof v);
        for (Floats part : v) {
            most = larger(most, larger(part, -part));
            spoilt = spoilt + (part - part);  // 0, or NaN
        }
    }
    const float largest = largest_of(most), check = sum_of(spoilt);
    const Floats inverse = all(largest > 0.0f && check == 0.0f ? 127.0f / largest : 0.0f);
    Ints sum = {};
    for (int i = 0; i < width; i += LANES) {
        const Floats v = check == 0.0f ? rounded(load(scratch + i) * inverse) : Floats{};
        const Ints n = __builtin_convertvector(v, Ints);
        sum = sum + n;
#if defined(__AVX512F__)
        _mm512_mask_cvtepi32_storeu_epi8(out + i, 0xffff, (__m512i)n);
#else
        for (int lane = 0; lane < LANES; ++lane) out[i + lane] = int8_t(n[lane]);
#endif
    }
    int32_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    *scale = largest / 127.0f + check;
    *offset = total * 128;
}

// ---- the decoder --------------------------------------------------------------------------------

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

    // Attention of a few queries that share keys and values.
    template <class T, int QUERIES>
    void attend_heads(const Layer& layer, int row, int head, int first_query, int rank) {
        const int dim = spec_.head_dim, position = positions_[row];
        const int group = spec_.num_heads / spec_.num_kv_heads;
        const int first = layer.window ? std::max(0, position - layer.window + 1) : 0;
        const int first_block = first / LANES, num_blocks = position / LANES - first_block + 1;
        const size_t at = (size_t(slots_[row]) * spec_.num_kv_heads + head) * spec_.capacity;
        const T* keys = static_cast<const T*>(layer.keys) +
                        (at + size_t(first_block) * LANES) * head_dim_;
        const T* values = static_cast<const T*>(layer.values) + at * head_dim_;
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
            const T* key = keys + size_t(block) * LANES * head_dim_;
            for (int i = 0; i < dim; ++i) {
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
        for (int i = 0; i < dim; i += 4 * LANES)
            switch (std::min(4, (dim - i + LANES - 1) / LANES)) {
                case 1: mix<T, QUERIES, 1>(values, scores, stride, first, position, skipped, i, inverse, out); break;
                case 2: mix<T, QUERIES, 2>(values, scores, stride, first, position, skipped, i, inverse, out); break;
                case 3: mix<T, QUERIES, 3>(values, scores, stride, first, position, skipped, i, inverse, out); break;
                default: mix<T, QUERIES, 4>(values, scores, stride, first, position, skipped, i, inverse, out);
            }
    }

    // Weighted sums of values, for VECTORS * LANES of a head's columns.
    template <class T, int QUERIES, int VECTORS>
    void mix(const T* values, const float* weights, int stride, int first, int last, int skipped,
             int column, const float* inverse, float* out) const {
        Floats sum[QUERIES][VECTORS] = {};
        for (int position = first; position <= last; ++position) {
            const T* value = values + size_t(position) * head_dim_ + column;
            Floats parts[VECTORS];
            for (int v = 0; v < VECTORS; ++v) parts[v] = widened(value + v * LANES);
            for (int q = 0; q < QUERIES; ++q) {
                const Floats weight = all(weights[q * stride + position - skipped]);
                for (int v = 0; v < VECTORS; ++v) sum[q][v] = fused(weight, parts[v], sum[q][v]);
            }
        }
        const int count = std::min(VECTORS * LANES, spec_.head_dim - column);
        for (int q = 0; q < QUERIES; ++q) {
            float part[VECTORS * LANES];
            for (int v = 0; v < VECTORS; ++v) store(part + v * LANES, sum[q][v] * all(inverse[q]));
            std::memcpy(out + q * spec_.head_dim + column, part, sizeof(float) * count);
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
    const float* cos_ = nullptr;
    const float* sin_ = nullptr;
    const int32_t* positions_ = nullptr;
    const int32_t* slots_ = nullptr;
    int num_rows_ = 0;
    double seconds_[NUM_PHASES] = {};
    std::chrono::steady_clock::time_point last_;
};

}  // namespace

// ---- what Python calls --------------------------------------------------------------------------

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

// Seconds spent since the start: products, attention, the rest of the layers, head.
void textmill_seconds(void* decoder, double* seconds) {
    std::copy_n(static_cast<Decoder*>(decoder)->seconds(), int(NUM_PHASES), seconds);
}
}
