// Kernels, compiled once per instruction set with -DPH_ISA=<set> and that set's flags.
//
// The linker keeps one copy of every inline function or template instance shared between objects,
// and it may keep the copy made with AVX-512: on an older machine that is an illegal instruction
// far from here. So nothing in this file may instantiate the standard library: plain loops, C
// headers and intrinsics only, and every helper lives in an unnamed namespace.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ph::PH_ISA {
namespace {

float dot(const float* a, const float* b, std::size_t n) {
    std::size_t i = 0;
#if defined(__AVX512F__)
    __m512 acc = _mm512_setzero_ps();
    for (; i + 16 <= n; i += 16) {
        acc = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), acc);
    }
    float sum = _mm512_reduce_add_ps(acc);
#elif defined(__AVX2__)
    __m256 acc = _mm256_setzero_ps();
    for (; i + 8 <= n; i += 8) {
        acc = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc);
    }
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
#elif defined(__aarch64__)
    float32x4_t acc = vdupq_n_f32(0.0f);
    for (; i + 4 <= n; i += 4) {
        acc = vfmaq_f32(acc, vld1q_f32(a + i), vld1q_f32(b + i));
    }
    float sum = vaddvq_f32(acc);
#else
    __m128 acc = _mm_setzero_ps();
    for (; i + 4 <= n; i += 4) {
        acc = _mm_add_ps(acc, _mm_mul_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i)));
    }
    acc = _mm_add_ps(acc, _mm_movehl_ps(acc, acc));
    float sum = _mm_cvtss_f32(_mm_add_ss(acc, _mm_shuffle_ps(acc, acc, 1)));
#endif
    for (; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

}  // namespace

extern const Kernels table;
const Kernels table = {.dot = dot};

}  // namespace ph::PH_ISA
