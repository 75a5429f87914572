// The two products of attention, in registers: queries with keys, weights with values.
//
// Both are tiles of sums over steps. A step is one channel or key in float32 (`Singles`), or a pair of
// them in bfloat16 summed in float32 (`Pairs`, where the set has that instruction). An operand of the
// left side is one word, a float or a pair, that all lanes share; one of the right side is a register
// of sixteen. The right side comes from pages as they are stored, or packed: sixteen words a step.
// Both give the same registers, so it does not matter to a result which way it went.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr int PACKED = -1;  // in place of a Kind

template <int K>
struct Stored {
    using type = float;
};
template <>
struct Stored<BF16> {
    using type = uint16_t;
};
template <>
struct Stored<I8> {
    using type = int8_t;
};

struct Singles {
    using Right = V;
    static constexpr int STEP = 1;   // channels or keys of a step
    static constexpr int GROUP = 1;  // registers of values that are loaded together
    static PH_INLINE V left(const float* word) { return vall(*word); }
    static PH_INLINE V sum(const V& a, const Right& b, const V& c) { return vfma(a, b, c); }
    static PH_INLINE Right ld(const float* p) { return vld(p); }
    static PH_INLINE void st(float* p, const Right& b) { vst(p, b); }

    // Step s of a page of keys; `half`: a pair of which only the first channel exists.
    template <int K>
    static PH_INLINE Right keys(const void* page, int s, bool) {
        return vld(static_cast<const typename Stored<K>::type*>(page) + s * 16);
    }
    // Step s of values, D registers from channel c.
    template <int K, int D>
    static PH_INLINE void values(const void* const* row, int s, int c, int dim, Right (&to)[D]) {
        const auto* v = static_cast<const typename Stored<K>::type*>(row[s]) + c;
        PH_UNROLL for (int d = 0; d < D - 1; ++d) to[d] = vld(v + d * 16);
        to[D - 1] = c + D * 16 > dim ? vld_part(v + (D - 1) * 16, dim - c - (D - 1) * 16)
                                     : vld(v + (D - 1) * 16);
    }
};

#if PH_PACKS

// Values of pairs keep the order that unpacking leaves: of 32 channels, the first register has the
// first four of every eight.
struct Pairs {
    using Right = __m512i;
    static constexpr int STEP = 2;
    static constexpr int GROUP = 2;
    static PH_INLINE __m512i left(const float* word) {
        int32_t pair;
        memcpy(&pair, word, 4);
        return _mm512_set1_epi32(pair);
    }
    static PH_INLINE V sum(__m512i a, Right b, const V& c) {
        return {{_mm512_dpbf16_ps(c.p[0], (__m512bh)a, (__m512bh)b)}};
    }
    static PH_INLINE Right ld(const float* p) { return _mm512_loadu_si512(p); }
    static PH_INLINE void st(float* p, Right b) { _mm512_storeu_si512(p, b); }

    // Small integers as floats have nothing in their lower halves: bfloat16 is the upper one.
    static PH_INLINE Right pairs_of(__m128i even, __m128i odd) {
        const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(even));
        const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(odd));
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16),
                               _mm512_castps_si512(b));
    }

    // Pairs of two registers of floats, rounded.
    static PH_INLINE Right both(const V& even, const V& odd) {
        return paired((__m512i)_mm512_cvtne2ps_pbh(odd.p[0], even.p[0]));
    }
    // Sixteen halves of words and sixteen more, as pairs.
    static PH_INLINE Right paired(__m512i x) {
        const __m512i order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
            4, 19, 3, 18, 2, 17, 1, 16, 0);
        return _mm512_permutexvar_epi16(order, x);
    }

    template <int K>
    static PH_INLINE Right keys(const void* page, int s, bool half) {
        if constexpr (K == BF16) {
            const uint16_t* k = static_cast<const uint16_t*>(page) + s * 32;
            return paired(half ? _mm512_maskz_loadu_epi16(0xffffu, k) : _mm512_loadu_si512(k));
        } else {
            const __m128i* k = static_cast<const __m128i*>(page) + s * 2;
            return pairs_of(_mm_loadu_si128(k), half ? _mm_setzero_si128() : _mm_loadu_si128(k + 1));
        }
    }

    template <int K, int D>
    static PH_INLINE void values(const void* const* row, int s, int c, int dim, Right (&to)[D]) {
        using T = typename Stored<K>::type;
        const T* even = static_cast<const T*>(row[2 * s]) + c;
        const T* odd = static_cast<const T*>(row[2 * s + 1]) + c;
        PH_UNROLL for (int d = 0; d < D; d += 2) {
            const int left = dim - c - d * 16;
            const __mmask32 m = left >= 32 ? ~0u : (1u << left) - 1;
            if constexpr (K == BF16) {
                const __m512i a = _mm512_maskz_loadu_epi16(m, even + d * 16);
                const __m512i b = _mm512_maskz_loadu_epi16(m, odd + d * 16);
                to[d] = _mm512_unpacklo_epi16(a, b);
                to[d + 1] = _mm512_unpackhi_epi16(a, b);
            } else {
                const __m256i order = _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0);
                const __m256i a = _mm256_permutevar8x32_epi32(
                    _mm256_maskz_loadu_epi8(m, even + d * 16), order);
                const __m256i b = _mm256_permutevar8x32_epi32(
                    _mm256_maskz_loadu_epi8(m, odd + d * 16), order);
                to[d] = pairs_of(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b));
                to[d + 1] = pairs_of(_mm256_extracti128_si256(a, 1), _mm256_extracti128_si256(b, 1));
            }
        }
    }
};

