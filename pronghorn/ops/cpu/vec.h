// Sixteen floats as this instruction set holds them, and the few functions that kernels share.
//
// `V` is made of PARTS hardware registers of LANES floats, so that one source serves every set. The
// elementary functions are our own polynomials (fitted by reweighted least squares to a relative
// error below 1e-9 on the reduced range): every path of a set gives the same bits. Included by
// kernels*.cpp only; the rules of kernels.cpp hold.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Whether BF16 and I8 products take their inputs as pairs of bfloat16 (see kernels.h).
#if defined(__AVX512BF16__)
#define PH_PACKS 1
#else
#define PH_PACKS 0
#endif

#define PH_INLINE inline __attribute__((always_inline, unused))
#define PH_UNROLL _Pragma("GCC unroll 16")

namespace ph::PH_ISA {
namespace {

// ------------------------------------------------------------------------------ one register

#if defined(__AVX512F__)

using Part = __m512;
constexpr int LANES = 16;

PH_INLINE Part ld(const float* p) { return _mm512_loadu_ps(p); }
PH_INLINE void st(float* p, Part a) { _mm512_storeu_ps(p, a); }
PH_INLINE Part all(float x) { return _mm512_set1_ps(x); }
PH_INLINE Part add(Part a, Part b) { return _mm512_add_ps(a, b); }
PH_INLINE Part sub(Part a, Part b) { return _mm512_sub_ps(a, b); }
PH_INLINE Part mul(Part a, Part b) { return _mm512_mul_ps(a, b); }
PH_INLINE Part div(Part a, Part b) { return _mm512_div_ps(a, b); }
PH_INLINE Part fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
PH_INLINE Part least(Part a, Part b) { return _mm512_min_ps(a, b); }
PH_INLINE Part most(Part a, Part b) { return _mm512_max_ps(a, b); }
PH_INLINE Part if_less(Part x, Part t, Part yes, Part no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, t, _CMP_LT_OQ), no, yes);
}
// a times 2^n, n being the integer in the low bits of t (see vexp).
PH_INLINE Part shifted(Part a, Part t) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
PH_INLINE Part ld(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
PH_INLINE Part ld(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

#elif defined(__AVX2__)

using Part = __m256;
constexpr int LANES = 8;

PH_INLINE Part ld(const float* p) { return _mm256_loadu_ps(p); }
PH_INLINE void st(float* p, Part a) { _mm256_storeu_ps(p, a); }
PH_INLINE Part all(float x) { return _mm256_set1_ps(x); }
PH_INLINE Part add(Part a, Part b) { return _mm256_add_ps(a, b); }
PH_INLINE Part sub(Part a, Part b) { return _mm256_sub_ps(a, b); }
PH_INLINE Part mul(Part a, Part b) { return _mm256_mul_ps(a, b); }
PH_INLINE Part div(Part a, Part b) { return _mm256_div_ps(a, b); }
PH_INLINE Part fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
PH_INLINE Part least(Part a, Part b) { return _mm256_min_ps(a, b); }
PH_INLINE Part most(Part a, Part b) { return _mm256_max_ps(a, b); }
PH_INLINE Part if_less(Part x, Part t, Part yes, Part no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, t, _CMP_LT_OQ));
}
PH_INLINE Part shifted(Part a, Part t) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
PH_INLINE Part ld(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
PH_INLINE Part ld(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// Pairs of values (2i, 2i + 1): the even ones and the odd ones.
PH_INLINE void ld_pairs(const uint16_t* p, Part& even, Part& odd) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int(0xffff0000u))));
}
PH_INLINE void ld_pairs(const int8_t* p, Part& even, Part& odd) {
    const __m256i w =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    even = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(w, 16), 16));
    odd = _mm256_cvtepi32_ps(_mm256_srai_epi32(w, 16));
}

#elif defined(__x86_64__)

using Part = __m128;
constexpr int LANES = 4;

