// Pages of keys and values in codes (kernels.h, Coding) as the operands of attention's products.
//
// Any of them can be unpacked: values come out in float32, and for pairs are rounded to bfloat16; what a page
// has beside its codes (a product of low rank, spikes) is put in on the way. Channels that a page does not have
// are zeros. Where both products are in pairs, 4-bit numbers with factors for rows are also multiplied as they
// lie (`fours`), in integers: keys with queries of 8 bits; values with weights that have the rows' scales in
// them, in 8 bits by the largest of the block. Offsets join by themselves, in float32: a score has a row's offset
// times the sum of the query, an output the sum of weights times what the middle of a row's codes means, so that
// a weight which becomes 0 leaves its row's middle.
#pragma once

#include "attend_tile.h"
#include "kernels.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

// ------------------------------------------------------------------------------ turning

// Sixteen rows or one, x (dim, N), each of which becomes sign * x times Hadamard's matrix of the largest power
// of two that divides dim, stretch by stretch, over that number's root; or back. methods/kvfmt/_codes.py does
// the same.
template <int N>
void turn(float* x, int dim, bool back) {
    const int width = dim & -dim, log = __builtin_ctz(unsigned(width));
    const float by = (log % 2 ? 0.70710678f : 1.0f) / float(1 << log / 2);
    const auto scale = [&](int c) {
        const float s = uint32_t(c) * 0x9e3779b1u >> 31 ? -by : by;
        for (int i = 0; i < N; ++i) x[c * N + i] *= s;
    };
    if (!back) {
        for (int c = 0; c < dim; ++c) scale(c);
    }
    for (int h = 1; h < width; h *= 2) {
        for (int at = 0; at < dim; at += 2 * h) {
            for (int i = at * N; i < (at + h) * N; ++i) {
                const float a = x[i], b = x[i + h * N];
                x[i] = a + b;
                x[i + h * N] = a - b;
            }
        }
    }
    if (back) {
        for (int c = 0; c < dim; ++c) scale(c);
    }
}

// ------------------------------------------------------------------------------ levels

#if defined(__AVX512F__)
using Words = __m512i;  // sixteen
PH_INLINE Words words(const void* p) { return _mm512_loadu_si512(p); }
template <int BITS>
PH_INLINE Words low_bits(Words x, int shift) {
    return _mm512_and_si512((__m512i)((__v16su)x >> shift), _mm512_set1_epi32((1 << BITS) - 1));
}
PH_INLINE V as_numbers(Words x) { return {{_mm512_cvtepi32_ps(x)}}; }
PH_INLINE V as_levels(Words x, const float* table) {
    return {{_mm512_permutexvar_ps(x, _mm512_loadu_ps(table))}};
}
PH_INLINE V as_e4m3(Words x) {
    x = _mm512_and_si512(_mm512_srai_epi32(_mm512_slli_epi32(x, 24), 4), _mm512_set1_epi32(int(0x87f00000u)));
    return vmul({{_mm512_castsi512_ps(x)}}, vall(0x1p120f));
}
PH_INLINE V brain(const uint16_t* p) {  // in all lanes
    const Words x = _mm512_and_si512(_mm512_set1_epi16(short(*p)), _mm512_set1_epi32(int(0xffff0000u)));
    return {{_mm512_castsi512_ps(x)}};
}
#else
struct Words {
    uint32_t at[16];
};
PH_INLINE Words words(const void* p) {
    Words x;
    memcpy(x.at, p, 64);
    return x;
}
template <int BITS>
PH_INLINE Words low_bits(Words x, int shift) {
    for (uint32_t& w : x.at) w = w >> shift & ((1u << BITS) - 1);
    return x;
}
PH_INLINE V as_numbers(const Words& x) {
    float f[16];
    for (int i = 0; i < 16; ++i) f[i] = float(int32_t(x.at[i]));
    return vld(f);
}
PH_INLINE V as_levels(const Words& x, const float* table) {
    float f[16];
    for (int i = 0; i < 16; ++i) f[i] = table[x.at[i]];
    return vld(f);
}
PH_INLINE V as_e4m3(const Words& x) {
    uint32_t bits[16];
    for (int i = 0; i < 16; ++i) bits[i] = uint32_t(int32_t(x.at[i] << 24) >> 4) & 0x87f00000u;
    float f[16];
    memcpy(f, bits, 64);
    return vmul(vld(f), vall(0x1p120f));
}
PH_INLINE V brain(const uint16_t* p) { return vall(widened(*p)); }
#endif

