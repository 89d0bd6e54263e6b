// Elementary functions for the activations and the univariate maps.
//
// float32 kernels evaluate them on vectors of doubles by short Taylor series (relative error below 1e-11), so
// that the result is the correctly rounded float in all but a few cases and no minimax tables are needed.
// float64 kernels have longer ones, cpu/exact.h. Both are reached through `apply`. Only tanh, the activation of many
// small networks, is a float's own. Of doubles one by one the C library's serve where there are few.
#pragma once

#include <math.h>

#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

using VecD = Vec<double>;
typedef int64_t VecI __attribute__((vector_size(FK_VECTOR_BYTES)));

FK_INLINE double select(bool c, double a, double b) { return c ? a : b; }
FK_INLINE VecD select(VecI c, VecD a, VecD b) { return c ? a : b; }

FK_INLINE double exp(double x) { return ::exp(x); }
FK_INLINE double log(double x) { return ::log(x); }
FK_INLINE double log1p(double x) { return ::log1p(x); }
FK_INLINE double expm1(double x) { return ::expm1(x); }
FK_INLINE double tanh(double x) { return ::tanh(x); }
FK_INLINE double atan(double x) { return ::atan(x); }
FK_INLINE double abs(double x) { return ::fabs(x); }
FK_INLINE double floor(double x) { return ::floor(x); }
FK_INLINE double sqrt(double x) { return ::sqrt(x); }
FK_INLINE double normal_cdf(double x) { return 0.5 * ::erfc(-x * M_SQRT1_2); }

FK_INLINE VecD abs(VecD x) { return select(x < 0, -x, x); }
FK_INLINE VecD sqrt(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::sqrt(x[i]);
  return x;
}
FK_INLINE VecD floor(VecD x) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves an integer
  const VecD nearest = (x + kRound) - kRound, below = nearest - select(nearest > x, VecD{} + 1.0, VecD{});
  return select(abs(x) < 0x1p51, below, x);  // from 2^51 on all are
}

constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;  // ln 2 in two parts

// 2^n r-series with x = n ln 2 + r; the clamp covers every float, NaN passes through.
FK_INLINE VecD exp(VecD x) {
  x = select(x < -708.0, VecD{} - 708.0, select(x > 708.0, VecD{} + 708.0, x));
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const VecD shifted = x * M_LOG2E + kRound;
  const VecD n = shifted - kRound;
  const VecD r = (x - n * kLn2High) - n * kLn2Low;
  VecD p = VecD{} + 1.0 / 362880;
  constexpr double kInverseFactorial[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24,
                                          1.0 / 6,     0.5,        1.0,       1.0};
  for (double c : kInverseFactorial) p = p * r + c;
  const VecI scale = (__builtin_bit_cast(VecI, shifted) << 52) + 0x3FF0000000000000;
  return p * __builtin_bit_cast(VecD, scale);
}

// log((1 + s) / (1 - s)) for |s| <= 0.172, by the series of the inverse hyperbolic tangent.
FK_INLINE VecD log_ratio(VecD s) {
  const VecD q = s * s;
  VecD p = VecD{} + 1.0 / 13;
  for (double c : {1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0}) p = p * q + c;
  return 2 * s * p;
}

// log x, where r is that of positive finite numbers.
FK_INLINE VecD where_log(VecD x, VecD r) {
  const VecD special = select(x == 0, VecD{} - HUGE_VAL, select(x < 0, VecD{} + NAN, x));  // and NaN, infinity
  return select((x > 0) & (x < HUGE_VAL), r, special);
}

