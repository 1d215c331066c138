// The results of the C functions, which never throw: every exception becomes a number, also one that was
// thrown in a thread of the pool.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>

namespace textmill {

enum Status : int {  // mirrored in status.py
    OK = 0,
    NO_MEMORY = -1,
    NO_THREADS = -2,
    NULL_POINTER = -3,
    BAD_SPEC = -4,
    BAD_LAYER = -5,
    BAD_PART = -6,
    BAD_SHAPE = -7,
    BAD_WINDOW = -8,
    BAD_COUNT = -9,
    BAD_SLOT = -10,
    BAD_POSITION = -11,
    BAD_ORDER = -12,
    BAD_WANTED = -13,
    BAD_SAMPLING = -14,
    BAD_TOKEN = -15,
    NOT_COMPLETE = -16,
    UNEXPECTED = -17,
};

struct Failure {
    Status status;
};

inline void require(bool is_met, Status otherwise) {
    if (!is_met) throw Failure{otherwise};
}

// The status of the exception that is being handled.
inline Status status_of_exception() noexcept {
    try {
        throw;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (const std::length_error&) {
        return NO_MEMORY;
    } catch (const std::system_error&) {
        return NO_THREADS;
    } catch (...) {
        return UNEXPECTED;
    }
}

// Calls, and returns OK or the status of the exception.
template <class Call>
int guarded(const Call& call) noexcept {
    try {
        call();
        return OK;
    } catch (...) {
        return status_of_exception();
    }
}

}  // namespace textmill
