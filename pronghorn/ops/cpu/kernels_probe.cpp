// Measuring loops of an instruction set; see probe.h. The rules of kernels.cpp hold.
//
// The accumulators are more than latency times units of any processor that we know (4 x 2 for float32,
// 6 x 2 for the dot products), and few enough to stay in registers.
#include "probe.h"
#include "vec_int.h"

#define PH_UNROLL24 _Pragma("GCC unroll 24")

namespace ph::PH_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ACCUMULATORS = 24;  // of 32 registers
#else
constexpr int ACCUMULATORS = 12;  // of 16
#endif

// Streams side by side: more requests are under way than the prefetcher makes for one.
float read(const void* p, size_t n) {
    constexpr int STREAMS = 4;
    const float* x = static_cast<const float*>(p);
    const size_t share = n / sizeof(float) / STREAMS;
    V sum[STREAMS];
    for (V& s : sum) s = vall(0.0f);
    for (size_t i = 0; i < share; i += 16) {
        PH_UNROLL for (int k = 0; k < STREAMS; ++k) sum[k] = vadd(sum[k], vld(x + k * share + i));
    }
    PH_UNROLL for (int k = 1; k < STREAMS; ++k) sum[0] = vadd(sum[0], sum[k]);
    return vsum(sum[0]);
}

float fp32(size_t n) {
    Part a[ACCUMULATORS];
    const Part x = all(0.5f), y = all(1.0f);
    PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) a[k] = all(float(k));
    for (size_t i = 0; i < n; ++i) {
        PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) a[k] = fma(a[k], x, y);
    }
    PH_UNROLL24 for (int k = 1; k < ACCUMULATORS; ++k) a[0] = add(a[0], a[k]);
    float out[LANES];
    st(out, a[0]);
    return out[0];
}

#if defined(__AVX512BF16__)
#define PH_HAS_BF16 1
float bf16(size_t n) {
    __m512 a[ACCUMULATORS];
    const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25f), _mm512_set1_ps(-0.5f));
    const __m512bh y = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.125f));
    PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) a[k] = _mm512_set1_ps(float(k));
    for (size_t i = 0; i < n; ++i) {
        PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) a[k] = _mm512_dpbf16_ps(a[k], x, y);
    }
    PH_UNROLL24 for (int k = 1; k < ACCUMULATORS; ++k) a[0] = _mm512_add_ps(a[0], a[k]);
    return _mm512_cvtss_f32(a[0]);
}
constexpr double BF16_LANES = 32;
#else
#define PH_HAS_BF16 0
#endif

// Four products of 8 bits into one sum of 32, as the kernels do it: where one instruction does it, and on AVX2
// in three.
#if defined(__AVX512VNNI__) || defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
#define PH_HAS_INT8 1
constexpr double INT8_LANES = 4 * LANES;
#else
#define PH_HAS_INT8 0
#endif

#if PH_HAS_INT8
float int8(size_t n) {
    Sums a[ACCUMULATORS];
    const Bytes64 x = ball(2);
    Sums y = iall(0x02ff01fe);
    PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) a[k] = iall(k);
    for (size_t i = 0; i < n; ++i) {
        PH_UNROLL24 for (int k = 0; k < ACCUMULATORS; ++k) {
#if !defined(__AVX512VNNI__) && defined(__AVX2__)
            // Out of the compiler's sight: the products are the same every time.
            __asm__("" : "+x"(y));
#endif
            a[k] = dot4<true>(a[k], x, y);
        }
    }
    PH_UNROLL24 for (int k = 1; k < ACCUMULATORS; ++k) a[0] = iadd(a[0], a[k]);
    float out[LANES];
    st(out, ifloat(a[0]));
    return out[0];
}
#endif

}  // namespace

extern const ProbeLoops probe_loops = {
    read,
    {fp32, 2.0 * ACCUMULATORS * LANES},
#if PH_HAS_BF16
    {bf16, 2.0 * ACCUMULATORS * BF16_LANES},
#else
    {nullptr, 0},
#endif
#if PH_HAS_INT8
    {int8, 2.0 * ACCUMULATORS * INT8_LANES},
#else
    {nullptr, 0},
#endif
};

}  // namespace ph::PH_ISA
