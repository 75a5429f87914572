// Whom of several drafters it pays to ask, learned from what came of asking them.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "chances.h"

namespace ph {

constexpr double HOPE = 0.1;     // of a token's time, which asking a drafter is thought to gain at first
constexpr double RECENT = 0.05;  // weight of the last asking
constexpr double IDLE = 0.2;     // and of one in company whose drafts were not worth running: rows are dear there
constexpr double MARGIN = 1.05;  // by which a step with drafts must be better than one without
constexpr double TRIALS = 0.005;  // share of the time of steps for drafts that seem not to pay

// What something takes on the average, in seconds; 0 as long as nothing is known. The first time, which loads and
// allocates, is no measure, nor are times when somebody else had the processor.
struct Price {
    double seconds = 0.0;
    std::int64_t times = 0;

    void note(double took);
};

// What one sequence has taught: how far each drafter's chances are off, and who rests.
struct Mood {
    std::vector<double> shift;        // log-odds
    std::vector<double> gain;         // what asking it gained lately, in times that a token takes
    std::vector<int> failed;          // times in a row that this was not worth its time
    std::vector<std::int64_t> until;  // step from which on a drafter is asked again
    std::vector<char> met, opens;     // was asked before; was not before the last asking
    std::vector<int> asked, tried;    // in the last step, and those of them that did not pay so far
    int tree = -1;                    // its place in the forest of that step, -1 where there is nothing to learn

    Mood(std::vector<double> gain, std::vector<int> failed, std::vector<std::int64_t> until);

    // How another sequence begins in step `now`: with what was learned here, but those that are cheap to ask are
    // awake, as if they had not failed.
    Mood again(std::int64_t now, const std::vector<char>& cheap) const;

    // Who may be asked in step `now`.
    std::vector<int> awake(std::int64_t now) const;

    // Let a drafter whose asking does not pay rest, for `most` steps or a few more. gained: time that its nodes saved,
    // less what their rows and asking took. Those who rest equally long wake together: to ask several takes less than
    // to ask one now and another later.
    void judge(int d, double gained, std::int64_t most, std::int64_t now, double weight = RECENT);
};

// What all sequences have taught.
class Panel {
public:
    using Asked = std::vector<std::pair<int, std::vector<int>>>;  // drafters, and the sequences they are asked for

    // A sequence that may be asked for: rows that its draft may be deep, and whether it has tokens of its own.
    struct One {
        Mood* mood;
        int depth;
        bool begun;
    };

    // spend: share of the time of steps for asking drafters that did not pay; telling: those that know when they
    // would have been right, and where a sequence is alone are not asked at other times.
    Panel(int n, double spend, const std::vector<int>& telling);
    Panel(const Panel&) = delete;
    Panel& operator=(const Panel&) = delete;

    int drafters() const { return int(proposes.size()); }

    // A step of so many sequences begins. Whether nobody is asked in it; same: they are those of the step before. Most
    // steps are such where nothing can be foreseen, so it must cost next to nothing, however many they are.
    bool sleeps(int n, bool same);

    // One that rests but would have been right of late hopes anew.
    void hope(Mood& mood, int d);

    // Whether those are asked that were in the step before, since they all pay and nobody else wakes. depth: the least
    // of the sequences'.
    bool goes_on(bool same, int depth);

    // Who is asked, and for which sequences: those that pay; and those that did not pay so far, of each drafter all
    // together, once what is saved is enough for that. step: seconds that it takes without drafts.
    Asked wake(const std::vector<One>& seqs, double step);

    // Of a new sequence.
    Mood begin();

    // Which nodes of `forest()`, where the step's drafts are joined, to run: of each tree, parents first. A step of
    // `base` rows that reads `read` has room for so many `rows`. Of a tree that would run none some are tried, where
    // that is within its share.
    std::vector<std::vector<int>> choose(const Curve& curve, int base, double read, int rows);

    // A drafter was asked, which took so many seconds, for these of the sequences.
    void asked(int d, double seconds, const std::vector<Mood*>& moods, const std::vector<int>& of);

    // All were; `asking`: seconds of all. The trees of the sequences are set, -1 where they have no draft.
    void settle(const std::vector<Mood*>& moods, double asking);

    // The n tokens that came for a sequence, which has a tree. since: nanoseconds at which learning began.
    void learn(Mood& mood, const std::int32_t* tokens, int n, std::int64_t since);

    // Let those of a sequence that were not worth their time rest. run, stood: nodes by the drafter that proposed
    // them first, empty where there are none at all; own: seconds that the asking took beside the drafters.
    void judge(Mood& mood, const std::vector<int>& run, const std::vector<int>& stood, double own);

    // Whether a trial of so many seconds at most is within its share; if so it is booked.
    bool affords(double seconds);

    Forest& forest() { return forest_; }

    // What it takes, for one sequence: to ask each drafter, for the first time and later, and to tell it what came of
    // it; and, beside that, to ask where nobody drafts, to choose nodes and to learn from them.
    std::vector<Price> opens, proposes, tells;
    Price looks, chooses, learns;
    std::int64_t clock = 0;  // steps
    int n_seqs = 1;          // of this step
    double step = 0.0;       // seconds of the last one that was looked at
    double token = 0.0, row = 0.0;  // seconds that a token takes without drafts, and that a node's row adds
    double steps = 0.0, trials = 0.0;  // seconds of steps in which somebody was asked, and of trials
    double purse = 0.0;      // seconds that attempts may take

private:
    double asks(int d, bool first) const;
    Mood& of_size();

    Odds odds_;
    Forest forest_;
    double spend_;
    std::vector<char> telling_;
    std::vector<double> shares_;  // of what may be spent
    std::map<int, Mood> usual_;   // by the number of sequences, in powers of two: who pays alone need not in company
    std::int64_t filled_ = 0;  // step up to which the purse has its share
    std::int64_t until_ = 0;   // step up to which nobody is asked for the same sequences
    std::int64_t steady_ = 0;  // and up to which the same are
    bool teaches_ = true;      // this step
    std::int64_t start_ = 0;   // nanoseconds at which its asking began
};

}  // namespace ph
