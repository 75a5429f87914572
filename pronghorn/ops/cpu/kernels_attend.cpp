// Attention over pages in two passes: all scores of a query into one row in a fixed order of keys,
// then the softmax and the weighted sum in that order. A key counts the same whether its page is
// sealed, open or of this step, and whatever rows share the page read.
//
// Scores sum their channels in order, sixteen keys side by side (keys lie transposed). Outputs sum
// their keys in order, channels side by side. Hidden keys weigh exactly 0 and can be skipped.
#include "kernels.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr float NONE = -__builtin_inff();

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

// out[query][page][16]: inner products of Q queries with the keys of N pages.
template <int K, int Q, int N>
__attribute__((noinline)) void products(const float* q, int dim, const KvPage* pages, float* out) {
    using T = typename Stored<K>::type;
    V sum[Q][N];
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int j = 0; j < N; ++j) sum[i][j] = vall(0.0f);
    }
    const T* k[N];
    PH_UNROLL for (int j = 0; j < N; ++j) k[j] = static_cast<const T*>(pages[j].k);
    for (int c = 0; c < dim; ++c) {
        V kv[N];
        PH_UNROLL for (int j = 0; j < N; ++j) kv[j] = vld(k[j] + c * 16);
        PH_UNROLL for (int i = 0; i < Q; ++i) {
            const V qv = vall(q[size_t(i) * dim + c]);
            PH_UNROLL for (int j = 0; j < N; ++j) sum[i][j] = vfma(qv, kv[j], sum[i][j]);
        }
    }
    PH_UNROLL for (int j = 0; j < N; ++j) {
        V f = vall(1.0f);
        if constexpr (K == I8) f = vld(pages[j].ks);
        PH_UNROLL for (int i = 0; i < Q; ++i) {
            V t = sum[i][j];
            if constexpr (K == I8) t = vmul(t, f);
            vst(out + (i * N + j) * 16, t);
        }
    }
}

struct Work {
    const AttendItem& a;
    float* q;     // (n, dim)
    float* sums;  // (n, padded dim)
    float* s;     // (n, stride)
    float* total;  // (n,)
    float* part;  // products on their way to s
    int padded;
};

// Scale, cap, hide what a row does not see, and store where the keys' numbers say.
void place(const Work& w, int query, const KvPage& page, const float* from) {
    const AttendItem& a = w.a;
    float* to = w.s + query * a.stride + page.at;
    const int r = query / a.g;
    const bool picked = !page.pick || page.pick[r * a.pick_step];
    V x = vmul(vld(from), vall(a.scale));
    if (a.softcap > 0) x = vmul(vtanh(vdiv(x, vall(a.softcap))), vall(a.softcap));
    if (!picked) x = vall(NONE);
    if (!a.window && page.lo == 0 && page.hi == 16) {
        vst(to, x);
        return;
    }
    float t[16];
    vst(t, x);
    if (a.window) {
        const int limit = a.pos[r] - a.window;
        for (int i = page.lo; i < page.hi; ++i) {
            if (page.pos[i] <= limit) t[i] = NONE;
        }
    }
    for (int i = page.lo; i < page.hi; ++i) to[i - page.lo] = t[i];
    for (int i = page.hi - page.lo; i < 16; ++i) to[i] = NONE;
}

template <int K, int Q, int N>
void score_block(const Work& w, int query, const KvPage* pages) {
    products<K, Q, N>(w.q + size_t(query) * w.a.dim, w.a.dim, pages, w.part);
    for (int j = 0; j < N; ++j) {
        for (int i = 0; i < Q; ++i) place(w, query + i, pages[j], w.part + (i * N + j) * 16);
    }
}

// How many queries go together, and how many pages with them, as far as registers hold their sums.
constexpr int MOST_QUERIES = PARTS == 1 ? 8 : 4;
constexpr int pages_with(int queries) {
    return PARTS == 1 ? (queries == 8 ? 2 : 4) : queries > 2 ? 1 : PARTS == 2 ? 4 : 2;
}