// E4M3 as a float has an exponent that is 120 too small, also what has none of its own.
template <int LEVELS>
PH_INLINE V levels_of(const Words& code, const float* table) {
    if constexpr (LEVELS == TABLE) return as_levels(code, table);
    if constexpr (LEVELS == E4M3) return as_e4m3(code);
    return as_numbers(code);
}

// Levels of codes of 2 bits and what a second plane has for them.
PH_INLINE V as_planes(const Words& x, const Words& more) {
#if defined(__AVX512F__)
    return as_numbers(_mm512_add_epi32(_mm512_slli_epi32(x, 2), more));
#else
    Words y;
    for (int i = 0; i < 16; ++i) y.at[i] = x.at[i] * 4 + more.at[i];
    return as_numbers(y);
#endif
}

// Which rows of a page are in its second plane, `salient` at most: a bit for each, from `at` on.
PH_INLINE uint32_t salient_rows(const void* at, int salient) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    uint32_t rows = bits;
    while (__builtin_popcount(rows) > salient) rows &= rows - 1;
    return rows;
}

// Words of sixteen rows in a second plane, in which `rows` lie one after the other; x for the others.
PH_INLINE Words more_words(const Words& x, const void* plane, uint32_t rows) {
#if defined(__AVX512F__)
    return _mm512_mask_expandloadu_epi32(x, __mmask16(rows), plane);
#else
    Words y = x;
    const char* from = static_cast<const char*>(plane);
    for (; rows; rows &= rows - 1, from += 4) memcpy(y.at + __builtin_ctz(rows), from, 4);
    return y;
#endif
}

// Where sixteen channels of a row lie, those of register D of the 32 that begin at a word: paired, in the order of
// `Pairs`.
template <int BITS, bool PAIRED, int D>
struct Spots {
    alignas(64) int32_t word[16] = {}, shift[16] = {}, channel[16] = {};
    constexpr Spots() {
        for (int i = 0; i < 16; ++i) {
            const int c = PAIRED ? i / 4 * 8 + D * 4 + i % 4 : D * 16 + i;
            channel[i] = c;
            word[i] = c / (32 / BITS);
            shift[i] = c % 4 * 8 + c % (32 / BITS) / 4 * BITS;
        }
    }
};

template <int BITS, bool PAIRED, int D>
PH_INLINE Words value_codes(const uint8_t* row) {
    static constexpr Spots<BITS, PAIRED, D> spots{};
#if defined(__AVX512F__)
    Words x = _mm512_maskz_loadu_epi32(__mmask16((1u << BITS) - 1), row);
    x = _mm512_permutexvar_epi32(_mm512_load_si512(spots.word), x);
    x = _mm512_srlv_epi32(x, _mm512_load_si512(spots.shift));
    return _mm512_and_si512(x, _mm512_set1_epi32((1 << BITS) - 1));
#else
    uint32_t w[BITS];
    memcpy(w, row, sizeof w);
    Words x;
    for (int i = 0; i < 16; ++i) x.at[i] = w[spots.word[i]] >> spots.shift[i] & ((1u << BITS) - 1);
    return x;
#endif
}

// ------------------------------------------------------------------------------ unpacking

