#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace ph {
namespace {

constexpr int BLOCK = 1024;  // logits whose weights are summed together, and made again where the point lies

bool any_nan(const float* x, int n) {
    int bad = 0;
    for (int i = 0; i < n; ++i) bad |= x[i] != x[i];
    return bad;
}

}  // namespace

int draw(const Kernels& k, const float* x, int n, float temperature, double u) {
    const float by = 1.0f / temperature;
    if (n <= 0 || !(temperature > 0) || !std::isfinite(by)) return -1;
    const float top = k.largest(x, n);
    const int n_blocks = (n + BLOCK - 1) / BLOCK;
    float weights[BLOCK];
    thread_local std::vector<double> sums;
    sums.resize(n_blocks);
    double total = 0;
    for (int b = 0; b < n_blocks; ++b) {
        sums[b] = k.weigh(x + b * BLOCK, weights, std::min(BLOCK, n - b * BLOCK), top, by);
        total += sums[b];
    }
    if (!std::isfinite(total)) return -1;
    double left = u * total;
    int b = 0;
    while (b + 1 < n_blocks && left >= sums[b]) left -= sums[b++];
    const int some = std::min(BLOCK, n - b * BLOCK);
    k.weigh(x + b * BLOCK, weights, some, top, by);
    int last = -1;  // sums of another order may end before the point: then the last that can be drawn
    for (int i = 0; i < some; ++i) {
        if (weights[i] <= 0) continue;
        last = i;
        if (left < double(weights[i])) break;
        left -= double(weights[i]);
    }
    while (last < 0 && b > 0) {
        --b;
        k.weigh(x + b * BLOCK, weights, BLOCK, top, by);
        for (int i = 0; i < BLOCK; ++i) last = weights[i] > 0 ? i : last;
    }
    return b * BLOCK + last;
}

int likeliest(const Kernels& k, const float* x, int n) {
    float top = -std::numeric_limits<float>::infinity();
    int at = -1;
    for (int b = 0; b < n; b += BLOCK) {
        const int some = std::min(BLOCK, n - b);
        if (any_nan(x + b, some)) return -1;
        const float here = k.largest(x + b, some);
        if (here > top) top = here, at = b;
    }
    if (!std::isfinite(top)) return -1;
    while (x[at] != top) ++at;
    return at;
}

double uniform(const Key& key, std::uint64_t pos) {
    constexpr std::uint64_t BY[2] = {0xD2E7470EE14C6C93u, 0xCA5A826395121157u};
    constexpr std::uint64_t STEP[2] = {0x9E3779B97F4A7C15u, 0xBB67AE8584CAA73Bu};
    // NumPy counts before it draws, hence the 1
    std::uint64_t c[4] = {1, pos, key.purpose, key.branch}, of[2] = {key.seed, 0};
    for (int round = 0; round < 10; ++round) {
        const unsigned __int128 a = (unsigned __int128)BY[0] * c[0], b = (unsigned __int128)BY[1] * c[2];
        const std::uint64_t next[4] = {std::uint64_t(b >> 64) ^ c[1] ^ of[0], std::uint64_t(b),
                                       std::uint64_t(a >> 64) ^ c[3] ^ of[1], std::uint64_t(a)};
        std::copy(next, next + 4, c);
        for (int i = 0; i < 2; ++i) of[i] += STEP[i];
    }
    return double(c[0] >> 11) * 0x1p-53;
}

Walk walk(const Kernels& k, const float* logits, std::size_t stride, int n, const std::int32_t* token,
          const std::int32_t* parent, int n_nodes, double temperature, const Key& key, std::uint64_t pos) {
    Walk out;
    int node = -1;
    do {
        const float* x = logits + (node + 1) * stride;
        const int drawn = temperature > 0 ? draw(k, x, n, float(temperature), uniform(key, pos + out.row.size()))
                                          : likeliest(k, x, n);
        out.whole = drawn >= 0;
        if (!out.whole) break;
        out.row.push_back(node + 1);
        out.token.push_back(drawn);
        int child = node + 1;
        while (child < n_nodes && !(parent[child] == node && token[child] == drawn)) ++child;
        node = child;
    } while (node < n_nodes);
    return out;
}

}  // namespace ph
