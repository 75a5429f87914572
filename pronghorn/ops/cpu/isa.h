// Which instruction set to run: what this machine has, and the table of kernels picked for it.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace ph {

// PRONGHORN_ISA names a set that is unknown, or that this machine cannot run.
struct IsaError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Sets that this machine can run, worst first. The first is always "baseline".
std::vector<std::string> supported_isas();

// The set in use: the best supported, or the one that PRONGHORN_ISA names. Read once, on first use.
// Throws IsaError.
const std::string& isa();

// Its kernels. Throws IsaError on first use; take the reference once, outside of hot loops.
const Kernels& kernels();

// The kernels of a set by name; "" is the set in use. Throws IsaError.
const Kernels& kernels_named(const std::string& name);

}  // namespace ph
