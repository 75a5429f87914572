#include "chances.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ph {
namespace {

constexpr double WEIGHT = 2.0;   // trials that a prior counts as
constexpr double MEMORY = 64.0;  // trials that are remembered; older ones fade
constexpr double PRIOR = 0.5;    // chance of a first child whose drafter does not say how sure it is
constexpr double RATE = 0.3;     // of learning what is particular to a sequence
constexpr double FAR = 3.0;      // log-odds that a sequence may differ from what is usual, at most
constexpr double FORGETS = 0.99;  // what is left of that from step to step

double shifted(double chance, double by) {
    const double odds = chance / (1.0000001 - chance) * by;
    return odds / (1.0 + odds);
}

// How many of `most` nodes, chances falling, a step should run; seconds[n]: what it takes with n of them. price 0:
// as many as give most tokens a second beside the `sure` ones, `margin` times those of none at least. Else the step
// is run in any case, and a token is worth `price` seconds: as many as gain most.
int pays(const double* chances, int most, const double* seconds, double sure, double price, double margin) {
    double best = price > 0 ? 0.0 : margin * sure / seconds[0], gain = price > 0 ? 0.0 : sure;
    int at = 0;
    for (int n = 1; n <= most; ++n) {
        gain += chances[n - 1];
        const double worth = price > 0 ? gain * price - (seconds[n] - seconds[0]) / margin : gain / seconds[n];
        if (worth > best) {
            best = worth;
            at = n;
        }
    }
    return at;
}

}  // namespace

Odds::Odds(int n_drafters) {
    const std::size_t n = std::size_t(n_drafters) * 2 * HALF;
    trials_.assign(n, 0.0);
    hits_.assign(n, 0.0);
    known_.assign(n, -1.0);
}

double Odds::prior(int kind) {
    const int sure = kind % HALF / LEVELS;
    return sure >= RANKS ? (sure - RANKS + 0.5) / SURES : PRIOR / ((sure + 1) * (sure + 1));
}

double Odds::chance(int kind) const {
    while (known_[std::size_t(kind)] < 0 && kind % LEVELS) --kind;
    const double known = known_[std::size_t(kind)];
    return known < 0 ? prior(kind) : known;
}

void Odds::note(int kind, bool stood) {
    const auto i = std::size_t(kind);
    const double fade = std::min(1.0, MEMORY / (trials_[i] + 1.0));
    trials_[i] = (trials_[i] + 1.0) * fade;
    hits_[i] = (hits_[i] + stood) * fade;
    const double above = kind % LEVELS ? chance(kind - 1) : prior(kind);
    known_[i] = (hits_[i] + WEIGHT * above) / (trials_[i] + WEIGHT);
}

int Forest::add(std::vector<double> shift, bool drawn) {
    trees_.push_back({std::move(shift), drawn, {}, {}});
    return size() - 1;
}

void Forest::join(int tree, int by, const std::int32_t* tokens, const std::int32_t* parents,
                  const double* score, int n) {
    Tree& t = trees_[std::size_t(tree)];
    const double more = std::exp(t.shift[std::size_t(by)]);
    const int base = (2 * by + t.drawn) * Odds::HALF;
    std::vector<double> chance(static_cast<std::size_t>(n));
    std::vector<int> level(chance.size()), at(chance.size(), -1), children(chance.size() + 1, 0);
    for (int i = 0; i < n; ++i) {
        const int p = parents[i];
        level[i] = p < 0 ? 0 : std::min(level[p] + 1, Odds::LEVELS - 1);
        int sure;
        if (score) {
            const double s = std::isfinite(score[i]) ? std::clamp(score[i], 0.0, 0.999) : 0.0;
            sure = Odds::RANKS + int(Odds::SURES * s);
        } else {
            sure = std::min(children[p + 1]++, Odds::RANKS - 1);
        }
        const int kind = base + Odds::LEVELS * sure + level[i];
        chance[i] = (p < 0 ? 1.0 : chance[p]) * shifted(odds_.chance(kind), more);
        if (chance[i] < FAINT) continue;  // nor is any of its children less faint
        const int parent = p < 0 ? -1 : at[p];
        const auto [place, is_new] = t.at.try_emplace({parent, tokens[i]}, int(t.nodes.size()));
        at[i] = place->second;
        if (is_new) t.nodes.push_back({tokens[i], parent, by, by, kind, chance[i], false});
        Node& node = t.nodes[std::size_t(at[i])];
        if (chance[i] > node.chance) {
            node.by = by;
            node.kind = kind;
            node.chance = chance[i];
        }
        // another drafter's chance of the path: no node is likelier than its parent
        if (parent >= 0) node.chance = std::min(node.chance, t.nodes[std::size_t(parent)].chance);
    }
}

