#include "curve.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace ph {
namespace {

constexpr int UNKNOWNS = KNOTS + 1;  // seconds of one row, the slope of each piece, the price of a read
constexpr int READ = UNKNOWNS - 1;
constexpr int FLAT = 8;       // rows that are taken to run at the price of one, until seen
constexpr int SURE = 3;       // steps of a size after which they are believed against the sizes around it
constexpr int ROUNDS = 6;     // of reweighting: least squares become least absolute errors
constexpr double FAINT = 1e-3;  // weight of what is only supposed, beside a step seen

using Row = std::array<double, UNKNOWNS>;

// What each unknown is multiplied with: 1, the rows within each piece, the reads.
Row columns(double rows, double reads) {
    Row a{};
    a[0] = 1;
    for (int i = 0; i + 1 < KNOTS; ++i) {
        const double low = double(1 << i), part = std::max(rows - low, 0.0);
        a[std::size_t(i + 1)] = i + 2 < KNOTS ? std::min(part, low) : part;
    }
    a[READ] = reads;
    return a;
}

double middle(std::vector<double>& of) {
    std::sort(of.begin(), of.end());
    return (of[(of.size() - 1) / 2] + of[of.size() / 2]) / 2;
}

// Solve the equations of the unknowns in use, by elimination; the others are 0.
Row solve(std::array<Row, UNKNOWNS> left, Row right, const std::array<bool, UNKNOWNS>& used) {
    std::array<int, UNKNOWNS> which{};
    int n = 0;
    for (int i = 0; i < UNKNOWNS; ++i) {
        if (used[std::size_t(i)]) which[std::size_t(n++)] = i;
    }
    const auto at = [&](int i, int j) -> double& { return left[std::size_t(which[i])][std::size_t(which[j])]; };
    const auto of = [&](int i) -> double& { return right[std::size_t(which[i])]; };
    for (int i = 0; i < n; ++i) {
        int best = i;
        for (int j = i + 1; j < n; ++j) best = std::abs(at(j, i)) > std::abs(at(best, i)) ? j : best;
        if (best != i) {
            for (int j = 0; j < n; ++j) std::swap(at(i, j), at(best, j));
            std::swap(of(i), of(best));
        }
        for (int j = i + 1; j < n; ++j) {
            const double by = at(j, i) / at(i, i);
            for (int k = i; k < n; ++k) at(j, k) -= by * at(i, k);
            of(j) -= by * of(i);
        }
    }
    Row x{};
    for (int i = n - 1; i >= 0; --i) {
        double rest = of(i);
        for (int j = i + 1; j < n; ++j) rest -= at(i, j) * x[std::size_t(which[j])];
        x[std::size_t(which[i])] = rest / at(i, i);
    }
    return x;
}

// Weighted least squares for a x = 1 with x >= 0, starting from x (Lawson and Hanson's active sets); of what the
// data leave open, the price of a read stays at `old`.
Row positive(const std::vector<Row>& a, const std::vector<double>& weight, double old, Row x) {
    std::array<Row, UNKNOWNS> left{};
    Row right{};
    for (std::size_t r = 0; r < a.size(); ++r) {
        for (std::size_t i = 0; i < UNKNOWNS; ++i) {
            const double w = weight[r] * a[r][i];
            if (w == 0) continue;
            right[i] += w;
            for (std::size_t j = 0; j < UNKNOWNS; ++j) left[i][j] += w * a[r][j];
        }
    }
    right[READ] += FAINT * old;
    for (std::size_t i = 0; i < UNKNOWNS; ++i) left[i][i] += 1e-9;
    left[READ][READ] += FAINT;
    std::array<bool, UNKNOWNS> used{};
    for (std::size_t i = 0; i < UNKNOWNS; ++i) {
        used[i] = x[i] > 0;
        x[i] = std::max(x[i], 0.0);
    }
    for (int round = 0; round < 4 * UNKNOWNS; ++round) {
        const Row best = solve(left, right, used);
        double step = 1;
        bool low = false;
        for (std::size_t i = 0; i < UNKNOWNS; ++i) {
            if (!used[i] || best[i] > 0) continue;
            low = true;
            step = std::min(step, x[i] / std::max(x[i] - best[i], 1e-300));
        }
        if (low) {
            for (std::size_t i = 0; i < UNKNOWNS; ++i) {
                x[i] += step * (best[i] - x[i]);
                if (used[i] && best[i] <= 0 && x[i] <= 1e-12) used[i] = false;
            }
            continue;
        }
        x = best;
        double gain = 1e-9;
        int next = -1;
        for (std::size_t i = 0; i < UNKNOWNS; ++i) {
            if (used[i]) continue;
            double g = right[i];
            for (std::size_t j = 0; j < UNKNOWNS; ++j) g -= left[i][j] * x[j];
            if (g > gain) gain = g, next = int(i);
        }
        if (next < 0) break;
        used[std::size_t(next)] = true;
    }
    return x;
}

}  // namespace

