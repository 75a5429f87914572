// Drawing a token from logits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace ph {

// A token of n, with probability softmax(x / temperature): the one under the point u (in [0, 1)) of their
// probabilities side by side. -1 where the numbers are not finite, or do not stay so.
int draw(const Kernels& k, const float* x, int n, float temperature, double u);

// The first of the largest; -1 where it is not finite or one of them is not a number.
int likeliest(const Kernels& k, const float* x, int n);

// What keys a random number besides the position, see pronghorn/rng.py.
struct Key {
    std::uint64_t seed, branch, purpose;
};

// A number in [0, 1) with 53 bits: the first of Philox-4x64-10 as NumPy has it, with counter (0, pos, purpose,
// branch) and key (seed, 0).
double uniform(const Key& key, std::uint64_t pos);

// Rows of a draft tree that are visited, and the token that each draws: the likeliest at temperature 0, else
// the one under the random number of its position, from `pos` on. It goes on at the first child with that token.
// Ends early at a row from which nothing can be drawn. Row 0 is the last token's, i + 1 node i's; logits lie
// `stride` apart, the first n of a row are tokens; parents come before their children.
struct Walk {
    std::vector<std::int32_t> row, token;
    bool whole = true;  // else nothing could be drawn from the row that would have been next
};
Walk walk(const Kernels& k, const float* logits, std::size_t stride, int n, const std::int32_t* token,
          const std::int32_t* parent, int n_nodes, double temperature, const Key& key, std::uint64_t pos);

}  // namespace ph