std::vector<double> Forest::falling() {
    line_.clear();
    for (int t = 0; t < size(); ++t) {
        for (int j = 0; j < int(nodes(t).size()); ++j) line_.emplace_back(t, j);
    }
    const auto chance = [this](std::pair<int, int> x) { return nodes(x.first)[std::size_t(x.second)].chance; };
    std::stable_sort(line_.begin(), line_.end(), [&](auto a, auto b) { return chance(a) > chance(b); });
    std::vector<double> out;
    for (const auto& x : line_) out.push_back(chance(x));
    return out;
}

std::vector<std::vector<int>> Forest::take(int n) const {
    std::vector<std::vector<int>> chosen(trees_.size());
    for (std::size_t i = 0; i < std::size_t(std::max(n, 0)) && i < line_.size(); ++i) {
        chosen[std::size_t(line_[i].first)].push_back(line_[i].second);
    }
    return chosen;
}

std::vector<int> Forest::likely(int tree, int by) const {
    const auto& all = nodes(tree);
    std::vector<char> kept(all.size(), 0);
    std::vector<int> out;
    for (int j = 0; j < int(all.size()); ++j) {
        const Node& node = all[std::size_t(j)];
        const bool under = node.parent < 0 || kept[std::size_t(node.parent)];
        if (node.first != by || !under || (node.chance < LIKELY && !out.empty())) continue;
        kept[std::size_t(j)] = 1;
        out.push_back(j);
    }
    return out;
}

Worth worth(const Curve& curve, const double* chances, int most, int n_seqs, int base, double read, double margin) {
    const double each = std::floor(read / std::max(1, base));
    std::vector<double> seconds = line_of(curve, n_seqs, n_seqs * each, most, each);
    const double plain = seconds[0] / n_seqs;
    int n = pays(chances, most, seconds.data(), n_seqs, 0.0, margin);
    if (base > n_seqs) {
        const double tokens = n_seqs + std::accumulate(chances, chances + n, 0.0);
        const double price = n ? seconds[std::size_t(n)] / tokens : plain / margin;
        seconds = line_of(curve, base, read, n, each);
        n = pays(chances, n, seconds.data(), n_seqs, price, margin);
    }
    return {n, plain, (seconds[std::size_t(n)] - seconds[0]) / std::max(n, 1)};
}

Forest::Lesson Forest::learn(int tree, const std::int32_t* tokens, int n) {
    Tree& t = trees_[std::size_t(tree)];
    const auto n_by = std::size_t(odds_.drafters());
    Lesson out{{}, std::vector<int>(n_by, 0), std::vector<int>(n_by, 0)};
    for (double& shift : t.shift) shift *= FORGETS;
    std::vector<int> depth(t.nodes.size(), -1);  // on the path that came: the token that follows; else -1
    for (std::size_t j = 0; j < t.nodes.size(); ++j) {
        const Node& node = t.nodes[j];
        out.run[std::size_t(node.first)] += node.run;
        const int at = node.parent < 0 ? 0 : depth[std::size_t(node.parent)];
        if (at < 0 || at >= n) continue;
        const bool stood = node.token == tokens[at];
        out.stood[std::size_t(node.first)] += node.run && stood;
        if (stood) depth[j] = at + 1;
        double& shift = t.shift[std::size_t(node.by)];
        const double expected = shifted(odds_.chance(node.kind), std::exp(shift));
        shift = std::clamp(shift + RATE * (stood - expected), -FAR, FAR);
        odds_.note(node.kind, stood);
    }
    out.shift = t.shift;
    return out;
}

}  // namespace ph