PH_INLINE Part ld(const float* p) { return _mm_loadu_ps(p); }
PH_INLINE void st(float* p, Part a) { _mm_storeu_ps(p, a); }
PH_INLINE Part all(float x) { return _mm_set1_ps(x); }
PH_INLINE Part add(Part a, Part b) { return _mm_add_ps(a, b); }
PH_INLINE Part sub(Part a, Part b) { return _mm_sub_ps(a, b); }
PH_INLINE Part mul(Part a, Part b) { return _mm_mul_ps(a, b); }
PH_INLINE Part div(Part a, Part b) { return _mm_div_ps(a, b); }
PH_INLINE Part fma(Part a, Part b, Part c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
PH_INLINE Part least(Part a, Part b) { return _mm_min_ps(a, b); }
PH_INLINE Part most(Part a, Part b) { return _mm_max_ps(a, b); }
PH_INLINE Part if_less(Part x, Part t, Part yes, Part no) {
    const Part m = _mm_cmplt_ps(x, t);
    return _mm_or_ps(_mm_and_ps(m, yes), _mm_andnot_ps(m, no));
}
PH_INLINE Part shifted(Part a, Part t) {
    return _mm_castsi128_ps(
        _mm_add_epi32(_mm_castps_si128(a), _mm_slli_epi32(_mm_castps_si128(t), 23)));
}
PH_INLINE Part ld(const uint16_t* p) {
    const __m128i w = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), w));
}
PH_INLINE Part ld(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    __m128i w = _mm_cvtsi32_si128(four);
    w = _mm_unpacklo_epi8(w, w);
    return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(w, w), 24));
}
PH_INLINE void ld_pairs(const uint16_t* p, Part& even, Part& odd) {
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    even = _mm_castsi128_ps(_mm_slli_epi32(w, 16));
    odd = _mm_castsi128_ps(_mm_and_si128(w, _mm_set1_epi32(int(0xffff0000u))));
}
PH_INLINE void ld_pairs(const int8_t* p, Part& even, Part& odd) {
    __m128i w = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    w = _mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8);
    even = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_slli_epi32(w, 16), 16));
    odd = _mm_cvtepi32_ps(_mm_srai_epi32(w, 16));
}

#elif defined(__aarch64__)

using Part = float32x4_t;
constexpr int LANES = 4;

PH_INLINE Part ld(const float* p) { return vld1q_f32(p); }
PH_INLINE void st(float* p, Part a) { vst1q_f32(p, a); }
PH_INLINE Part all(float x) { return vdupq_n_f32(x); }
PH_INLINE Part add(Part a, Part b) { return vaddq_f32(a, b); }
PH_INLINE Part sub(Part a, Part b) { return vsubq_f32(a, b); }
PH_INLINE Part mul(Part a, Part b) { return vmulq_f32(a, b); }
PH_INLINE Part div(Part a, Part b) { return vdivq_f32(a, b); }
PH_INLINE Part fma(Part a, Part b, Part c) { return vfmaq_f32(c, a, b); }
PH_INLINE Part least(Part a, Part b) { return vminq_f32(a, b); }
PH_INLINE Part most(Part a, Part b) { return vmaxq_f32(a, b); }
PH_INLINE Part if_less(Part x, Part t, Part yes, Part no) {
    return vbslq_f32(vcltq_f32(x, t), yes, no);
}
PH_INLINE Part shifted(Part a, Part t) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vreinterpretq_s32_f32(t), 23)));
}
PH_INLINE Part ld(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
PH_INLINE Part ld(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    const int16x8_t w = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(w)));
}
PH_INLINE void ld_pairs(const uint16_t* p, Part& even, Part& odd) {
    const uint32x4_t w = vreinterpretq_u32_u16(vld1q_u16(p));
    even = vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
    odd = vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff0000u)));
}
PH_INLINE void ld_pairs(const int8_t* p, Part& even, Part& odd) {
    const int32x4_t w = vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p)));
    even = vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(w, 16), 16));
    odd = vcvtq_f32_s32(vshrq_n_s32(w, 16));
}

#endif

// ------------------------------------------------------------------------------ sixteen floats

constexpr int PARTS = 16 / LANES;

struct V {
    Part p[PARTS];
};

#define PH_EACH PH_UNROLL for (int i = 0; i < PARTS; ++i)