// Calls f.template operator()<BITS, LEVELS, LOW>() for what a coding is made of; LOW: the rank of what is added.
template <typename F>
PH_INLINE void by_coding(const Coding& c, F f) {
    const auto numbers = [&]<int LOW>() __attribute__((always_inline)) {
        return c.bits == 4 ? f.template operator()<4, NUMBERS, LOW>() : f.template operator()<2, NUMBERS, LOW>();
    };
    if (c.levels == E4M3) return f.template operator()<8, E4M3, 0>();
    if (c.salient) return f.template operator()<2, PLANES, 0>();
    if (c.levels == TABLE) {
        return c.bits == 4 ? f.template operator()<4, TABLE, 0>() : f.template operator()<2, TABLE, 0>();
    }
    switch (c.rank) {
        case 0: return numbers.template operator()<0>();
        case 1: return numbers.template operator()<1>();
        default: return numbers.template operator()<RANKS>();
    }
}

template <class A, int BITS, int LEVELS, int LOW>
__attribute__((noinline)) void unpack_keys_as(const Coding& k, const KvPage& page, int dim, float* out) {
    constexpr int PER = 32 / BITS;
    const uint16_t *f = page.kf, *own = f + code_factors(k, dim) / 2 - dim;  // factors of channels, at the end
    const uint16_t *rows = f + code_low(k, dim), *low = rows + k.rank * PAGE;
    V by = vall(1.0f), plus = vall(0.0f), by_row[LOW + 1];
    PH_UNROLL for (int r = 0; r < LOW; ++r) by_row[r] = vld(rows + r * PAGE);
    const size_t all = code_keys(k, dim);
    const char* plane = static_cast<const char*>(page.k) + all;
    const uint32_t salient = LEVELS == PLANES ? salient_rows(plane + code_more(k, all) - 2, k.salient) : 0;
    for (int w = 0; w * PER < dim; ++w) {
        if (k.group && w * PER % k.group == 0) {
            const uint16_t* at = f + size_t(w * PER / k.group) * (k.offset ? 2 : 1) * PAGE;
            by = vld(at);
            if (k.offset) plus = vld(at + PAGE);
        }
        const Words x = words(static_cast<const char*>(page.k) + size_t(w) * 64);
        const Words y = LEVELS == PLANES ? more_words(x, plane + size_t(w) * k.salient * 4, salient) : x;
        const auto channel = [&](int c, int shift) __attribute__((always_inline)) {
            if (!k.group) {
                by = brain(f + c);
                if (k.offset) plus = brain(f + dim + c);
            }
            const Words code = low_bits<BITS>(x, shift);
            V v = LEVELS == PLANES ? as_planes(code, low_bits<BITS>(y, shift)) : levels_of<LEVELS>(code, k.table);
            v = vfma(v, by, plus);
            PH_UNROLL for (int r = 0; r < LOW; ++r) v = vfma(by_row[r], brain(low + r * dim + c), v);
            return k.channels ? vmul(v, brain(own + c)) : v;
        };
        PH_UNROLL for (int i = 0; i < PER / 2; ++i) {
            const int c = w * PER + 2 * i;
            if (c >= dim) break;
            const V even = channel(c, i * BITS);
            const V odd = c + 1 < dim ? channel(c + 1, i * BITS + 16) : vall(0.0f);
            if constexpr (A::STEP == 1) {
                vst(out + c * 16, even);
                if (c + 1 < dim) vst(out + (c + 1) * 16, odd);
            } else {
                A::st(out + c / 2 * 16, A::both(even, odd));
            }
        }
    }
}

// Keys of 16 bits as (dim, 16): each channel that the page has in its place, zeros in the others. T: uint16_t, as
// they lie in an exact page, or float.
template <typename T>
__attribute__((noinline)) void spread_keys(const Coding& k, const KvPage& page, int dim, T* out) {
    const auto* mask = reinterpret_cast<const uint8_t*>(page.kf);
    const auto *from = static_cast<const uint16_t*>(page.k), *end = from + size_t(k.kept) * PAGE;
    memset(out, 0, size_t(dim) * PAGE * sizeof(T));
    for (int c = 0; c < dim; c += 64) {
        const int n = dim - c < 64 ? dim - c : 64;
        uint64_t there = 0;
        if (k.kept < dim) memcpy(&there, mask + c / 8, size_t(n + 7) / 8);
        else there = ~0ull;
        there &= ~0ull >> (64 - n);
        for (; there && from < end; there &= there - 1, from += PAGE) {
            T* to = out + size_t(c + __builtin_ctzll(there)) * PAGE;
            if constexpr (sizeof(T) == 2) {
                memcpy(to, from, PAGE * 2);
            } else {
                vst(to, vld(from));
            }
        }
    }
}

