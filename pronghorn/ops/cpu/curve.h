// What steps cost: a curve through the times that steps took, see pronghorn/cost.py.
#pragma once

#include <cstddef>
#include <vector>

namespace ph {

constexpr int KNOTS = 13;  // rows between which time is a straight line: 1, 2, 4, ... 4096

struct Curve {
    double at[KNOTS] = {};  // seconds of so many rows that read nothing, never falling
    double read = 0;        // seconds of each row of KV that is read
};

// Fit a curve to n steps, each with rows, KV rows read and seconds, all above 0, by least absolute relative errors.
// read: the price of a read as it was.
Curve fit_curve(const double* rows, const double* reads, const double* seconds, std::size_t n, double read);

// Seconds of a step of `rows` that reads `read`, and with 1 to `more` further rows that read `each`.
std::vector<double> line_of(const Curve& curve, int rows, double read, int more, double each);

}  // namespace ph
