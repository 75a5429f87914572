#include "suffixes.h"

#include <algorithm>
#include <queue>

namespace ph {

namespace {

constexpr int COUNTED = 32;  // ends of the text, longest first, whose count each token brings up to date

std::size_t mix(int state, std::int32_t token) {
    std::uint64_t x = (std::uint64_t(std::uint32_t(state)) << 32) | std::uint32_t(token);
    x *= 0x9E3779B97F4A7C15ull;
    return std::size_t(x ^ (x >> 29));
}

}  // namespace

Suffixes::Suffixes() : states_(1), table_(64, 0) {}

int Suffixes::find(int state, std::int32_t token) const {
    const std::size_t mask = table_.size() - 1;
    for (std::size_t i = mix(state, token) & mask;; i = (i + 1) & mask) {
        const int e = table_[i] - 1;
        if (e < 0) return -1;
        if (from_[std::size_t(e)] == state && edges_[std::size_t(e)].token == token) return e;
    }
}

void Suffixes::grow() {
    table_.assign(2 * table_.size(), 0);
    const std::size_t mask = table_.size() - 1;
    for (std::size_t e = 0; e < edges_.size(); ++e) {
        std::size_t i = mix(from_[e], edges_[e].token) & mask;
        while (table_[i]) i = (i + 1) & mask;
        table_[i] = int(e) + 1;
    }
}

// The edge must not be there yet.
void Suffixes::put(int state, std::int32_t token, int to) {
    if (2 * (edges_.size() + 1) > table_.size()) grow();
    const std::size_t mask = table_.size() - 1;
    std::size_t i = mix(state, token) & mask;
    while (table_[i]) i = (i + 1) & mask;
    table_[i] = int(edges_.size()) + 1;
    State& s = states_[std::size_t(state)];
    edges_.push_back({token, to, s.first});
    from_.push_back(state);
    s.first = int(edges_.size()) - 1;
}

// A state with the edges of another, for its substrings of up to `length` tokens.
int Suffixes::copy(int state, int length) {
    const int made = int(states_.size());
    State s = states_[std::size_t(state)];
    s.length = length;
    s.first = -1;
    states_.push_back(s);
    for (int e = states_[std::size_t(state)].first; e >= 0; e = edges_[std::size_t(e)].next) {
        const Edge edge = edges_[std::size_t(e)];
        put(made, edge.token, edge.to);
    }
    states_[std::size_t(state)].link = made;
    return made;
}

void Suffixes::append(std::int32_t token) {
    int p = last_, e = find(p, token), now = -1;
    if (e >= 0) {  // only where a text begins as another one goes on
        const int q = edges_[std::size_t(e)].to;
        const int length = states_[std::size_t(p)].length + 1;
        now = states_[std::size_t(q)].length == length ? q : copy(q, length);
        if (now != q)
            for (; p >= 0 && (e = find(p, token)) >= 0 && edges_[std::size_t(e)].to == q;
                 p = states_[std::size_t(p)].link)
                edges_[std::size_t(e)].to = now;
    } else {
        now = int(states_.size());
        State fresh;
        fresh.length = states_[std::size_t(p)].length + 1;
        states_.push_back(fresh);
        for (; p >= 0 && (e = find(p, token)) < 0; p = states_[std::size_t(p)].link) put(p, token, now);
        int link = 0;
        if (p >= 0) {
            const int q = edges_[std::size_t(e)].to;
            const int length = states_[std::size_t(p)].length + 1;
            link = q;
            if (states_[std::size_t(q)].length != length) {
                link = copy(q, length);
                for (; p >= 0 && (e = find(p, token)) >= 0 && edges_[std::size_t(e)].to == q;
                     p = states_[std::size_t(p)].link)
                    edges_[std::size_t(e)].to = link;
            }
        }
        states_[std::size_t(now)].link = link;
    }
    last_ = now;
    ++n_;
    int left = COUNTED;
    for (int s = now; s > 0 && left; s = states_[std::size_t(s)].link, --left) ++states_[std::size_t(s)].count;
}

void Suffixes::extend(const std::int32_t* tokens, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) append(tokens[i]);
}

