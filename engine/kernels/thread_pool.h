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

namespace textmill {

struct Range {
    int first, end;
};

// The range of `count` items that belongs to one of `size` equal shares.
inline Range share_of(int count, int index, int size) {
    return {int(int64_t(count) * index / size), int(int64_t(count) * (index + 1) / size)};
}

// Threads that run one task together, share its loops, and wait for each other at barriers.
//
// In a loop each thread works through its own share from end to end, so that the next item can be
// prefetched, and then claims items of the other threads' shares. If another process occupies a core, the
// other threads do most of the work. A thread that waits for long sleeps instead of spinning.
//
// Linux tends to place threads that wake each other on one core, where they would take turns for ever. A
// thread that finds another on its core moves away; a thread that lost its core moves to a free one.
//
// If the task throws in one thread, the others leave their barriers, and `run` throws in its caller.
class ThreadPool {
public:
    explicit ThreadPool(int size);
    ~ThreadPool() { stop(); }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Calls task(rank) once in each thread; rank 0 is the caller's thread.
    void run(const std::function<void(int)>& task);

    // Calls work(range) until the ranges cover `count` items, then waits for the other threads. Every
    // thread of the task calls this with the same arguments.
    template <class Work>
    void parallel_for(int rank, int count, const Work& work) {
        if (has_failed()) return;
        record_core(rank);
        const int chunk = std::max(1, count / (size_ * 16));
        auto& claims = claims_[phase_.load(std::memory_order_acquire) % 2];
        for (int i = 0; i < size_; ++i) {
            const int owner = (rank + i) % size_;
            const Range range = share_of(count, owner, size_);
            for (int first; (first = range.first + claims[owner].claim(chunk)) < range.end;) {
                if (has_failed()) return;
                work(Range{first, std::min(range.end, first + chunk)});
            }
        }
        barrier(rank);
    }

private:
    // How many items of a share are claimed, on a cache line of its own.
    class alignas(64) Claims {
    public:
        int claim(int count) { return claimed_.fetch_add(count, std::memory_order_relaxed); }
        void reset() { claimed_.store(0, std::memory_order_relaxed); }

    private:
        std::atomic<int> claimed_{0};
    };

    bool has_failed() const { return failure_.load(std::memory_order_relaxed) != OK; }
    void serve(int rank);
    void run_task(int rank);
    void fail(Status status);
    void finish_task(int rank);
    void barrier(int rank);
    void increment(std::atomic<uint32_t>& count);
    template <class Condition>
    void wait_until(int rank, const Condition& is_met);
    int record_core(int rank);
    void leave_shared_core(int rank);
    void stop();

    const int size_;
    std::unique_ptr<std::atomic<int>[]> cores_;  // the core on which each rank last ran
    std::vector<Claims> claims_[2];              // by owner; parallel loops use them in turn
    std::mutex sleep_mutex_;
    std::condition_variable has_incremented_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> num_started_{0};  // tasks
    alignas(64) std::atomic<int> num_arrived_{0};       // threads at the barrier
    std::atomic<int> num_finished_{0};                  // threads that finished the task
    alignas(64) std::atomic<uint32_t> phase_{0};        // barriers passed
    std::atomic<uint32_t> num_ended_{0};                // tasks
    std::atomic<int> failure_{OK};                      // a Status
};

}  // namespace textmill
