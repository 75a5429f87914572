// Scores of pages by what an index keeps of them; see select.h. The rules of kernels.cpp hold.
//
// A score is one chain of sums over channels, in an order that depends on the set only.
#include "attend_tile.h"
#include "select.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr int AHEAD = 24;  // pages: each is a miss of its own, in a mapping of its own

const char* page_of(const ScoreItem& a, int i) {
    return reinterpret_cast<const char*>(a.pages[i]) + a.member;
}

// Asks for what is kept of a page. Inlined by force: a call that only asks counts as one without effect.
PH_INLINE void ask(const ScoreItem& a, int i) {
    if (i >= a.n_pages) return;
    const char* p = page_of(a, i) + a.by->at[0];
    for (size_t j = 0; j < a.by->stride; j += 64) ask_for(p + j);
}

// Sums of the lanes of Q registers, or the highest of them.
template <bool SUMS, int Q>
PH_INLINE void fold(const V (&a)[Q], float (&out)[Q]) {
#if defined(__AVX512F__)
    if constexpr (Q > 4) {
        const auto both = [](__m512 x, __m512 y) { return SUMS ? _mm512_add_ps(x, y) : _mm512_max_ps(x, y); };
        const auto pair = [&](__m512 x, __m512 y) {  // halves of x, then of y
            return both(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
        };
        const auto four = [&](int i) {  // quarters of four registers, one after the other
            const auto get = [&](int j) { return a[j < Q ? j : 0].p[0]; };
            const __m512 x = pair(get(i), get(i + 1)), y = pair(get(i + 2), get(i + 3));
            return both(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
        };
        const auto rest = [&](__m512 x) {  // what each four lanes make, in all of them
            x = both(x, _mm512_permute_ps(x, 0x4e));
            return both(x, _mm512_permute_ps(x, 0xb1));
        };
        float t[32];
        _mm512_storeu_ps(t, rest(four(0)));
        _mm512_storeu_ps(t + 16, rest(four(4)));
        for (int i = 0; i < Q; ++i) out[i] = t[i * 4];
        return;
    }
#endif
    for (int i = 0; i < Q; ++i) out[i] = SUMS ? summed(a[i]) : highest(a[i]);
}

// Queries, filled up with zeros: the positive parts and, for boxes, the negative ones.
struct Queries {
    int g;
    size_t ld;
    float *up, *down;
    Queries(const ScoreItem& a, bool boxes) : g(a.g), ld(size_t(a.dim + 15) / 16 * 16), up(a.scratch), down(up + a.g * ld) {
        memset(up, 0, sizeof(float) * 2 * a.g * ld);
        for (int h = 0; h < a.g; ++h) {
            for (int c = 0; c < a.dim; ++c) {
                const float x = a.q[size_t(h) * a.dim + c] * a.scale;
                if (boxes && x < 0) {
                    down[h * ld + c] = x;
                } else {
                    up[h * ld + c] = x;
                }
            }
        }
    }
    float* end() const { return down + g * ld; }
};

PH_INLINE V brains(const uint16_t* p, int n) { return n >= 16 ? vld(p) : vld_part(p, n); }

// The best of R boxes or vectors for each query.
template <bool BOXES, int Q, int R>
PH_INLINE void best_of(const ScoreItem& a, const Queries& q, int h0, const uint16_t* lo, const uint16_t* hi,
                       float (&best)[Q]) {
    V sum[R][Q];
    PH_UNROLL for (int r = 0; r < R; ++r) {
        PH_UNROLL for (int j = 0; j < Q; ++j) sum[r][j] = vall(0.0f);
    }
    for (int c = 0; c < a.dim; c += 16) {
        V top[R], low[R];
        PH_UNROLL for (int r = 0; r < R; ++r) {
            top[r] = brains(hi + r * a.dim + c, a.dim - c);
            low[r] = BOXES ? brains(lo + r * a.dim + c, a.dim - c) : top[r];
        }
        PH_UNROLL for (int j = 0; j < Q; ++j) {
            const V up = vld(q.up + (h0 + j) * q.ld + c);
            PH_UNROLL for (int r = 0; r < R; ++r) sum[r][j] = vfma(up, top[r], sum[r][j]);
            if (!BOXES) continue;
            const V down = vld(q.down + (h0 + j) * q.ld + c);
            PH_UNROLL for (int r = 0; r < R; ++r) sum[r][j] = vfma(down, low[r], sum[r][j]);
        }
    }
    if constexpr (R == 1) {
        fold<true>(sum[0], best);
    } else {
        V x[16];
        PH_UNROLL for (int j = 0; j < 16; ++j) x[j] = sum[j / 8][j % 8 < Q ? j % 8 : 0];
        float t[16];
        vst(t, folded<true>(x));
        for (int j = 0; j < Q; ++j) best[j] = t[j] > t[j + 8] ? t[j] : t[j + 8];
    }
}

// Boxes or vectors, two at a time where registers hold their sums.
template <bool BOXES, int Q>
void by_vectors(const ScoreItem& a, const Queries& q, int h0) {
#if defined(__AVX512F__)
    constexpr int R = 2;
#else
    constexpr int R = 1;
#endif
    for (int i = 0; i < a.n_pages; ++i) {
        ask(a, i + AHEAD);
        const char* page = page_of(a, i);
        const auto* lo = reinterpret_cast<const uint16_t*>(page + a.by->at[0]);
        const auto* hi = reinterpret_cast<const uint16_t*>(page + a.by->at[BOXES ? 1 : 0]);
        float best[Q], now[Q];
        for (float& x : best) x = -__builtin_inff();
        int r = 0;
        const auto go = [&]<int M>() {
            best_of<BOXES, Q, M>(a, q, h0, lo + r * a.dim, hi + r * a.dim, now);
            for (int j = 0; j < Q; ++j) best[j] = best[j] > now[j] ? best[j] : now[j];
            r += M;
        };
        while (r + R <= a.by->n) go.template operator()<R>();
        if (R > 1 && r < a.by->n) go.template operator()<1>();
        for (int j = 0; j < Q; ++j) a.out[(h0 + j) * a.ldo + i] = best[j];
    }
}

// Eight query heads side by side: of one channel, or what a code has with all of them.
using Heads8 = float __attribute__((vector_size(32)));

PH_INLINE Heads8 heads_at(const float* p) {
    Heads8 x;
    memcpy(&x, p, sizeof x);
    return x;
}

template <int Q>
void by_labels(const ScoreItem& a, const Queries& q, int h0) {
    const int n = a.by->n;
    float *across = q.end(), *part = across + size_t(a.dim) * EIGHT;  // by channel; by label
    for (int c = 0; c < a.dim; ++c) {
        for (int j = 0; j < EIGHT; ++j) across[c * EIGHT + j] = j < Q ? q.up[(h0 + j) * q.ld + c] : 0.0f;
    }
    for (int i = 0; i < a.n_pages; ++i) {
        ask(a, i + AHEAD);
        const char* page = page_of(a, i);
        const auto* channel = reinterpret_cast<const uint8_t*>(page + a.by->at[0]);
        const auto* label = reinterpret_cast<const int8_t*>(page + a.by->at[1]);
        const auto* unit = reinterpret_cast<const float*>(page + a.by->at[2]);
        for (int s = 0; s < n; ++s) {
            const int c = channel[s] < a.dim ? channel[s] : 0;
            const Heads8 x = heads_at(across + c * EIGHT) * unit[s];
            memcpy(part + s * EIGHT, &x, sizeof x);
        }
        V sum[Q];
        PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
        for (int s = 0; s < n; ++s) {
            const V rows = vld(label + s * PAGE);
            PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vfma(vall(part[s * EIGHT + j]), rows, sum[j]);
        }
        float best[Q];
        fold<false>(sum, best);
        for (int j = 0; j < Q; ++j) a.out[(h0 + j) * a.ldo + i] = best[j];
    }
}

// Products of all centroids with the turned queries of heads h0 to h0 + m: (n, BOOK, EIGHT).
void make_tables(const ScoreItem& a, const Queries& q, int h0, int m, float* turned, float* tables) {
    const size_t width = a.by->turned(), part = size_t(a.by->part);
    memset(turned, 0, sizeof(float) * width * EIGHT);
    for (int j = 0; j < m; ++j) {
        const float* x = q.up + size_t(h0 + j) * q.ld;
        for (size_t w = 0; w < width; w += 16) {
            V sum = vall(0.0f);
            for (int c = 0; c < a.dim; ++c) sum = vfma(vall(x[c]), vld(a.turn + c * width + w), sum);
            float t[16];
            vst(t, sum);
            for (int i = 0; i < 16; ++i) turned[(w + i) * EIGHT + j] = t[i];
        }
    }
    for (int s = 0; s < a.by->n; ++s) {
        const float* book = a.book + s * part * BOOK;
        for (int at = 0; at < BOOK; ++at, tables += EIGHT) {
            Heads8 sum = {};
            for (size_t c = 0; c < part; ++c) sum += heads_at(turned + (s * part + c) * EIGHT) * book[c * BOOK + at];
            memcpy(tables, &sum, sizeof sum);
        }
    }
}

void by_codes(const ScoreItem& a, const Queries& q) {
    constexpr int TOGETHER = 4;  // rows, whose sums do not wait for each other
    float* turned = q.end();
    float* tables = turned + a.by->turned() * EIGHT;
    for (int h = 0; h < a.g; h += EIGHT) {
        const int m = a.g - h < EIGHT ? a.g - h : EIGHT;
        make_tables(a, q, h, m, turned, tables);
        for (int i = 0; i < a.n_pages; ++i) {
            ask(a, i + AHEAD);
            const auto* codes = reinterpret_cast<const uint8_t*>(page_of(a, i) + a.by->at[0]);
            Heads8 best = {};
            for (int r = 0; r < PAGE; r += TOGETHER) {
                Heads8 sum[TOGETHER] = {};
                const uint8_t* code = codes + r;
                const float* table = tables;
                for (int s = 0; s < a.by->n; ++s, code += PAGE, table += BOOK * EIGHT) {
                    PH_UNROLL for (int j = 0; j < TOGETHER; ++j) sum[j] += heads_at(table + code[j] * EIGHT);
                }
                if (!r) best = sum[0];
                PH_UNROLL for (int j = 0; j < TOGETHER; ++j) best = sum[j] > best ? sum[j] : best;
            }
            for (int j = 0; j < m; ++j) a.out[(h + j) * a.ldo + i] = best[j];
        }
    }
}

}  // namespace

void score_pages(const ScoreItem& a) {
    const Queries q(a, a.by->score == BOUNDS);
    for (int i = 0; i < AHEAD; ++i) ask(a, i);
    if (a.by->score == CODES) return by_codes(a, q);
    by_rows(0, a.g, [&]<int Q>(int h) {
        switch (a.by->score) {
            case BOUNDS: return by_vectors<true, Q>(a, q, h);
            case DOTS: return by_vectors<false, Q>(a, q, h);
            case LABELS: return by_labels<Q>(a, q, h);
            case BY_KEYS: return;
            case CODES: return;
        }
    });
}

}  // namespace ph::PH_ISA
