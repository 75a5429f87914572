// Sixty-four codes of a step, and sixteen sums of products with them, as this instruction set holds them.
// Included by kernels_codes*.cpp only; the rules of kernels.cpp hold. All arithmetic here is exact.
#pragma once

#include "vec.h"

namespace ph::PH_ISA {
namespace {

// ------------------------------------------------------------------------------ one register
//
// dot4: to each of the register's sums, 4 unsigned bytes w times 4 signed bytes x. dot2: the same with
// 16-bit x, of which x0 holds those of the bytes 0 and 2, x1 of 1 and 3. SMALL promises that w < 64.
// BIAS: where w may be large, dot4 of a set without a product of unsigned and signed bytes takes w - BIAS.

#if defined(__AVX512F__)

using Bytes64 = __m512i;  // also the register of 16 sums
using Sums = __m512i;
constexpr int BIAS = 0;
PH_INLINE Bytes64 bld(const char* p) { return _mm512_loadu_si512(p); }
PH_INLINE Bytes64 ball(int8_t x) { return _mm512_set1_epi8(x); }
PH_INLINE Bytes64 band(Bytes64 a, Bytes64 b) { return _mm512_and_si512(a, b); }
PH_INLINE Bytes64 bor(Bytes64 a, Bytes64 b) { return _mm512_or_si512(a, b); }
template <int N>
PH_INLINE Bytes64 bright(Bytes64 a) {
    return _mm512_srli_epi16(a, N);
}
template <int N>
PH_INLINE Bytes64 bleft(Bytes64 a) {
    return _mm512_slli_epi16(a, N);
}
PH_INLINE Bytes64 bpick(const uint8_t* table, Bytes64 at) {
    const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), at);
}
PH_INLINE Sums iall(int x) { return _mm512_set1_epi32(x); }
PH_INLINE Sums iadd(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
PH_INLINE Part ifloat(Sums a) { return _mm512_cvtepi32_ps(a); }
// By hand: GCC 12 copies and spills sums that its own function returns.
template <bool SMALL>
PH_INLINE Sums dot4(Sums s, Bytes64 w, Sums x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(w), "v"(x));
    return s;
}
PH_INLINE Sums dot2(Sums s, Bytes64 w, Sums x0, Sums x1) {
    const Sums even = _mm512_and_si512(w, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(w, 8);
    __asm__("vpdpwssd %2, %1, %0" : "+v"(s) : "v"(even), "v"(x0));
    __asm__("vpdpwssd %2, %1, %0" : "+v"(s) : "v"(odd), "v"(x1));
    return s;
}

#elif defined(__x86_64__)

#if defined(__AVX2__)
#define PH_SI(f) _mm256_##f##_si256
#define PH_I(f) _mm256_##f
using Bytes64 = __m256i;
PH_INLINE Bytes64 bld(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
PH_INLINE Bytes64 bpick(const uint8_t* table, Bytes64 at) {
    const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), at);
}
#else
#define PH_SI(f) _mm_##f##_si128
#define PH_I(f) _mm_##f
using Bytes64 = __m128i;
PH_INLINE Bytes64 bld(const char* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
PH_INLINE Bytes64 bpick(const uint8_t* table, Bytes64 at) {
    uint8_t t[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(t), at);
    for (int i = 0; i < 16; ++i) t[i] = table[t[i]];
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(t));
}
#endif
using Sums = Bytes64;
constexpr int BIAS = 0;
PH_INLINE Bytes64 ball(int8_t x) { return PH_I(set1_epi8)(x); }
PH_INLINE Bytes64 band(Bytes64 a, Bytes64 b) { return PH_SI(and)(a, b); }
PH_INLINE Bytes64 bor(Bytes64 a, Bytes64 b) { return PH_SI(or)(a, b); }
template <int N>
PH_INLINE Bytes64 bright(Bytes64 a) {
    return PH_I(srli_epi16)(a, N);
}
template <int N>
PH_INLINE Bytes64 bleft(Bytes64 a) {
    return PH_I(slli_epi16)(a, N);
}
PH_INLINE Sums iall(int x) { return PH_I(set1_epi32)(x); }
PH_INLINE Sums iadd(Sums a, Sums b) { return PH_I(add_epi32)(a, b); }
PH_INLINE Part ifloat(Sums a) { return PH_I(cvtepi32_ps)(a); }
PH_INLINE Sums dot2(Sums s, Bytes64 w, Sums x0, Sums x1) {
    const Sums even = PH_I(madd_epi16)(band(w, PH_I(set1_epi16)(0xff)), x0);
    const Sums odd = PH_I(madd_epi16)(PH_I(srli_epi16)(w, 8), x1);
    return PH_I(add_epi32)(s, PH_I(add_epi32)(even, odd));
}
template <bool SMALL>
PH_INLINE Sums dot4(Sums s, Bytes64 w, Sums x) {
#if defined(__AVX2__)
    if constexpr (SMALL) {  // two products fit 16 bits
        const Sums two = _mm256_maddubs_epi16(w, x);
        return _mm256_add_epi32(s, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
    }
#endif
    const Sums x0 = PH_I(srai_epi16)(PH_I(slli_epi16)(x, 8), 8);
    return dot2(s, w, x0, PH_I(srai_epi16)(x, 8));
}
#undef PH_SI
#undef PH_I

#elif defined(__aarch64__)

using Bytes64 = uint8x16_t;
using Sums = int32x4_t;
constexpr int BIAS = 128;
PH_INLINE Bytes64 bld(const char* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
PH_INLINE Bytes64 ball(int8_t x) { return vdupq_n_u8(uint8_t(x)); }
PH_INLINE Bytes64 band(Bytes64 a, Bytes64 b) { return vandq_u8(a, b); }
PH_INLINE Bytes64 bor(Bytes64 a, Bytes64 b) { return vorrq_u8(a, b); }
template <int N>
PH_INLINE Bytes64 bright(Bytes64 a) {
    if constexpr (N == 0) return a;
    else return vshrq_n_u8(a, N);
}
template <int N>
PH_INLINE Bytes64 bleft(Bytes64 a) {
    return vshlq_n_u8(a, N);
}
PH_INLINE Bytes64 bpick(const uint8_t* table, Bytes64 at) { return vqtbl1q_u8(vld1q_u8(table), at); }
PH_INLINE Sums iall(int x) { return vdupq_n_s32(x); }
PH_INLINE Sums iadd(Sums a, Sums b) { return vaddq_s32(a, b); }
PH_INLINE Part ifloat(Sums a) { return vcvtq_f32_s32(a); }
template <bool SMALL>
PH_INLINE Sums dot4(Sums s, Bytes64 w, Sums x) {
    if constexpr (!SMALL) w = veorq_u8(w, vdupq_n_u8(0x80));
    const int8x16_t a = vreinterpretq_s8_u8(w), b = vreinterpretq_s8_s32(x);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(s, a, b);
#else
    // Two products fit 16 bits: rounded inputs are at most 127 in magnitude.
    const int16x8_t two = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
    return vpadalq_s16(s, two);
#endif
}
PH_INLINE Sums dot2(Sums s, Bytes64 w, Sums x0, Sums x1) {
    const uint16x8_t pairs = vreinterpretq_u16_u8(w);
    const int16x8_t a = vreinterpretq_s16_u16(vandq_u16(pairs, vdupq_n_u16(0xff)));
    const int16x8_t b = vreinterpretq_s16_u16(vshrq_n_u16(pairs, 8));
    const int16x8_t x = vreinterpretq_s16_s32(x0), y = vreinterpretq_s16_s32(x1);
    const int32x4_t low = vmlal_s16(vmull_s16(vget_low_s16(a), vget_low_s16(x)), vget_low_s16(b),
                                    vget_low_s16(y));
    const int32x4_t high = vmlal_s16(vmull_s16(vget_high_s16(a), vget_high_s16(x)),
                                     vget_high_s16(b), vget_high_s16(y));
    return vaddq_s32(s, vpaddq_s32(low, high));
}

#endif

// ------------------------------------------------------------------------------ a step

struct W {  // 64 codes
    Bytes64 p[PARTS];
};
struct N {  // 16 sums
    Sums p[PARTS];
};

constexpr int ACROSS = 64 / PARTS;  // bytes of a register

PH_INLINE N nall(int x) {
    N a;
    PH_EACH a.p[i] = iall(x);
    return a;
}
// x times each of b.
PH_INLINE N nmul(int x, const N& b) {
    N a;
#if defined(__AVX512F__)
    a.p[0] = _mm512_mullo_epi32(_mm512_set1_epi32(x), b.p[0]);
#elif defined(__AVX2__)
    PH_EACH a.p[i] = _mm256_mullo_epi32(_mm256_set1_epi32(x), b.p[i]);
#elif defined(__aarch64__)
    PH_EACH a.p[i] = vmulq_n_s32(b.p[i], x);
#else
    int first[4];
    memcpy(first, &b, sizeof first);  // all of b are alike
    a = nall(x * first[0]);
#endif
    return a;
}
PH_INLINE N nadd(const N& a, const N& b) {
    N c;
    PH_EACH c.p[i] = iadd(a.p[i], b.p[i]);
    return c;
}
PH_INLINE V nfloat(const N& a) {
    V v;
    PH_EACH v.p[i] = ifloat(a.p[i]);
    return v;
}

// Bits that a vector of `BITS` bits per code has for step S (see ops/panels.py), moved to start at bit TO.
template <int BITS, int S, int TO>
PH_INLINE Bytes64 cut(Bytes64 v) {
    constexpr int from = S / BITS * BITS;
    const Bytes64 mask = ball(int8_t(((1 << BITS) - 1) << TO));
    if constexpr (from > TO) return band(bright<from - TO>(v), mask);
    else if constexpr (from < TO) return band(bleft<TO - from>(v), mask);
    else return band(v, mask);
}

// The codes of step S of a unit; for TABLE what the table holds for them.
template <int BITS, bool TABLE, int S>
PH_INLINE W step(const char* unit, const uint8_t* table) {
    W w;
    constexpr int low = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2, high = BITS - low;
    PH_EACH {
        const char* at = unit + i * ACROSS;
        if constexpr (BITS == 8) {
            w.p[i] = bld(at + S * 64);
        } else {
            w.p[i] = cut<low, S, 0>(bld(at + S % low * 64));
            if constexpr (high > 0) {
                w.p[i] = bor(w.p[i], cut<high, S, low>(bld(at + (low + S % high) * 64)));
            }
        }
        if constexpr (TABLE) w.p[i] = bpick(table, w.p[i]);
    }
    return w;
}

PH_INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, rest = h & 0x3ffu;
    if (exponent == 0) {  // rest * 2^-24, exact
        const float x = float(rest) * 5.9604644775390625e-8f;
        return sign ? -x : x;
    }
    const uint32_t u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// Whole numbers below 2^7 and 2^15 in magnitude, stored as integers.
PH_INLINE void vst_bytes(int8_t* to, const V& n) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(n.p[0])));
#elif defined(__aarch64__)
    int16x4_t h[4];
    PH_EACH h[i] = vmovn_s32(vcvtq_s32_f32(n.p[i]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(vcombine_s16(h[0], h[1])), vmovn_s16(vcombine_s16(h[2], h[3]))));
