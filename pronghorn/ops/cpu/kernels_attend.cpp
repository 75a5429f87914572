// Attention over pages in blocks of KEYS keys, in the manner of FlashAttention (Dao et al. 2022,
// section 3.1) with blocks that are fixed by the keys' numbers.
//
// Within a block a query's scores go side by side by number; weights are exponentials under the block's
// own maximum, and values are summed key by key. Blocks are joined in order of their numbers, each one
// whole, by one rule, whether an item walks them all or threads share them out. So a result depends on
// the numbers of the keys only: not on the page a key lies in, not on rows that share the reading, not
// on threads. Hidden keys weigh exactly 0, and blocks and pages of which a row sees nothing can be
// left out.
//
// In pairs, queries and weights are rounded to bfloat16. Weights are normalised by the sum of what they
// were rounded to: they sum to 1 then, and equal weights stay equal shares whatever their rounding.
// (Weights of values with factors are rounded with these, which differ; they count unrounded.)
#include "attend_codes.h"
#include "kernels.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr float NONE = -__builtin_inff();
constexpr float HIDDEN = -3e38f;  // scores below it are NONE
constexpr int TURNED = -2;  // as PACKED, for turned queries
constexpr int GROUPS = KEYS / PAGE;  // of sixteen keys, within a block

// Whether n queries make up for packing keys or values of a kind. Unpacked, each tile of queries turns what
// it reads into operands, but asks for what is read next on the way. Pairs of 8-bit numbers take longest.
// Packed or not gives the same registers.
template <class A>
constexpr bool packs_keys(Kind kind, int n) {
    return A::STEP == 2 && kind == I8 && n > 48;
}
template <class A>
constexpr bool packs_values(Kind kind, int n) {
    return A::STEP == 2 ? kind == I8 && n > 24 : kind != F32 && n > 8;
}

template <class A>
struct Work {
    const AttendItem& a;
    int n;         // queries
    int steps;     // of a score
    int width;     // words of a query's sums and of packed values
    size_t ldq, lds, ldp;  // words from query to query
    float *q, *s, *p;      // queries; scores; weights as left operands, for each group of channels of 4-bit values
    float *q_turned, *turned;  // queries for turned keys, and sums of turned values
    int8_t* q8;            // queries for 4-bit keys, and beside them scale and sum of each group of channels
    float* side;
    size_t ldq8, ld_side, ldp8;
    int32_t* p8;           // weights as 4-bit values meet them, and their scale, for each group of channels
    float *top, *total, *sums;              // of the block: (n), (n), (n, width)
    float *all_top, *all_total, *all_sums;  // of the blocks up to now
    float *keys, *values;  // packed: (group, step, 16), (step, width)
    float* factors;        // of 4-bit values: (group of channels, scale and middle, KEYS)
    const float* zero;     // a row of values
    // Lines of the next block's pages of 4-bit numbers, from their keys on: up to `score` of each are asked for with
    // scores, up to `weigh` with weights, the rest with sums of values, for a core waits for no more at a time.
    struct Asks {
        int score, weigh, all;
    } asks;

    explicit Work(const AttendItem& item) : a(item) {
        n = a.n_rows * a.g;
        steps = (a.dim + A::STEP - 1) / A::STEP;
        width = (a.dim + 16 * A::GROUP - 1) / (16 * A::GROUP) * 16 * A::GROUP;
        const size_t padded = size_t(a.dim + 31) / 32 * 32, n16 = (n + 15) / 16 * 16;
        ldq = padded;
        lds = KEYS + 16;
        ldp = A::STEP == 2 ? KEYS / 2 + 16 : lds;
        float* at = a.scratch;
        const auto take = [&](size_t floats) {
            float* from = at;
            at += floats;
            return from;
        };
        q = take(n * padded);
        s = take(n * lds);
        p = take(n * (KEYS / 2 + 16) * (padded / 32));
        if constexpr (A::STEP == 1) p = s;
        q_turned = take(n * padded);
        turned = take(n * padded);
        ldq8 = padded;
        ld_side = padded / 16;
        q8 = reinterpret_cast<int8_t*>(take(n * padded / 4));
        ldp8 = KEYS / 4 + 16;
        p8 = reinterpret_cast<int32_t*>(take(n * ldp8 * (padded / 32)));
        side = take(n * ld_side);
        top = take(n16);
        total = take(n16);
        sums = take(n * padded);
        all_top = take(n16);
        all_total = take(n16);
        all_sums = take(n * padded);
        keys = take(KEYS * padded);
        values = take(KEYS * padded);
        factors = take(KEYS * 2 * (padded / 32));
        zero = take(padded);
        memset(const_cast<float*>(zero), 0, sizeof(float) * padded);
        const Coding &k = *a.k_codes, &v = *a.v_codes;
        size_t bytes = code_keys(k, a.dim) + code_beside(k, a.dim);
        if (as_they_lie<A>(k)) bytes += PAGE * code_row(v, a.dim) + code_beside(v, a.dim);
        asks.all = int((bytes + 63) / 64);
        asks.score = as_they_lie<A>(k) ? asks.all / 3 : 0;  // else values are asked for as keys are unpacked
        asks.weigh = asks.score * 2;
    }
};

