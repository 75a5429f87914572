// Drawing a token from logits.
#pragma once

#include "kernels.h"

namespace ph {

// A token of n, with probability softmax(x / temperature): the one under the point u (in [0, 1)) of their
// probabilities side by side. -1 where the numbers are not finite, or do not stay so.
int draw(const Kernels& k, const float* x, int n, float temperature, double u);

}  // namespace ph