// Calls f(channel, row, number) for the spikes beside factors.
template <typename F>
PH_INLINE void each_spike(const Coding& c, const uint16_t* factors, int dim, F f) {
    const uint16_t* at = factors + code_spikes(c, dim) / 2;
    for (int i = 0; i < c.spikes; ++i) {
        const int channel = at[2 * i] / PAGE;
        if (channel < dim) f(channel, at[2 * i] % PAGE, at[2 * i + 1]);
    }
}

// Puts a number into a word, or into a half of one.
template <class A>
PH_INLINE void put(float* word, int half, uint16_t number) {
    if constexpr (A::STEP == 1) {
        *word = widened(number);
    } else {
        memcpy(reinterpret_cast<char*>(word) + 2 * half, &number, 2);
    }
}

// Keys of a page as right operands: (step, 16).
template <class A>
void unpack_keys(const Coding& k, const KvPage& page, int dim, float* out) {
    if constexpr (A::STEP == 1) {
        if (k.bits == 16) return spread_keys(k, page, dim, out);
    }
    by_coding(k, [&]<int BITS, int LEVELS, int LOW>() { unpack_keys_as<A, BITS, LEVELS, LOW>(k, page, dim, out); });
    each_spike(k, page.kf, dim, [&](int c, int row, uint16_t number) {
        put<A>(out + c / A::STEP * 16 + row, c % A::STEP, number);
    });
}

// Sixteen of the n channels from the 32nd on that a block begins with, in the order of `Spots`; zeros behind them.
template <bool PAIRED, int D>
PH_INLINE V some_channels(const uint16_t* from, int n) {
#if defined(__AVX512F__)
    const __m512i x = _mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, from);
    constexpr int FROM = PAIRED ? D : 4 * D, BY = PAIRED ? 2 : 1;  // fours of channels
    const __m512i order = _mm512_set_epi64(0, 0, 0, 0, FROM + 3 * BY, FROM + 2 * BY, FROM + BY, FROM);
    const __m512i y = _mm512_permutexvar_epi64(order, x);
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(y)), 16))}};
#else
    static constexpr Spots<2, PAIRED, D> spots{};
    float f[16];
    for (int i = 0; i < 16; ++i) f[i] = spots.channel[i] < n ? widened(from[spots.channel[i]]) : 0.0f;
    return vld(f);
#endif
}