// A positive normal number as 2^exponent m, m between sqrt(1/2) and sqrt(2).
struct Scaled {
  VecD exponent, m;
};
FK_INLINE Scaled scaled(VecD x) {
  const VecI bits = __builtin_bit_cast(VecI, x);
  VecI exponent = ((bits >> 52) & 0x7FF) - 1023;
  VecD m = __builtin_bit_cast(VecD, (bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000);
  const VecI upper = m > M_SQRT2;
  m = select(upper, 0.5 * m, m);
  exponent -= upper;  // a true lane is -1
  return {__builtin_convertvector(exponent, VecD), m};
}

FK_INLINE VecD log(VecD x) {
  const auto [exponent, m] = scaled(x);
  return where_log(x, exponent * M_LN2 + log_ratio((m - 1) / (m + 1)));
}

// For 0 <= x <= 1.
FK_INLINE VecD log1p(VecD x) {
  const VecI upper = x > M_SQRT2 - 1;
  const VecD f = select(upper, 0.5 * (x - 1), x);
  return select(upper, VecD{} + M_LN2, VecD{}) + log_ratio(f / (2 + f));
}

FK_INLINE VecD expm1(VecD x) {
  const VecD small = x + 0.5 * x * x;
  return select(abs(x) < 1e-5, small, exp(x) - 1);
}

FK_INLINE VecD tanh(VecD x) {
  const VecD e = expm1(-2 * abs(x));
  const VecD t = -e / (2 + e);
  return select(x < 0, -t, t);
}

// atan|x| is 0, pi/4 or pi/2 and the arctangent of s, a quotient with |s| <= tan(pi/8).
FK_INLINE VecD atan(VecD x) {
  const VecD a = abs(x);
  const VecI middle = a > M_SQRT2 - 1, upper = a > M_SQRT2 + 1;
  const VecD s =
      select(upper, VecD{} - 1.0, select(middle, a - 1, a)) / select(upper, a, select(middle, a + 1, VecD{} + 1.0));
  const VecD q = s * s;
  VecD p = VecD{} + 1.0 / 25;
  for (double c : {-1.0 / 23, 1.0 / 21, -1.0 / 19, 1.0 / 17, -1.0 / 15, 1.0 / 13, -1.0 / 11, 1.0 / 9, -1.0 / 7, 1.0 / 5,
                   -1.0 / 3, 1.0})
    p = p * q + c;
  const VecD r = select(upper, VecD{} + M_PI_2, select(middle, VecD{} + M_PI_4, VecD{})) + s * p;
  return select(x < 0, -r, r);
}

// log(erfc(z) exp(z^2) / t) is smooth in t = 2 / (2 + z) for z >= 0 (Numerical Recipes, section 6.2.2); the
// coefficients are its Chebyshev interpolant of degree 18 in y = 2 t - 1, written in powers; error 1.2e-12.
FK_INLINE VecD normal_cdf(VecD x) {
  const VecD z = abs(x) * M_SQRT1_2;
  const VecD t = 2 / (2 + z), y = 2 * t - 1;
  VecD p = VecD{} - 9.0256539968210261e-07;
  for (double c : {1.5689567960785843e-07, 7.2226048070117342e-06, -4.3919568020677781e-06, -2.8380892763528603e-05,
                   3.5859295688837913e-05, 7.0042800956999270e-05, -1.7667132128788046e-04, -9.3120652135003770e-05,
                   6.7453338933554411e-04, -1.4641398873205800e-04, -2.3459977506611763e-03, 1.7589595095939927e-03,
                   8.8249606313957115e-03, -9.8726914059102614e-03, -4.6895611438998563e-02, 4.7343306903951096e-02,
                   6.7264322399718379e-01, -6.7179408405700336e-01})
    p = p * y + c;
  const VecD tail = 0.5 * t * exp(p - z * z);
  return select(x < 0, tail, 1 - tail);
}

// Doubles of a float vector, low and high half.
struct Wide {
  VecD half[2];
};
namespace detail {
typedef float HalfF __attribute__((vector_size(FK_VECTOR_BYTES / 2)));
template <int... I>
FK_INLINE Wide widen(Vec<float> v, std::integer_sequence<int, I...>) {
  constexpr int H = sizeof...(I);
  const HalfF low = __builtin_shufflevector(v, v, I...), high = __builtin_shufflevector(v, v, (I + H)...);
  return {{__builtin_convertvector(low, VecD), __builtin_convertvector(high, VecD)}};
}
template <int... I>
FK_INLINE Vec<float> join(HalfF low, HalfF high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}
}  // namespace detail

FK_INLINE Wide widen(Vec<float> v) { return detail::widen(v, std::make_integer_sequence<int, kLanes<float> / 2>{}); }
FK_INLINE Vec<float> narrow(const Wide& w) {
  return detail::join(__builtin_convertvector(w.half[0], detail::HalfF),
                      __builtin_convertvector(w.half[1], detail::HalfF),
                      std::make_integer_sequence<int, kLanes<float>>{});
}

// exp in float32 itself, as a power of two and exp(r) - 1 of the rest r: |x| <= 87. The polynomials of this and of tanh
// are those of the Cephes library's expf and tanhf.
struct Power {
  Vec<float> scale, rest;
};
FK_INLINE Power power(Vec<float> x) {
  typedef int32_t Ints __attribute__((vector_size(FK_VECTOR_BYTES)));
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Vec<float> shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Vec<float> p = Vec<float>{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  return {__builtin_bit_cast(Vec<float>, (__builtin_bit_cast(Ints, shifted) << 23) + 0x3F800000), p * (r * r) + r};
}

// exp(x) - 1 of |x| <= 87.
FK_INLINE Vec<float> expm1(Vec<float> x) {
  const Power e = power(x);
  return e.rest * e.scale + (e.scale - 1);
}

// NaN passes through.
FK_INLINE Vec<float> clamp(Vec<float> x, float bound) {
  x = x > bound ? Vec<float>{} + bound : x;
  return x < -bound ? Vec<float>{} - bound : x;
}

// tanh in float32 itself, at half of the cost, off by at most 1.4 ulp (measured: docs/measured.md).
FK_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> magnitude = x < 0 ? -x : x, z = x * x;
  Vec<float> small = Vec<float>{} - 5.70498872745e-3f;
  for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) small = small * z + c;
  small = small * z * x + x;
  Vec<float> t = magnitude + magnitude;
  t = t > 20 ? Vec<float>{} + 20 : t;  // where the result is 1; NaN passes through
  const Power e = power(t);
  const Vec<float> large = 1 - 2 / ((e.rest + 1) * e.scale + 1);
  return magnitude < 0.625f ? small : (x < 0 ? -large : large);
}

// Evaluates f, written for one number X, on every lane.
template <class F>
FK_INLINE Vec<float> apply(F f, Vec<float> x) {
  const Wide w = widen(x);
  return narrow({{f(w.half[0]), f(w.half[1])}});
}
// tanh of what the kernels hold.
FK_INLINE Vec<float> tanh_of(Vec<float> x) { return tanh(x); }

}  // namespace flowkern::FK_ISA
