// Zeroed memory for weights and activations, and the two number types of the key-value cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd/types.h"

namespace textmill {

// Zeroed memory, on huge pages where the system has them: weights are read from end to end.
template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t count) {
        if (count > MAX_BYTES / sizeof(T)) throw std::bad_alloc();
        const size_t page = size_t(2) << 20, unit = count * sizeof(T) >= page ? page : 64;
        const size_t bytes = (std::max<size_t>(count * sizeof(T), 1) + unit - 1) / unit * unit;
        data_ = std::unique_ptr<T, Free>(
            static_cast<T*>(::operator new(bytes, std::align_val_t(unit))), Free{unit});
#if defined(__linux__)
        if (unit == page) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
        std::memset(data_.get(), 0, bytes);
    }
    T* get() const { return data_.get(); }
    T& operator[](size_t index) const { return data_.get()[index]; }

private:
    static constexpr size_t MAX_BYTES = size_t(1) << 62;
    struct Free {
        size_t unit = 64;
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(unit)); }
    };
    std::unique_ptr<T, Free> data_;
};

typedef uint16_t Bfloat16;

inline Floats load_float32(const float* from) { return load(from); }
inline Floats load_float32(const Bfloat16* from) {
    Halves v;
    std::memcpy(&v, from, sizeof v);
    return as_floats(to_words(v) << 16);
}

inline void store_rounded(float* to, float x) { *to = x; }
inline void store_rounded(Bfloat16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) bits |= 0x00400000;  // NaN stays NaN
    else bits += 0x7fff + ((bits >> 16) & 1);
    *to = Bfloat16(bits >> 16);
}

}  // namespace textmill
