// Monotonic rational-linear splines (Dolatabadi et al., 2020): every bin is divided in two, with a quotient of linear
// functions in either half; flowkern/univariate/rational_linear.py says what the numbers mean, splines.h what they have
// in common with others.
#pragma once

#include "flowkern/splines.h"

namespace flowkern::FK_ISA {
namespace splines {

struct RationalLinearPiece {
  static constexpr bool kDivided = true;

  template <class X>
  static FK_INLINE Curve<X> curve(const Bin<X>& b, X theta) {
    const Half<X> half(b, theta > b.divide);
    const X s = b.h / b.w, part = half.from_end(theta) / half.length, to = 1 / half.denominator(s, part);
    return {half.from_end(half.near * half.length * part * to), s * to * (s * to * half.near)};
  }

  template <class X>
  static FK_INLINE X root(const Bin<X>& b, X t) {
    const X of_first = b.divide * b.d0;
    const Half<X> half(b, t * (of_first + (1 - b.divide) * sqrt(b.d0 * b.d1)) > of_first);
    const X across = half.from_end(t), s = b.h / b.w, rest = half.length * half.near - across * half.middle;
    const X part = s * across / (s * across + select(rest > 0, rest, X{}));  // the rest is zero where the halves meet
    return half.from_end(half.length * part);
  }

  // By the derivatives of d length part / D and of log(d s^2 / D^2), d being the near derivative.
  template <class X>
  static FK_INLINE Cotangents<X> cotangents(const Bin<X>& b, X theta, X g_v, X g_log) {
    const auto second = theta > b.divide;
    const Half<X> half(b, second);
    const X s = b.h / b.w, near = half.near, far = select(second, b.d0, b.d1), sign = select(second, X{} - 1, X{} + 1);
    const X at = half.from_end(theta), part = at / half.length, to = 1 / half.denominator(s, part);
    const X g = sign * g_v * b.h * to, up = near * at * to, per_d = 2 * g_log * to, of_d = -(g * up + per_d);
    const X mean = (1 - half.length) * half.mean / 2;  // whose derivative by either is itself over the derivative
    const X of_near =
        g * at * to * (s * (1 - part) + part * mean) + g_log / near - per_d * part * (half.length + mean / near);
    const X of_far = of_d * part * mean / far;
    const X of_s = of_d * (1 - part) + 2 * g_log / s;
    const X of_theta = g_v * b.h * near * s * to * to - sign * per_d * (half.middle - s) / half.length;
    const X of_divide = sign * of_d * part * (s - half.mean) / half.length;
    const X per_w = 1 / b.w, of_u = of_theta * per_w;
    return {of_u,
            -of_u,
            -(of_theta * theta + of_s * s) * per_w,
            g_v,
            g_v * half.from_end(up) + of_s * per_w,
            select(second, of_far, of_near),
            select(second, of_near, of_far),
            of_divide};
  }

 private:
  // Seen from its own end of the bin, either half is the same curve: the part p of its length from there is the part
  // near length p / (s (1 - p) + middle p) of the bin's height. That is a sum of positive numbers.
  template <class X>
  struct Half {
    template <class Mask>
    FK_INLINE Half(const Bin<X>& b, Mask second)
        : sign(select(second, X{} - 1, X{} + 1)),
          end(select(second, X{} + 1, X{})),
          length(select(second, 1 - b.divide, b.divide)),
          near(select(second, b.d1, b.d0)),
          mean(sqrt(b.d0 * b.d1)),
          middle(length * near + (1 - length) * mean) {}

    FK_INLINE X from_end(X t) const { return end + sign * t; }  // and back
    FK_INLINE X denominator(X s, X part) const { return s * (1 - part) + middle * part; }

    X sign, end, length, near, mean, middle;
  };
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