// What of a block's keys lies where. Sixteen keys of a group are of one kind, or absent.
struct Block {
    int base;  // number of the first key
    const void* keys[GROUPS];
    int keys_kind[GROUPS];
    const float *ks[GROUPS], *vs[GROUPS], *bias[GROUPS];
    const uint16_t *kf[GROUPS], *vf[GROUPS];
    bool there[GROUPS];
    bool turned;
    bool fours;  // whether there are 4-bit values, to be multiplied as they lie
    Kind kind[GROUPS];
    const void* value[KEYS];
    const void* ahead[GROUPS];  // keys of the next block
};

size_t row_bytes(const AttendItem& a, Kind kind) {
    if (kind == CODED) return code_row(*a.v_codes, a.dim);
    return a.dim * size_t(kind == F32 ? 4 : kind == BF16 ? 2 : 1);
}

// Pages of a list, in rising order of their keys, that have keys in [base, base + KEYS).
struct Span {
    const KvPage *from, *to;
};
Span within(const KvPage* pages, int n, int base) {
    const auto end = [](const KvPage& p) { return p.at + p.hi - p.lo; };
    int i = 0, m = n;  // the first page that ends past base
    const int guess = n && base >= pages[0].at ? (base - pages[0].at) / PAGE : 0;  // where pages are full
    if (guess < n && end(pages[guess]) > base && (!guess || end(pages[guess - 1]) <= base)) i = m = guess;
    while (i < m) {
        const int at = (i + m) / 2;
        if (end(pages[at]) > base) {
            m = at;
        } else {
            i = at + 1;
        }
    }
    int j = i;
    while (j < n && pages[j].at < base + KEYS) ++j;
    return {pages + i, pages + j};
}

// Whether lanes are key numbers modulo 16 and the page is alone in its group.
bool aligned(const KvPage* p, const KvPage* end) {
    return p->lo == 0 && p->at % PAGE == 0 && (p + 1 == end || p[1].at / PAGE != p->at / PAGE);
}

// ------------------------------------------------------------------------------ packing

// Lanes [from, from + n) to lanes [to, to + n) of sixteen words.
template <class A>
PH_INLINE void move_lanes(const typename A::Right& b, float* out, int from, int to, int n) {
#if defined(__AVX512F__)
    __m512i x;
    memcpy(&x, &b, 64);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    x = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(from - to)), x);
    _mm512_mask_storeu_epi32(out, __mmask16(((1u << n) - 1) << to), x);
#else
    float t[16];
    A::st(t, b);
    for (int i = 0; i < n; ++i) out[to + i] = t[from + i];
#endif
}

template <class A, int K>
void pack_keys_as(const Work<A>& w, const void* page, float* out, int from, int to, int n) {
    const int whole = w.a.dim / A::STEP;
    for (int s = 0; s < w.steps; ++s) {
        const auto k = A::template keys<K>(page, s, s >= whole);
        if (n == PAGE) {
            A::st(out + s * 16, k);
        } else {
            move_lanes<A>(k, out + s * 16, from, to, n);
        }
    }
}

template <class A, int K>
void pack_values_as(const Work<A>& w, const void* const* row, int from, int to) {
    constexpr int D = A::GROUP;
    for (int s = from; s < to; ++s) {
        for (int c = 0; c < w.width; c += D * 16) {
            typename A::Right v[D];
            A::template values<K, D>(row, s, c, w.a.dim, v);
            for (int d = 0; d < D; ++d) A::st(w.values + size_t(s) * w.width + c + d * 16, v[d]);
        }
    }
}

// Calls f.template operator()<K>() for a kind that these sums take; pairs are never of F32.
template <class A, typename F>
PH_INLINE void by_kind(int kind, F f) {
    switch (kind) {
        case PACKED: return f.template operator()<PACKED>();
        case BF16: return f.template operator()<BF16>();
        case I8: return f.template operator()<I8>();
        default:
            if constexpr (A::STEP == 1) f.template operator()<F32>();
    }
}

template <class A>
void pack_keys(const Work<A>& w, const KvPage& page, float* out, int from, int to, int n) {
    switch (page.kind) {
        case BF16: return pack_keys_as<A, BF16>(w, page.k, out, from, to, n);
        case I8: return pack_keys_as<A, I8>(w, page.k, out, from, to, n);
        case F32:
            if constexpr (A::STEP == 1) pack_keys_as<A, F32>(w, page.k, out, from, to, n);
            return;
        case CODED: return;  // never where lanes are not numbers
    }
}

// Calls f(lane, row) for what stands for some of the n lanes, whose factors are below zero.
template <typename F>
PH_INLINE void each_other(const KvPage& p, const float* factors, const uint16_t* row, int n, int dim, F f) {
    for (int lane = 0, left = p.n_other; lane < n && left; ++lane) {
        if (!(factors[lane] < 0)) continue;
        f(lane, row);
        row += dim;
        --left;
    }
}

// Keys of a page, those that stand beside it in their places.
void place_others(const KvPage& p, int n, int dim, uint16_t* out) {
    memcpy(out, p.k, size_t(dim) * PAGE * 2);
    each_other(p, p.ks, p.other, n, dim, [&](int lane, const uint16_t* row) {
        for (int c = 0; c < dim; ++c) out[c * PAGE + lane] = row[c];
    });
}

