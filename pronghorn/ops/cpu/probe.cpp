// Measures what the machine can do at most.
#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.h"

namespace ph {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t SYSTEM_PAGE = 4096, HUGE_PAGE = 2u << 20;

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::size_t rounded(std::size_t n) { return (n + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; }

void keep(float value) {
    volatile float sink = value;
    static_cast<void>(sink);
}

const ProbeLoops& loops() {
    const std::string& name = isa();
#define PH_PROBE_OF(set) \
    if (name == #set) return set::probe_loops;
    PH_FOR_EACH_ISA(PH_PROBE_OF)
#undef PH_PROBE_OF
    return baseline::probe_loops;
}

// f(i) on n threads that start together; seconds from the start to the end of the last.
template <typename F>
double together(int n, const F& f) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> others;
    for (int i = 1; i < n; ++i) {
        others.emplace_back([&, i] {
            ready.fetch_add(1);
            while (!go.load()) std::this_thread::yield();
            f(i);
        });
    }
    while (ready.load() < n - 1) std::this_thread::yield();
    const Clock::time_point start = Clock::now();
    go.store(true);
    f(0);
    for (std::thread& t : others) t.join();
    return since(start);
}

}  // namespace

Probe::Probe(int n_threads, std::size_t bytes) : n_(n_threads) {
    if (n_threads < 1 || n_threads > 1024) throw std::invalid_argument("threads: 1 to 1024");
    share_ = bytes / n_threads / SYSTEM_PAGE * SYSTEM_PAGE;
    if (!share_) throw std::invalid_argument("a probe needs 4,096 bytes for each thread");
    data_ = static_cast<char*>(std::aligned_alloc(HUGE_PAGE, rounded(share_ * n_)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data_, rounded(share_ * n_), MADV_HUGEPAGE);  // where the system has them
#endif
    together(n_, [&](int i) {
        float* x = reinterpret_cast<float*>(data_ + share_ * i);
        for (std::size_t k = 0; k < share_ / sizeof(float); ++k) x[k] = 1;
    });
}

Probe::~Probe() { std::free(data_); }

void Probe::check(int n_threads) const {
    if (n_threads < 1 || n_threads > n_) {
        throw std::invalid_argument("threads: 1 to those of the probe");
    }
}

double Probe::read(int n_threads, std::size_t bytes) const {
    check(n_threads);
    const ProbeLoops& l = loops();
    const std::size_t part = std::clamp(bytes / n_threads / SYSTEM_PAGE * SYSTEM_PAGE, SYSTEM_PAGE, share_);
    const int times = int(std::max<std::size_t>(1, share_ / part / 2));
    std::atomic<int> warm{0};
    std::vector<Clock::time_point> start(n_threads), end(n_threads);
    together(n_threads, [&](int i) {
        if (part < share_) keep(l.read(data_ + share_ * i, part));
        warm.fetch_add(1);
        while (warm.load() < n_threads) std::this_thread::yield();
        start[i] = Clock::now();
        for (int k = 0; k < times; ++k) keep(l.read(data_ + share_ * i, part));
        end[i] = Clock::now();
    });
    const std::chrono::duration<double> took = *std::max_element(end.begin(), end.end()) -
                                               *std::min_element(start.begin(), start.end());
    return double(part) * times * n_threads / took.count();
}

double Probe::peak(const std::string& kind, int n_threads) const {
    check(n_threads);
    const ProbeLoops& l = loops();
    if (kind != "fp32" && kind != "bf16" && kind != "int8") {
        throw std::invalid_argument("fp32, bf16 or int8");
    }
    const ProbeLoops::Peak p = kind == "fp32" ? l.fp32 : kind == "bf16" ? l.bf16 : l.int8;
    if (!p.loop) return 0;
    constexpr std::size_t ROUNDS = 400000;  // some milliseconds
    const double s = together(n_threads, [&](int) { keep(p.loop(ROUNDS)); });
    return p.per_round * ROUNDS * n_threads / s;
}

double Probe::round_trip() {
    constexpr int RUNS = 20, N = 200;
    constexpr double PATIENCE = 0.02;
    alignas(64) std::atomic<int> turn{0};
    std::atomic<bool> stop{false};
    double best = 0;
    together(2, [&](int i) {
        const Clock::time_point begin = Clock::now();
        for (int run = 0; run < RUNS; ++run) {
            const Clock::time_point start = Clock::now();
            for (int k = i; k < 2 * N; k += 2) {
                while (turn.load(std::memory_order_acquire) != 2 * N * run + k) {
                    if (stop.load(std::memory_order_relaxed)) return;
                    if (since(begin) > PATIENCE) stop.store(true, std::memory_order_relaxed);
                }
                turn.store(2 * N * run + k + 1, std::memory_order_release);
            }
            if (i == 0) best = best > 0 ? std::min(best, since(start) / N) : since(start) / N;
        }
    });
    return best;
}

}  // namespace ph
