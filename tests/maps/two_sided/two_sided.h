// v = t + s (u - kink) with a slope of its own on either side of the kink: parameters t, log s above, log s below.
#pragma once

#include "flowkern/math.h"
#include "flowkern/univariate.h"

namespace flowkern::FK_ISA::maps {

template <class C>
class two_sided {
 public:
  static constexpr int kKind = 1000, kMost = 3;

  FK_INLINE explicit two_sided(const UnivariateMap& map) : kink_(static_cast<C>(map.constants[0])) {}

  template <class F>
  static FK_INLINE void specialised(const UnivariateMap& map, F f) {
    f(two_sided(map));
  }

  template <class X, class P>
  FK_INLINE MapValue<X> forward(X u, P p) const {
    const X d = u - kink_, l = select(d > 0, p(1), p(2));
    return {p(0) + exp(l) * d, l + (u - u)};
  }

  template <class X, class P>
  FK_INLINE MapValue<X> inverse(X v, P p) const {
    const X w = v - p(0), l = select(w > 0, p(1), p(2));
    return {exp(-l) * w + kink_, (v - v) - l};
  }

  template <class X, class P, class Put>
  FK_INLINE X backward(X u, P p, X g_v, X g_log, Put put) const {
    const X d = u - kink_, s = exp(select(d > 0, p(1), p(2))), g = g_v * s * d + g_log;
    put(0, g_v);
    put(1, select(d > 0, g, X{}));
    put(2, select(d > 0, X{}, g));
    return g_v * s;
  }

  template <class X, class P, class Put>
  FK_INLINE X inverse_backward(X u, P p, X g, X g_log, Put put) const {
    const X v = g / exp(select(u - kink_ > 0, p(1), p(2)));
    backward(u, p, -v, g_log, put);
    return v;
  }

  template <class X, class P, class Put>
  FK_INLINE X backward_of_inverse(X v, P p, X g, X g_log, Put put) const {
    return inverse_backward(inverse(v, p).value, p, g, g_log, put);
  }

 private:
  C kink_;
};

}  // namespace flowkern::FK_ISA::maps