Suffixes::Place Suffixes::repeated() const {
    const int link = states_[std::size_t(last_)].link;
    if (link <= 0) return {};
    return {link, states_[std::size_t(link)].length};
}

Suffixes::Place Suffixes::follow(Place at, const std::int32_t* tokens, std::size_t n) const {
    for (std::size_t i = 0; i < n; ++i) {
        int e = find(at.state, tokens[i]);
        while (e < 0 && at.state > 0) {
            at.state = states_[std::size_t(at.state)].link;
            at.length = states_[std::size_t(at.state)].length;
            e = find(at.state, tokens[i]);
        }
        if (e >= 0) at = {edges_[std::size_t(e)].to, at.length + 1};
    }
    return at;
}

int Suffixes::with_successors(int state, int least) const {
    while (state > 0 && states_[std::size_t(state)].first < 0) state = states_[std::size_t(state)].link;
    return state > 0 && states_[std::size_t(state)].length >= least ? state : -1;
}

Suffixes::Tree Suffixes::draft(Place at, int most, int depth, int least, double faint, int match) const {
    struct Next {
        float chance;
        int order;  // of equals the first found goes first
        int state, parent, depth;
        std::int32_t token;
        float share;
    };
    const auto worse = [](const Next& a, const Next& b) {
        return a.chance != b.chance ? a.chance < b.chance : a.order > b.order;
    };
    std::priority_queue<Next, std::vector<Next>, decltype(worse)> line(worse);
    Tree out;
    std::vector<int> number;     // of each node that was found, in `out`; -1 where it is too faint once discounted
    std::vector<double> chances;  // of each node of `out`, its ancestors' included
    int n = 0, order = 0;
    const auto open = [&](int state, int parent, int level, float chance) {
        state = with_successors(state, least);
        if (state < 0 || level > depth) return;
        float total = 0;
        for (int e = states_[std::size_t(state)].first; e >= 0; e = edges_[std::size_t(e)].next)
            total += float(states_[std::size_t(edges_[std::size_t(e)].to)].count);
        for (int e = states_[std::size_t(state)].first; e >= 0; e = edges_[std::size_t(e)].next) {
            const Edge& edge = edges_[std::size_t(e)];
            const float share = float(states_[std::size_t(edge.to)].count) / std::max(total, 1.0f);
            if (chance * share >= faint)
                line.push({chance * share, order++, edge.to, parent, level, edge.token, share});
        }
    };
    if (at.state > 0 && at.length >= least) open(at.state, -1, 1, 1.0f);
    while (n < most && !line.empty()) {
        const Next best = line.top();
        line.pop();
        open(best.state, n++, best.depth + 1, best.chance);
        const int parent = best.parent < 0 ? -1 : number[std::size_t(best.parent)];
        const double led = match + best.depth - 1;
        const double score = match ? double(best.share) * led / (led + 1) : best.share;
        const double chance = score * (parent < 0 ? 1.0 : chances[std::size_t(parent)]);
        const bool kept = chance >= faint && (best.parent < 0 || parent >= 0);
        number.push_back(kept ? int(chances.size()) : -1);
        if (!kept) continue;
        out.tokens.push_back(best.token);
        out.parents.push_back(parent);
        out.scores.push_back(score);
        chances.push_back(chance);
        out.worth += chance;
    }
    return out;
}

Suffixes::Tree Suffixes::likeliest(const Suffixes& own, const std::vector<const Suffixes*>& others,
                                   const std::int32_t* end, std::size_t n, int most, int depth, double faint,
                                   int longest, int enough) {
    const auto tree = [&](const Suffixes& s, Place at) {
        return at.length < 1 ? Tree() : s.draft(at, most, depth, 1, faint, std::min(at.length, longest));
    };
    const Place at = own.repeated();
    Tree best = tree(own, at);
    if (at.length >= enough) return best;
    for (const Suffixes* s : others) {
        if (!s->size()) continue;
        Tree other = tree(*s, s->follow({}, end, n));
        if (other.worth > best.worth) best = std::move(other);
    }
    return best;
}

}  // namespace ph
