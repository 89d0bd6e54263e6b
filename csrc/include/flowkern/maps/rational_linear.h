// Monotonic rational-linear splines (Dolatabadi et al., 2020): every bin is divided in two, with a quotient of linear
// functions in either half; flowkern/univariate/rational_linear.py says what the numbers mean, splines.h what they have
// in common with others.
#pragma once

#include "flowkern/splines.h"

namespace flowkern::FK_ISA {
namespace splines {

struct RationalLinearPiece {
  static constexpr bool kDivided = true;

  // A place in a half. Seen from its own end of the bin, either half is the same curve: the part p of its length from
  // there is the part near length p / (s (1 - p) + middle p) of the bin's height. That is a sum of positive numbers.
  template <class X>
  struct Place {
    template <class Mask>
    FK_INLINE Place(const Bin<X>& b, Mask second)
        : sign(select(second, X{} - 1, X{} + 1)),
          end(select(second, X{} + 1, X{})),
          length(select(second, 1 - b.divide, b.divide)),
          near(select(second, b.d1, b.d0)),
          far(select(second, b.d0, b.d1)),
          mean(sqrt(b.d0 * b.d1)),
          middle(length * near + (1 - length) * mean) {}

    FK_INLINE X from_end(X t) const { return end + sign * t; }  // and back
    FK_INLINE X denominator(X s) const { return s * rest + middle * part; }

    X sign, end, length, near, far, mean, middle;
    X theta, part, rest;  // part + rest = 1
  };

  template <class X>
  static FK_INLINE Place<X> at(const Bin<X>& b, X theta) {
    Place<X> at(b, theta > b.divide);
    at.theta = theta, at.part = at.from_end(theta) / at.length, at.rest = 1 - at.part;
    return at;
  }

  // Part and rest are exact where either is small.
  template <class X>
  static FK_INLINE Place<X> root(const Bin<X>& b, X t) {
    const X of_first = b.divide * b.d0;
    Place<X> at(b, t * (of_first + (1 - b.divide) * sqrt(b.d0 * b.d1)) > of_first);
    const X across = at.from_end(t), beyond = at.length * at.near - across * at.middle;
    const X part = across * b.h / b.w, rest = select(beyond > 0, beyond, X{}), sum = part + rest;
    at.part = part / sum, at.rest = rest / sum, at.theta = at.from_end(at.length * at.part);
    return at;
  }

  template <class X>
  static FK_INLINE Curve<X> curve(const Bin<X>& b, const Place<X>& at) {
    const X s = b.h / b.w, denominator = at.denominator(s), ratio = s / denominator;  // exactly one at the ends
    return {at.from_end(at.near * at.length * at.part / denominator), ratio * (ratio * at.near)};
  }

  // By the derivatives of near length part / D and of log(near s^2 / D^2).
  template <class X>
  static FK_INLINE PieceCotangents<X> cotangents(const Bin<X>& b, const Place<X>& at, X g_v, X g_log) {
    const X s = b.h / b.w, to = 1 / at.denominator(s), across = at.length * at.part, up = at.near * across * to;
    const X g = at.sign * g_v * b.h * to, per_d = 2 * g_log * to, of_d = -(g * up + per_d);
    const X mean = (1 - at.length) * at.mean / 2;  // whose derivative by either is itself over the derivative
    const X of_near = g * across * to * (s * at.rest + at.part * mean) + g_log / at.near -
                      per_d * at.part * (at.length + mean / at.near);
    const X of_far = of_d * at.part * mean / at.far;
    const X of_s = of_d * at.rest + 2 * g_log / s;
    const X of_theta = g_v * b.h * at.near * s * to * to - at.sign * per_d * (at.middle - s) / at.length;
    const X of_divide = at.sign * of_d * at.part * (s - at.mean) / at.length;
    const auto second = at.sign < 0;
    return {of_theta, of_s, select(second, of_far, of_near), select(second, of_near, of_far), of_divide};
  }
};

}  // namespace splines

namespace maps {

template <class C>
class rational_linear
    : public splines::Spline<C, splines::RationalLinearPiece, splines::Constant<splines::Parametrization::softplus>,
                             splines::Constant<splines::Tails::linear>> {
 public:
  static constexpr int kKind = 2, kMost = 4 * splines::kMostBins;

  FK_INLINE explicit rational_linear(const UnivariateMap& map) : rational_linear::Spline(map, {}, {}) {}

  template <class F>
  static FK_INLINE void specialised(const UnivariateMap& map, F f) {
    f(rational_linear(map));
  }
};

}  // namespace maps
}  // namespace flowkern::FK_ISA
