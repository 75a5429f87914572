// What a mixture-of-experts phase keeps between its steps.
#pragma once

#include <vector>

#include "executor.h"

namespace ph {

struct Executor::Moe {
    // A place is one (row, choice); places are sorted by expert, rows in order.
    std::vector<int> choice;     // (n, top_k) expert ids
    std::vector<float> weight;   // (n, top_k)
    std::vector<int> place;      // (n, top_k)
    std::vector<int> row;        // of each place
    std::vector<int> start;      // (n_experts + 1,) first place of each expert
    struct Piece {
        int expert, p0, p1;
    };
    std::vector<Piece> pieces;   // panels of one expert's gate and up, or of its down
    std::vector<Piece> downs;
    std::atomic<int> n_pieces{0}, n_downs{0};
    std::vector<float> x, gate, up, hidden, y;  // per place
};

}  // namespace ph
