// Drafts of several drafters as one tree whose nodes have chances to stand, and how chances are learned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "curve.h"

namespace ph {

// How often drafted nodes of a kind stood once their parent did. The kind of a node: its drafter, whether tokens
// are drawn, its rank among its siblings or how sure its drafter is, its depth. A kind never seen is taken to be
// like the same one a level higher; a first level never seen, as the drafter says or less for each elder sibling.
class Odds {
public:
    static constexpr int RANKS = 8;   // of siblings that are told apart
    static constexpr int SURES = 10;  // of sureness
    static constexpr int LEVELS = 4;
    static constexpr int HALF = (RANKS + SURES) * LEVELS;  // kinds of a drafter's greedy nodes, or drawn ones

    explicit Odds(int n_drafters);

    int drafters() const { return int(known_.size()) / (2 * HALF); }
    int kinds() const { return int(known_.size()); }
    double chance(int kind) const;
    void note(int kind, bool stood);

private:
    static double prior(int kind);
    std::vector<double> trials_, hits_, known_;  // known: the chance of a kind that was seen, else -1
};

// One tree for each of several sequences: a node that several drafters propose is one node with the best chance
// of any. Nodes with a faint chance are left out.
class Forest {
public:
    static constexpr double FAINT = 0.02;   // chance below which no row is looked at
    static constexpr double LIKELY = 0.3;   // chance of nodes that are worth a trial

    struct Node {
        std::int32_t token, parent;  // parent: node of the tree, -1 none
        int first;                   // drafter that proposed it first: what it saves is to that one's credit
        int by, kind;                // of the drafter that gives it the best chance
        double chance;               // to stand, its ancestors' included
        bool run = false;            // in the step
    };

    // What a tree taught. shift: of each drafter as it is now; run, stood: of the nodes that it proposed first.
    struct Lesson {
        std::vector<double> shift;
        std::vector<int> run, stood;
    };

    explicit Forest(Odds& odds) : odds_(odds) {}

    void clear() { trees_.clear(); }

    // Another tree; shift: by how much the log-odds of each drafter's nodes differ in this sequence.
    int add(std::vector<double> shift, bool drawn);

    // Add the first n nodes of what a drafter proposes; score: how sure it is of each, or null.
    void join(int tree, int by, const std::int32_t* tokens, const std::int32_t* parents, const double* score,
              int n);

    // Chances of all nodes of all trees, falling.
    std::vector<double> falling();

    // The n likeliest nodes of all that `falling` saw, by tree, likeliest first, so parents before children.
    std::vector<std::vector<int>> take(int n) const;

    // Nodes of one drafter that a trial runs: the likely ones, parents first, one in any case.
    std::vector<int> likely(int tree, int by) const;

    // What came after the last token: n tokens. Of the nodes that it leads to, run or not, a child with the next
    // token stood and the others did not; nodes behind the last token are not judged.
    Lesson learn(int tree, const std::int32_t* tokens, int n);

    // A node is run in the step.
    void run(int tree, int node) { trees_.at(std::size_t(tree)).nodes.at(std::size_t(node)).run = true; }

    const std::vector<Node>& nodes(int tree) const { return trees_.at(std::size_t(tree)).nodes; }
    int size() const { return int(trees_.size()); }
    int drafters() const { return odds_.drafters(); }

private:
    struct Tree {
        std::vector<double> shift;
        bool drawn;
        std::vector<Node> nodes;
        std::map<std::pair<std::int32_t, std::int32_t>, int> at;  // parent and token
    };
    Odds& odds_;
    std::vector<Tree> trees_;
    std::vector<std::pair<int, int>> line_;  // tree and node, by falling chance
};

// n: nodes to run; token: seconds that a token takes without drafts; row: what a node's row adds.
struct Worth {
    int n;
    double token, row;
};

// How many of `most` nodes, chances falling, a step of `base` rows that reads `read` should run for n_seqs sequences,
// each of which gets a token in any case. Steps of answers alone are best where tokens a second are most, `margin`
// times those of none at least, and that is the price of a token; a step that runs prompts too takes the nodes whose
// rows cost less.
Worth worth(const Curve& curve, const double* chances, int most, int n_seqs, int base, double read, double margin);

}  // namespace ph
