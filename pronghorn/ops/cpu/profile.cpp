// What the parts of a plan are, for whoever reads a profile.
#include "profile.h"

#include "executor.h"

namespace ph {

std::vector<Executor::Portion> Executor::portions() const {
    static const char* const names[] = {"embed", "wpe", "norm", "linear", "rope", "attend", "act", "glu",
                                        "add", "scale", "moe", "tap", "head", "narrow", "keep", "gated", "gather"};
    std::vector<Portion> out;
    for (const Part& part : parts_) {
        Portion p;
        for (int i : part.ops) {
            p.ops.emplace_back(names[int(ops_[i].what)]);
            p.mats.insert(p.mats.end(), ops_[i].mats.begin(), ops_[i].mats.end());
        }
        out.push_back(std::move(p));
    }
    return out;
}

}  // namespace ph
