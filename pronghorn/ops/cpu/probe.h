// Loops that find out what the machine can do at most: reads from memory, and operations on registers.
#pragma once

#include <cstddef>

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

}  // namespace ph