// Takes Q queries at a time for as long as there are so many, then fewer.
template <int K, int Q = MOST_QUERIES>
void score(const Work& w, int q0, int q1, const KvPage* pages, int n) {
    constexpr int N = pages_with(Q);
    for (; q0 + Q <= q1; q0 += Q) {
        int j = 0;
        for (; j + N <= n; j += N) score_block<K, Q, N>(w, q0, pages + j);
        if constexpr (N > 1) {
            for (; j < n; ++j) score_block<K, Q, 1>(w, q0, pages + j);
        }
    }
    if constexpr (Q > 1) {
        if (q0 < q1) score<K, Q == 4 ? 3 : Q == 3 ? 1 : Q / 2>(w, q0, q1, pages, n);
    }
}

void score_all(const Work& w, int q0, int q1, const KvPage* pages, int n) {
    for (int i = 0; i < n;) {
        int j = i + 1;
        while (j < n && pages[j].kind == pages[i].kind) ++j;
        switch (pages[i].kind) {
            case F32: score<F32>(w, q0, q1, pages + i, j - i); break;
            case BF16: score<BF16>(w, q0, q1, pages + i, j - i); break;
            case I8: score<I8>(w, q0, q1, pages + i, j - i); break;
        }
        i = j;
    }
}

// sums[query][D * 16 channels from c] += weights times values, key by key.
template <int K, int Q, int D>
__attribute__((noinline)) void gather(const Work& w, int query, int c, const KvPage* pages, int n) {
    using T = typename Stored<K>::type;
    const int dim = w.a.dim;
    V sum[Q][D];
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int d = 0; d < D; ++d) {
            sum[i][d] = vld(w.sums + size_t(query + i) * w.padded + c + d * 16);
        }
    }
    const bool over = c + D * 16 > dim;  // the last channels' load leaves the row
    for (int j = 0; j < n; ++j) {
        const KvPage& page = pages[j];
        const float* p = w.s + query * w.a.stride + page.at - page.lo;
        for (int l = page.lo; l < page.hi; ++l) {
            const T* v = static_cast<const T*>(page.v) + size_t(l) * dim + c;
            V vv[D];
            PH_UNROLL for (int d = 0; d < D - 1; ++d) vv[d] = vld(v + d * 16);
            // Inside the page the next row's values go to channels that nobody reads.
            vv[D - 1] = over && l * dim + c + D * 16 > PAGE * dim
                            ? vld_part(v + (D - 1) * 16, dim - c - (D - 1) * 16)
                            : vld(v + (D - 1) * 16);
            PH_UNROLL for (int i = 0; i < Q; ++i) {
                float x = p[i * w.a.stride + l];
                if constexpr (K == I8) x *= page.vs[l];
                const V xv = vall(x);
                PH_UNROLL for (int d = 0; d < D; ++d) sum[i][d] = vfma(xv, vv[d], sum[i][d]);
            }
        }
    }
    PH_UNROLL for (int i = 0; i < Q; ++i) {
        PH_UNROLL for (int d = 0; d < D; ++d) {
            vst(w.sums + size_t(query + i) * w.padded + c + d * 16, sum[i][d]);
        }
    }
}

template <int K, int D, int Q = (PARTS == 1 && D <= 2 ? 8 : 4)>
void gather_queries(const Work& w, int q0, int q1, int c, const KvPage* pages, int n) {
    for (; q0 + Q <= q1; q0 += Q) gather<K, Q, D>(w, q0, c, pages, n);
    if constexpr (Q > 1) {
        if (q0 < q1) gather_queries<K, D, Q == 4 ? 3 : Q == 3 ? 1 : Q / 2>(w, q0, q1, c, pages, n);
    }
}

