// Matrices of codes of 4 and 8 bits, inputs as integers, and rows of an embedding of codes.
#include "codes_micro.h"

namespace ph::PH_ISA {

// Scales are the largest magnitude of a group over the largest integer; a group of zeros has scale 0.
void narrow_codes(const float* x, void* out, int n_in, int form) {
    const CodesRow at = codes_row(form, n_in);
    char* to = static_cast<char*>(out);
    float* scale = reinterpret_cast<float*>(to + at.scale);
    int* sum = reinterpret_cast<int*>(to + at.sum);
    float* part = reinterpret_cast<float*>(to + at.part);
    const float most = at.act == 8 ? 127.0f : 32767.0f;
    const int filled = (n_in + UNIT - 1) / UNIT * UNIT;
    for (int k = 0; k < n_in; k += at.per_scale) {
        const int stop = k + at.per_scale < filled ? k + at.per_scale : filled;
        V top = vall(0.0f), odd = vall(0.0f);
        float values[128];
        for (int i = k; i < stop; i += 16) {
            const V v = i + 16 <= n_in ? vld(x + i) : vld_part(x + i, n_in > i ? n_in - i : 0);
            vst(values + (i - k), v);
            top = vmax(top, vabs(v));
            odd = vfma(v, vall(0.0f), odd);  // NaN where an input is not finite
        }
        const float largest = highest(top);
        const float by = largest > 0 ? most / largest : 0.0f;
        const float s = largest / most + summed(odd);
        scale[k / at.per_scale] = s;
        // Adding 1.5 * 2^23 rounds to an integer.
        const V magic = vall(12582912.0f), low = vall(-most), high = vall(most);
        for (int from = k; from < stop; from += at.group) {
            V total = vall(0.0f);
            const int end = from + at.group < stop ? from + at.group : stop;
            for (int i = from; i < end; i += 16) {
                V n = vsub(vadd(vmul(vld(values + (i - k)), vall(by)), magic), magic);
                n = vmin(vmax(n, low), high);
                total = vadd(total, n);
                if (at.act == 8) vst_bytes(reinterpret_cast<int8_t*>(to) + i, n);
                else vst_shorts(reinterpret_cast<int16_t*>(to) + i, n);
            }
            if (from >= n_in) break;
            const float of = summed(total);  // exact: below 2^24
            sum[from / at.group] = int(of);
            part[from / at.group] = of * s;
        }
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
