// Elementary functions of the numbers that a GPU computes with, see flowkern/math.h.
#pragma once

#include "cuda/device.h"

namespace flowkern::FK_ISA {

// Whether a number is as exact as the result that is wanted.
template <class X>
constexpr bool kExact = false;
template <>
constexpr bool kExact<double> = true;

FK_INLINE float select(bool c, float a, float b) { return c ? a : b; }
FK_INLINE double select(bool c, double a, double b) { return c ? a : b; }

FK_INLINE float exp(float x) { return ::expf(x); }
FK_INLINE double exp(double x) { return ::exp(x); }
FK_INLINE float expm1(float x) { return ::expm1f(x); }
FK_INLINE double expm1(double x) { return ::expm1(x); }
FK_INLINE float log(float x) { return ::logf(x); }
FK_INLINE double log(double x) { return ::log(x); }
FK_INLINE float log1p(float x) { return ::log1pf(x); }
FK_INLINE double log1p(double x) { return ::log1p(x); }
FK_INLINE float tanh(float x) { return ::tanhf(x); }
FK_INLINE double tanh(double x) { return ::tanh(x); }
FK_INLINE float atan(float x) { return ::atanf(x); }
FK_INLINE double atan(double x) { return ::atan(x); }
FK_INLINE float abs(float x) { return ::fabsf(x); }
FK_INLINE float floor(float x) { return ::floorf(x); }
FK_INLINE float sqrt(float x) { return ::sqrtf(x); }
FK_INLINE double abs(double x) { return ::fabs(x); }
FK_INLINE float nearest(float x) { return ::rintf(x); }
FK_INLINE double nearest(double x) { return ::rint(x); }
FK_INLINE double floor(double x) { return ::floor(x); }
FK_INLINE double sqrt(double x) { return ::sqrt(x); }
FK_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }
FK_INLINE float normal_cdf(float x) { return 0.5f * ::erfcf(-x * 0.70710678f); }
FK_INLINE double normal_cdf(double x) { return 0.5 * ::erfc(-x * 0.70710678118654752); }

template <class T>
FK_INLINE T tanh_of(T x) {
  return tanh(x);
}

template <class F, class T>
FK_INLINE T apply(F f, T x) {
  return f(x);
}

}  // namespace flowkern::FK_ISA
