// Python bindings of what drafters and the costs of steps have in native code.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "chances.h"
#include "curve.h"
#include "module.h"
#include "ngrams.h"
#include "panel.h"
#include "profile.h"
#include "suffixes.h"

namespace {

using Tokens = std::vector<std::int32_t>;
using Place = std::tuple<int, int>;

ph::Suffixes::Place place_of(const ph::Suffixes& s, const Place& at) {
    need(std::get<0>(at) >= 0 && std::get<0>(at) < s.states() && std::get<1>(at) >= 0, "a place that is not there");
    return {std::get<0>(at), std::get<1>(at)};
}

void extend(ph::Suffixes& s, const Tokens& tokens) {
    need(s.size() + tokens.size() < (std::size_t(1) << 28), "more tokens than a text may have");
    for (const std::int32_t t : tokens) need(t >= 0, "a token below 0");
    s.extend(tokens.data(), tokens.size());
}

Place follow(const ph::Suffixes& s, const Place& at, const Tokens& tokens) {
    const auto end = s.follow(place_of(s, at), tokens.data(), tokens.size());
    return {end.state, end.length};
}

auto draft_of(const ph::Suffixes& s, const Place& at, int most, int depth, int least, double faint, int match) {
    need(most >= 0 && most <= 4096, "from 0 to 4096 nodes");
    auto d = s.draft(place_of(s, at), most, depth, std::max(least, 1), faint, match);
    return std::make_tuple(d.worth, array_of(std::move(d.tokens)), array_of(std::move(d.parents)),
                           array_of(std::move(d.scores)));
}

auto likeliest(const ph::Suffixes& own, const std::vector<const ph::Suffixes*>& others, const Tokens& end, int most,
               int depth, double faint, int longest, int enough) {
    need(most >= 0 && most <= 4096, "from 0 to 4096 nodes");
    auto d = ph::Suffixes::likeliest(own, others, end.data(), end.size(), most, depth, faint, longest, enough);
    return std::make_tuple(array_of(std::move(d.tokens)), array_of(std::move(d.parents)),
                           array_of(std::move(d.scores)));
}

void parents_come_first(const Ints& parents) {
    for (int i = 0; i < int(parents.shape(0)); ++i) {
        need(parents.data()[i] >= -1 && parents.data()[i] < i, "parents come before their children");
    }
}

using Grown = std::tuple<int, Ints, Ints, Doubles>;  // a drafter, and its tokens, parents and scores

int grow(ph::Forest& f, std::vector<double> shift, bool drawn, const std::vector<Grown>& drafts, int most) {
    need(int(shift.size()) == f.drafters(), "a shift for each drafter");
    for (const auto& [by, tokens, parents, score] : drafts) {
        need(by >= 0 && by < f.drafters(), "a drafter that is not there");
        need(parents.shape(0) == tokens.shape(0) && (score.shape(0) == tokens.shape(0) || score.shape(0) == 0),
             "as many parents and scores as tokens");
        parents_come_first(parents);
    }
    const int tree = f.add(std::move(shift), drawn);
    for (const auto& [by, tokens, parents, score] : drafts) {
        f.join(tree, by, tokens.data(), parents.data(), score.shape(0) ? score.data() : nullptr,
               int(std::min(tokens.shape(0), std::size_t(std::max(most, 0)))));
    }
    return tree;
}

ph::Curve curve_of(const std::vector<double>& at, double price) {
    need(at.size() == ph::KNOTS, "a curve");
    ph::Curve c;
    std::copy(at.begin(), at.end(), c.at);
    c.read = price;
    return c;
}

// Tokens, parents among the chosen, and who drafted some of them.
auto draft_from(ph::Forest& f, int tree, const std::vector<int>& chosen) {
    need(tree >= 0 && tree < f.size(), "a tree that is not there");
    const auto& all = f.nodes(tree);
    std::vector<int> number(all.size(), -1), by;
    std::vector<std::int32_t> tokens, parents;
    for (int j : chosen) {
        need(j >= 0 && j < int(all.size()), "a node that is not there");
        const auto& node = all[std::size_t(j)];
        need(node.parent < 0 || number[std::size_t(node.parent)] >= 0, "parents come before their children");
        number[std::size_t(j)] = int(tokens.size());
        f.run(tree, j);
        tokens.push_back(node.token);
        parents.push_back(node.parent < 0 ? -1 : number[std::size_t(node.parent)]);
        if (std::find(by.begin(), by.end(), node.by) == by.end()) by.push_back(node.by);
    }
    std::sort(by.begin(), by.end());
    return std::make_tuple(array_of(std::move(tokens)), array_of(std::move(parents)), std::move(by));
}

// The same of the n likeliest nodes of all trees, None for a tree without any.
nb::list run_first(ph::Forest& f, int n) {
    nb::list out;
    const auto chosen = f.take(n);
    for (int t = 0; t < f.size(); ++t) {
        const auto& some = chosen[std::size_t(t)];
        out.append(some.empty() ? nb::none() : nb::cast(draft_from(f, t, some)));
    }
    return out;
}

// Rows of a draft, behind row `at` of a step (`types.Rows`, one array in a row of `rows`), which is the last token's.
void hang(const nb::ndarray<std::int32_t, nb::ndim<2>, nb::device::cpu>& rows, int at, int n_prompt,
          const Ints& tokens, const Ints& parents) {
    const int n = int(tokens.shape(0)), first = at + 1;
    need(rows.shape(0) == 6 && at >= 0 && std::size_t(first) + tokens.shape(0) <= rows.shape(1) &&
             parents.shape(0) == tokens.shape(0),
         "rows of a step with room for the draft");
    parents_come_first(parents);
    auto v = rows.view();
    for (int i = 0; i < n; ++i) {
        const int row = first + i, above = at + 1 + parents(i);
        v(0, row) = tokens(i);
        v(1, row) = v(1, above) + 1;
        v(2, row) = std::max(v(1, row) + 1, n_prompt);
        v(3, row) = v(3, at);
        v(4, row) = above;
        v(5, row) = 1;
    }
}

std::tuple<std::vector<double>, double> fit_steps(const std::vector<std::tuple<double, double, double>>& steps,
                                                  double read) {
    std::vector<double> rows, reads, seconds;
    for (const auto& [n, r, s] : steps) {
        need(n >= 1 && r >= 0 && s > 0 && std::isfinite(n) && std::isfinite(r) && std::isfinite(s),
             "a step that cannot be");
        rows.push_back(n);
        reads.push_back(r);
        seconds.push_back(s);
    }
    const ph::Curve c = ph::fit_curve(rows.data(), reads.data(), seconds.data(), rows.size(), read);
    return {std::vector<double>(c.at, c.at + ph::KNOTS), c.read};
}

// ------------------------------------------------------------------ whom it pays to ask

// A panel, and what its drafters are called.
struct Named : ph::Panel {
    Named(std::vector<std::string> names_, double spend, const std::vector<int>& telling)
        : ph::Panel(int(names_.size()), spend, telling), names(std::move(names_)) {}
    const std::vector<std::string> names;
};

using Moods = std::vector<ph::Mood*>;

void need_moods(const ph::Panel& p, const Moods& moods, std::size_t n) {
    need(moods.size() == n, "as many sequences as moods");
    for (const ph::Mood* m : moods) {
        const auto has = std::size_t(p.drafters());
        need(m && m->shift.size() == has && m->gain.size() == has && m->failed.size() == has && m->until.size() == has,
             "a mood of as many drafters as the panel has");
        for (int d : m->asked) need(d >= 0 && d < p.drafters(), "a drafter that is not there");
    }
}

auto wake(Named& p, const Moods& moods, const std::vector<int>& depths, const std::vector<int>& own, double step) {
    need_moods(p, moods, depths.size());
    need(own.size() == depths.size(), "as many sequences as moods");
    std::vector<ph::Panel::One> seqs;
    for (std::size_t i = 0; i < moods.size(); ++i) seqs.push_back({moods[i], depths[i], own[i] > 0});
    return p.wake(seqs, step);
}

template <typename T>
T part(const nb::handle& tuple, int i) {
    T out;
    need(nb::try_cast(tuple[i], out, false), "drafts of int32 tokens and parents and float64 scores");
    return out;
}

// What a drafter answered: who, the sequences it was asked for, their drafts (`types.Draft`, none where it passes), and
// the seconds that it took.
using Answer = std::tuple<int, std::vector<int>, nb::list, double>;

nb::object choose(Named& p, const Moods& moods, const std::vector<Answer>& answers, const std::vector<bool>& drawn,
                  int nodes, const std::vector<double>& at, double price, int base, double read, int rows) {
    need_moods(p, moods, drawn.size());
    const ph::Curve curve = curve_of(at, price);
    need(base >= 1 && base < (1 << 20) && read >= 0 && rows < (1 << 20), "rows and reads of a step");
    std::vector<std::vector<Grown>> drafts(moods.size());
    for (const auto& [d, of, some, seconds] : answers) {
        need(d >= 0 && d < p.drafters() && (some.size() == of.size() || !some.size()), "a draft for each sequence");
        for (std::size_t j = 0; j < of.size(); ++j) {
            need(of[j] >= 0 && of[j] < int(moods.size()), "a sequence that is not there");
            if (!some.size()) continue;
            const nb::handle draft = some[j];
            Grown g{d, part<Ints>(draft, 0), part<Ints>(draft, 1), part<Doubles>(draft, 3)};
            if (std::get<1>(g).shape(0)) drafts[std::size_t(of[j])].push_back(std::move(g));
        }
    }
    ph::Forest& forest = p.forest();
    forest.clear();
    std::vector<int> owner;
    for (std::size_t i = 0; i < moods.size(); ++i) {
        moods[i]->tree = -1;
        if (drafts[i].empty()) continue;
        moods[i]->tree = grow(forest, moods[i]->shift, drawn[i], drafts[i], nodes);
        owner.push_back(int(i));
    }
    nb::list out;
    if (!owner.empty()) {
        const auto chosen = p.choose(curve, base, read, rows);
        for (std::size_t t = 0; t < owner.size(); ++t) {
            if (chosen[t].empty()) continue;
            const auto [tokens, parents, whose] = draft_from(forest, int(t), chosen[t]);
            std::string by;
            for (int d : whose) by += (by.empty() ? "" : "+") + p.names[std::size_t(d)];
            out.append(nb::make_tuple(owner[t], tokens, parents, by));
        }
    }
    double asking = 0.0;
    for (const auto& [d, of, some, seconds] : answers) {
        p.asked(d, seconds, moods, of);
        asking += seconds;
    }
    p.settle(moods, asking);
    return owner.empty() ? nb::none() : nb::object(std::move(out));
}

void learn(Named& p, const Moods& moods, const nb::object& drafts, const nb::object& accepts) {
    need_moods(p, moods, nb::len(drafts));
    need(nb::len(accepts) == moods.size(), "as many sequences as moods");
    for (std::size_t i = 0; i < moods.size(); ++i) {
        if (moods[i]->tree < 0) continue;
        const std::int64_t since = ph::nanoseconds();
        need(moods[i]->tree < p.forest().size(), "a tree that is not there");
        const nb::object accept = accepts[i];
        const Ints tokens = part<Ints>(nb::object(drafts[i]), 0);
        std::vector<std::int32_t> came;
        for (int node : nb::cast<std::vector<int>>(accept[0])) {
            need(node >= 0 && node < int(tokens.shape(0)), "a node that is not there");
            came.push_back(tokens(node));
        }
        came.push_back(nb::cast<int>(accept[1]));
        p.learn(*moods[i], came.data(), int(came.size()), since);
    }
}

}  // namespace