// The N registers of a block of 32 channels; a row's factors are read once for them.
template <class A, int BITS, int LEVELS, int LOW, int N>
PH_INLINE void unpack_block(const Coding& v, const void* const* row, const void* const* more, const uint16_t* f,
                            int block, int dim, int width, float* out) {
    constexpr bool PAIRED = A::STEP == 2;
    const int each = v.offset ? 2 : 1, first = block * 32;
    const uint16_t *at = f + size_t(first / v.group) * each * PAGE, *own = f + code_factors(v, dim) / 2 - dim;
    const uint16_t *rows = f + code_low(v, dim), *low = rows + v.rank * PAGE;
    V by_channel[N], by_low[LOW + 1][N];
    const auto some = [&](const uint16_t* from, V (&to)[N]) __attribute__((always_inline)) {
        to[0] = some_channels<PAIRED, 0>(from + first, dim - first);
        if constexpr (N == 2) to[1] = some_channels<PAIRED, 1>(from + first, dim - first);
    };
    PH_UNROLL for (int d = 0; d < N; ++d) by_channel[d] = vall(1.0f);
    if (v.channels) some(own, by_channel);
    PH_UNROLL for (int r = 0; r < LOW; ++r) some(low + r * dim, by_low[r]);
    const auto part = [&](int key, V (&y)[N]) __attribute__((always_inline)) {
        const auto* bytes = static_cast<const uint8_t*>(row[key]) + block * 4 * BITS;
        const V by = brain(at + key), plus = v.offset ? brain(at + PAGE + key) : by;
        if constexpr (LEVELS == PLANES) {
            const auto* lower = static_cast<const uint8_t*>(more[key]) + block * 4 * BITS;
            y[0] = as_planes(value_codes<BITS, PAIRED, 0>(bytes), value_codes<BITS, PAIRED, 0>(lower));
            if constexpr (N == 2) {
                y[1] = as_planes(value_codes<BITS, PAIRED, 1>(bytes), value_codes<BITS, PAIRED, 1>(lower));
            }
        } else {
            y[0] = levels_of<LEVELS>(value_codes<BITS, PAIRED, 0>(bytes), v.table);
            if constexpr (N == 2) y[1] = levels_of<LEVELS>(value_codes<BITS, PAIRED, 1>(bytes), v.table);
        }
        PH_UNROLL for (int d = 0; d < N; ++d) y[d] = v.offset ? vfma(y[d], by, plus) : vmul(y[d], by);
        PH_UNROLL for (int r = 0; r < LOW; ++r) {
            const V more = brain(rows + r * PAGE + key);
            PH_UNROLL for (int d = 0; d < N; ++d) y[d] = vfma(by_low[r][d], more, y[d]);
        }
        if (v.channels) {
            PH_UNROLL for (int d = 0; d < N; ++d) y[d] = vmul(y[d], by_channel[d]);
        }
    };
    for (int s = 0; s < PAGE / A::STEP; ++s) {
        float* to = out + size_t(s) * width + first;
        V even[N], odd[N];
        part(s * A::STEP, even);
        if constexpr (A::STEP == 2) part(s * 2 + 1, odd);
        PH_UNROLL for (int d = 0; d < N; ++d) {
            if constexpr (A::STEP == 1) {
                vst(to + d * 16, even[d]);
            } else {
                A::st(to + d * 16, A::both(even[d], odd[d]));
            }
        }
    }
}

template <class A, int BITS, int LEVELS, int LOW>
__attribute__((noinline)) void unpack_values_as(const Coding& v, const void* const* row, const uint16_t* f,
                                                int dim, int width, float* out) {
    const void* lower[PAGE];  // where rows have their second plane: themselves where they have none
    const void* const* more = row;
    if constexpr (LEVELS == PLANES) {
        const size_t size = code_row(v, dim);
        const char* plane = static_cast<const char*>(row[0]) + PAGE * size;  // row 0 is where the page begins
        uint32_t salient = salient_rows(plane + v.salient * size, v.salient);
        memcpy(lower, row, sizeof lower);
        for (; salient; salient &= salient - 1, plane += size) lower[__builtin_ctz(salient)] = plane;
        more = lower;
    }
    int block = 0;
    for (; block * 32 + 32 <= width; ++block) {
        unpack_block<A, BITS, LEVELS, LOW, 2>(v, row, more, f, block, dim, width, out);
    }
    if (block * 32 < width) unpack_block<A, BITS, LEVELS, LOW, 1>(v, row, more, f, block, dim, width, out);
}

// Values of sixteen keys as right operands: (step, width). row: by key; f: their factors.
template <class A>
void unpack_values(const Coding& v, const void* const* row, const uint16_t* f, int dim, int width, float* out) {
    by_coding(v, [&]<int BITS, int LEVELS, int LOW>() {
        unpack_values_as<A, BITS, LEVELS, LOW>(v, row, f, dim, width, out);
    });
    each_spike(v, f, dim, [&](int c, int key, uint16_t number) {
        const int at = A::STEP == 1 ? c : c / 32 * 32 + c % 8 / 4 * 16 + c % 32 / 8 * 4 + c % 4;
        put<A>(out + size_t(key / A::STEP) * width + at, key % A::STEP, number);
    });
}

// ------------------------------------------------------------------------------ 4-bit numbers as they lie

