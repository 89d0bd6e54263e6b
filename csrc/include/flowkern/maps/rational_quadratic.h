// Monotonic rational-quadratic splines (Durkan et al., 2019): in every bin a quotient of two quadratic polynomials;
// flowkern/univariate/rational_quadratic.py says what the numbers mean, splines.h what they have in common with others.
#pragma once

#include "flowkern/splines.h"

namespace flowkern::FK_ISA {
namespace splines {

struct RationalQuadraticPiece {
  static constexpr bool kDivided = false;

  template <class X>
  struct Place {
    X theta;
  };

  template <class X>
  static FK_INLINE Place<X> at(const Bin<X>&, X theta) {
    return {theta};
  }

  template <class X>
  static FK_INLINE Curve<X> curve(const Bin<X>& b, const Place<X>& at) {
    const X theta = at.theta;
    const X s = b.h / b.w, rest = 1 - theta, d = denominator(b, s, theta, rest),
            ratio = s / d;  // exactly one at the ends
    return {(s * theta * theta + b.d0 * theta * rest) / d, ratio * (ratio * slope_numerator(b, s, theta, rest))};
  }

  // Where in its bin the curve has the part t of the height: the discriminant b^2 - 4 a c as a sum of squares, and
  // b + its root without a difference of like numbers.
  template <class X>
  static FK_INLINE Place<X> root(const Bin<X>& b, X t) {
    const X s = b.h / b.w, q = b.d0 * (1 - t) - b.d1 * t, product = 4 * s * s * t * (1 - t);
    const X r = sqrt(q * q + product), sum = select(q > 0, q + r, product / (r - select(q > 0, X{}, q)));
    return {within_a_bin(2 * s * t / (2 * s * t + sum))};
  }

  // By the derivatives of y0 + h N / D and of log(s^2 M / D^2), N, D and M being functions of theta, s, d0 and d1.
  template <class X>
  static FK_INLINE PieceCotangents<X> cotangents(const Bin<X>& b, const Place<X>& at, X g_v, X g_log) {
    const X theta = at.theta;
    const X s = b.h / b.w, rest = 1 - theta, product = theta * rest;
    const X to = 1 / denominator(b, s, theta, rest), m = slope_numerator(b, s, theta, rest), per_m = g_log / m;
    const X value = (s * theta * theta + b.d0 * product) * to, per_d = 2 * g_log * to, g = g_v * b.h * to;
    const X of_theta = g * s * m * to + per_m * 2 * (b.d1 * theta + s * (rest - theta) - b.d0 * rest) -
                       per_d * (rest - theta) * (b.d0 + b.d1 - 2 * s);
    const X of_s = g * product * (b.d1 * theta * theta - b.d0 * rest * rest) * to + 2 * g_log / s +
                   per_m * 2 * product - per_d * (theta * theta + rest * rest);
    const X of_d0 = g * product * (s * rest * rest + b.d1 * product) * to + per_m * rest * rest - per_d * product;
    const X of_d1 = per_m * theta * theta - g * product * value - per_d * product;
    return {of_theta, of_s, of_d0, of_d1, X{}};
  }

 private:
  // s + (d0 + d1 - 2 s) theta (1 - theta), as a sum of positive numbers.
  template <class X>
  static FK_INLINE X denominator(const Bin<X>& b, X s, X theta, X rest) {
    return s * (theta * theta + rest * rest) + (b.d0 + b.d1) * theta * rest;
  }
  template <class X>
  static FK_INLINE X slope_numerator(const Bin<X>& b, X s, X theta, X rest) {
    return b.d1 * theta * theta + 2 * s * theta * rest + b.d0 * rest * rest;
  }
};

}  // namespace splines

namespace maps {

// S is Parametrization, or a type that converts to one value of it, so that the compiler knows which.
template <class C, class S = splines::Parametrization>
class rational_quadratic : public splines::Spline<C, splines::RationalQuadraticPiece, S, splines::Tails> {
  using Parametrization = splines::Parametrization;
  using Spline = splines::Spline<C, splines::RationalQuadraticPiece, S, splines::Tails>;

 public:
  static constexpr int kKind = 1, kMost = 3 * splines::kMostBins + 1;

  FK_INLINE explicit rational_quadratic(const UnivariateMap& map, S parametrization)
      : Spline(map, parametrization, static_cast<splines::Tails>(map.options[1])) {}
  FK_INLINE explicit rational_quadratic(const UnivariateMap& map)
      : rational_quadratic(map, static_cast<Parametrization>(map.options[2])) {}

  template <class F>
  static FK_INLINE void specialised(const UnivariateMap& map, F f) {
    using splines::Constant;
    switch (static_cast<Parametrization>(map.options[2])) {
      case Parametrization::soft_clipped_exp:
        return f(rational_quadratic<C, Constant<Parametrization::soft_clipped_exp>>(map, {}));
      case Parametrization::softplus: return f(rational_quadratic<C, Constant<Parametrization::softplus>>(map, {}));
    }
  }
};

}  // namespace maps
}  // namespace flowkern::FK_ISA