#else
    float t[16];
    vst(t, n);
    for (int j = 0; j < 16; ++j) to[j] = int8_t(int(t[j]));
#endif
}
// Of each four: 0, 2, 1, 3, as dot2 takes them.
PH_INLINE void vst_shorts(int16_t* to, const V& n) {
#if defined(__AVX512F__)
    const __m512i four = _mm512_shuffle_epi32(_mm512_cvtps_epi32(n.p[0]), _MM_PERM_DBCA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(four));
#elif defined(__aarch64__)
    PH_EACH {
        const int16x4_t four = vmovn_s32(vcvtq_s32_f32(n.p[i]));
        vst1_s16(to + i * 4, vzip1_s16(four, vext_s16(four, four, 2)));
    }
#else
    float t[16];
    vst(t, n);
    for (int j = 0; j < 16; j += 4) {
        to[j] = int16_t(int(t[j]));
        to[j + 1] = int16_t(int(t[j + 2]));
        to[j + 2] = int16_t(int(t[j + 1]));
        to[j + 3] = int16_t(int(t[j + 3]));
    }
#endif
}
// Sixteen numbers of half precision, and sixteen bytes.
PH_INLINE V vhalf(const uint16_t* p) {
    V v;
#if defined(__AVX512F__)
    v.p[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    PH_EACH v.p[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * 8)));