void ask_for_lines(const void* from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) ask_for(static_cast<const char*>(from) + i);
}

// ------------------------------------------------------------------------------ a block

// Notes pages in the block's groups and, where lanes are not numbers or queries are many, packs keys.
template <class A>
void lay_out(const Work<A>& w, Block& b, Span pages, int n_queries) {
    const bool lie_k = as_they_lie<A>(*w.a.k_codes), lie_v = as_they_lie<A>(*w.a.v_codes);
    const size_t coded_row = code_row(*w.a.v_codes, w.a.dim);
    for (const KvPage* p = pages.from; p != pages.to; ++p) {
        const size_t size = p->kind == CODED ? coded_row : row_bytes(w.a, p->kind);
        const bool direct = aligned(p, pages.to);
        int lane = p->lo, at = p->at - b.base;
        if (at < 0) {
            lane -= at;
            at = 0;
        }
        while (lane < p->hi && at < KEYS) {
            const int c = at / PAGE, to = at % PAGE;
            const int rest = PAGE - to, n = p->hi - lane < rest ? p->hi - lane : rest;
            b.kind[c] = p->kind == CODED && w.a.v_codes->bits == 16 ? BF16 : p->kind;
            b.ks[c] = p->ks;
            b.vs[c] = p->vs;
            b.bias[c] = p->bias;
            b.kf[c] = p->kf;
            b.vf[c] = p->vf;
            b.turned |= p->kind == CODED && w.a.v_codes->turn;
            b.fours |= p->kind == CODED && lie_v;
            float* packed = w.keys + size_t(c) * w.steps * 16;
            if (p->kind == CODED && w.a.k_codes->bits == 16) {
                b.keys[c] = p->k;
                if (w.a.k_codes->kept < w.a.dim) {
                    spread_keys(*w.a.k_codes, *p, w.a.dim, reinterpret_cast<uint16_t*>(packed));
                    b.keys[c] = packed;
                }
                b.keys_kind[c] = BF16;
            } else if (p->kind == CODED && !lie_k) {
                const Coding& v = *w.a.v_codes;
                ask_for_lines(p->v, PAGE * size + code_more(v, PAGE * size) + code_beside(v, w.a.dim));
                unpack_keys<A>(*w.a.k_codes, *p, w.a.dim, packed);
                b.keys[c] = packed;
                b.keys_kind[c] = w.a.k_codes->turn ? TURNED : PACKED;
            } else if (p->other) {  // a sealed page, lanes of which are numbers
                place_others(*p, n, w.a.dim, reinterpret_cast<uint16_t*>(packed));
                b.keys[c] = packed;
                b.keys_kind[c] = BF16;
            } else if (direct && !packs_keys<A>(p->kind, n_queries)) {
                b.keys[c] = p->k;
                b.keys_kind[c] = p->kind;
            } else {
                pack_keys(w, *p, packed, direct ? 0 : lane, direct ? 0 : to, direct ? PAGE : n);
                b.keys[c] = packed;
                b.keys_kind[c] = PACKED;
            }
            if (!b.there[c]) {
                b.there[c] = true;
                if (n < PAGE) {
                    for (int i = 0; i < PAGE; ++i) b.value[c * PAGE + i] = w.zero;
                }
            }
            const char* v = static_cast<const char*>(p->v) + lane * size;
            if (p->kind == CODED && lie_v) {
                b.value[at] = v;  // its rows lie one behind the other
            } else {
                for (int i = 0; i < n; ++i) b.value[at + i] = v + i * size;
            }
            if (p->other) {
                each_other(*p, p->vs, p->other + size_t(p->n_other) * w.a.dim, n, w.a.dim,
                           [&](int i, const uint16_t* row) { b.value[at + i] = row; });
            }
            lane += n;
            at += n;
        }
    }
}

#if PH_PACKS
constexpr int across_fours(int rows) { return rows <= 4 ? 4 : 2; }

// Scores with 4-bit keys, of groups [c0, c1).
template <class A>
void score_as_fours(const Work<A>& w, const Block& b, int q0, int q1, int c0, int c1) {
    by_rows(q0, q1, [&]<int Q>(int q) {
        constexpr int N = across_fours(Q);
        const auto go = [&]<int M>(int c) {
            score_fours<Q, M>(w.q8 + q * w.ldq8, w.ldq8 / 4, w.side + q * w.ld_side, w.ld_side, b.keys + c, b.kf + c,
                              b.ahead + c, w.asks.score, w.a.dim, w.a.k_codes->group,
                              w.s + q * w.lds + c * PAGE, w.lds);
        };
        int c = c0;
        for (; c + N <= c1; c += N) go.template operator()<N>(c);
        for (; c < c1; ++c) go.template operator()<1>(c);
    });
}

