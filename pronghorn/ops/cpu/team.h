// Persistent threads that walk one function side by side and share out its items.
//
// The function is a fixed sequence of phases, each a call of `each`. Items are claimed one by one, and
// a phase ends when its items are done, whoever did them: a thread that the system has put aside holds
// nobody up unless it was inside an item. It finds the phases it missed closed, and walks on.
//
// So outside of items the function may only read what never changes or is atomic: a thread may still be
// walking when the call of `run` that woke it is long over.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

#include "profile.h"

namespace ph {

// Where a thread is: its number, the run that it takes part in, and its phase of it.
struct Lane {
    int id = 0;
    std::uint32_t run = 0;
    std::uint32_t phase = 0;
    bool watched = false;     // somebody wants to know how long it waits
    std::int64_t waited = 0;  // nanoseconds, in all
};

// Counts the time of its scope as waiting.
class Waiting {
public:
    explicit Waiting(Lane& lane) : lane_(lane), since_(lane.watched ? nanoseconds() : 0) {}
    ~Waiting() {
        if (since_) lane_.waited += nanoseconds() - since_;
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

private:
    Lane& lane_;
    const std::int64_t since_;
};

class Team {
public:
    Team(int n, std::function<void(Lane&)> work);  // the thread that calls `run` counts as the first
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return n_; }

    // Runs work(lane) on every thread that is awake; returns when all phases are done. Rethrows the
    // first exception of an item.
    void run();

    static constexpr std::size_t MOST = 1u << 24;  // items of a phase stay below

    // Items 0 to n - 1, in any order and on any thread; returns when all are done.
    template <typename F>
    void each(Lane& lane, int n, const F& f) {
        share(lane, n, true, f);
    }

    // One item, for the thread that called `run`.
    template <typename F>
    void once(Lane& lane, const F& f) {
        share(lane, 1, lane.id == 0, [&](int) { f(); });
    }

private:
    template <typename F>
    void share(Lane& lane, int n, bool takes_part, const F& f) {
        if (n <= 0) return;
        const std::uint64_t mine = gate(lane.run, lane.phase++, 0);
        int done = 0;
        std::uint64_t now = gate_.load(std::memory_order_acquire);
        while (takes_part && now >> NEXT_BITS == mine >> NEXT_BITS && int(now & NEXT_MASK) < n) {
            if (!gate_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
                continue;
            }
            try {
                f(int(now & NEXT_MASK));
            } catch (...) {
                keep(std::current_exception());
            }
            ++done;
            now = gate_.load(std::memory_order_acquire);
        }
        if (done && done_.fetch_add(done, std::memory_order_acq_rel) + done == n) {
            done_.store(0, std::memory_order_relaxed);
            open(gate(lane.run, lane.phase, 0));
            return;
        }
        const Waiting waits(lane);
        wait([&] {
            return gate_.load() >> NEXT_BITS != mine >> NEXT_BITS;
        });
    }

    // The gate: run, phase and next item in one word, so that a claim fails unless all three fit.
    static constexpr int NEXT_BITS = 24, PHASE_BITS = 16;
    static constexpr std::uint64_t NEXT_MASK = (1u << NEXT_BITS) - 1;
    static std::uint64_t gate(std::uint32_t run, std::uint32_t phase, std::uint32_t next) {
        return (std::uint64_t{run} << (NEXT_BITS + PHASE_BITS)) |
               (std::uint64_t{phase} << NEXT_BITS) | next;
    }

    template <typename F>
    void wait(const F& over);
    void open(std::uint64_t value);
    void keep(std::exception_ptr error);
    void worker(int id);
    void end();

    int n_;
    const pid_t process_;  // threads do not follow into the child of a fork
    std::function<void(Lane&)> work_;
    std::vector<std::thread> threads_;
    std::mutex error_lock_;
    std::exception_ptr error_;
    std::uint32_t n_runs_ = 0;
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<std::uint64_t> gate_{NEXT_MASK};  // no item: nothing runs
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<std::uint32_t> signal_{0};  // changes when there may be news for a sleeper
};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// A phase, or the caller's next step, is microseconds away: spins for some 100 us, then sleeps.
// (Giving way in between would hand a whole time slice to any other busy process.) `over` loads in the
// total order of all threads, as `open` stores: then a sleeper that is not seen sees the news itself.
template <typename F>
void Team::wait(const F& over) {
    constexpr int SPINS = 1 << 13;
    for (int i = 0; i < SPINS; ++i) {
        if (over()) return;
        pause();
    }
    sleepers_.fetch_add(1);
    for (;;) {
        const std::uint32_t last = signal_.load();
        if (over()) break;
        signal_.wait(last);
    }
    sleepers_.fetch_sub(1);
}

}  // namespace ph