template <int K>
void gather_kind(const Work& w, int q0, int q1, const KvPage* pages, int n) {
    int c = 0;
    for (; c + 64 <= w.padded; c += 64) gather_queries<K, 4>(w, q0, q1, c, pages, n);
    if (c + 32 <= w.padded) {
        gather_queries<K, 2>(w, q0, q1, c, pages, n);
        c += 32;
    }
    if (c < w.padded) gather_queries<K, 1>(w, q0, q1, c, pages, n);
}

void gather_all(const Work& w, int q0, int q1, const KvPage* pages, int n) {
    constexpr int TOGETHER = 8;  // pages whose values stay close while the queries pass by
    for (int i = 0; i < n;) {
        int j = i + 1;
        while (j < n && j - i < TOGETHER && pages[j].kind == pages[i].kind) ++j;
        switch (pages[i].kind) {
            case F32: gather_kind<F32>(w, q0, q1, pages + i, j - i); break;
            case BF16: gather_kind<BF16>(w, q0, q1, pages + i, j - i); break;
            case I8: gather_kind<I8>(w, q0, q1, pages + i, j - i); break;
        }
        i = j;
    }
}

// s[0, n) -> exp(s - max), keys up to the next multiple of 16 after `end` becoming 0; their sum.
float weigh(float* s, int n, int end) {
    const int stop = (end + 15) / 16 * 16;
    for (int i = n; i < stop; ++i) s[i] = NONE;
    V top = vall(NONE);
    for (int i = 0; i < stop; i += 16) top = vmax(top, vld(s + i));
    const float m = vtop(top);
    const V mv = vall(m == NONE ? 0.0f : m);
    V sum = vall(0.0f);
    for (int i = 0; i < stop; i += 16) {
        const V e = vexp(vsub(vld(s + i), mv));
        vst(s + i, e);
        sum = vadd(sum, e);
    }
    return vsum(sum);
}

}  // namespace

void attend(const AttendItem& a) {
    const int n = a.n_rows * a.g;
    const int padded = (a.dim + 15) / 16 * 16;
    float* q = a.scratch;
    float* sums = q + size_t(n) * a.dim;
    float* total = sums + size_t(n) * padded;
    float* part = total + (n + 15) / 16 * 16;
    float* s = part + 32 * PAGE;
    const Work w{a, q, sums, s, total, part, padded};
    for (int r = 0; r < a.n_rows; ++r) {
        memcpy(q + size_t(r) * a.g * a.dim, a.q + r * a.ldq, sizeof(float) * a.g * a.dim);
    }
    memset(sums, 0, sizeof(float) * n * padded);

    score_all(w, 0, n, a.shared, a.n_shared);
    for (int i = 0; i < a.n_runs; ++i) {
        const KvRun& run = a.runs[i];
        score_all(w, run.row0 * a.g, run.row1 * a.g, a.tail + run.page0, run.page1 - run.page0);
        for (int r = run.row0; r < run.row1; ++r) {
            for (int h = 0; h < a.g; ++h) {
                const int at = r * a.g + h;
                total[at] = weigh(s + at * a.stride, run.n_keys - (run.row1 - 1 - r), run.n_keys);
            }
        }
    }
    gather_all(w, 0, n, a.shared, a.n_shared);
    for (int i = 0; i < a.n_runs; ++i) {
        const KvRun& run = a.runs[i];
        gather_all(w, run.row0 * a.g, run.row1 * a.g, a.tail + run.page0, run.page1 - run.page0);
    }
    for (int r = 0; r < a.n_rows; ++r) {
        for (int h = 0; h < a.g; ++h) {
            const int at = r * a.g + h;
            float* out = a.out + r * a.ldo + size_t(h) * a.dim;
            const float* from = sums + size_t(at) * padded;
            const V by = vall(total[at]);
            int c = 0;
            for (; c + 16 <= a.dim; c += 16) vst(out + c, vdiv(vld(from + c), by));
            if (c < a.dim) vst_part(out + c, vdiv(vld(from + c), by), a.dim - c);
        }
    }
}

}  // namespace ph::PH_ISA
