// What the machine allows: products per second in bfloat16 and float32, and bytes read per second.
// limits THREADS MIB CLOCK: prints GFLOP/s, GFLOP/s, GB/s. CLOCK cpu: of the threads' processor time. g++ -O3 -march=native -pthread.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include <sys/mman.h>

static volatile float sink;
static clockid_t which = CLOCK_MONOTONIC;

static double now() {
    timespec t;
    clock_gettime(which, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

template <typename F>
static double fastest(int threads, int times, F f) {  // seconds
    double best = 1e9;
    for (int i = 0; i < times; ++i) {
        std::atomic<int> ready{0};
        std::vector<std::thread> all;
        std::vector<double> from(threads), to(threads);
        for (int t = 0; t < threads; ++t) {
            all.emplace_back([&, t] {
                ++ready;
                while (ready < threads) {
                }
                from[t] = now();
                f(t);
                to[t] = now();
            });
        }
        for (auto& t : all) t.join();
        double took = *std::max_element(to.begin(), to.end()) -
                      *std::min_element(from.begin(), from.end());
        if (which == CLOCK_THREAD_CPUTIME_ID) {
            took = 0;
            for (int t = 0; t < threads; ++t) took = std::max(took, to[t] - from[t]);
        }
        best = std::min(best, took);
    }
    return best;
}

template <bool PAIRS>
static void products(int n) {
    __m512 sum[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = _mm512_setzero_ps();
    const __m512 x = _mm512_set1_ps(1e-3f);
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            __m512 s = sum[j];
#ifdef __AVX512BF16__
            s = PAIRS ? _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)x) : _mm512_fmadd_ps(x, x, s);
#else
            s = _mm512_fmadd_ps(x, x, s);
#endif
            __asm__ volatile("" : "+v"(s));
            sum[j] = s;
        }
    }
    float total = 0;
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) total += _mm512_reduce_add_ps(sum[j]);
    sink = total;
}

int main(int, char** argv) {
    const int threads = atoi(argv[1]);
    const size_t bytes = size_t(atoi(argv[2])) << 20;
    if (!strcmp(argv[3], "cpu")) which = CLOCK_THREAD_CPUTIME_ID;
    constexpr int N = 4000000;
    const double bf16 = fastest(threads, 3, [](int) { products<true>(N); });
    const double fp32 = fastest(threads, 3, [](int) { products<false>(N); });
    char* data = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, 1, bytes);
    const size_t part = bytes / threads / 256 * 256;
    const double read = fastest(threads, 4, [&](int t) {
        __m512i s[4] = {};
        const char* p = data + part * t;
        for (size_t i = 0; i < part; i += 256) {
            for (int j = 0; j < 4; ++j) s[j] = _mm512_xor_si512(s[j], _mm512_load_si512(p + i + 64 * j));
        }
        sink = float(_mm512_reduce_add_epi32(
            _mm512_or_si512(_mm512_or_si512(s[0], s[1]), _mm512_or_si512(s[2], s[3]))));
    });
    printf("%.1f %.1f %.2f\n", 16.0 * 64 * N * threads / bf16 * 1e-9,
           16.0 * 32 * N * threads / fp32 * 1e-9, double(part) * threads / read * 1e-9);
}
