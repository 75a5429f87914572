// All substrings of a growing text of tokens, and what followed each of them.
#pragma once

#include <cstdint>
#include <vector>

namespace ph {

// A suffix automaton (Blumer et al., 1985, "The smallest automaton recognizing the subwords of a text"), grown
// token by token in amortised constant time, some 100 bytes a token. Each state stands for the substrings that
// end at the same places; `count` says how often, as far as it was kept up.
class Suffixes {
public:
    // A place in the automaton: a state, and how many tokens led there.
    struct Place {
        int state = 0;
        int length = 0;
    };

    Suffixes();

    // Append tokens (>= 0) to the text. `begin` starts another text, with which nothing joins.
    void extend(const std::int32_t* tokens, std::size_t n);
    void begin() { last_ = 0; }

    std::size_t size() const { return n_; }  // tokens
    int states() const { return int(states_.size()); }

    // The longest end of the text that has occurred before.
    Place repeated() const;

    // Follow tokens from a place; where no substring goes on so, fall back to its longest end that does.
    Place follow(Place at, const std::int32_t* tokens, std::size_t n) const;

    struct Tree {
        std::vector<std::int32_t> tokens, parents;  // best first, parents before children; -1: none
        std::vector<double> scores;                 // how often each came after its parent, as a share
        double worth = 0;                           // sum of the products of scores along the path to each
    };

    // A tree of what is likeliest to follow, `most` nodes and `depth` levels at most, without paths less likely
    // than `faint`. A place without successors goes on at its longest end of at least `least` tokens that has
    // some. match: tokens that led there, where shares are to be discounted: a share times (m + d) / (m + d + 1),
    // d drafted tokens lead to the node; 0: they are not.
    Tree draft(Place at, int most, int depth, int least, double faint, int match) const;

    // The tree of most worth of `own`, whose text goes on, and of `others`, where what it ends with is looked up,
    // if own has no repetition of `enough` tokens. Of a match `longest` tokens count.
    static Tree likeliest(const Suffixes& own, const std::vector<const Suffixes*>& others, const std::int32_t* end,
                          std::size_t n, int most, int depth, double faint, int longest, int enough);

private:
    struct State {
        int length = 0;
        int link = -1;
        int count = 0;
        int first = -1;  // edge
    };
    struct Edge {
        std::int32_t token;
        int to;
        int next;
    };

    int find(int state, std::int32_t token) const;  // edge, -1
    void put(int state, std::int32_t token, int to);
    void grow();
    void append(std::int32_t token);
    int copy(int state, int length);
    int with_successors(int state, int least) const;

    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::vector<int> table_;  // edge + 1 by hash of state and token, 0: free
    std::vector<int> from_;   // state of each edge
    int last_ = 0;
    std::size_t n_ = 0;
};

}  // namespace ph