// Sums of 4-bit values of groups [c0, c1): each group of channels has its own weights.
template <class A>
void gather_as_fours(const Work<A>& w, const Block& b, int q0, int q1, int c0, int c1) {
    const int group = w.a.v_codes->group;
    const size_t stride = code_row(*w.a.v_codes, w.a.dim);
    by_rows(q0, q1, [&]<int Q>(int q) {
        const auto go = [&]<bool SHORT>() {
            for (int c = 0; c < w.width; c += 32) {
                const int32_t* p8 = w.p8 + (size_t(c / group) * w.n + q) * w.ldp8;
                gather_fours<Q, SHORT>(p8, w.ldp8, b.value, stride, b.ahead, w.asks.weigh, w.asks.all, w.width, c0,
                                       c1, c, w.sums + q * w.width);
            }
        };
        stride == 32 ? go.template operator()<true>() : go.template operator()<false>();
    });
}
#endif

// Scores of queries [q0, q1) with groups [c0, c1).
template <class A>
void score(const Work<A>& w, const Block& b, int q0, int q1, int c0, int c1) {
    for (int i = c0; i < c1;) {
        if (!b.there[i]) {
            for (int q = q0; q < q1; ++q) vst(w.s + q * w.lds + i * PAGE, vall(NONE));
            ++i;
            continue;
        }
        int j = i + 1;
        while (j < c1 && b.there[j] && b.keys_kind[j] == b.keys_kind[i]) ++j;
#if PH_PACKS
        if (b.keys_kind[i] == CODED) {
            score_as_fours(w, b, q0, q1, i, j);
            i = j;
            continue;
        }
#endif
        const float* queries = b.keys_kind[i] == TURNED ? w.q_turned : w.q;
        by_kind<A>(b.keys_kind[i] == TURNED ? PACKED : b.keys_kind[i], [&]<int K>() {
            by_rows(q0, q1, [&]<int Q>(int q) {
                constexpr int N = across(Q);
                const float* x = queries + q * w.ldq;
                float* out = w.s + q * w.lds;
                int c = i;
                for (; c + N <= j; c += N) {
                    score_tile<A, K, Q, N>(x, w.ldq, b.keys + c, b.value + c * PAGE,
                                           w.a.dim, out + c * PAGE, w.lds);
                }
                if constexpr (N > 1) {
                    for (; c < j; ++c) {
                        score_tile<A, K, Q, 1>(x, w.ldq, b.keys + c, b.value + c * PAGE,
                                           w.a.dim, out + c * PAGE, w.lds);
                    }
                }
            });
        });
        i = j;
    }
}

// Sums of values of groups [c0, c1).
template <class A>
void gather(const Work<A>& w, const Block& b, int q0, int q1, int c0, int c1) {
    constexpr int PER = PAGE / A::STEP;  // steps of a group
    for (int i = c0; i < c1;) {
        int j = i + 1;
        if (!b.there[i]) {
            i = j;
            continue;
        }
        while (j < c1 && b.there[j] && b.kind[j] == b.kind[i]) ++j;
        int kind = b.kind[i];
        float* sums = kind == CODED && w.a.v_codes->turn ? w.turned : w.sums;
#if PH_PACKS
        if (kind == CODED && as_they_lie<A>(*w.a.v_codes)) {
            gather_as_fours(w, b, q0, q1, i, j);
            i = j;
            continue;
        }
#endif
        if (kind == CODED) {
            const Coding& k = *w.a.k_codes;
            const size_t all = code_keys(k, w.a.dim), lines = all + code_more(k, all) + code_beside(k, w.a.dim);
            for (int c = i; c < j; ++c) ask_for_lines(b.ahead[c], lines);
            for (int c = i; c < j; ++c) {
                unpack_values<A>(*w.a.v_codes, b.value + c * PAGE, b.vf[c], w.a.dim, w.width,
                                 w.values + size_t(c) * PER * w.width);
            }
            kind = PACKED;
        } else if (packs_values<A>(Kind(kind), q1 - q0)) {
            by_kind<A>(kind, [&]<int K>() {
                if constexpr (K != PACKED) pack_values_as<A, K>(w, b.value, i * PER, j * PER);
            });
            kind = PACKED;
        }
        by_kind<A>(kind, [&]<int K>() {
            by_rows(q0, q1, [&]<int Q>(int q) {
                constexpr int D = across(Q);
                const auto go = [&]<int W>(int c) {
                    gather_tile<A, K, Q, W>(w.p + q * w.ldp, w.ldp, b.value, w.values, b.ahead,
                                            w.width, i * PER, j * PER, c, w.a.dim,
                                            sums + q * w.width);
                };
                int c = 0;
                for (; c + D * 16 <= w.width; c += D * 16) go.template operator()<D>(c);
                if constexpr (D > A::GROUP) {
                    for (; c < w.width; c += A::GROUP * 16) go.template operator()<A::GROUP>(c);
                }
            });
        });
        i = j;
    }
}

#if PH_PACKS
// Factors of 4-bit values of groups [0, n), group of channels by group: scales, and what the middle of codes means.
template <class A>
void spread_factors(const Work<A>& w, const Block& b, int n) {
    const int each = code_groups(*w.a.v_codes, w.a.dim);
    for (int c = 0; c < n; ++c) {
        for (int g = 0; b.vf[c] && g < each; ++g) {
            const uint16_t* from = b.vf[c] + g * 2 * PAGE;
            float* to = w.factors + g * 2 * KEYS + c * PAGE;
            const V by = vld(from);
            vst(to, by);
            vst(to + KEYS, vfma(by, vall(float(FOURS_MIDDLE)), vld(from + PAGE)));
        }
    }
}
#endif

