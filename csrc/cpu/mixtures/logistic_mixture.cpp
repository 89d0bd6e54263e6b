// Log-probabilities under mixtures of logistics, and their gradients.
#include "cpu/mixtures/lanes.h"

namespace flowkern::FK_ISA {

// One component's log-probability of an element is high + log(factor): `high` is what may be far from zero, and the factor
// is neither large nor small, so that components are added without a logarithm for each.
template <class X>
struct Term {
  X high, factor, by_mean, by_log_scale;  // and its derivatives
};

template <class X>
FK_INLINE X smaller(X a, X b) {
  return select(a < b, a, b);
}

// The density of a logistic distribution: with m = (x - mean) / scale, E = exp(-|m|), E / (1 + E)^2 / scale.
template <class X>
FK_INLINE Term<X> density(X x, X mean, X log_scale) {
  const X inverse = exp(-log_scale), m = (x - mean) * inverse, size = abs(m), e = exp(-size), r = 1 / (1 + e);
  const X t = (1 - e) * r;  // tanh(|m| / 2)
  return {-size - log_scale, r * r, select(m < 0, -t, t) * inverse, size * t - 1};
}

// The probability of the interval x - half to x + half. With m = (x - mean) / scale, d = half / scale it is
// sinh(d) / (cosh(m) + cosh(d)) = sigmoid(d - |m|) (1 - D^2) / (1 + E D), where E = exp(-|m|), D = exp(-d): nothing
// cancels and nothing overflows. At an edge it is sigmoid(d - side m): E and D are zero, and |m| has a sign.
template <class X>
FK_INLINE Term<X> interval(X x, X mean, X log_scale, X half, X log_half) {
  const auto first = x < half - 1, last = x > 1 - half, edge = first | last;
  const X zero = {}, one = zero + 1;
  const X inverse = exp(-log_scale), m = (x - mean) * inverse, d = half * inverse;
  const X side = select(edge, select(first, -one, one), select(m < 0, -one, one)), size = side * m;
  const X v = size - d, f = exp(-abs(v)), e = select(edge, zero, exp(-size));
  const X rest = select(edge, one, -expm1(-d)), D = 1 - rest, all = rest * (1 + D);  // 1 - D^2
  const X ratio = 1 / ((1 + f) * (1 + e * D));
  const X t = select(v < 0, f, one) * ratio, slope = t * (1 - e * e);
  const X high = select(v < 0, zero, -v) + select(edge, zero, smaller(log_half - log_scale, zero));
  return {high, all * ratio / select(edge, one, smaller(d, one)), side * slope * inverse,
          size * slope - d / all * t * ((1 + e * e) * (1 + D * D) + 4 * e * D)};
}

template <class X>
struct Scratch {
  X high, factor, logit, by_mean, by_log_scale;
};

// log sum_k exp(logit_k) p_k - log sum_k exp(logit_k) is largest - largest_logit + log(probability / weight).
template <class X>
struct Sums {
  X largest, largest_logit, probability, weight;
};

// The terms of all components of some elements, in scratch memory, with exponentials in the place of high and logit.
template <class T, bool Levels, class X = Number<T>>
FK_INLINE Sums<X> terms(const Mixtures<T>& mixtures, const Lanes<T>& lanes, X x, Scratch<X>* scratch) {
  const Places<T> logits(lanes, mixtures.logits), means(lanes, mixtures.means), log_scales(lanes, mixtures.log_scales);
  const X least = X{} + mixtures.log_scale_min, half = X{} + 1.0 / (mixtures.levels - 1), log_half = log(half);
  Sums<X> s = {X{} - HUGE_VAL, X{} - HUGE_VAL, X{}, X{}};
  for (int64_t k = 0; k < mixtures.components; ++k) {
    const X logit = logits.load(k * mixtures.logits.component_stride);
    const X mean = means.load(k * mixtures.means.component_stride);
    const X raw = log_scales.load(k * mixtures.log_scales.component_stride);
    const X log_scale = select(raw < least, least, raw);
    Term<X> term;
    if constexpr (Levels)
      term = interval(x, mean, log_scale, half, log_half);
    else
      term = density(x, mean, log_scale);
    const X high = logit + term.high;
    scratch[k] = {high, term.factor, logit, term.by_mean, select(raw < least, X{}, term.by_log_scale)};
    s.largest = select(high > s.largest, high, s.largest);
    s.largest_logit = select(logit > s.largest_logit, logit, s.largest_logit);
  }
  for (int64_t k = 0; k < mixtures.components; ++k) {
    scratch[k].high = exp(scratch[k].high - s.largest) * scratch[k].factor;
    scratch[k].logit = exp(scratch[k].logit - s.largest_logit);
    s.probability += scratch[k].high;
    s.weight += scratch[k].logit;
  }
  return s;
}

template <class T>
size_t scratch_bytes(int64_t components) {
  return components * sizeof(Scratch<Number<T>>);
}

// Calls f(levels), a constant: whether there are any.
template <class T, class F>
FK_INLINE void with_levels(const Mixtures<T>& mixtures, F f) {
  if (mixtures.levels)
    f(std::true_type{});
  else
    f(std::false_type{});
}

template <class T>
void logistic_mixture(const Mixtures<T>& mixtures, Matrix<const T> x, T* out, void* scratch, int64_t begin,
                      int64_t end) {
  using X = Number<T>;
  with_levels(mixtures, [&](auto levels) {
    for (int64_t i = begin; i < end; i += kStep<T>) {
      const Lanes<T> lanes(i, end, mixtures.columns);
      const Sums<X> s = terms<T, levels.value>(mixtures, lanes, Places<T>(lanes, x).load(), static_cast<Scratch<X>*>(scratch));
      put(lanes, out, 1, s.largest - s.largest_logit + log(s.probability / s.weight));
    }
  });
}

template <class T>
void logistic_mixture_backward(const Mixtures<T>& mixtures, Matrix<const T> g, Matrix<const T> x,
                               const MixtureGradients<T>& out, void* scratch, int64_t begin, int64_t end) {
  using X = Number<T>;
  const auto all = static_cast<Scratch<X>*>(scratch);
  const int64_t components = mixtures.components;
  with_levels(mixtures, [&](auto levels) {
    for (int64_t i = begin; i < end; i += kStep<T>) {
      const Lanes<T> lanes(i, end, mixtures.columns);
      const Sums<X> s = terms<T, levels.value>(mixtures, lanes, Places<T>(lanes, x).load(), all);
      const X scale = Places<T>(lanes, g).load() / (s.probability * s.weight);
      X g_x = {};
      for (int64_t k = 0; k < components; ++k) {
        // The parts of the component in the probability and in the weights; of a single one the same number.
        const X part = all[k].high * s.weight, weight = all[k].logit * s.probability;
        const X g_mean = part * scale * all[k].by_mean;
        put(lanes, out.logits + k, components, (part - weight) * scale);
        put(lanes, out.means + k, components, g_mean);
        put(lanes, out.log_scales + k, components, part * scale * all[k].by_log_scale);
        g_x -= g_mean;
      }
      put(lanes, out.x, 1, g_x);
    }
  });
}

#define FK_INSTANTIATE(T)                                                                                            \
  template size_t scratch_bytes<T>(int64_t);                                                                         \
  template void logistic_mixture(const Mixtures<T>&, Matrix<const T>, T*, void*, int64_t, int64_t);                  \
  template void logistic_mixture_backward(const Mixtures<T>&, Matrix<const T>, Matrix<const T>,                      \
                                          const MixtureGradients<T>&, void*, int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
