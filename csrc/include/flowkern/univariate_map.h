// The description of an affine univariate map, as the operators receive it.
#pragma once

namespace flowkern {

// The order of flowkern/univariate.py's SCALES and PLACEMENTS.
enum class Scale { none, exp, clamped_exp, soft_clipped_exp, softplus, sigmoid, tanh };
enum class Placement { scale_shift, standardize, shift_scale, gate };

template <class C>
struct UnivariateMapOf {
  Scale scale;
  Placement placement;
  C c0, c1;  // constants of the scale map, see univariate.py
};
using UnivariateMap = UnivariateMapOf<double>;

}  // namespace flowkern