#endif

// Rows of a tile, and its registers across, as far as registers hold their sums.
#if defined(__AVX512F__)
constexpr int TALL = 6;
constexpr int across(int rows) { return rows <= 6 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int TALL = 6;
constexpr int across(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#elif defined(__aarch64__)
constexpr int TALL = 6;
constexpr int across(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#else
constexpr int TALL = 2;
constexpr int across(int rows) { return rows == 1 ? 2 : 1; }
#endif

// Calls f.template operator()<Q>(row) for rows [from, to), Q at a time. Seven and eight stay together:
// pages are read once.
template <typename F>
PH_INLINE void by_rows(int from, int to, F f) {
    if constexpr (TALL == 6 && PARTS == 1) {
        if (to - from == 8) return f.template operator()<8>(from);
        if (to - from == 7) return f.template operator()<7>(from);
    }
    for (; from + TALL <= to; from += TALL) f.template operator()<TALL>(from);
    switch (to - from) {
        case 1: return f.template operator()<1>(from);
        case 2: return f.template operator()<TALL == 2 ? 1 : 2>(from);
        case 3: return f.template operator()<TALL == 2 ? 1 : 3>(from);
        case 4: return f.template operator()<TALL == 2 ? 1 : 4>(from);
        case 5: return f.template operator()<TALL == 2 ? 1 : 5>(from);
        default: return;
    }
}

PH_INLINE void ask_for(const void* p) { __builtin_prefetch(p, 0, 2); }

// out[i][j][16]: Q queries, ldq words apart, with the keys of N pages. Asks for the pages' values, which
// are read next: line by line as those of keys.
template <class A, int K, int Q, int N>
__attribute__((noinline)) void score_tile(const float* q, size_t ldq, const void* const* pages,
                                          const void* const* values, int dim, float* out,
                                          size_t ldo) {
    V sum[Q][N];
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int j = 0; j < N; ++j) sum[i][j] = vall(0.0f);
    }
    const void* page[N];
    PH_UNROLL for (int j = 0; j < N; ++j) page[j] = pages[j];
    const char* next[N];
    PH_UNROLL for (int j = 0; j < N; ++j) next[j] = static_cast<const char*>(values[j * PAGE]);
    const auto step = [&](int s, bool half) __attribute__((always_inline)) {
        constexpr int BYTES = A::STEP * PAGE * int(sizeof(typename Stored<K>::type));
        typename A::Right k[N];
        PH_UNROLL for (int j = 0; j < N; ++j) {
            if constexpr (K == PACKED) {
                k[j] = A::ld(static_cast<const float*>(page[j]) + s * 16);
            } else {
                k[j] = A::template keys<K>(page[j], s, half);
                if (s * BYTES % 64 == 0) ask_for(next[j] + s * BYTES);
            }
        }
        PH_UNROLL for (int i = 0; i < Q; ++i) {
            const auto x = A::left(q + i * ldq + s);
            PH_UNROLL for (int j = 0; j < N; ++j) sum[i][j] = A::sum(x, k[j], sum[i][j]);
        }
    };
    int s = 0;
    for (; s < dim / A::STEP; ++s) step(s, false);
    if (s * A::STEP < dim) step(s, true);
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int j = 0; j < N; ++j) vst(out + i * ldo + j * 16, sum[i][j]);
    }
}

// sums[i][D * 16 from c] += weights times values of steps [from, to), step by step. Weights are words,
// ldp apart; the rows of values are pointers by key, or packed with `width` words a step. Asks for
// pages of keys that are read next, ahead[group].
template <class A, int K, int Q, int D>
__attribute__((noinline)) void gather_tile(const float* p, size_t ldp, const void* const* row,
                                           const float* packed, const void* const* ahead, int width,
                                           int from, int to, int c, int dim, float* sums) {
    V sum[Q][D];
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int d = 0; d < D; ++d) sum[i][d] = vld(sums + i * width + c + d * 16);
    }
    for (int s = from; s < to; ++s) {
        typename A::Right v[D];
        if constexpr (K == PACKED) {
            PH_UNROLL for (int d = 0; d < D; ++d) v[d] = A::ld(packed + size_t(s) * width + c + d * 16);
        } else {
            A::template values<K, D>(row, s, c, dim, v);
            constexpr int PER = PAGE / A::STEP, LINES = K == I8 ? D / 2 : D;
            const char* next = static_cast<const char*>(ahead[s / PER]);
            next += (size_t(c) / 16 * PER * LINES / D + size_t(s % PER) * LINES) * 64;
            PH_UNROLL for (int d = 0; d < LINES; ++d) ask_for(next + d * 64);
        }
        PH_UNROLL for (int i = 0; i < Q; ++i) {
            const auto x = A::left(p + i * ldp + s);
            PH_UNROLL for (int d = 0; d < D; ++d) sum[i][d] = A::sum(x, v[d], sum[i][d]);
        }
    }
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int d = 0; d < D; ++d) vst(sums + i * width + c + d * 16, sum[i][d]);
    }
}

}  // namespace
}  // namespace ph::PH_ISA
