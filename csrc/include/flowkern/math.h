// Elementary functions of a number X: exp, log, log1p, expm1, tanh, atan, abs, normal_cdf, select, and what follows
// from them.
//
// X is a vector of doubles (VecD, Exact) or a double on the CPU, a float or a double on a GPU. `apply` evaluates a
// function of X on whatever the kernels hold: a vector of floats or doubles, or X itself. `tanh_of` is tanh of the
// same.
#pragma once

#ifdef FK_DEVICE
#include "cuda/math.h"
#else
#include "cpu/exact.h"
#endif

namespace flowkern::FK_ISA {

template <class X>
FK_INLINE X sigmoid(X x) {
  return 1 / (1 + exp(-x));
}
template <class X>
FK_INLINE X softplus(X x) {
  return select(x < 0, X{}, x) + log1p(exp(-abs(x)));
}
template <class X>
FK_INLINE X log_sigmoid(X x) {
  return select(x < 0, x, X{}) - log1p(exp(-abs(x)));
}

}  // namespace flowkern::FK_ISA