template <typename T>
PH_INLINE V vld(const T* p) {
    V a;
    PH_EACH a.p[i] = ld(p + i * LANES);
    return a;
}
#if defined(__aarch64__)
// One load instead of four, and no way through general registers.
PH_INLINE V vld(const int8_t* p) {
    const int8x16_t b = vld1q_s8(p);
    const int16x8_t h[2] = {vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b)};
    V a;
    PH_UNROLL for (int i = 0; i < 2; ++i) {
        a.p[2 * i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(h[i])));
        a.p[2 * i + 1] = vcvtq_f32_s32(vmovl_high_s16(h[i]));
    }
    return a;
}
#endif
PH_INLINE void vst(float* p, const V& a) { PH_EACH st(p + i * LANES, a.p[i]); }
PH_INLINE V vall(float x) {
    V a;
    PH_EACH a.p[i] = all(x);
    return a;
}
#define PH_BINARY(name, f)                        \
    PH_INLINE V name(const V& a, const V& b) {    \
        V c;                                      \
        PH_EACH c.p[i] = f(a.p[i], b.p[i]);       \
        return c;                                 \
    }
PH_BINARY(vadd, add)
PH_BINARY(vsub, sub)
PH_BINARY(vmul, mul)
PH_BINARY(vdiv, div)
PH_BINARY(vmin, least)
PH_BINARY(vmax, most)
PH_BINARY(vshifted, shifted)
#undef PH_BINARY
PH_INLINE V vfma(const V& a, const V& b, const V& c) {
    V d;
    PH_EACH d.p[i] = fma(a.p[i], b.p[i], c.p[i]);
    return d;
}
PH_INLINE V vif_less(const V& x, const V& t, const V& yes, const V& no) {
    V d;
    PH_EACH d.p[i] = if_less(x.p[i], t.p[i], yes.p[i], no.p[i]);
    return d;
}

// The first n lanes; the others are 0.
template <typename T>
PH_INLINE V vld_part(const T* p, int n) {
    T t[16] = {};
    for (int i = 0; i < n; ++i) t[i] = p[i];
    return vld(t);
}
PH_INLINE void vst_part(float* p, const V& a, int n) {
    float t[16];
    vst(t, a);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}

// Lanes folded in halves: one order, whatever the set.
PH_INLINE float vsum(const V& a) {
    float t[16];
    vst(t, a);
    for (int w = 8; w; w /= 2) {
        for (int i = 0; i < w; ++i) t[i] += t[i + w];
    }
    return t[0];
}
PH_INLINE float vtop(const V& a) {
    float t[16];
    vst(t, a);
    for (int w = 8; w; w /= 2) {
        for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
    }
    return t[0];
}

// The same folded as the set does it fastest: another order of sums, but one order for each set.
PH_INLINE float highest(const V& a) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(a.p[0]);
#elif defined(__aarch64__)
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.p[0], a.p[1]), vmaxq_f32(a.p[2], a.p[3])));
#else
    return vtop(a);
#endif
}
PH_INLINE float summed(const V& a) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(a.p[0]);
#elif defined(__aarch64__)
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.p[0], a.p[2]), vaddq_f32(a.p[1], a.p[3])));
#else
    return vsum(a);
#endif
}

