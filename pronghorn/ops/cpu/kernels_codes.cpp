// Matrices of codes of 4 and 8 bits, inputs as integers, and rows of an embedding of codes.
#include "codes_micro.h"

namespace ph::PH_ISA {

namespace {

// The largest magnitude of N vectors; NaN where one of their numbers is not finite.
template <int N>
PH_INLINE float largest_of(const V (&v)[N]) {
#if defined(__AVX512F__)
    __m512i top = _mm512_setzero_si512();  // as integers, NaN is above infinity, that above all else
    PH_UNROLL for (int i = 0; i < N; ++i) {
        const __m512i bits = _mm512_castps_si512(v[i].p[0]);
        top = _mm512_max_epi32(top, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const int most = _mm512_reduce_max_epi32(top);
    float largest;
    memcpy(&largest, &most, 4);
    return largest + (largest - largest);
#else
    V top = vall(0.0f), odd = vall(0.0f);
    PH_UNROLL for (int i = 0; i < N; ++i) {
        top = vmax(top, vabs(v[i]));
        odd = vfma(v[i], vall(0.0f), odd);
    }
    return highest(top) + summed(odd);
#endif
}

// Inputs [begin, finish) of a row, 16 * N with each scale and 16 * SUMMED in each sum.
template <int N, int SUMMED, int ACT>
void narrow_groups(const float* x, char* to, const CodesRow& at, int begin, int finish) {
    float* scale = reinterpret_cast<float*>(to + at.scale);
    int* sum = reinterpret_cast<int*>(to + at.sum);
    float* part = reinterpret_cast<float*>(to + at.part);
    constexpr float MOST = ACT == 8 ? 127.0f : 32767.0f;
    for (int k = begin; k < finish; k += 16 * N) {
        const int some = finish - k < 16 * N ? finish - k : 16 * N;
        float whole[16 * N];
        const float* from = x + (k - begin);
        if (some < 16 * N) {
            for (int i = 0; i < 16 * N; ++i) whole[i] = i < some ? from[i] : 0.0f;
            from = whole;
        }
        V v[N];
        PH_UNROLL for (int i = 0; i < N; ++i) v[i] = vld(from + 16 * i);
        const float largest = largest_of(v), s = largest / MOST;
        const V by = vall(largest > 0 ? MOST / largest : 0.0f);
        scale[k / (16 * N)] = s;
        // Adding 1.5 * 2^23 rounds to an integer.
        const V magic = vall(12582912.0f), low = vall(-MOST), high = vall(MOST);
        PH_UNROLL for (int i = 0; i < N; ++i) {
            v[i] = vsub(vadd(vmul(v[i], by), magic), magic);
            v[i] = vmin(vmax(v[i], low), high);
            if (16 * i >= (some + UNIT - 1) / UNIT * UNIT) continue;
            if constexpr (ACT == 8) vst_bytes(reinterpret_cast<int8_t*>(to) + k + 16 * i, v[i]);
            else vst_shorts(reinterpret_cast<int16_t*>(to) + k + 16 * i, v[i]);
        }
        PH_UNROLL for (int j = 0; j < N; j += SUMMED) {
            if (16 * j >= some) break;
            V total = v[j];
            PH_UNROLL for (int i = j + 1; i < j + SUMMED; ++i) total = vadd(total, v[i]);
            const float of = summed(total);  // exact: below 2^24
            sum[(k + 16 * j) / (16 * SUMMED)] = int(of);
            part[(k + 16 * j) / (16 * SUMMED)] = of * s;
        }
    }
}

}  // namespace

// Scales are the largest magnitude of a group over the largest integer; a group of zeros has scale 0.
void narrow_codes(const float* x, void* out, int n_in, int form, int begin, int finish) {
    const CodesRow at = codes_row(form, n_in);
    char* to = static_cast<char*>(out);
    if (at.act == 8) {
        switch (at.group) {
            case 16: return narrow_groups<2, 1, 8>(x, to, at, begin, finish);
            case 32: return narrow_groups<2, 2, 8>(x, to, at, begin, finish);
            case 64: return narrow_groups<4, 4, 8>(x, to, at, begin, finish);
            default: return narrow_groups<8, 8, 8>(x, to, at, begin, finish);
        }
    }
    switch (at.group) {
        case 32: return narrow_groups<2, 2, 16>(x, to, at, begin, finish);
        case 64: return narrow_groups<4, 4, 16>(x, to, at, begin, finish);
        default: return narrow_groups<8, 8, 16>(x, to, at, begin, finish);
    }
}

void embed_codes(const Mat& m, int row, float scale, float* out) {
    const Grid& g = m.grid;
    const char* block = static_cast<const char*>(m.w) + size_t(row / 16) * m.panel;
    const int lane = row % 16, low = g.bits == 8 ? 8 : g.bits >= 4 ? 4 : 2, high = g.bits - low;
    const auto number = [&](const char* p, int i) {
        uint16_t h;
        memcpy(&h, p + i * 2, 2);
        return g.scale == BY_BRAIN ? widened(h) : half_to_float(h);
    };
    const auto bits = [](const uint8_t* vectors, int n, int s) {
        return (vectors[s % n * 64] >> (s / n * n)) & ((1 << n) - 1);
    };
    for (int k = 0; k < m.n_in; k += SUPER) {
        const int some = m.n_in - k < SUPER ? m.n_in - k : SUPER, n = groups_of(some, g.group);
        const char* codes = block + before_codes(g, n);
        const char* offsets = block + size_t(n) * (g.scale == BY_TWO ? 16 : 32);
        const char* over = block + size_t(n) * (g.offset ? 32 : 16);
        float a = m.scale ? m.scale[row] : 0.0f, b = 0.0f;
        for (int i = 0; i < some; ++i) {
            if (g.group && i % g.group == 0) {
                const int j = i / g.group * 16 + lane;
                a = g.scale == BY_TWO ? number(over, lane) * float(int8_t(block[j])) : number(block, j);
                if (g.offset == OF_VALUE) b = number(offsets, j);
                if (g.offset == OF_ZERO) b = -(a * float(uint8_t(offsets[j])));
                if (g.offset == OF_TWO) b = -(number(over, 16 + lane) * float(uint8_t(offsets[j])));
            }
            const int u = i / UNIT, s = i % UNIT / 4;
            const uint8_t* at = reinterpret_cast<const uint8_t*>(codes) + u * 64 * g.bits + lane * 4 + i % 4;
            int code = low == 8 ? at[s * 64] : bits(at, low, s);
            if (high) code |= bits(at + low * 64, high, s) << low;
            const int level = (g.table ? g.level[code] : code) - g.zero;
            const float value = a * float(level);
            out[k + i] = (g.offset ? value + b : value) * scale;
        }
        block = codes + size_t((some + UNIT - 1) / UNIT) * 64 * g.bits;
    }
}

void linear_codes(const Linear& l, const void* x, size_t ldx, int n, int p0, int p1) {
    const Grid& g = l.mat->grid;
    if (g.bits == 8) return by_inputs<8, false>(l, x, ldx, n, p0, p1);
    if (g.bits != 4) return linear_rare(l, x, ldx, n, p0, p1);
    if (g.table) return by_inputs<4, true>(l, x, ldx, n, p0, p1);
    return by_inputs<4, false>(l, x, ldx, n, p0, p1);
}

}  // namespace ph::PH_ISA
