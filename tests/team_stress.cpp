// Random phases on teams of several sizes: each item runs once, after all items of the phase before, and
// numbers of items change under the feet of threads that are late. test_team.py builds and runs this,
// also under ThreadSanitizer.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>

#include "team.h"

namespace {

constexpr int N_PHASES = 24, MOST = 12;

// What late threads read: the plan of the run under way, of the next one, or some of both.
std::atomic<int> n_phases{0}, n_items[N_PHASES];
std::atomic<int> n_varying{1};  // changes within a run
std::atomic<std::uint32_t> lag{0};  // in thousandths of the items
std::atomic<int> late{-1};          // the thread that is late on its way, or none

// Written inside items only.
int hits[N_PHASES][MOST], varying_hits[N_PHASES][MOST], varying[N_PHASES];

void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::_Exit(1);
}

// Now and then a thread is late, inside an item or on its way to one.
void dawdle(std::uint32_t odds) {
    thread_local std::minstd_rand rng{std::random_device{}()};
    if (rng() % 1000 < odds) usleep(rng() % 300);
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = std::atoi(argv[1]), n_runs = argc > 2 ? std::atoi(argv[2]) : 1000;
    ph::Team* team = nullptr;
    const ph::Team::Walk walk = [&](ph::Lane& lane) {
        const int n = n_phases.load();
        for (int p = 0; p < n; ++p) {
            if (lane.id == late.load()) dawdle(300);
            if (p % 8 == 7) {
                team->each(lane, 1, [&, p](int) {
                    varying[p] = 1 + (n_items[p - 1].load() * 7 + p) % MOST;
                    n_varying = varying[p];
                    ++hits[p][0];
                });
                if (lane.id == late.load()) dawdle(300);
                team->each_of_varying(lane, n_varying.load(), [&, p](int i) {
                    if (hits[p][0] != 1 || i >= varying[p]) fail("an item that is not there");
                    ++varying_hits[p][i];
                    dawdle(lag.load());
                });
                continue;
            }
            team->each(lane, n_items[p].load(), [&, p](int i) {
                const int before = p > 0 && p % 8 != 0 ? n_items[p - 1].load() : 0;
                if (i >= n_items[p].load()) fail("an item that is not there");
                for (int j = 0; j < before; ++j) {
                    if (hits[p - 1][j] != 1) fail("a phase began before the one before it was done");
                }
                dawdle(lag.load());
                ++hits[p][i];
                if (i == MOST - 1) throw std::runtime_error("the last item");
            });
        }
    };
    ph::Team own(threads);
    team = &own;
    std::minstd_rand rng{7};
    for (int run = 0; run < n_runs; ++run) {
        n_phases = int(rng() % N_PHASES) + 1;
        bool throws = false;
        const bool few = rng() % 2;
        for (int p = 0; p < N_PHASES; ++p) {
            n_items[p] = int(rng() % (few ? 2 : MOST + 1));
            for (int& h : hits[p]) h = 0;
            for (int& h : varying_hits[p]) h = 0;
            throws |= p < n_phases && p % 8 != 7 && n_items[p] == MOST;
        }
        lag = rng() % 4 ? 0 : 100;
        late = int(rng() % 3) * int(rng() % threads);
        if (rng() % 50 == 0) usleep(3000);  // the others fall asleep
        // Now and then a function that is gone after its run.
        const auto brief = std::make_unique<ph::Team::Walk>(walk);
        const bool is_brief = rng() % 4 == 0;
        bool thrown = false;
        try {
            own.run(is_brief ? *brief : walk);
        } catch (const std::runtime_error&) {
            thrown = true;
        }
        if (is_brief) own.settle();
        if (thrown != throws) fail("an exception that was lost, or came from nowhere");
        for (int p = 0; p < n_phases; ++p) {
            for (int i = 0; i < (p % 8 == 7 ? 1 : n_items[p].load()); ++i) {
                if (hits[p][i] != 1) fail("an item that ran twice or never");
            }
            for (int i = 0; p % 8 == 7 && i < MOST; ++i) {
                if (varying_hits[p][i] != (i < varying[p])) fail("a varying item, twice or never");
            }
        }
    }
    return 0;
}