Curve fit_curve(const double* rows, const double* reads, const double* seconds, std::size_t n, double read) {
    Curve out;
    if (!n) return out;
    // sizes never seen: on the line between neighbours; beyond the last no cheaper than in proportion. One or two
    // steps of a size may have been held up: they count for less than that
    std::array<std::vector<double>, 64> sizes, pure;
    std::size_t most = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto group = std::size_t(std::clamp(std::ceil(std::log2(rows[i])), 0.0, 63.0));
        sizes[group].push_back(rows[i]);
        pure[group].push_back(std::max(seconds[i] - read * reads[i], 0.1 * seconds[i]));
        most = std::max(most, sizes[group].size());
    }
    std::vector<double> x_at, y_at;  // of the groups that are believed
    std::array<bool, KNOTS> doubt{};
    for (std::size_t g = 0; g < sizes.size(); ++g) {
        if (sizes[g].empty()) continue;
        if (most >= SURE && sizes[g].size() < SURE) {
            if (g < KNOTS) doubt[g] = true;
            continue;
        }
        x_at.push_back(middle(sizes[g]));
        y_at.push_back(middle(pure[g]));
    }
    const auto between = [&](double x) {
        if (x <= x_at.front()) return y_at.front();
        if (x >= x_at.back()) return y_at.back();
        const auto i = std::size_t(std::upper_bound(x_at.begin(), x_at.end(), x) - x_at.begin());
        return y_at[i - 1] + (y_at[i] - y_at[i - 1]) * (x - x_at[i - 1]) / (x_at[i] - x_at[i - 1]);
    };
    std::vector<Row> a;
    std::vector<double> weight;
    const auto add = [&](Row row, double y, double w) {
        for (double& v : row) v /= y;  // errors count in proportion
        a.push_back(row);
        weight.push_back(w);
    };
    for (std::size_t i = 0; i < n; ++i) add(columns(rows[i], reads[i]), seconds[i], 1);
    for (int i = 0; i < KNOTS; ++i) {
        const double knot = double(1 << i);
        add(columns(knot, 0), between(knot) * std::max(1.0, knot / std::max(x_at.back(), double(FLAT))),
            doubt[std::size_t(i)] ? SURE : FAINT);
    }
    Row size{};  // columns alike, for the solver
    for (const Row& row : a) {
        for (std::size_t i = 0; i < UNKNOWNS; ++i) size[i] += row[i] * row[i] / double(a.size());
    }
    for (double& s : size) s = std::sqrt(std::max(s, 1e-30));
    for (Row& row : a) {
        for (std::size_t i = 0; i < UNKNOWNS; ++i) row[i] /= size[i];
    }
    Row x;
    x.fill(1);
    x = positive(a, weight, read * size[READ], x);
    for (int round = 0; round < ROUNDS; ++round) {
        std::vector<double> now(weight);
        for (std::size_t r = 0; r < a.size(); ++r) {
            double said = 0;
            for (std::size_t i = 0; i < UNKNOWNS; ++i) said += a[r][i] * x[i];
            said = std::max(said, 0.05);  // in proportion to what is predicted: half the steps take longer
            now[r] /= said * std::max(std::abs(said - 1), 0.02 * said);
        }
        x = positive(a, now, read * size[READ], x);
    }
    for (std::size_t i = 0; i < UNKNOWNS; ++i) x[i] /= size[i];
    for (int i = 0; i < KNOTS; ++i) {
        const Row c = columns(double(1 << i), 0);
        for (std::size_t j = 0; j < READ; ++j) out.at[i] += c[j] * x[j];
    }
    out.read = x[READ];
    return out;
}

std::vector<double> line_of(const Curve& curve, int rows, double read, int more, double each) {
    std::vector<double> out(std::size_t(more) + 1);
    int i = 0;
    for (int n = 0; n <= more; ++n) {
        const int at = rows + n;
        while (i + 2 < KNOTS && 2 << i <= at) ++i;
        const double low = curve.at[i], high = curve.at[i + 1];
        const double own = at < 1 << (KNOTS - 1) ? low + (high - low) * (at - (1 << i)) / (1 << i)
                                                  : high * at / (1 << (KNOTS - 1));  // in proportion
        out[std::size_t(n)] = own + curve.read * (read + n * each);
    }
    return out;
}

}  // namespace ph
