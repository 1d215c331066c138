// Threads that compute one step together.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "status.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace textmill {

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
// Each thread goes through a range of its own from end to end, so that what comes next can be fetched
// while it computes, and then takes parts of the others' ranges; who waits long sleeps instead of
// spinning. Where another process has taken one of the cores, the others then do most of the work,
// and a thread that lost its core is moved to the one that fell free. Threads that wake each other
// tend to be put on one core, where they would take turns for ever; who finds itself beside another
// moves away.
//
// Where a task throws in one thread, the others leave their barriers, and run throws in its caller.
class Team {
public:
    explicit Team(int size)
        : size_(size), cores_(new std::atomic<int>[size]), taken_{Taken(size), Taken(size)} {
        for (int rank = 0; rank < size; ++rank) cores_[rank] = -1 - rank;
        helpers_.reserve(size);
        try {
            for (int rank = 1; rank < size; ++rank)
                helpers_.emplace_back([this, rank] { serve(rank); });
        } catch (...) {
            dismiss();  // a thread that is not joined would end the process
            throw;
        }
    }
    ~Team() { dismiss(); }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    int size() const { return size_; }

    void run(const std::function<void(int)>& task) {
        part_ways(0);
        task_ = &task;
        advance(epoch_);
        perform(0);
        const Status status = Status(failure_.exchange(OK, std::memory_order_relaxed));
        require(status == OK, status);
    }

    // Call work(part) for parts of a count that nobody else does; all threads come here with the
    // same arguments, and leave when everything is done.
    template <class Work>
    void divide(int rank, int count, const Work& work) {
        if (has_failed()) return;
        note_core(rank);
        const int size = std::max(1, count / (size_ * 16));
        Taken& taken = taken_[phase_.load(std::memory_order_acquire) % 2];
        for (int i = 0; i < size_; ++i) {
            const int owner = (rank + i) % size_;
            const Range range = share(count, owner, size_);
            for (int first; (first = range.first + taken[owner].take(size)) < range.end;) {
                if (has_failed()) return;
                work(Range{first, std::min(range.end, first + size)});
            }
        }
        meet(rank);
    }

private:
    // How much of a range is taken, on a cache line of its own.
    class alignas(64) Count {
    public:
        int take(int size) { return taken_.fetch_add(size, std::memory_order_relaxed); }
        void reset() { taken_.store(0, std::memory_order_relaxed); }

    private:
        std::atomic<int> taken_{0};
    };
    using Taken = std::vector<Count>;  // by owner

    static constexpr int SPINS = 2000;  // some 30 microseconds; most waits are shorter

    bool has_failed() const { return failure_.load(std::memory_order_relaxed) != OK; }

    // One thread's part of a task, from beginning to end.
    void perform(int rank) {
        try {
            (*task_)(rank);
        } catch (...) {
            fail(status_of_exception());
        }
        finish(rank);
    }

    // Let the others leave their barriers; the first failure counts.
    void fail(Status status) {
        {
            const std::lock_guard<std::mutex> lock(falling_asleep_);
            int none = OK;
            failure_.compare_exchange_strong(none, status, std::memory_order_release);
        }
        has_advanced_.notify_all();
    }

    // Wait until all have ended the task. Who left a barrier early has left counts behind.
    void finish(int rank) {
        const uint32_t end = ends_.load(std::memory_order_acquire);
        if (finished_.fetch_add(1, std::memory_order_acq_rel) < size_ - 1)
            return await(rank, [&] { return ends_.load(std::memory_order_acquire) != end; });
        finished_.store(0, std::memory_order_relaxed);
        if (has_failed()) {
            arrived_.store(0, std::memory_order_relaxed);
            for (auto& taken : taken_)
                for (auto& count : taken) count.reset();
        }
        advance(ends_);
    }

    // Wait until all have come here, or one has failed.
    void meet(int rank) {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            for (auto& count : taken_[phase % 2]) count.reset();  // the next phase has the others
            advance(phase_);
            return;
        }
        await(rank, [&] {
            return phase_.load(std::memory_order_acquire) != phase ||
                   failure_.load(std::memory_order_acquire) != OK;
        });
    }

    // Count on, and wake who sleeps. std::atomic's own notify_all looks for sleepers by a plain load,
    // which the processor may do before the new number can be seen; a step hung once. Under the lock
    // nobody can fall asleep between the two.
    void advance(std::atomic<uint32_t>& count) {
        {
            const std::lock_guard<std::mutex> lock(falling_asleep_);
            count.fetch_add(1, std::memory_order_release);
        }
        has_advanced_.notify_all();
    }

    template <class Condition>
    void await(int rank, const Condition& is_over) {
        for (int spins = 0; spins < SPINS; ++spins) {
            if (is_over()) return;
            relax();
        }
        part_ways(rank);
        std::unique_lock<std::mutex> lock(falling_asleep_);
        has_advanced_.wait(lock, is_over);
    }

    int note_core(int rank) {
#if defined(__linux__)
        const int core = sched_getcpu();
        cores_[rank].store(core, std::memory_order_relaxed);
        return core;
#else
        return rank;
#endif
    }

    // Leave a core on which a thread of lower rank was seen last.
    void part_ways(int rank) {
#if defined(__linux__)
        const int core = note_core(rank);
        for (int other = 0; other < rank; ++other) {
            if (cores_[other].load(std::memory_order_relaxed) != core) continue;
            cpu_set_t allowed, rest;
            if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
            rest = allowed;
            CPU_CLR(core, &rest);
            if (CPU_COUNT(&rest) == 0) return;
            sched_setaffinity(0, sizeof rest, &rest);
            sched_setaffinity(0, sizeof allowed, &allowed);
            note_core(rank);
            return;
        }
#else
        (void)rank;
#endif
    }

    void serve(int rank) {
        for (uint32_t seen = 0;;) {
            await(rank, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
            seen = epoch_.load(std::memory_order_acquire);
            if (task_ == nullptr) return;
            part_ways(rank);
            perform(rank);
        }
    }

    void dismiss() {
        task_ = nullptr;
        advance(epoch_);
        for (auto& helper : helpers_) helper.join();
    }

    const int size_;
    std::unique_ptr<std::atomic<int>[]> cores_;  // where each rank was seen last
    Taken taken_[2];
    std::mutex falling_asleep_;
    std::condition_variable has_advanced_;
    std::vector<std::thread> helpers_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<int> arrived_{0};
    std::atomic<int> finished_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<uint32_t> ends_{0};
    std::atomic<int> failure_{OK};  // a Status
};

}  // namespace textmill
