// Persistent threads that walk one function side by side and share out its items. Several functions may
// have a team in turns.
//
// A function is a fixed sequence of phases, each a call of `each`. The items of a phase are dealt out
// in advance, one stretch of them to each thread, and claimed one by one; whoever has done its own takes
// what others have not begun. A phase ends when its items are done, whoever did them: a thread that the
// system has put aside holds nobody up unless it was inside its items. It finds the phases it missed
// closed, and walks on.
//
// So outside of items a function may only read what never changes or is atomic: a thread may still be
// walking when the call of `run` that woke it is long over. `settle` waits for such.
//
// What a phase costs is cache lines that travel between cores. Claims of a thread's own items are on a
// line that nobody else touches while things go well, and each thread says on one line of its own how
// many items it has done, where the others look: one line travels to each of them, no more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

#include "profile.h"

namespace ph {

// Where a thread is: its number, the run that it takes part in, and the phase, numbered on from run to
// run.
struct Lane {
    int id = 0;
    std::uint64_t run = 0;
    std::uint64_t phase = 0;
    bool alone = false;  // it did another's items in the last phase
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
    using Walk = std::function<void(Lane&)>;

    explicit Team(int n);  // the thread that calls `run` counts as the first
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return n_; }

    // Runs walk(lane) on every thread that is awake; returns when all phases are done. Rethrows the
    // first exception of an item. `walk` lives until a `settle` after it.
    void run(const Walk& walk);

    // Returns when no thread walks any function. Not while one runs.
    void settle();

    // The item with which the stretch of thread i of m begins, of n items.
    static int first(int n, int i, int m) { return int((std::int64_t(n) * i + m - 1) / m); }

    static constexpr std::size_t MOST = 1u << 24;  // items of a phase stay below
    static constexpr int PHASES = 1 << 16;         // phases of a run stay below

    // Items 0 to n - 1, in any order and on any thread; returns when all are done. Thread i of m gets
    // the i-th of m stretches unless another is quicker: the same items touch the same thread's cache
    // in every run.
    template <typename F>
    void each(Lane& lane, int n, const F& f) {
        share(lane, n, n_, f);
    }

    // The same where n, at least 1, is not the same for the whole run: a thread that is late may take a
    // later phase's number for this one's. All items are then one stretch, which the phase is sure to
    // have claimed: in another, that thread could find items that never were.
    template <typename F>
    void each_of_varying(Lane& lane, int n, const F& f) {
        share(lane, n, 1, f);
    }

private:
    template <typename F>
    void share(Lane& lane, int n, int stretches, const F& f) {
        if (n <= 0) return;
        ++lane.phase;
        if (n_ == 1) {
            for (int i = 0; i < n; ++i) attempt(f, i);
            return;
        }
        const auto over = [&] { return this->over(lane, n); };
        int done = lane.id < stretches ? take(lane, lane.id, n, stretches, f) : 0;
        if (done) publish(lane, done);
        // What another has nearly done is not worth a line's way, unless it seems to be put aside.
        for (int i = lane.alone ? PATIENCE : 0; i < PATIENCE; ++i) {
            if (over()) return;
            pause();
        }
        const int own = done;
        for (int i = 1; i <= stretches; ++i) {
            done += take(lane, (lane.id + i) % stretches, n, stretches, f);
        }
        lane.alone = done > own;
        if (lane.alone) publish(lane, done);
        const Waiting waits(lane);
        wait(over);
    }

    // Items of the stretch of thread `of` that nobody has claimed; returns how many.
    template <typename F>
    int take(const Lane& lane, int of, int n, int stretches, const F& f) {
        const int first = Team::first(n, of, stretches), size = Team::first(n, of + 1, stretches) - first;
        if (!size) return 0;
        std::atomic<std::uint64_t>& claims = seats_[of].claims;
        std::uint64_t now = claims.load(std::memory_order_acquire);
        int done = 0;
        for (;;) {
            const std::int64_t ahead = past(now, lane.phase);
            const int next = ahead < 0 ? 0 : int(now & LOW);
            if (ahead > 0 || next >= size) return done;
            const std::uint64_t mine = word(lane.phase, next + 1);
            if (!claims.compare_exchange_weak(now, mine, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
                continue;
            }
            attempt(f, first + next);
            ++done;
            now = mine;
        }
    }

    // Whether all n items of the lane's phase are done. Also true for a thread that is late: then
    // somebody has worked on a later phase, or the run has ended.
    bool over(const Lane& lane, int n) const {
        int done = 0;
        for (int i = 0; i < n_; ++i) {
            const std::uint64_t said = seats_[i].done.load();
            const std::int64_t ahead = past(said, lane.phase);
            if (ahead > 0) return true;
            if (ahead == 0) done += int(said & LOW);
        }
        return done == n || now_.load() != lane.run;
    }

    template <typename F>
    void attempt(const F& f, int i) {
        try {
            f(i);
        } catch (...) {
            keep(std::current_exception());
        }
    }

    // A phase and a number below MOST in one word. Phases come round after 2^40; no word is older than
    // the last run, so the nearer way round tells which of two is the later.
    static constexpr int LOW_BITS = 24;
    static constexpr std::uint64_t LOW = (1u << LOW_BITS) - 1;
    static std::uint64_t word(std::uint64_t phase, int low) {
        return phase << LOW_BITS | std::uint64_t(low);
    }
    // How far the phase of a word is ahead, times a power of two.
    static std::int64_t past(std::uint64_t word, std::uint64_t phase) {
        return std::int64_t((word & ~LOW) - (phase << LOW_BITS));
    }

    // What a thread writes while it works. Pairs of lines are fetched together: each has one.
    struct alignas(128) Seat {
        std::atomic<std::uint64_t> claims{0};               // the phase, and how many of its stretch
        alignas(128) std::atomic<std::uint64_t> done{0};    // the phase, and how many items it did
        alignas(128) std::atomic<bool> walks{false};
    };

    template <typename F>
    void wait(const F& over);
    void publish(const Lane& lane, int done);
    void wake();
    void keep(std::exception_ptr error);
    void worker(int id);
    void end();

    static constexpr int PATIENCE = 16;

    int n_;
    int n_spins_;
    const pid_t process_;  // threads do not follow into the child of a fork
    std::atomic<const Walk*> walk_{nullptr};
    std::unique_ptr<Seat[]> seats_;
    std::vector<std::thread> threads_;
    std::mutex error_lock_;
    std::exception_ptr error_;
    std::atomic<bool> stop_{false};
    // The last phase before the run, twice; plus one while it runs.
    alignas(128) std::atomic<std::uint64_t> now_{0};
    alignas(128) std::atomic<bool> sleeps_{false};  // somebody has gone to sleep since the last signal
    std::atomic<std::uint32_t> signal_{0};  // changes when there may be news for a sleeper

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
};

// A phase, or the caller's next step, is microseconds away: spins for some 200 us, then sleeps. What the caller
// does between two steps with drafts takes as long, and a core that was asleep is late for the next one; to spin
// longer gains no more, and keeps a server's other process waiting.
// (Giving way in between would hand a whole time slice to any other busy process.) `over` loads in the
// total order of all threads, as what it waits for is stored: then a sleeper that is not seen sees the
// news itself.
template <typename F>
void Team::wait(const F& over) {
    for (int i = 0; i < n_spins_; ++i) {
        if (over()) return;
        pause();
    }
    for (;;) {
        const std::uint32_t last = signal_.load();
        sleeps_.store(true);
        if (over()) return;
        signal_.wait(last);
    }
}

}  // namespace ph
