// The description of an affine univariate map, as the operators receive it.
#pragma once

#include <cstdint>

namespace flowkern {

// The order of flowkern/univariate.py's SCALES and PLACEMENTS.
enum class Scale : int64_t { none, exp, clamped_exp, soft_clipped_exp, softplus, sigmoid, tanh };
enum class Placement : int64_t { scale_shift, standardize, shift_scale, gate };

struct UnivariateMap {
  Scale scale;
  Placement placement;
  double c0, c1;  // constants of the scale map, see univariate.py
};

}  // namespace flowkern
