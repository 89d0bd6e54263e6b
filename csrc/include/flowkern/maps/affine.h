// Affine maps: a scale map turns a raw number into a positive scale s, a placement says where s and the shift t go.
// Parameter 0 of a feature is t, parameter 1 the raw number.
#pragma once

#include "flowkern/math.h"
#include "flowkern/univariate.h"

namespace flowkern::FK_ISA::maps {

// The order of flowkern/univariate/affine.py's SCALES and PLACEMENTS.
enum class Scale { none, exp, clamped_exp, soft_clipped_exp, softplus, sigmoid, tanh, atan };
enum class Placement { scale_shift, standardize, shift_scale, gate };

// S is Scale, or a type that converts to one value of it, so that the compiler knows which.
template <class C, class S = Scale>
class affine {
 public:
  static constexpr int kKind = 0, kMost = 2;

  FK_INLINE explicit affine(const UnivariateMap& map, S scale)
      : scale_(scale),
        placement_(static_cast<Placement>(map.options[1])),
        c0_(static_cast<C>(map.constants[0])),
        c1_(static_cast<C>(map.constants[1])) {}
  FK_INLINE explicit affine(const UnivariateMap& map) : affine(map, static_cast<Scale>(map.options[0])) {}

  template <class F>
  static FK_INLINE void specialised(const UnivariateMap& map, F f) {
    switch (static_cast<Scale>(map.options[0])) {
      case Scale::none: return f(affine<C, Constant<Scale::none>>(map, {}));
      case Scale::exp: return f(affine<C, Constant<Scale::exp>>(map, {}));
      case Scale::clamped_exp: return f(affine<C, Constant<Scale::clamped_exp>>(map, {}));
      case Scale::soft_clipped_exp: return f(affine<C, Constant<Scale::soft_clipped_exp>>(map, {}));
      case Scale::softplus: return f(affine<C, Constant<Scale::softplus>>(map, {}));
      case Scale::sigmoid: return f(affine<C, Constant<Scale::sigmoid>>(map, {}));
      case Scale::tanh: return f(affine<C, Constant<Scale::tanh>>(map, {}));
      case Scale::atan: return f(affine<C, Constant<Scale::atan>>(map, {}));
    }
  }

  template <class X, class P>
  FK_INLINE MapValue<X> forward(X u, P p) const {
    const X t = p(0);
    const ScaleValue<X> k = scale<X>(p);
    const X finite = u - u;  // NaN where the input is not finite, so that the log-det shows it
    switch (placement_) {
      case Placement::scale_shift: return {u * k.s + t, k.log_s + finite};
      case Placement::standardize: return {(u - t) / k.s, finite - k.log_s};
      case Placement::shift_scale: return {(u + t) * k.s, k.log_s + finite};
      case Placement::gate: return {k.s * u + (1 - k.s) * t, k.log_s + finite};
    }
    __builtin_unreachable();
  }

  template <class X, class P>
  FK_INLINE MapValue<X> inverse(X v, P p) const {
    const X t = p(0);
    const ScaleValue<X> k = scale<X>(p);
    const X finite = v - v;
    switch (placement_) {
      case Placement::scale_shift: return {(v - t) / k.s, finite - k.log_s};
      case Placement::standardize: return {v * k.s + t, k.log_s + finite};
      case Placement::shift_scale: return {v / k.s - t, finite - k.log_s};
      case Placement::gate: return {(v - (1 - k.s) * t) / k.s, finite - k.log_s};
    }
    __builtin_unreachable();
  }

  template <class X, class P, class Put>
  FK_INLINE X backward(X u, P p, X g_v, X g_log, Put put) const {
    return put_cotangents(u, p(0), scale<X>(p), g_v, g_log, put);
  }

  template <class X, class P, class Put>
  FK_INLINE X inverse_backward(X u, P p, X g, X g_log, Put put) const {
    const ScaleValue<X> k = scale<X>(p);
    const X v = g / (placement_ == Placement::standardize ? 1 / k.s : k.s);
    put_cotangents(u, p(0), k, -v, g_log, put);
    return v;
  }

  template <class X, class P, class Put>
  FK_INLINE X backward_of_inverse(X v, P p, X g, X g_log, Put put) const {
    return inverse_backward(inverse(v, p).value, p, g, g_log, put);
  }

 private:
  template <Scale Value>
  struct Constant {
    constexpr operator Scale() const { return Value; }
  };
  template <class X>
  struct ScaleValue {
    X s, log_s, slope;  // slope = d log s / d raw
  };

  template <class X, class P>
  FK_INLINE ScaleValue<X> scale(P parameter) const {
    const X one = X{} + 1;
    if (scale_ == Scale::none) return {one, X{}, X{}};
    const X a = parameter(1);
    switch (static_cast<Scale>(scale_)) {
      case Scale::none: break;
      case Scale::exp: return {exp(a), a, one};
      case Scale::clamped_exp: {  // the gradient passes straight through the clamp
        const X l = select(a < c0_, X{} + c0_, select(a > c1_, X{} + c1_, a));
        return {exp(l), l, one};
      }
      case Scale::soft_clipped_exp: {
        const X d = 1 / (1 + abs(a / c0_));
        const X l = a * d;
        return {exp(l), l, d * d};
      }
      case Scale::softplus: {
        const X s = softplus(a) + c0_;
        return {s, log(s), sigmoid(a) / s};
      }
      case Scale::sigmoid: {
        const X b = a + c0_, p = sigmoid(b), q = sigmoid(-b), s = p + c1_;
        if (c1_ == 0) return {p, log_sigmoid(b), q};
        return {s, log(s), p * q / s};
      }
      case Scale::tanh: {
        const X h = tanh(a * c1_), l = h * c0_;
        return {exp(l), l, c0_ * c1_ * (1 - h * h)};
      }
      case Scale::atan: {
        const X b = a * c1_, l = atan(b) * c0_;
        return {exp(l), l, c0_ * c1_ / (1 + b * b)};
      }
    }
    __builtin_unreachable();
  }

  template <class X, class Put>
  FK_INLINE X put_cotangents(X u, X t, const ScaleValue<X>& k, X g_v, X g_log, Put put) const {
    X g_u, g_t, g_log_s;  // of log s
    switch (placement_) {
      case Placement::scale_shift: g_u = g_v * k.s, g_t = g_v, g_log_s = g_v * u * k.s + g_log; break;
      case Placement::standardize: g_u = g_v / k.s, g_t = -g_u, g_log_s = -g_u * (u - t) - g_log; break;
      case Placement::shift_scale: g_u = g_v * k.s, g_t = g_u, g_log_s = g_u * (u + t) + g_log; break;
      case Placement::gate: g_u = g_v * k.s, g_t = g_v * (1 - k.s), g_log_s = g_v * (u - t) * k.s + g_log; break;
      default: __builtin_unreachable();
    }
    put(0, g_t);
    if (scale_ != Scale::none) put(1, g_log_s * k.slope);
    return g_u;
  }

  S scale_;
  Placement placement_;
  C c0_, c1_;
};

}  // namespace flowkern::FK_ISA::maps
