// Matrices of codes of 2, 3, 5 and 6 bits. Apart from those of 4 and 8 only so that both compile at once.
#include "codes_micro.h"

namespace ph::PH_ISA {

void linear_rare(const Linear& l, const void* x, size_t ldx, int n, int p0, int p1) {
    switch (l.mat->grid.bits) {
        case 2: return by_inputs<2, false>(l, x, ldx, n, p0, p1);
        case 3: return by_inputs<3, false>(l, x, ldx, n, p0, p1);
        case 5: return by_inputs<5, false>(l, x, ldx, n, p0, p1);
        default: return by_inputs<6, false>(l, x, ldx, n, p0, p1);
    }
}

}  // namespace ph::PH_ISA
