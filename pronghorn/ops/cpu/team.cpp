#include "team.h"

#include <sched.h>
#include <unistd.h>

#include <utility>

namespace ph {
namespace {

// Processors that this process may run on.
int processors() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    return int(std::thread::hardware_concurrency());
}

}  // namespace

Team::Team(int n)
    : n_(n < 1 ? 1 : n),
      // More threads than processors: whoever spins keeps another from its work.
      n_spins_(n_ <= processors() ? 1 << 14 : 1 << 5),
      process_(getpid()),
      seats_(new Seat[n_]) {
    try {
        for (int i = 1; i < n_; ++i) threads_.emplace_back([this, i] { worker(i); });
    } catch (...) {  // the system has no more threads to give
        end();
        throw;
    }
}

Team::~Team() { end(); }

void Team::end() {
    stop_ = true;
    // Whoever still walks an old run finds its phases closed, and whoever sleeps is woken.
    now_.fetch_add(2);
    signal_.fetch_add(1);
    signal_.notify_all();
    if (getpid() != process_) {
        // The child of a fork has no such threads: they can be neither joined nor detached.
        static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
        static_cast<void>(seats_.release());
        return;
    }
    for (std::thread& t : threads_) t.join();
}

void Team::keep(std::exception_ptr error) {
    const std::lock_guard<std::mutex> hold(error_lock_);
    if (!error_) error_ = std::move(error);
}

void Team::publish(const Lane& lane, int done) {
    seats_[lane.id].done.store(word(lane.phase, done));  // before looking for sleepers: one of both
    wake();                                              // sides sees the other
}

void Team::wake() {
    // One signal for each sleep: to rouse again who only waits for a processor would cost every phase.
    if (sleeps_.load() && sleeps_.exchange(false)) {
        signal_.fetch_add(1);
        signal_.notify_all();
    }
}

void Team::run(const Walk& walk) {
    const std::uint64_t before = now_.load(std::memory_order_relaxed) / 2;
    Lane lane{0, 2 * before + 1, before};
    walk_.store(&walk);
    now_.store(lane.run);
    wake();
    walk(lane);
    // Every phase is done. No claim fits until the next run, whose phases are others, even for a thread
    // that still walks and takes the next run's numbers of items for this one's.
    const std::uint64_t closed = (lane.phase / PHASES + 1) * PHASES;
    for (int i = 0; i < n_; ++i) {
        seats_[i].claims.store(word(closed, int(LOW)), std::memory_order_relaxed);
        seats_[i].done.store(word(closed, 0), std::memory_order_relaxed);
    }
    now_.store(2 * closed);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::settle() {
    if (getpid() != process_) return;  // the threads are not here, whatever their seats say
    for (int i = 1; i < n_; ++i) {
        while (seats_[i].walks.load()) pause();
    }
}

void Team::worker(int id) {
    Lane lane{id, 0, 0};
    std::atomic<bool>& walks = seats_[id].walks;
    for (;;) {
        std::uint64_t now = 0;
        wait([&] {
            now = now_.load();
            return stop_.load() || (now % 2 && now != lane.run);
        });
        if (stop_.load()) return;
        // From here on `settle` waits for this thread, unless it asked before: then no run is under way.
        walks.store(true);
        if (now_.load() == now) {
            lane.run = now;
            lane.phase = now / 2;
            (*walk_.load())(lane);  // a later run's, where this one is over by now: its phases are closed too
        }
        walks.store(false);
    }
}

}  // namespace ph
