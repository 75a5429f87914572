// Where a step's time goes: for every thread and part of the plan, nanoseconds and how many of them it
// waited for other threads. Off, it costs one load a part.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace ph {

inline std::int64_t nanoseconds() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

class Profile {
public:
    // For so many threads and parts, always as many; what was counted is forgotten. Between steps a
    // thread may still walk an old one, so nothing that it looks at is moved.
    void start(int n_threads, int n_parts) {
        if (!threads_) {
            n_threads_ = n_threads;
            n_parts_ = n_parts;
            threads_ = std::make_unique<Thread[]>(n_threads);
            for (int i = 0; i < n_threads; ++i) threads_[i].cells = std::make_unique<Cell[]>(n_parts);
        }
        for (int i = 0; i < n_threads_; ++i) {
            for (int k = 0; k < n_parts_; ++k) threads_[i].cells[k].time = threads_[i].cells[k].wait = 0;
        }
        turn_ = ++n_turns_;
    }
    void stop() { turn_ = 0; }
    bool on() const { return turn_.load(std::memory_order_acquire) != 0; }

    // A thread goes from what it did to part `part`; -1: out of the step. waited: nanoseconds in all.
    void enter(int thread, int part, std::int64_t waited) {
        const int turn = turn_.load(std::memory_order_acquire);
        if (!turn) return;
        Thread& t = threads_[thread];
        const std::int64_t now = nanoseconds();
        if (t.part >= 0 && t.turn == turn) {
            add(t.cells[t.part].time, now - t.since);
            add(t.cells[t.part].wait, waited - t.waited);
        }
        t.turn = turn;
        t.part = part;
        t.since = now;
        t.waited = waited;
    }

    int n_threads() const { return n_threads_; }
    int n_parts() const { return n_parts_; }
    std::int64_t time(int thread, int part) const { return threads_[thread].cells[part].time; }
    std::int64_t wait(int thread, int part) const { return threads_[thread].cells[part].wait; }

private:
    struct Cell {
        std::atomic<std::int64_t> time{0}, wait{0};
    };
    struct alignas(128) Thread {
        std::unique_ptr<Cell[]> cells;
        int part = -1, turn = 0;
        std::int64_t since = 0, waited = 0;
    };
    // Only the thread itself adds; others read.
    static void add(std::atomic<std::int64_t>& to, std::int64_t more) {
        to.store(to.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
    }

    std::atomic<int> turn_{0};  // 0: off
    int n_turns_ = 0;
    int n_threads_ = 0, n_parts_ = 0;
    std::unique_ptr<Thread[]> threads_;
};

}  // namespace ph