// The highest lanes of sixteen registers, or what theirs sum up to as the set does it fastest, in the order of these.
template <bool SUMS>
PH_INLINE V folded(const V (&x)[16]) {
#if defined(__AVX512F__)
    const auto both = [](Part a, Part b) { return SUMS ? add(a, b) : most(a, b); };
    Part y[8], z[4], u[2];
    PH_UNROLL for (int i = 0; i < 8; ++i) {
        const Part a = x[i].p[0], b = x[i + 8].p[0];
        y[i] = both(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    PH_UNROLL for (int i = 0; i < 4; ++i) {
        z[i] = both(_mm512_shuffle_f32x4(y[i], y[i + 4], 0x88), _mm512_shuffle_f32x4(y[i], y[i + 4], 0xdd));
    }
    PH_UNROLL for (int i = 0; i < 2; ++i) {
        u[i] = both(_mm512_shuffle_ps(z[i], z[i + 2], 0x44), _mm512_shuffle_ps(z[i], z[i + 2], 0xee));
    }
    const Part t = both(_mm512_shuffle_ps(u[0], u[1], 0x88), _mm512_shuffle_ps(u[0], u[1], 0xdd));
    const __m512i order = _mm512_set_epi32(15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0);
    return {{_mm512_permutexvar_ps(order, t)}};
#else
    float t[16];
    for (int i = 0; i < 16; ++i) t[i] = SUMS ? summed(x[i]) : highest(x[i]);
    return vld(t);
#endif
}

// ------------------------------------------------------------------------------ functions

template <size_t N>
PH_INLINE V poly(const V& x, const float (&c)[N]) {
    V y = vall(c[N - 1]);
    PH_UNROLL for (int k = int(N) - 2; k >= 0; --k) y = vfma(y, x, vall(c[k]));
    return y;
}

// exp, under 2 ulp; 0 below -86, where it is not needed; clamped at exp(88). NaN stays NaN: of two
// operands x86 takes the second where one is NaN, so x0 comes second.
PH_INLINE V vexp(const V& x0) {
    constexpr float c[] = {5.000000083e-01f, 1.666666685e-01f, 4.166625298e-02f,
                           8.333265863e-03f, 1.394726611e-03f, 1.991772500e-04f};
    const V low = vall(-86.0f);
    const V x = vmin(vall(88.0f), vmax(low, x0));
    // Adding 1.5 * 2^23 rounds to an integer n and leaves it in the low bits.
    const V magic = vall(12582912.0f);
    const V t = vadd(vmul(x, vall(1.44269504088896f)), magic);
    const V n = vsub(t, magic);
    // n * ln 2 in two pieces, the first exact for every n that occurs
    V r = vsub(x, vmul(n, vall(0.693359375f)));
    r = vsub(r, vmul(n, vall(-2.12194440e-4f)));
    const V y = vadd(vall(1.0f), vfma(vmul(r, r), poly(r, c), r));
    return vif_less(x0, low, vall(0.0f), vshifted(y, t));
}

PH_INLINE V vabs(const V& x) { return vmax(x, vsub(vall(0.0f), x)); }

PH_INLINE V vtanh(const V& x) {
    constexpr float c[] = {-3.333333310e-01f, 1.333329293e-01f, -5.395676027e-02f,
                           2.174890088e-02f,  -8.279779018e-03f, 2.221821553e-03f};
    const V a = vabs(x), z = vmul(x, x), one = vall(1.0f);
    const V near = vfma(vmul(x, z), poly(z, c), x);
    const V e = vexp(vadd(a, a));
    V far = vsub(one, vdiv(vall(2.0f), vadd(e, one)));
    far = vif_less(x, vall(0.0f), vsub(vall(0.0f), far), far);
    return vif_less(a, vall(0.65f), near, far);
}

PH_INLINE V verf(const V& x) {
    constexpr float c[] = {1.128379166e+00f, -3.761262576e-01f, 1.128358189e-01f,
                           -2.685357160e-02f, 5.187676390e-03f, -8.002790699e-04f,
                           7.823966478e-05f};
    // erfc(a) = exp(-a^2) t R(t), t = 1 / (1 + a / 2); past 4.2 it is below float's rounding
    constexpr float d[] = {2.822894219e-01f, 2.790180654e-01f,  2.672115522e-01f,
                           1.043037162e-01f, 2.233531101e-01f,  -1.272487972e-01f,
                           -7.763068522e-02f, 4.889359564e-02f};
    const V zero = vall(0.0f), one = vall(1.0f);
    const V a = vmin(vabs(x), vall(4.2f)), z = vmul(a, a);
    const V near = vmul(x, poly(z, c));
    const V t = vdiv(one, vfma(a, vall(0.5f), one));
    V far = vsub(one, vmul(vexp(vsub(zero, z)), vmul(t, poly(t, d))));
    far = vif_less(x, zero, vsub(zero, far), far);
    return vif_less(a, one, near, far);
}

// bfloat16, rounded to nearest even; NaN stays NaN.
PH_INLINE uint16_t narrowed(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    const uint32_t round = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return uint16_t((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : round);
}
PH_INLINE float widened(uint16_t h) {
    const uint32_t u = uint32_t(h) << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

}  // namespace
}  // namespace ph::PH_ISA
