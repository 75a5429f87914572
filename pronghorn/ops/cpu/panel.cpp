#include "panel.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "profile.h"

namespace ph {
namespace {

constexpr int DOUBLINGS = 8;   // of a rest
constexpr double CHEAP = 0.1;  // of a step: a drafter that takes less to ask gets another chance in each sequence
constexpr int STEADY = 16;     // steps in a row, at most, for which is not asked anew who is asked
constexpr int SAVED = 64;      // steps whose share for attempts is kept
constexpr double DEAR = 0.02;  // of a step: where learning takes more, it is done in every second one
constexpr double UNPRICED = 0.2;  // chance above which nodes run while nothing is known of costs
constexpr std::int64_t FOREVER = std::int64_t(1) << 60;

std::int64_t steps_of(double seconds, double share) {
    return share > 0 ? std::int64_t(std::min(std::ceil(seconds / share), 1e15)) : FOREVER;
}

}  // namespace

void Price::note(double took) {
    ++times;
    if (times == 2) seconds = took;
    if (times > 2) seconds += std::max(0.1, 1.0 / double(times - 1)) * (std::min(took, 3 * seconds) - seconds);
}

// ------------------------------------------------------------------ of one sequence

Mood::Mood(std::vector<double> gain_, std::vector<int> failed_, std::vector<std::int64_t> until_)
    : shift(gain_.size(), 0.0),
      gain(std::move(gain_)),
      failed(std::move(failed_)),
      until(std::move(until_)),
      met(gain.size(), 0),
      opens(gain.size(), 0) {}

Mood Mood::again(std::int64_t now, const std::vector<char>& cheap) const {
    Mood out(gain, failed, until);
    for (std::size_t d = 0; d < cheap.size(); ++d) {
        if (!cheap[d]) continue;
        out.failed[d] = 0;
        out.until[d] = now;
    }
    return out;
}

std::vector<int> Mood::awake(std::int64_t now) const {
    std::vector<int> out;
    for (std::size_t d = 0; d < until.size(); ++d) {
        if (until[d] <= now) out.push_back(int(d));
    }
    return out;
}

void Mood::judge(int d, double gained, std::int64_t most, std::int64_t now, double weight) {
    const auto i = std::size_t(d);
    gain[i] += weight * (gained - gain[i]);
    if (gained > 0) {  // asked again at once, to see whether that lasts
        failed[i] = gain[i] > 0 ? 0 : failed[i] / 2;
    } else if (gain[i] <= 0) {
        ++failed[i];
        const int widest = std::bit_width(std::uint64_t(std::max<std::int64_t>(most, 1))) - 1;
        const std::int64_t rest = std::int64_t(1) << std::min({failed[i], DOUBLINGS, widest});
        until[i] = most > 0 ? (now + 2 * rest) / rest * rest : now + 1;
    }
}

// ------------------------------------------------------------------ of all

Panel::Panel(int n, double spend, const std::vector<int>& telling)
    : opens(std::size_t(n)), proposes(opens), tells(opens), odds_(n), forest_(odds_), spend_(spend),
      telling_(opens.size(), 0) {
    for (int d : telling) telling_[std::size_t(d)] = 1;
    for (int d = 0; d < n; ++d) {  // half is the first one's, a quarter the second's
        shares_.push_back(n > 1 ? spend / double(1 << std::min({d + 1, n - 1, 30})) : spend);
    }
    usual_.emplace(0, Mood(std::vector<double>(opens.size(), HOPE), std::vector<int>(opens.size(), 0),
                           std::vector<std::int64_t>(opens.size(), 0)));
}

double Panel::asks(int d, bool first) const {
    const auto i = std::size_t(d);
    return (first ? opens[i] : proposes[i]).seconds + tells[i].seconds;
}

bool Panel::sleeps(int n, bool same) {
    ++clock;
    n_seqs = n;
    if (same && clock < until_) return true;
    start_ = nanoseconds();
    return false;
}

void Panel::hope(Mood& mood, int d) {
    const auto i = std::size_t(d);
    mood.until[i] = std::min(mood.until[i], clock);
    mood.gain[i] = HOPE;
    until_ = steady_ = 0;
    start_ = nanoseconds();
}

bool Panel::goes_on(bool same, int depth) {
    teaches_ = clock % 2 == 0 || learns.seconds < DEAR * step;
    return same && depth > 0 && clock < steady_;
}

Panel::Asked Panel::wake(const std::vector<One>& seqs, double step_) {
    const std::int64_t now = clock;
    const int n = drafters();
    const double share = spend_ * step_, most = SAVED * share, own = looks.seconds;
    const bool alone = seqs.size() == 1;
    purse = std::min(purse + double(now - filled_) * share, most);
    filled_ = now;
    step = step_;
    teaches_ = true;
    std::vector<std::vector<int>> of(std::size_t(n), std::vector<int>{}), tries = of;
    bool able = true, tried = false;
    for (std::size_t i = 0; i < seqs.size(); ++i) {
        Mood& mood = *seqs[i].mood;
        mood.asked.clear();
        mood.tried.clear();
        able = able && seqs[i].depth > 0 && seqs[i].begun;
        if (seqs[i].depth <= 0) continue;
        for (int d : mood.awake(now)) {
            const auto at = std::size_t(d);
            if (mood.gain[at] > 0) {
                mood.asked.push_back(d);
                of[at].push_back(int(i));
            } else if (seqs[i].begun && !(alone && telling_[at])) {  // its end is the model's own by now
                tries[at].push_back(int(i));
            }
        }
    }
    double left = purse;
    std::int64_t until = FOREVER;
    for (int d = 0; d < n; ++d) {
        const auto at = std::size_t(d);
        double price = 0.0;
        for (int i : tries[at]) {
            const Mood& mood = *seqs[std::size_t(i)].mood;
            price += std::min(asks(d, !mood.met[at]) + (mood.asked.empty() ? own : 0.0), step);
        }
        if (tries[at].empty()) continue;
        if (left < std::min(price, most)) {
            until = std::min(until, now + steps_of(std::min(price, most) - left, share));
            continue;
        }
        left -= price;
        tried = true;
        for (int i : tries[at]) {
            Mood& mood = *seqs[std::size_t(i)].mood;
            of[at].push_back(i);
            mood.asked.push_back(d);
            mood.tried.push_back(d);
        }
    }
    for (int d = 0; d < n; ++d) {  // there is no point in waking to what cannot be paid for
        const auto at = std::size_t(d);
        std::int64_t wakes = FOREVER;
        bool first = false;
        for (const One& s : seqs) {
            if (s.mood->until[at] <= now || (alone && telling_[at])) continue;
            wakes = std::min(wakes, s.mood->until[at]);
            first = first || !s.mood->met[at];
        }
        if (wakes == FOREVER) continue;
        const double missing = std::min(asks(d, first) + own, most) - left;
        until = std::min(until, std::max(wakes, missing > 0 ? now + steps_of(missing, share) : now));
    }
    Asked asked;
    for (int d = 0; d < n; ++d) {
        if (!of[std::size_t(d)].empty()) asked.emplace_back(d, std::move(of[std::size_t(d)]));
    }
    until_ = able && asked.empty() ? until : 0;
    steady_ = able && !asked.empty() && !tried ? std::min(until, now + STEADY) : 0;
    return asked;
}

Mood Panel::begin() {
    std::vector<char> cheap;
    for (int d = 0; d < drafters(); ++d) cheap.push_back(asks(d, true) < CHEAP * step);
    return of_size().again(clock, cheap);
}

// What is usual among so many sequences; at first what it was among others.
Mood& Panel::of_size() {
    const int size = std::bit_width(unsigned(std::max(n_seqs, 0)));
    const auto found = usual_.find(size);
    if (found != usual_.end()) return found->second;
    const auto nearest = std::min_element(usual_.begin(), usual_.end(), [&](const auto& a, const auto& b) {
        return std::abs(a.first - size) < std::abs(b.first - size);
    });
    const Mood& other = nearest->second;
    return usual_.emplace(size, Mood(other.gain, other.failed, other.until)).first->second;
}

std::vector<std::vector<int>> Panel::choose(const Curve& curve, int base, double read, int rows) {
    const std::vector<double> chances = forest_.falling();
    int n = std::clamp(rows, 0, int(chances.size()));
    if (curve.at[0] > 0) {
        const Worth w = worth(curve, chances.data(), n, n_seqs, base, read, MARGIN);
        n = w.n;
        token = w.token;
        row = w.row;
    } else {  // nothing measured yet
        n = int(std::count_if(chances.begin(), chances.begin() + n, [](double c) { return c > UNPRICED; }));
        token = row = 0.0;
    }
    std::vector<std::vector<int>> chosen = forest_.take(n);
    for (int t = 0; t < int(chosen.size()); ++t) {
        for (int d = 0; d < drafters() && chosen[std::size_t(t)].empty(); ++d) {
            std::vector<int> probe = forest_.likely(t, d);
            probe.resize(std::min(probe.size(), std::size_t(std::max(rows - n, 0))));
            if (!probe.empty() && affords(double(probe.size()) * step / std::max(base, 1))) chosen[std::size_t(t)] = std::move(probe);
        }
    }
    return chosen;
}

void Panel::asked(int d, double seconds, const std::vector<Mood*>& moods, const std::vector<int>& of) {
    const auto at = std::size_t(d);
    std::size_t first = 0;
    for (int i : of) {
        Mood& mood = *moods[std::size_t(i)];
        mood.opens[at] = !mood.met[at];
        mood.met[at] = 1;
        first += std::size_t(mood.opens[at]);
    }
    (2 * first > of.size() ? opens : proposes)[at].note(seconds / double(of.size()));
}

void Panel::settle(const std::vector<Mood*>& moods, double asking) {
    steps += step;
    int n = 0;
    bool found = false;
    for (Mood* mood : moods) {
        n += !mood->asked.empty();
        found = found || mood->tree >= 0;
        if (!teaches_) mood->tree = -1;
        if (teaches_ && !mood->asked.empty() && mood->tree < 0) judge(*mood, {}, {}, looks.seconds);
    }
    if (!teaches_ || !n) return;
    const double all = double(nanoseconds() - start_) * 1e-9;
    (found ? chooses : looks).note(std::max(0.0, all - asking) / n);
}

void Panel::learn(Mood& mood, const std::int32_t* tokens, int n, std::int64_t since) {
    const Forest::Lesson lesson = forest_.learn(mood.tree, tokens, n);
    mood.shift = lesson.shift;
    mood.tree = -1;
    judge(mood, lesson.run, lesson.stood, chooses.seconds + learns.seconds);
    learns.note(double(nanoseconds() - since) * 1e-9);
}

void Panel::judge(Mood& mood, const std::vector<int>& run, const std::vector<int>& stood, double own) {
    Mood& usual = of_size();
    const int ran = int(std::count_if(run.begin(), run.end(), [](int n) { return n > 0; }));
    for (int d : mood.asked) {
        const auto at = std::size_t(d);
        const double seconds = std::min(asks(d, mood.opens[at]) + own / double(mood.asked.size()), step);
        double gained = (run.empty() ? 0.0 : stood[at] * token - run[at] * row) - seconds;
        if (gained <= 0 && std::find(mood.tried.begin(), mood.tried.end(), d) != mood.tried.end()) purse -= seconds;
        gained = step > 0 ? gained * n_seqs / step : 0.0;
        const double share = shares_[at] * step / std::max(n_seqs, 1);
        const double weight = n_seqs > 1 && !run.empty() && !ran ? IDLE : RECENT;
        mood.judge(d, gained, share > 0 ? std::int64_t(std::min(seconds / share, 1e15)) : 0, clock, weight);
        if (mood.gain[at] <= 0) steady_ = 0;
        usual.gain[at] += weight * (gained - usual.gain[at]);
        usual.failed[at] = mood.failed[at];
        usual.until[at] = mood.until[at];
    }
}

bool Panel::affords(double seconds) {
    if (!(seconds >= 0 && trials + seconds > 0 && trials + seconds <= TRIALS * steps)) return false;
    trials += seconds;
    return true;
}

}  // namespace ph
