#include "sample.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ph {
namespace {

constexpr int BLOCK = 1024;  // logits whose weights are summed together, and made again where the point lies

float largest(const float* x, int n) {
    constexpr int LANES = 16;
    float top[LANES];
    std::fill(top, top + LANES, x[0]);
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    }
    for (; i < n; ++i) top[0] = x[i] > top[0] ? x[i] : top[0];
    return *std::max_element(top, top + LANES);
}

}  // namespace

int draw(const Kernels& k, const float* x, int n, float temperature, double u) {
    const float by = 1.0f / temperature;
    if (n <= 0 || !(temperature > 0) || !std::isfinite(by)) return -1;
    const float top = largest(x, n);
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

}  // namespace ph