// Whether codes are multiplied as they lie; the same for any number of queries.
template <class A>
PH_INLINE bool as_they_lie(const Coding& c) {
    return A::STEP == 2 && c.bits == 4 && c.levels == NUMBERS && c.group && c.offset && !c.channels && !c.turn &&
           !c.rank && !c.spikes;
}

#if PH_PACKS

// sum += products of four numbers, of a without and of b with sign. As intrinsics GCC 12 copies the sums of a loop
// from register to register.
PH_INLINE void add_fours(__m512i& sum, __m512i a, __m512i b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
PH_INLINE void add_fours(__m512i& sum, __m512i a, const int32_t* b) {  // b: the same four for all
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
}

// A query in 8 bits, as words of keys want it: of eight channels 0 4 1 5 and 2 6 3 7. side: for each group
// its scale and the sum of the query itself.
PH_INLINE void narrow_query(const float* q, const Coding& k, int dim, int8_t* out, float* side) {
    memset(out, 0, size_t(dim + 7) / 8 * 8);
    for (int g = 0; g * k.group < dim; ++g) {
        const int from = g * k.group, to = from + k.group < dim ? from + k.group : dim;
        float top = 0.0f, sum = 0.0f;
        for (int c = from; c < to; ++c) {
            const float x = q[c] < 0 ? -q[c] : q[c];
            top = top > x ? top : x;
            sum += q[c];
        }
        const float by = top > 0.0f ? 127.0f / top : 0.0f;
        for (int c = from; c < to; ++c) {
            const int i = c % 8, at = i % 4 / 2 * 4 + i % 2 * 2 + i / 4;
            out[c / 8 * 8 + at] = int8_t(_mm_cvtss_si32(_mm_set_ss(q[c] * by)));
        }
        side[2 * g] = top / 127.0f;
        side[2 * g + 1] = sum;
    }
}

// out[i][j][16]: Q queries, ldq words apart, with the keys of N pages. Asks for `lines` of pages that are
// read next.
template <int Q, int N>
__attribute__((noinline)) void score_fours(const int8_t* q, size_t ldq, const float* side, size_t lds,
                                           const void* const* pages, const uint16_t* const* factors,
                                           const void* const* ahead, int lines, int dim, int group, float* out,
                                           size_t ldo) {
    const __m512i low = _mm512_set1_epi32(0x0f0f0f0f);
    const int words = (dim + 7) / 8;
    for (int g = 0; g * group < dim; ++g) {
        __m512i sum[Q][N];
        PH_UNROLL for (int i = 0; i < Q; ++i) {
            PH_UNROLL for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_si512();
        }
        const int stop = (g + 1) * group / 8 < words ? (g + 1) * group / 8 : words;
        for (int w = g * group / 8; w < stop; ++w) {
            __m512i a[N], b[N];
            PH_UNROLL for (int j = 0; j < N; ++j) {
                const __m512i x = _mm512_loadu_si512(static_cast<const char*>(pages[j]) + w * 64);
                a[j] = _mm512_and_si512(x, low);
                b[j] = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
                if (w < lines) ask_for(static_cast<const char*>(ahead[j]) + w * 64);
            }
            const auto* fours = reinterpret_cast<const int32_t*>(q + w * 8);
            PH_UNROLL for (int i = 0; i < Q; ++i) {
                PH_UNROLL for (int j = 0; j < N; ++j) add_fours(sum[i][j], a[j], fours + i * ldq);
            }
            PH_UNROLL for (int i = 0; i < Q; ++i) {
                PH_UNROLL for (int j = 0; j < N; ++j) add_fours(sum[i][j], b[j], fours + i * ldq + 1);
            }
        }
        PH_UNROLL for (int j = 0; j < N; ++j) {
            const Part by = ld(factors[j] + g * 2 * PAGE), plus = ld(factors[j] + (g * 2 + 1) * PAGE);
            PH_UNROLL for (int i = 0; i < Q; ++i) {
                const float* s = side + i * lds + 2 * g;
                Part x = mul(_mm512_cvtepi32_ps(sum[i][j]), all(s[0]));
                x = fma(x, by, mul(plus, all(s[1])));
                float* to = out + i * ldo + j * 16;
                st(to, g ? add(ld(to), x) : x);
            }
        }
    }
}

constexpr int FOURS_MIDDLE = 8;      // codes of values are summed as numbers from -8 to 7
constexpr float FOURS_TOP = 255.0f;  // of weights

// Where the weights of four keys are among those of a query, in words: `pack_weights` takes four pages at a time.
PH_INLINE int four_at(int page, int four) { return page / 4 * PAGE + four * 4 + page % 4; }

// Weights of four pages, times `by`, in 8 bits.
PH_INLINE __m512i pack_weights(const float* x, __m512 by) {
    const auto page = [&](int i) __attribute__((always_inline)) {
        return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(x + i * PAGE), by));
    };
    return _mm512_packus_epi16(_mm512_packs_epi32(page(0), page(1)), _mm512_packs_epi32(page(2), page(3)));
}

