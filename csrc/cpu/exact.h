// What kernels of doubles compute with: vectors whose elementary functions have a double's digits, where those of VecD
// have a float's and some more. The errors are measured, see docs/measured.md.
#pragma once

#include "cpu/math.h"

namespace flowkern::FK_ISA {

struct Exact {
  VecD lanes;

  Exact() = default;
  FK_INLINE Exact(double x) : lanes(VecD{} + x) {}
  explicit FK_INLINE Exact(VecD lanes) : lanes(lanes) {}

  FK_INLINE Exact& operator+=(Exact b) { return lanes += b.lanes, *this; }
  friend FK_INLINE Exact operator-(Exact a) { return Exact(-a.lanes); }
  friend FK_INLINE Exact operator+(Exact a, Exact b) { return Exact(a.lanes + b.lanes); }
  friend FK_INLINE Exact operator-(Exact a, Exact b) { return Exact(a.lanes - b.lanes); }
  friend FK_INLINE Exact operator*(Exact a, Exact b) { return Exact(a.lanes * b.lanes); }
  friend FK_INLINE Exact operator/(Exact a, Exact b) { return Exact(a.lanes / b.lanes); }
  friend FK_INLINE VecI operator<(Exact a, Exact b) { return a.lanes < b.lanes; }
  friend FK_INLINE VecI operator>(Exact a, Exact b) { return a.lanes > b.lanes; }
  friend FK_INLINE VecI operator>=(Exact a, Exact b) { return a.lanes >= b.lanes; }
  friend FK_INLINE VecI operator==(Exact a, Exact b) { return a.lanes == b.lanes; }
};

FK_INLINE Exact select(VecI c, Exact a, Exact b) { return Exact(c ? a.lanes : b.lanes); }
FK_INLINE Exact abs(Exact x) { return Exact(abs(x.lanes)); }
FK_INLINE Exact sqrt(Exact x) { return Exact(sqrt(x.lanes)); }

// Whether a number is as exact as the result that is wanted.
template <class X>
constexpr bool kExact = false;
template <>
constexpr bool kExact<Exact> = true;

// A function of doubles on every lane.
template <class F>
FK_INLINE Exact each_lane(F f, Exact x) {
  for (int i = 0; i < kLanes<double>; ++i) x.lanes[i] = f(x.lanes[i]);
  return x;
}
FK_INLINE Exact floor(Exact x) {
  return each_lane([](double a) { return ::floor(a); }, x);
}
FK_INLINE Exact atan(Exact x) {
  return each_lane([](double a) { return ::atan(a); }, x);
}
FK_INLINE Exact normal_cdf(Exact x) {
  return each_lane([](double a) { return normal_cdf(a); }, x);
}
FK_INLINE Exact fma(Exact a, Exact b, Exact c) {
  for (int i = 0; i < kLanes<double>; ++i) c.lanes[i] = ::fma(a.lanes[i], b.lanes[i], c.lanes[i]);
  return c;
}

namespace detail {
FK_INLINE VecD power_of_two(VecI n) { return __builtin_bit_cast(VecD, (n + 1023) << 52); }

// exp(x) is 2^exponent (1 + rest): a Taylor series, of what is left of x and of what rounding took from that.
struct Exponential {
  VecI exponent;
  VecD rest;
};
FK_INLINE Exponential exponential(VecD x, double least) {
  x = select(x < least, VecD{} + least, select(x > 710.0, VecD{} + 710.0, x));  // NaN passes through
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const VecD shifted = x * M_LOG2E + kRound, n = shifted - kRound;
  const VecD high = x - n * kLn2High, low = n * kLn2Low, r = high - low, lost = (high - r) - low;
  VecD p = VecD{} + 1.0 / 6227020800;
  for (double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                   1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5})
    p = p * r + c;
  return {__builtin_bit_cast(VecI, shifted) - __builtin_bit_cast(VecI, VecD{} + kRound), r + (r * r * p + lost)};
}

// log(2^k (1 + f)), where 1 + f lies between sqrt(1/2) and sqrt(2): log(1 + f) is 2 s + 2 s^3 / 3 + 2 s^5 / 5 ... with
// s = f / (2 + f), and 2 s = f - s f has no error but that of f beside it.
FK_INLINE VecD log_of(VecD k, VecD f) {
  const VecD s = f / (2 + f), z = s * s, half = 0.5 * f * f;
  VecD p = VecD{} + 2.0 / 21;
  for (double c : {2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3}) p = p * z + c;
  return k * kLn2High - ((half - (s * (half + p * z) + k * kLn2Low)) - f);
}
}  // namespace detail

// These are called: inlined into every map and activation they double the time of compilation.
#define FK_CALLED inline __attribute__((noinline))

// In two steps, of which the second rounds where the result is denormal.
FK_CALLED Exact exp(Exact x) {
  const auto [n, rest] = detail::exponential(x.lanes, -746.0);
  const VecI half = n >> 1;
  return Exact((1 + rest) * detail::power_of_two(half) * detail::power_of_two(n - half));
}

// 2^n - 1 + 2^n rest, by half of it: 2^1024 is no double. From -60 on it is -1.
FK_CALLED Exact expm1(Exact x) {
  const auto [n, rest] = detail::exponential(x.lanes, -60.0);
  const VecD half = detail::power_of_two(n - 1);
  return Exact(2 * ((half - 0.5) + half * rest));
}

FK_CALLED Exact log(Exact x) {
  const VecI tiny = x.lanes < 0x1p-1022;  // a denormal number is made a normal one
  const auto [exponent, m] = scaled(select(tiny, x.lanes * 0x1p54, x.lanes));
  return Exact(where_log(x.lanes, detail::log_of(exponent - select(tiny, VecD{} + 54.0, VecD{}), m - 1)));
}

// For 0 <= x <= 1.
FK_CALLED Exact log1p(Exact x) {
  const VecI upper = x.lanes > M_SQRT2 - 1;
  return Exact(detail::log_of(select(upper, VecD{} + 1.0, VecD{}), select(upper, 0.5 * (x.lanes - 1), x.lanes)));
}

FK_INLINE Exact tanh(Exact x) {
  const Exact size = abs(x), e = expm1(2 * size);
  const VecI large = size > 0.55;  // where 1 less something has more digits than a quotient
  const Exact q = select(large, 2, e) / (e + 2), t = select(large, 1 - q, q);
  return select(x < 0, -t, t);
}

// Evaluates f, written for one number X, on every lane.
template <class F>
FK_INLINE Vec<double> apply(F f, Vec<double> x) {
  return f(Exact(x)).lanes;
}
FK_INLINE Vec<double> tanh_of(Vec<double> x) { return tanh(Exact(x)).lanes; }

}  // namespace flowkern::FK_ISA
