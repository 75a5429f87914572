#include "team.h"

#include <unistd.h>

#include <utility>

namespace ph {

Team::Team(int n, std::function<void(Lane&)> work)
    : n_(n < 1 ? 1 : n), process_(getpid()), work_(std::move(work)) {
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
    // A run that never was: whoever still walks an old one finds its phases closed.
    gate_ = gate(n_runs_ + 1, 0, NEXT_MASK);
    signal_.fetch_add(1);
    signal_.notify_all();
    if (getpid() != process_) {
        // The child of a fork has no such threads: they can be neither joined nor detached.
        static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
        return;
    }
    for (std::thread& t : threads_) t.join();
}

void Team::keep(std::exception_ptr error) {
    const std::lock_guard<std::mutex> hold(error_lock_);
    if (!error_) error_ = std::move(error);
}

void Team::open(std::uint64_t value) {
    gate_.store(value);  // before looking for sleepers: one of both sides sees the other
    if (sleepers_.load()) {
        signal_.fetch_add(1);
        signal_.notify_all();
    }
}

void Team::run() {
    n_runs_ = (n_runs_ + 1) & ((1u << (64 - NEXT_BITS - PHASE_BITS)) - 1);
    Lane lane{0, n_runs_, 0};
    open(gate(n_runs_, 0, 0));
    work_(lane);
    // Every phase is done. No claim fits the gate until the next run.
    gate_.store(gate(n_runs_, lane.phase, NEXT_MASK));
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::worker(int id) {
    const auto current = [this] {
        return std::uint32_t(gate_.load() >> (NEXT_BITS + PHASE_BITS));
    };
    Lane lane{id, 0, 0};
    for (;;) {
        wait([&] { return stop_.load() || current() != lane.run; });
        if (stop_.load()) return;
        lane.run = current();
        lane.phase = 0;
        work_(lane);
    }
}

}  // namespace ph
