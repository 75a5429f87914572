// Loops that find out what the machine can do at most: reads from memory, and operations on registers.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.h"

namespace ph {

// One table per instruction set. The loops do nothing useful; each returns a value that depends on all
// of its work, so that none of it can be left out.
struct ProbeLoops {
    // Read n bytes, a multiple of 4,096; p is aligned to 64.
    float (*read)(const void* p, std::size_t n);
    // n rounds of independent multiply-adds, and how many operations (two for a multiply-add) one
    // round has. Null where the set has no instruction for them.
    struct Peak {
        float (*loop)(std::size_t n);
        double per_round;
    };
    Peak fp32, bf16, int8;
};

#define PH_DECLARE_PROBE(name) \
    namespace name { extern const ProbeLoops probe_loops; }
PH_FOR_EACH_ISA(PH_DECLARE_PROBE)
#undef PH_DECLARE_PROBE

// Runs the loops of the set in use on several threads at once, over memory of which each thread first
// wrote its own part. Throws std::invalid_argument for numbers of threads or bytes that do not fit.
class Probe {
public:
    Probe(int n_threads, std::size_t bytes);
    ~Probe();
    Probe(const Probe&) = delete;
    Probe& operator=(const Probe&) = delete;

    // Bytes a second of a working set of `bytes`, which caches may hold, once after a first time.
    double read(int n_threads, std::size_t bytes) const;
    // Operations a second; kind: fp32, bf16 or int8. 0 where the set has no instruction.
    double peak(const std::string& kind, int n_threads) const;
    // Seconds for a cache line to go to another core and back: the best of short runs, as many as some
    // milliseconds allow; 0 where both threads were never on a core at once for long enough.
    static double round_trip();

private:
    void check(int n_threads) const;

    int n_;
    std::size_t share_;  // bytes of a thread
    char* data_ = nullptr;
};

}  // namespace ph