// Hides keys that are behind a row's window, and lanes of shared pages that hold none. Rows [r0, r1), pages
// of the block.
template <class A>
void hide(const Work<A>& w, int base, Span pages, int r0, int r1, bool shared) {
    const AttendItem& a = w.a;
    for (const KvPage* p = pages.from; p != pages.to; ++p) {
        int least = 0x7fffffff;
        if (a.window) {
            for (int i = p->lo; i < p->hi; ++i) least = p->pos[i] < least ? p->pos[i] : least;
        }
        const bool gaps = shared && p->hi < PAGE;
        for (int r = r0; r < r1; ++r) {
            const int limit = a.pos[r] - a.window;
            const bool behind = a.window && least <= limit;
            if (!behind && !gaps) continue;
            for (int i = p->lo; i < (gaps ? PAGE : p->hi); ++i) {
                const int at = p->at - base + i - p->lo;
                if (at < 0 || at >= KEYS) continue;
                if (i < p->hi && !(behind && p->pos[i] <= limit)) continue;
                for (int h = 0; h < a.g; ++h) w.s[(r * a.g + h) * w.lds + at] = NONE;
            }
        }
    }
}

#if PH_PACKS
// exp(by * x + plus) to a relative error of 3e-6, for weights that bfloat16 rounds to 2e-3; 0 where x is
// NONE, NaN stays NaN. 2^r on [0, 1) is a polynomial (reweighted least squares), the rest an exponent.
struct RoughExp {
    __m512 by, plus;
    explicit RoughExp(float scale, float top) {
        constexpr float log2e = 1.44269504088896f;
        by = _mm512_set1_ps(scale * log2e);
        plus = _mm512_set1_ps(-top * log2e);
    }
    PH_INLINE __m512 operator()(__m512 x) const {
        const __m512 t = _mm512_fmadd_ps(x, by, plus);
        const __m512 r = _mm512_reduce_ps(t, 0x09);  // t - floor(t); of an infinity 0
        __m512 y = _mm512_set1_ps(1.353417e-2f);
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.201147e-2f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.4144275e-1f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.9300384e-1f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.00000259f));
        return _mm512_scalef_ps(y, t);
    }
};
#endif

// Whether the scores of a group need more than a factor that all have in common.
PH_INLINE bool bent(const AttendItem& a, const Block& b, int c) { return b.ks[c] || b.bias[c] || a.softcap > 0; }

#if PH_PACKS
// As `raise`, where some values are 4-bit numbers, of which each group of channels has its own factors: weights
// times scales become numbers of 8 bits. The sums begin with what the middles of codes make.
template <class A>
float raise_fours(const Work<A>& w, const Block& b, int query, int groups, const RoughExp& finished,
                  const RoughExp& scaled) {
    float* s = w.s + query * w.lds;
    const int group = w.a.v_codes->group;
    const __m512 zero = _mm512_setzero_ps();
    const int each = (w.asks.weigh - w.asks.score + w.n - 1) / w.n, line0 = w.asks.score + query * each;
    const int line1 = line0 + each < w.asks.weigh ? line0 + each : w.asks.weigh;
    bool even = w.a.softcap <= 0;  // whether all groups have values' factors, and nothing bends their scores
    for (int c = 0; c < groups; ++c) even &= b.vf[c] && !b.ks[c] && !b.bias[c];
    // One accumulator for every fourth group: a long chain of sums would wait for each of them.
    __m512 sum[4] = {zero, zero, zero, zero};
    alignas(64) float x[KEYS];
    for (int g = 0; g * group < w.width; ++g) {
        const size_t row = size_t(g) * w.n + query;
        float* p = w.p + row * w.ldp;
        int32_t* p8 = w.p8 + row * w.ldp8;
        const float *by = w.factors + g * 2 * KEYS, *middle = by + KEYS;
        __m512 middles[4] = {zero, zero, zero, zero}, top[4] = {zero, zero, zero, zero};
        const auto page = [&]<bool FIRST, bool EVEN, int I>(int c) __attribute__((always_inline)) {
            const __m512 y = _mm512_loadu_ps(s + c * PAGE);
            __m512 e = !FIRST ? y : !EVEN && bent(w.a, b, c) ? finished(y) : scaled(y), weight = zero;
            if (EVEN || b.vf[c]) {
                weight = _mm512_mul_ps(e, _mm512_loadu_ps(by + c * PAGE));
                top[I] = _mm512_max_ps(top[I], weight);
                middles[I] = _mm512_fmadd_ps(e, _mm512_loadu_ps(middle + c * PAGE), middles[I]);
            } else {
                const __m256i h = (__m256i)_mm512_cvtneps_pbh(e);
                e = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + c * PAGE / 2), h);
            }
            _mm512_store_ps(x + c * PAGE, weight);
            if (!FIRST) return;
            sum[I] = _mm512_add_ps(sum[I], e);
            if (group < w.width) _mm512_storeu_ps(s + c * PAGE, e);
        };
        const auto pages = [&]<bool FIRST, bool EVEN>() __attribute__((always_inline)) {
            int c = 0;
            for (; c + 4 <= groups; c += 4) {
                for (int i = line0; FIRST && i < line1; ++i) {
                    PH_UNROLL for (int j = 0; j < 4; ++j) {
                        ask_for(static_cast<const char*>(b.ahead[c + j]) + i * 64);
                    }
                }
                page.template operator()<FIRST, EVEN, 0>(c);
                page.template operator()<FIRST, EVEN, 1>(c + 1);
                page.template operator()<FIRST, EVEN, 2>(c + 2);
                page.template operator()<FIRST, EVEN, 3>(c + 3);
            }
            if (c < groups) page.template operator()<FIRST, EVEN, 0>(c);
            if (c + 1 < groups) page.template operator()<FIRST, EVEN, 1>(c + 1);
            if (c + 2 < groups) page.template operator()<FIRST, EVEN, 2>(c + 2);
        };
        if (g) {
            even ? pages.template operator()<false, true>() : pages.template operator()<false, false>();
        } else {
            even ? pages.template operator()<true, true>() : pages.template operator()<true, false>();
        }
        for (int c = groups; c % 4; ++c) _mm512_store_ps(x + c * PAGE, zero);
        const float most = _mm512_reduce_max_ps(
            _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])));
        const float scale = most / FOURS_TOP;
        const __m512 to = _mm512_set1_ps(most > 0 ? FOURS_TOP / most : 0.0f);
        for (int c = 0; c < groups; c += 4) _mm512_storeu_si512(p8 + c * PAGE / 4, pack_weights(x + c * PAGE, to));
        memcpy(p8 + KEYS / 4, &scale, 4);
        const V begin = vall(_mm512_reduce_add_ps(
            _mm512_add_ps(_mm512_add_ps(middles[0], middles[1]), _mm512_add_ps(middles[2], middles[3]))));
        const int stop = (g + 1) * group < w.width ? (g + 1) * group : w.width;
        for (int c = g * group; c < stop; c += 16) vst(w.sums + size_t(query) * w.width + c, begin);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}
