// Persistent threads that run one function side by side: spin while work is near, sleep when it is not.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ph {

// One thread of a team: its number, and the barriers it has passed (the same for all at a barrier).
struct Lane {
    int id = 0;
    unsigned turn = 0;
};

class Team {
public:
    explicit Team(int n);  // the calling thread counts as the first
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return n_; }

    // Every thread runs work(lane); returns when all have. Rethrows the first exception of an item.
    void run(const std::function<void(Lane&)>& work);

    // Called by every thread with the same n: items 0 to n - 1 are shared out, then all wait for all.
    // Items may run in any order and on any thread.
    template <typename F>
    void each(Lane& lane, int n, const F& f) {
        if (n_ > 1 && n > 1) {
            std::atomic<int>& next = tickets_[lane.turn % SLOTS];
            for (int i = lane.id; i < n; i = n_ + next.fetch_add(1, std::memory_order_relaxed)) {
                item(f, i);
            }
        } else if (lane.id == 0) {
            for (int i = 0; i < n; ++i) item(f, i);
        }
        barrier(lane);
    }

private:
    static constexpr unsigned SLOTS = 4;

    template <typename F>
    void item(const F& f, int i) {
        try {
            f(i);
        } catch (...) {
            keep(std::current_exception());
        }
    }

    void keep(std::exception_ptr error);
    void barrier(Lane& lane);
    void wait_while(std::atomic<unsigned>& word, unsigned old);
    void publish(std::atomic<unsigned>& word, unsigned value);
    void worker(int id);

    int n_;
    std::vector<std::thread> threads_;
    Lane first_;
    const std::function<void(Lane&)>* work_ = nullptr;
    std::mutex error_lock_;
    std::exception_ptr error_;
    bool stop_ = false;
    alignas(64) std::atomic<unsigned> epoch_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> passed_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<int> tickets_[SLOTS] = {};
};

}  // namespace ph
