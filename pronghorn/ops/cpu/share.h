// Work on a whole matrix at load: items shared out among threads that last as long as it does.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ph {

// f(i) for i of 0 to n - 1, in any order, on one thread for each processor that this process may use (16 at
// most) where every thread gets `least` items or more. Each thread has an f of its own, from `make`. Rethrows
// the first exception.
template <typename Make>
void share(int n, int least, const Make& make) {
    std::atomic<int> next{0};
    std::mutex lock;
    std::exception_ptr error;
    const auto work = [&] {
        try {
            auto f = make();
            for (int i; (i = next.fetch_add(1)) < n;) f(i);
        } catch (...) {
            const std::lock_guard<std::mutex> hold(lock);
            if (!error) error = std::current_exception();
            next = n;
        }
    };
    const int most = std::min({16, int(std::thread::hardware_concurrency()), n / std::max(1, least)});
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < most; ++i) others.emplace_back(work);
    } catch (const std::exception&) {
        // the system has no more threads to give: those there are do it all
    }
    work();
    for (std::thread& t : others) t.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace ph