#endif

// Scores to weights, and their sum. Those of groups with factors, or all where a cap bends them, are
// finished and go under the top as they are; the others are multiplied by `scale` on the way.
template <class A>
float raise(const Work<A>& w, const Block& b, int query, int groups, float top) {
    const AttendItem& a = w.a;
    float* s = w.s + query * w.lds;
    V sum = vall(0.0f);
#if PH_PACKS
    if constexpr (A::STEP == 2) {
        const RoughExp finished(1.0f, top), scaled(a.scale, top);
        uint16_t* p = reinterpret_cast<uint16_t*>(w.p + query * w.ldp);
        if (b.fours) return raise_fours(w, b, query, groups, finished, scaled);
        if (!a.factors && !a.bias && a.softcap <= 0) {
            const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
            if (groups % 2) vst(s + groups * PAGE, vall(NONE));
            for (int c = 0; c < groups; c += 2) {
                const __m512 e0 = scaled(_mm512_loadu_ps(s + c * PAGE));
                const __m512 e1 = scaled(_mm512_loadu_ps(s + (c + 1) * PAGE));
                const __m512bh h = _mm512_cvtne2ps_pbh(e1, e0);
                _mm512_storeu_si512(p + c * PAGE, (__m512i)h);
                sum.p[0] = _mm512_dpbf16_ps(sum.p[0], h, ones);
            }
            return summed(sum);
        }
        for (int c = 0; c < groups; ++c) {
            const __m512 x = _mm512_loadu_ps(s + c * PAGE);
            __m512 e = bent(a, b, c) ? finished(x) : scaled(x);
            const __m512 f = b.vs[c] ? _mm512_mul_ps(e, _mm512_loadu_ps(b.vs[c])) : e;
            const __m256i h = (__m256i)_mm512_cvtneps_pbh(f);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + c * PAGE), h);
            if (!b.vs[c]) e = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
            sum.p[0] = _mm512_add_ps(sum.p[0], e);
        }
        return summed(sum);
    }
#endif
    for (int c = 0; c < groups; ++c) {
        V x = vld(s + c * PAGE);
        if (!bent(a, b, c)) x = vmul(x, vall(a.scale));
        const V e = vexp(vsub(x, vall(top)));
        sum = vadd(sum, e);
        vst(s + c * PAGE, b.vs[c] ? vmul(e, vld(b.vs[c])) : e);
    }
    return summed(sum);
}

// The maximum of scores [0, end), which are finished where more than a factor bends them; those up to the next
// group are hidden.
template <class A>
void crest(const Work<A>& w, const Block& b, int query, int end, int stop) {
    const AttendItem& a = w.a;
    float* s = w.s + query * w.lds;
    for (int i = end < 0 ? 0 : end; i < stop; ++i) s[i] = NONE;
    const int groups = stop / PAGE;
    const V scale = vall(a.scale), cap = vall(a.softcap);
    V top = vall(NONE), plain = vall(NONE);
    const bool all_plain = !a.factors && !a.bias && a.softcap <= 0;
    for (int c = 0; c < groups; ++c) {
        const V x = vld(s + c * PAGE);
        if (all_plain || !bent(a, b, c)) {
            plain = vmax(plain, x);
            continue;
        }
        V y = vmul(b.ks[c] ? vmul(x, vld(b.ks[c])) : x, scale);
        if (a.softcap > 0) y = vmul(vtanh(vdiv(y, cap)), cap);
        if (b.bias[c]) y = vadd(y, vld(b.bias[c]));
        y = vif_less(x, vall(HIDDEN), x, y);  // what is hidden stays so, whatever its factor
        vst(s + c * PAGE, y);
        top = vmax(top, y);
    }
    w.top[query] = highest(vmax(top, vmul(plain, scale)));
}

