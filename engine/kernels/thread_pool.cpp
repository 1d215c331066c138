#include "thread_pool.h"

#include "simd/simd.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace textmill {

constexpr int SPINS = 2000;  // about 30 microseconds; most waits are shorter

ThreadPool::ThreadPool(int size)
    : size_(size),
      cores_(new std::atomic<int>[size]),
      claims_{std::vector<Claims>(size), std::vector<Claims>(size)} {
    for (int rank = 0; rank < size; ++rank) cores_[rank] = -1 - rank;
    threads_.reserve(size);
    try {
        for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { serve(rank); });
    } catch (...) {
        stop();  // destroying a thread that was not joined would end the process
        throw;
    }
}

void ThreadPool::run(const std::function<void(int)>& task) {
    leave_shared_core(0);
    task_ = &task;
    increment(num_started_);
    run_task(0);
    const Status status = Status(failure_.exchange(OK, std::memory_order_relaxed));
    require(status == OK, status);
}

// The main function of each thread but the caller's.
void ThreadPool::serve(int rank) {
    for (uint32_t seen = 0;;) {
        wait_until(rank, [&] { return num_started_.load(std::memory_order_acquire) != seen; });
        seen = num_started_.load(std::memory_order_acquire);
        if (task_ == nullptr) return;
        leave_shared_core(rank);
        run_task(rank);
    }
}

void ThreadPool::run_task(int rank) {
    try {
        (*task_)(rank);
    } catch (...) {
        fail(status_of_exception());
    }
    finish_task(rank);
}

// Makes the other threads leave their barriers. The first failure is the one that is reported.
void ThreadPool::fail(Status status) {
    {
        const std::lock_guard<std::mutex> lock(sleep_mutex_);
        int none = OK;
        failure_.compare_exchange_strong(none, status, std::memory_order_release);
    }
    has_incremented_.notify_all();
}

// Waits until all threads have finished the task. After a failure the last one resets the counts that
// the threads left behind when they left their barriers.
void ThreadPool::finish_task(int rank) {
    const uint32_t ended = num_ended_.load(std::memory_order_acquire);
    if (num_finished_.fetch_add(1, std::memory_order_acq_rel) < size_ - 1)
        return wait_until(
            rank, [&] { return num_ended_.load(std::memory_order_acquire) != ended; });
    num_finished_.store(0, std::memory_order_relaxed);
    if (has_failed()) {
        num_arrived_.store(0, std::memory_order_relaxed);
        for (auto& claims : claims_)
            for (auto& claim : claims) claim.reset();
    }
    increment(num_ended_);
}

// Waits until all threads have arrived, or one has failed.
void ThreadPool::barrier(int rank) {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        num_arrived_.store(0, std::memory_order_relaxed);
        for (auto& claim : claims_[phase % 2]) claim.reset();  // the next phase uses the others
        increment(phase_);
        return;
    }
    wait_until(rank, [&] {
        return phase_.load(std::memory_order_acquire) != phase ||
               failure_.load(std::memory_order_acquire) != OK;
    });
}

// Increments a count and wakes the threads that sleep. The notify_all of std::atomic looks for sleepers
// by a plain load, which the processor may execute before the new count is visible; a step once hung for
// that reason. While the mutex is held no thread can fall asleep in between.
void ThreadPool::increment(std::atomic<uint32_t>& count) {
    {
        const std::lock_guard<std::mutex> lock(sleep_mutex_);
        count.fetch_add(1, std::memory_order_release);
    }
    has_incremented_.notify_all();
}

template <class Condition>
void ThreadPool::wait_until(int rank, const Condition& is_met) {
    for (int spins = 0; spins < SPINS; ++spins) {
        if (is_met()) return;
        pause_spinning();
    }
    leave_shared_core(rank);
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    has_incremented_.wait(lock, is_met);
}

int ThreadPool::record_core(int rank) {
#if defined(__linux__)
    const int core = sched_getcpu();
    cores_[rank].store(core, std::memory_order_relaxed);
    return core;
#else
    return rank;
#endif
}

// Moves away from the core on which a thread of lower rank last ran: the core is excluded from this
// thread's affinity for a moment.
void ThreadPool::leave_shared_core(int rank) {
#if defined(__linux__)
    const int core = record_core(rank);
    for (int other = 0; other < rank; ++other) {
        if (cores_[other].load(std::memory_order_relaxed) != core) continue;
        cpu_set_t allowed, rest;
        if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
        rest = allowed;
        CPU_CLR(core, &rest);
        if (CPU_COUNT(&rest) == 0) return;
        sched_setaffinity(0, sizeof rest, &rest);
        sched_setaffinity(0, sizeof allowed, &allowed);
        record_core(rank);
        return;
    }
#else
    (void)rank;
#endif
}

void ThreadPool::stop() {
    task_ = nullptr;
    increment(num_started_);
    for (auto& thread : threads_) thread.join();
}

}  // namespace textmill
