#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ph {
namespace {

// A phase of a step, or the caller's next step, is microseconds away: spin for some 100 us, then sleep.
// (Giving way in between would hand a whole time slice to any other busy process.)
constexpr int SPINS = 1 << 13;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

Team::Team(int n) : n_(n < 1 ? 1 : n) {
    for (int i = 1; i < n_; ++i) threads_.emplace_back([this, i] { worker(i); });
}

Team::~Team() {
    stop_ = true;
    publish(epoch_, epoch_.load() + 1);
    for (std::thread& t : threads_) t.join();
}

void Team::keep(std::exception_ptr error) {
    const std::lock_guard<std::mutex> hold(error_lock_);
    if (!error_) error_ = std::move(error);
}

void Team::wait_while(std::atomic<unsigned>& word, unsigned old) {
    for (int i = 0; i < SPINS; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        pause();
    }
    sleepers_.fetch_add(1);
    while (word.load() == old) word.wait(old);
    sleepers_.fetch_sub(1);
}

void Team::publish(std::atomic<unsigned>& word, unsigned value) {
    word.store(value);  // before looking for sleepers: one of both sides sees the other
    if (sleepers_.load()) word.notify_all();
}

void Team::barrier(Lane& lane) {
    const unsigned turn = lane.turn++;
    if (n_ == 1) return;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
        arrived_.store(0, std::memory_order_relaxed);
        // Last used two barriers ago, next two barriers from now: nobody looks at it.
        tickets_[(turn + 2) % SLOTS].store(0, std::memory_order_relaxed);
        publish(passed_, turn + 1);
    } else {
        wait_while(passed_, turn);
    }
}

void Team::run(const std::function<void(Lane&)>& work) {
    error_ = nullptr;
    if (n_ > 1) {
        work_ = &work;
        publish(epoch_, epoch_.load() + 1);
    }
    work(first_);
    barrier(first_);  // the last one: `work` must outlive every thread's use of it
    if (error_) std::rethrow_exception(error_);
}

void Team::worker(int id) {
    Lane lane{id, 0};
    unsigned seen = 0;
    for (;;) {
        wait_while(epoch_, seen);
        ++seen;
        if (stop_) return;
        (*work_)(lane);
        barrier(lane);
    }
}

}  // namespace ph
