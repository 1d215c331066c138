// Zeroed memory for weights and activations.
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

}  // namespace textmill
