// Affine univariate maps u -> v: a scale map turns a raw number into a positive scale s, a placement says where s
// and the shift t go. Written once for every number X, see math.h, with constants of type C.
#pragma once

#include "flowkern/math.h"
#include "flowkern/univariate_map.h"

namespace flowkern::FK_ISA {

template <class X>
struct ScaleValue {
  X s, log_s, slope;  // slope = d log s / d raw
};

template <class X, class C>
FK_INLINE ScaleValue<X> evaluate_scale(const UnivariateMapOf<C>& m, X a) {
  const X one = X{} + 1;
  switch (m.scale) {
    case Scale::none: return {one, X{}, X{}};
    case Scale::exp: return {exp(a), a, one};
    case Scale::clamped_exp: {  // the gradient passes straight through the clamp
      const X l = select(a < m.c0, X{} + m.c0, select(a > m.c1, X{} + m.c1, a));
      return {exp(l), l, one};
    }
    case Scale::soft_clipped_exp: {
      const X d = 1 / (1 + abs(a / m.c0));
      const X l = a * d;
      return {exp(l), l, d * d};
    }
    case Scale::softplus: {
      const X s = softplus(a) + m.c0;
      return {s, log(s), sigmoid(a) / s};
    }
    case Scale::sigmoid: {
      const X b = a + m.c0, p = sigmoid(b), q = sigmoid(-b), s = p + m.c1;
      if (m.c1 == 0) return {p, log_sigmoid(b), q};
      return {s, log(s), p * q / s};
    }
    case Scale::tanh: {
      const X h = tanh(a * m.c1), l = h * m.c0;
      return {exp(l), l, m.c0 * m.c1 * (1 - h * h)};
    }
  }
  __builtin_unreachable();
}

template <class X>
struct MapValue {
  X v, log_slope;  // the image and log |dv/du|
};

template <class X, class C>
FK_INLINE MapValue<X> map_forward(const UnivariateMapOf<C>& m, X u, X t, X a) {
  const ScaleValue<X> k = evaluate_scale(m, a);
  const X finite = u - u;  // NaN where the input is not finite, so that the log-det shows it
  switch (m.placement) {
    case Placement::scale_shift: return {u * k.s + t, k.log_s + finite};
    case Placement::standardize: return {(u - t) / k.s, finite - k.log_s};
    case Placement::shift_scale: return {(u + t) * k.s, k.log_s + finite};
    case Placement::gate: return {k.s * u + (1 - k.s) * t, k.log_s + finite};
  }
  __builtin_unreachable();
}

// u and log |du/dv| from v.
template <class X, class C>
FK_INLINE MapValue<X> map_inverse(const UnivariateMapOf<C>& m, X v, X t, X a) {
  const ScaleValue<X> k = evaluate_scale(m, a);
  const X finite = v - v;
  switch (m.placement) {
    case Placement::scale_shift: return {(v - t) / k.s, finite - k.log_s};
    case Placement::standardize: return {v * k.s + t, k.log_s + finite};
    case Placement::shift_scale: return {v / k.s - t, finite - k.log_s};
    case Placement::gate: return {(v - (1 - k.s) * t) / k.s, finite - k.log_s};
  }
  __builtin_unreachable();
}

template <class X>
struct MapGradient {
  X u, t, a;
};

// Cotangents of u, t and a from those of v and log |dv/du|.
template <class X, class C>
FK_INLINE MapGradient<X> map_backward(const UnivariateMapOf<C>& m, X u, X t, X a, X gv, X gl) {
  const ScaleValue<X> k = evaluate_scale(m, a);
  switch (m.placement) {
    case Placement::scale_shift: return {gv * k.s, gv, (gv * u * k.s + gl) * k.slope};
    case Placement::standardize: {
      const X g = gv / k.s;
      return {g, -g, (-g * (u - t) - gl) * k.slope};
    }
    case Placement::shift_scale: {
      const X g = gv * k.s;
      return {g, g, (g * (u + t) + gl) * k.slope};
    }
    case Placement::gate: return {gv * k.s, gv * (1 - k.s), (gv * (u - t) * k.s + gl) * k.slope};
  }
  __builtin_unreachable();
}

// dv/du.
template <class X, class C>
FK_INLINE X map_slope(const UnivariateMapOf<C>& m, X a) {
  const X s = evaluate_scale(m, a).s;
  return m.placement == Placement::standardize ? 1 / s : s;
}

}  // namespace flowkern::FK_ISA