void bind_drafts(nb::module_& m) {
    nb::class_<ph::Suffixes>(m, "Suffixes")
        .def(nb::init<>())
        .def("extend", &extend, nb::arg("tokens"))
        .def("begin", &ph::Suffixes::begin)
        .def("__len__", &ph::Suffixes::size)
        .def("repeated",
             [](const ph::Suffixes& s) {
                 const auto at = s.repeated();
                 return std::make_tuple(at.state, at.length);
             })
        .def("follow", &follow, nb::arg("place"), nb::arg("tokens"))
        .def("draft", &draft_of, nb::arg("place"), nb::arg("most"), nb::arg("depth"), nb::arg("least"),
             nb::arg("faint"), nb::arg("match"))
        .def("likeliest", &likeliest, nb::arg("others"), nb::arg("end"), nb::arg("most"), nb::arg("depth"),
             nb::arg("faint"), nb::arg("longest"), nb::arg("enough"));
    nb::class_<ph::Ngrams>(m, "Ngrams")
        .def("__init__",
             [](ph::Ngrams* self, int longest, int shortest) {
                 need(shortest >= 1 && shortest <= longest && longest <= 64, "from 1 to 64 tokens");
                 new (self) ph::Ngrams(longest, shortest);
             },
             nb::arg("longest"), nb::arg("shortest"))
        .def("extend",
             [](ph::Ngrams& g, const Tokens& tokens) {
                 need(g.size() + tokens.size() < (std::size_t(1) << 30), "more tokens than a text may have");
                 g.extend(tokens.data(), tokens.size());
             },
             nb::arg("tokens"))
        .def("__len__", &ph::Ngrams::size)
        .def("onward",
             [](const ph::Ngrams& g, int n) {
                 need(n >= 0 && n <= 4096, "from 0 to 4096 tokens");
                 return array_of(g.onward(std::size_t(n)));
             },
             nb::arg("n"))
        .def("right",
             [](const ph::Ngrams& g, int n) {
                 need(n >= 0 && n <= 64, "from 0 to 64 tokens");
                 return g.right(n);
             },
             nb::arg("n"))
        .def("copied",
             [](const ph::Ngrams& g, int n) {
                 need(n >= 0 && n <= 4096, "from 0 to 4096 tokens");
                 return std::make_tuple(array_of(g.copied(std::size_t(n))), g.run());
             },
             nb::arg("n"));
    nb::class_<ph::Odds>(m, "Odds")
        .def("__init__",
             [](ph::Odds* self, int n_drafters) {
                 need(n_drafters >= 0 && n_drafters <= 1024, "from 0 to 1024 drafters");
                 new (self) ph::Odds(n_drafters);
             },
             nb::arg("n_drafters"))
        .def("chance",
             [](const ph::Odds& o, int kind) {
                 need(kind >= 0 && kind < o.kinds(), "a kind that is not there");
                 return o.chance(kind);
             })
        .def("note",
             [](ph::Odds& o, int kind, bool stood) {
                 need(kind >= 0 && kind < o.kinds(), "a kind that is not there");
                 o.note(kind, stood);
             });
    nb::class_<ph::Forest>(m, "Forest")
        .def(nb::init<ph::Odds&>(), nb::keep_alive<1, 2>(), nb::arg("odds"))
        .def("grow", &grow, nb::arg("shift"), nb::arg("drawn"), nb::arg("drafts"), nb::arg("most"))
        .def("falling", &ph::Forest::falling)
        .def("run", &run_first, nb::arg("n"))
        .def("likely",
             [](const ph::Forest& f, int tree, int by) {
                 need(tree >= 0 && tree < f.size(), "a tree that is not there");
                 return f.likely(tree, by);
             },
             nb::arg("tree"), nb::arg("by"))
        .def("draft", &draft_from, nb::arg("tree"), nb::arg("nodes"))
        .def("learn",
             [](ph::Forest& f, int tree, const Tokens& tokens) {
                 need(tree >= 0 && tree < f.size(), "a tree that is not there");
                 auto found = f.learn(tree, tokens.data(), int(tokens.size()));
                 return std::make_tuple(std::move(found.shift), std::move(found.run), std::move(found.stood));
             },
             nb::arg("tree"), nb::arg("tokens"))
        .def("nodes",
             [](const ph::Forest& f, int tree) {
                 need(tree >= 0 && tree < f.size(), "a tree that is not there");
                 std::vector<std::tuple<int, int, int, double>> out;
                 for (const auto& n : f.nodes(tree)) out.emplace_back(n.token, n.parent, n.by, n.chance);
                 return out;
             },
             nb::arg("tree"));
    nb::class_<ph::Price>(m, "Price")
        .def(nb::init<>())
        .def("note", &ph::Price::note, nb::arg("seconds"))
        .def_rw("seconds", &ph::Price::seconds);
    nb::class_<ph::Mood>(m, "Mood")
        .def("__init__",
             [](ph::Mood* self, std::vector<double> gain, std::vector<int> failed, std::vector<std::int64_t> until) {
                 need(failed.size() == gain.size() && until.size() == gain.size(), "of each drafter one");
                 new (self) ph::Mood(std::move(gain), std::move(failed), std::move(until));
             },
             nb::arg("gain"), nb::arg("failed"), nb::arg("until"))
        .def("again",
             [](const ph::Mood& mood, std::int64_t now, const std::vector<bool>& cheap) {
                 need(cheap.size() == mood.gain.size(), "of each drafter one");
                 return mood.again(now, {cheap.begin(), cheap.end()});
             },
             nb::arg("now"), nb::arg("cheap"))
        .def("awake", &ph::Mood::awake, nb::arg("now"))
        .def("judge",
             [](ph::Mood& mood, int d, double gained, std::int64_t most, std::int64_t now) {
                 need(d >= 0 && std::size_t(d) < mood.gain.size(), "a drafter that is not there");
                 mood.judge(d, gained, most, now);
             },
             nb::arg("d"), nb::arg("gained"), nb::arg("most"), nb::arg("now"))
        .def("rests", [](const ph::Mood& mood, int d) { return mood.gain.at(std::size_t(d)) <= 0; }, nb::arg("d"))
        .def_rw("shift", &ph::Mood::shift)
        .def_rw("gain", &ph::Mood::gain)
        .def_rw("failed", &ph::Mood::failed)
        .def_rw("until", &ph::Mood::until)
        .def_ro("asked", &ph::Mood::asked)
        .def_ro("tried", &ph::Mood::tried)
        .def_rw("tree", &ph::Mood::tree);
    nb::class_<Named> panel(m, "Panel");
    panel.attr("HOPE") = ph::HOPE;
    panel.attr("RECENT") = ph::RECENT;
    panel.attr("IDLE") = ph::IDLE;
    panel.attr("MARGIN") = ph::MARGIN;
    panel.attr("TRIALS") = ph::TRIALS;
    panel
        .def("__init__",
             [](Named* self, std::vector<std::string> names, double spend, const std::vector<int>& telling) {
                 need(!names.empty() && names.size() <= 1024, "from 1 to 1024 drafters");
                 for (int d : telling) need(d >= 0 && std::size_t(d) < names.size(), "a drafter that is not there");
                 new (self) Named(std::move(names), spend, telling);
             },
             nb::arg("names"), nb::arg("spend"), nb::arg("telling"))
        .def("sleeps", [](Named& p, int n_seqs, bool same) { return p.sleeps(n_seqs, same); }, nb::arg("n_seqs"),
             nb::arg("same"))
        .def("hope",
             [](Named& p, ph::Mood& mood, int d) {
                 need_moods(p, {&mood}, 1);
                 need(d >= 0 && d < p.drafters(), "a drafter that is not there");
                 p.hope(mood, d);
             },
             nb::arg("mood"), nb::arg("d"))
        .def("goes_on", [](Named& p, bool same, int depth) { return p.goes_on(same, depth); }, nb::arg("same"),
             nb::arg("depth"))
        .def("wake", &wake, nb::arg("moods"), nb::arg("depths"), nb::arg("own"), nb::arg("step"))
        .def("begin", [](Named& p) { return p.begin(); })
        .def("choose", &choose, nb::arg("moods"), nb::arg("answers"), nb::arg("drawn"), nb::arg("nodes"),
             nb::arg("at"), nb::arg("price"), nb::arg("base"), nb::arg("read"), nb::arg("rows"))
        .def("learn", &learn, nb::arg("moods"), nb::arg("drafts"), nb::arg("accepts"))
        .def("told",
             [](Named& p, int d, double seconds) {
                 need(d >= 0 && d < p.drafters(), "a drafter that is not there");
                 p.tells[std::size_t(d)].note(seconds);
             },
             nb::arg("d"), nb::arg("seconds"))
        .def("judge",
             [](Named& p, ph::Mood& mood, const std::vector<int>& run, const std::vector<int>& stood, double own) {
                 need_moods(p, {&mood}, 1);
                 need(run.size() == stood.size() && (run.empty() || int(run.size()) == p.drafters()),
                      "of each drafter one");
                 p.judge(mood, run, stood, own);
             },
             nb::arg("mood"), nb::arg("run"), nb::arg("stood"), nb::arg("own"))
        .def("affords", [](Named& p, double seconds) { return p.affords(seconds); }, nb::arg("seconds"))
        .def("price",
             [](Named& p, int d, bool first) -> ph::Price& {
                 need(d >= 0 && d < p.drafters(), "a drafter that is not there");
                 return (first ? p.opens : p.proposes)[std::size_t(d)];
             },
             nb::arg("d"), nb::arg("first") = false, nb::rv_policy::reference_internal)
        .def_prop_rw("clock", [](const Named& p) { return p.clock; }, [](Named& p, std::int64_t x) { p.clock = x; })
        .def_prop_rw("purse", [](const Named& p) { return p.purse; }, [](Named& p, double x) { p.purse = x; })
        .def_prop_rw("steps", [](const Named& p) { return p.steps; }, [](Named& p, double x) { p.steps = x; })
        .def_prop_rw("token", [](const Named& p) { return p.token; }, [](Named& p, double x) { p.token = x; })
        .def_prop_rw("row", [](const Named& p) { return p.row; }, [](Named& p, double x) { p.row = x; });
    m.def("worth",
          [](const std::vector<double>& at, double price, const std::vector<double>& chances, int n_seqs, int base,
             double read, int most, double margin) {
              const ph::Curve c = curve_of(at, price);
              need(c.at[0] > 0, "a curve");
              need(n_seqs >= 1 && base >= n_seqs && base < (1 << 20) && read >= 0 && margin > 0,
                   "rows, reads and a margin above 0");
              const int n = std::min(int(chances.size()), std::max(most, 0));
              const ph::Worth w = ph::worth(c, chances.data(), n, n_seqs, base, read, margin);
              return std::make_tuple(w.n, w.token, w.row);
          },
          nb::arg("at"), nb::arg("price"), nb::arg("chances"), nb::arg("n_seqs"), nb::arg("base"), nb::arg("read"),
          nb::arg("most"), nb::arg("margin"));
    m.def("hang", &hang, nb::arg("rows").noconvert(), nb::arg("at"), nb::arg("n_prompt"), nb::arg("tokens"),
          nb::arg("parents"));
    m.def("fit_steps", &fit_steps, nb::arg("steps"), nb::arg("read"));
}