// Sixteen bytes of each of four rows, `stride` apart, byte by byte: a word has one of each.
PH_INLINE __m512i four_rows(const char* at, size_t stride) {
    const auto row = [&](int i) __attribute__((always_inline)) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + i * stride));
    };
    __m512i x = _mm512_broadcast_i32x4(row(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, row(1));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, row(2));
    x = _mm512_mask_broadcast_i32x4(x, 0xf000, row(3));
    const __m512i words = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, x), bytes);
}

// The same of rows of 32 bytes, one behind the other, from channel c on: two loads have all four.
PH_INLINE __m512i four_short_rows(const char* at, __m512i words) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
    const __m512i x = _mm512_permutex2var_epi32(_mm512_loadu_si512(at), words, _mm512_loadu_si512(at + 64));
    return _mm512_shuffle_epi8(x, bytes);
}

// sums[i][32 from c] += scale times weights times codes of pages [from, to), whose rows are `stride` bytes apart.
// p: words of four weights, ldp apart; a query's scale is behind them. Asks for lines [line0, line1)
// of pages that are read next. SHORT: rows have 64 channels.
template <int Q, bool SHORT>
__attribute__((noinline)) void gather_fours(const int32_t* p, size_t ldp, const void* const* row, size_t stride,
                                            const void* const* ahead, int line0, int line1, int width, int from,
                                            int to, int c, float* sums) {
    const __m512i low = _mm512_set1_epi8(0x0f), middle = _mm512_set1_epi8(FOURS_MIDDLE);
    const __m512i first = _mm512_set_epi32(27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
    const __m512i words = _mm512_add_epi32(first, _mm512_set1_epi32(c / 8));
    __m512i sum[Q][2];
    PH_UNROLL for (int i = 0; i < Q; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (int page = from; page < to; ++page) {
        const char* rows = static_cast<const char*>(row[page * PAGE]);
        for (int line = line0 + c / 32; line < line1; line += width / 32) {
            ask_for(static_cast<const char*>(ahead[page]) + line * 64);
        }
        PH_UNROLL for (int four = 0; four < PAGE / 4; ++four) {
            const char* at = rows + four * 4 * stride;
            const __m512i x = SHORT ? four_short_rows(at, words) : four_rows(at + c / 2, stride);
            const __m512i a = _mm512_sub_epi8(_mm512_and_si512(x, low), middle);
            const __m512i b = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(x, 4), low), middle);
            const int32_t* by = p + four_at(page, four);
            PH_UNROLL for (int i = 0; i < Q; ++i) {
                const __m512i weights = _mm512_set1_epi32(by[i * ldp]);
                add_fours(sum[i][0], weights, a);
                add_fours(sum[i][1], weights, b);
            }
        }
    }
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        float scale;
        memcpy(&scale, p + i * ldp + KEYS / 4, 4);
        float* to = sums + i * width + c;
        st(to, fma(_mm512_cvtepi32_ps(sum[i][0]), all(scale), ld(to)));
        st(to + 16, fma(_mm512_cvtepi32_ps(sum[i][1]), all(scale), ld(to + 16)));
    }
}

#endif

}  // namespace
}  // namespace ph::PH_ISA