// Scores of queries [q0, q1), a chain whose last row sees `last` keys, to weights; their maxima and their sums.
// The maxima are found first: a query's weights need not wait for its own then.
template <class A>
void weigh(const Work<A>& w, const Block& b, int q0, int q1, int last, int stop) {
    for (int q = q0; q < q1; ++q) crest(w, b, q, last - (q1 - 1) / w.a.g + q / w.a.g, stop);
    for (int q = q0; q < q1; ++q) {
        const float m = w.top[q];
        w.total[q] = raise(w, b, q, stop / PAGE, m == NONE ? 0.0f : m);
    }
}

// ------------------------------------------------------------------------------ joining

// Adds a block's result to that of the blocks before. Tops and totals are read by sixteens: behind those of
// the item may lie others' or, at the end of a part, sums.
template <class A>
void join(const Work<A>& w, const float* top, const float* total, const float* sums) {
    for (int q = 0; q < w.n; q += 16) {
        const V old = vld(w.all_top + q), now = vld(top + q);
        const V both = vmax(old, now);
        const V base = vif_less(both, vall(HIDDEN), vall(0.0f), both);
        const V keep = vexp(vsub(old, base)), add = vexp(vsub(now, base));
        vst(w.all_top + q, both);
        vst(w.all_total + q,
            vadd(vmul(vld(w.all_total + q), keep), vmul(vld(total + q), add)));
        float by[2][16];
        vst(by[0], keep);
        vst(by[1], add);
        for (int i = 0; i < 16 && q + i < w.n; ++i) {
            const V k = vall(by[0][i]), l = vall(by[1][i]);
            float* to = w.all_sums + size_t(q + i) * w.width;
            const float* from = sums + size_t(q + i) * w.width;
            for (int c = 0; c < w.width; c += 16) {
                vst(to + c, vfma(vld(from + c), l, vmul(vld(to + c), k)));
            }
        }
    }
}

template <class A>
void clear(const Work<A>& w) {
    const int n16 = (w.n + 15) / 16 * 16;
    for (int i = 0; i < n16; ++i) w.all_top[i] = w.top[i] = NONE;
    memset(w.all_total, 0, sizeof(float) * n16);
    memset(w.total, 0, sizeof(float) * n16);
    memset(w.all_sums, 0, sizeof(float) * w.n * w.width);
}

template <class A>
void finish(const Work<A>& w) {
    const AttendItem& a = w.a;
    for (int q = 0; q < w.n; ++q) {
        float* out = a.out + q / a.g * a.ldo + size_t(q % a.g) * a.dim;
        float* from = w.all_sums + size_t(q) * w.width;
        const V by = vall(w.all_total[q]);
        for (int c = 0; c < w.width; c += 16) vst(from + c, vdiv(vld(from + c), by));
        if constexpr (A::GROUP == 1) {
            memcpy(out, from, sizeof(float) * a.dim);
        } else {
            for (int c = 0; c < a.dim; c += 4) {  // back from the order of `Pairs`
                const int at = c / 32 * 32 + c % 8 / 4 * 16 + c % 32 / 8 * 4;
                memcpy(out + c, from + at, sizeof(float) * (a.dim - c < 4 ? a.dim - c : 4));
            }
        }
    }
}

// ------------------------------------------------------------------------------ an item

template <class A>
void load_queries(const Work<A>& w) {
    const AttendItem& a = w.a;
    for (int q = 0; q < w.n; ++q) {
        const float* from = a.q + q / a.g * a.ldq + size_t(q % a.g) * a.dim;
        float* to = w.q + q * w.ldq;
        if constexpr (A::STEP == 1) {
            memcpy(to, from, sizeof(float) * a.dim);
        } else {
            narrow(from, to, a.dim, BRAINS, 0, a.dim);
        }
        if (a.k_codes->turn) {
            float* x = w.turned;  // a row; no sums yet
            memcpy(x, from, sizeof(float) * a.dim);
            turn<1>(x, a.dim, false);
            if constexpr (A::STEP == 1) {
                memcpy(w.q_turned + q * w.ldq, x, sizeof(float) * a.dim);
            } else {
                narrow(x, w.q_turned + q * w.ldq, a.dim, BRAINS, 0, a.dim);
            }
        }
#if PH_PACKS
        if (as_they_lie<A>(*a.k_codes)) {
            narrow_query(from, *a.k_codes, a.dim, w.q8 + q * w.ldq8, w.side + q * w.ld_side);
        }
#endif
    }
}