#elif defined(__aarch64__)
    PH_EACH v.p[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + i * 4)));
#else
    float t[16];
    for (int i = 0; i < 16; ++i) t[i] = half_to_float(p[i]);
    v = vld(t);
#endif
    return v;
}
PH_INLINE V vbytes(const uint8_t* p) {
    V v;
#if defined(__AVX512F__)
    v.p[0] = _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
    const uint8x16_t b = vld1q_u8(p);
    const uint16x8_t h[2] = {vmovl_u8(vget_low_u8(b)), vmovl_high_u8(b)};
    PH_UNROLL for (int i = 0; i < 2; ++i) {
        v.p[2 * i] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(h[i])));
        v.p[2 * i + 1] = vcvtq_f32_u32(vmovl_high_u16(h[i]));
    }
#else
    float t[16];
    for (int i = 0; i < 16; ++i) t[i] = float(p[i]);
    v = vld(t);
#endif
    return v;
}

// E4M3 times 2^-8: its bits are those of half precision but for the bias of the exponent, denormals
// included. (It has no infinity; its one NaN is refused at load.)
PH_INLINE uint16_t eighth_to_half(uint8_t x) { return uint16_t((x & 0x80) << 8 | (x & 0x7f) << 7); }
PH_INLINE V veighth(const uint8_t* p) {
    V v;
#if defined(__AVX512F__)
    const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x7f)), 7);
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x80)), 8);
    v.p[0] = _mm512_cvtph_ps(_mm256_or_si256(rest, sign));
#elif defined(__aarch64__)
    const uint8x16_t b = vld1q_u8(p);
    const uint16x8_t h[2] = {vmovl_u8(vget_low_u8(b)), vmovl_high_u8(b)};
    PH_UNROLL for (int i = 0; i < 2; ++i) {
        const uint16x8_t rest = vshlq_n_u16(vandq_u16(h[i], vdupq_n_u16(0x7f)), 7);
        const uint16x8_t sign = vshlq_n_u16(vandq_u16(h[i], vdupq_n_u16(0x80)), 8);
        const float16x8_t x = vreinterpretq_f16_u16(vorrq_u16(rest, sign));
        v.p[2 * i] = vcvt_f32_f16(vget_low_f16(x));
        v.p[2 * i + 1] = vcvt_high_f32_f16(x);
    }
#else
    uint16_t t[16];
    for (int i = 0; i < 16; ++i) t[i] = eighth_to_half(p[i]);
    v = vhalf(t);
#endif
    return v;
}

}  // namespace
}  // namespace ph::PH_ISA