// Adds the sums of turned values to the others.
template <class A>
void turn_sums(const Work<A>& w) {
    float* x = w.values;  // a row; nothing is packed any more
    for (int q = 0; q < w.n; ++q) {
        const float* from = w.turned + size_t(q) * w.width;
        float* to = w.sums + size_t(q) * w.width;
        const auto at = [](int c) {
            return A::GROUP == 1 ? c : c / 32 * 32 + c % 8 / 4 * 16 + c % 32 / 8 * 4 + c % 4;
        };
        for (int c = 0; c < w.a.dim; ++c) x[c] = from[at(c)];
        turn<1>(x, w.a.dim, true);
        for (int c = 0; c < w.a.dim; ++c) to[at(c)] += x[c];
    }
}

template <class A>
void run_block(const Work<A>& w, int number) {
    const AttendItem& a = w.a;
    Block b;
    b.base = number * KEYS;
    memset(b.there, 0, sizeof b.there);
    memset(b.ks, 0, sizeof b.ks);
    memset(b.vs, 0, sizeof b.vs);
    memset(b.bias, 0, sizeof b.bias);
    memset(b.kf, 0, sizeof b.kf);
    memset(b.vf, 0, sizeof b.vf);
    b.turned = b.fours = false;
    if (a.v_codes->turn) memset(w.turned, 0, sizeof(float) * w.n * w.width);
    memset(w.sums, 0, sizeof(float) * w.n * w.width);
    int common = (a.n_shared_keys - b.base) / PAGE;  // groups that all rows see
    common = common < 0 ? 0 : common > GROUPS ? GROUPS : common;
    const Span shared = within(a.shared, a.n_shared, b.base);
    lay_out(w, b, shared, w.n);
    const KvPage* after = a.shared + a.n_shared;
    for (int c = 0; c < GROUPS; ++c) b.ahead[c] = shared.to + c < after ? shared.to[c].k : w.zero;
    score(w, b, 0, w.n, 0, common);
    hide(w, b.base, shared, 0, a.n_rows, true);
#if PH_PACKS
    if (b.fours) spread_factors(w, b, common);
#endif
    const auto own = [&](const KvRun& run) {
        for (int c = common; c < GROUPS; ++c) {
            b.there[c] = false;
            b.ks[c] = b.vs[c] = b.bias[c] = nullptr;
            b.kf[c] = b.vf[c] = nullptr;
        }
        const Span pages = within(a.own + run.page0, run.page1 - run.page0, b.base);
        lay_out(w, b, pages, (run.row1 - run.row0) * a.g);
        return pages;
    };
    const auto stop_of = [&](const KvRun& run) {  // of its groups
        const int left = run.n_keys - b.base;
        return left <= 0 ? 0 : left >= KEYS ? GROUPS : (left + PAGE - 1) / PAGE;
    };
    for (int i = 0; i < a.n_runs; ++i) {
        const KvRun& run = a.runs[i];
        const int q0 = run.row0 * a.g, q1 = run.row1 * a.g, stop = stop_of(run);
        if (common < stop) {
            const Span pages = own(run);
            score(w, b, q0, q1, common, stop);
            hide(w, b.base, pages, run.row0, run.row1, false);
        }
        weigh(w, b, q0, q1, run.n_keys - b.base, stop * PAGE);
    }
    gather(w, b, 0, w.n, 0, common);
    for (int i = 0; i < a.n_runs; ++i) {
        const KvRun& run = a.runs[i];
        const int stop = stop_of(run);
        if (common >= stop) continue;
        if (a.n_runs > 1) own(run);
        gather(w, b, run.row0 * a.g, run.row1 * a.g, common, stop);
    }
    if (b.turned) turn_sums(w);
}

template <class A>
void attend_as(const AttendItem& a) {
    Work<A> w(a);
    load_queries(w);
    clear(w);
    const int n16 = (w.n + 15) / 16 * 16;
    for (int i = a.block0; i < a.block1; ++i) {
        if (a.parts) {
            w.top = a.parts + size_t(i - a.block0) * attend_part(w.n, a.dim);
            w.total = w.top + n16;
            w.sums = w.total + n16;
            for (int j = w.n; j < n16; ++j) w.top[j] = NONE, w.total[j] = 0.0f;
        }
        run_block(w, i);
        if (!a.parts) join(w, w.top, w.total, w.sums);
    }
    if (!a.parts) finish(w);
}

template <class A>
void merge_as(const AttendItem& a) {
    const Work<A> w(a);
    clear(w);
    for (int i = 0; i < a.n_done; ++i) {
        const KvPart& part = a.done[i];
        const int n16 = (part.n + 15) / 16 * 16;
        const float* top = part.at + part.first;
        join(w, top, top + n16, part.at + 2 * n16 + size_t(part.first) * w.width);
    }
    finish(w);
}

}  // namespace

void attend(const AttendItem& a) {
#if PH_PACKS
    if (a.pairs) return attend_as<Pairs>(a);
#endif
    attend_as<Singles>(a);
}

void attend_merge(const AttendItem& a) {
#if PH_PACKS
    if (a.pairs) return merge_as<Pairs>(a);
#endif
    merge_as<Singles>(a);
}

}  // namespace ph::PH_ISA
