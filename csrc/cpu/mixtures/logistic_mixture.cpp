// Log-probabilities under mixtures, and their derivatives.
#include "cpu/mixtures/lanes.h"

namespace flowkern::FK_ISA {

// A component as seen by an element: m = (x - mean) / scale.
template <class X>
struct Component {
  X logit, raw, inverse, m;  // raw: the log-scale as it was given; inverse: of the scale
};

// Its log-probability of the element is high + log(factor): `high` is what may be far from zero, and the factor is
// neither large nor small, so that components are added without a logarithm for each.
template <class X>
struct Term {
  X high, factor, by_m, by_log_scale;  // and its derivatives
};

template <class X>
FK_INLINE X smaller(X a, X b) {
  return select(a < b, a, b);
}

// The density of a logistic distribution: with E = exp(-|m|), E / (1 + E)^2 / scale.
struct Density {
  template <class X>
  FK_INLINE Term<X> operator()(X, X log_scale, const Component<X>& c) const {
    const X size = abs(c.m), e = exp(-size), r = 1 / (1 + e), t = (1 - e) * r;  // tanh(|m| / 2)
    return {-size - log_scale, r * r, select(c.m < 0, t, -t), size * t - 1};
  }
};

// The density of a normal distribution.
struct NormalDensity {
  template <class X>
  FK_INLINE Term<X> operator()(X, X log_scale, const Component<X>& c) const {
    constexpr double kHalfLog2Pi = 0.91893853320467274178;
    const X square = c.m * c.m;
    return {-0.5 * square - log_scale - kHalfLog2Pi, X{} + 1, -c.m, square - 1};
  }
};

// The probability of the interval x - half to x + half. With d = half / scale it is
// sinh(d) / (cosh(m) + cosh(d)) = sigmoid(d - |m|) (1 - D^2) / (1 + E D), where E = exp(-|m|), D = exp(-d): nothing
// cancels and nothing overflows. At an edge it is sigmoid(d - side m): E and D are zero, and |m| has a sign.
struct Interval {
  double half, log_half;

  template <class X>
  FK_INLINE Term<X> operator()(X x, X log_scale, const Component<X>& c) const {
    const auto first = x < half - 1, last = x > 1 - half, edge = first | last;
    const X zero = {}, one = zero + 1, m = c.m, d = half * c.inverse;
    const X side = select(edge, select(first, -one, one), select(m < 0, -one, one)), size = side * m;
    const X v = size - d, f = exp(-abs(v)), e = select(edge, zero, exp(-size));
    const X rest = select(edge, one, -expm1(-d)), D = 1 - rest, all = rest * (1 + D);  // 1 - D^2
    const X ratio = 1 / ((1 + f) * (1 + e * D));
    const X t = select(v < 0, f, one) * ratio, slope = t * (1 - e * e);
    const X high = select(v < 0, zero, -v) + select(edge, zero, smaller(log_half - log_scale, zero));
    return {high, all * ratio / select(edge, one, smaller(d, one)), -side * slope,
            size * slope - d / all * t * ((1 + e * e) * (1 + D * D) + 4 * e * D)};
  }
};

// log sum_k exp(logit_k) p_k - log sum_k exp(logit_k) is largest - largest_logit + log(probability / weight).
template <class X>
struct Sums {
  X largest, largest_logit, probability, weight;
};

template <class X>
struct Scratch {
  Component<X>* components;
  Term<X>* terms;

  FK_INLINE Scratch(void* memory, int64_t count)
      : components(static_cast<Component<X>*>(memory)), terms(reinterpret_cast<Term<X>*>(components + count)) {}
};

// The terms of all components of some elements, in scratch memory, and in the end exponentials in the place of high and
// logit. In several loops, since one that does everything waits for its own results.
template <bool Keep, class T, class Kind, class X = Number<T>>
FK_INLINE Sums<X> sums(const Mixtures<T>& mixtures, const Kind& kind, const Lanes<T>& lanes, X x, Scratch<X> scratch) {
  const Places<T> logits(lanes, mixtures.logits), means(lanes, mixtures.means), log_scales(lanes, mixtures.log_scales);
  const X least = X{} + mixtures.log_scale_min;
  Sums<X> s = {X{} - HUGE_VAL, X{} - HUGE_VAL, X{}, X{}};
  for (int64_t k = 0; k < mixtures.components; ++k) {
    Component<X>& c = scratch.components[k];
    c.logit = logits.load(k * mixtures.logits.component_stride);
    c.raw = log_scales.load(k * mixtures.log_scales.component_stride);
    c.inverse = exp(-select(c.raw < least, least, c.raw));
    c.m = (x - means.load(k * mixtures.means.component_stride)) * c.inverse;
    s.largest_logit = select(c.logit > s.largest_logit, c.logit, s.largest_logit);
  }
  for (int64_t k = 0; k < mixtures.components; ++k) {
    const Component<X>& c = scratch.components[k];
    Term<X> t = kind(x, select(c.raw < least, least, c.raw), c);
    t.high += c.logit;
    s.largest = select(t.high > s.largest, t.high, s.largest);
    scratch.terms[k].high = t.high;
    scratch.terms[k].factor = t.factor;
    if constexpr (Keep) scratch.terms[k] = t;
  }
  for (int64_t k = 0; k < mixtures.components; ++k) {
    Component<X>& c = scratch.components[k];
    Term<X>& t = scratch.terms[k];
    t.high = exp(t.high - s.largest) * t.factor;
    c.logit = exp(c.logit - s.largest_logit);
    s.probability += t.high;
    s.weight += c.logit;
  }
  return s;
}

template <class T>
size_t scratch_bytes(int64_t components) {
  return components * (sizeof(Component<Number<T>>) + sizeof(Term<Number<T>>));
}

// Calls f with what a component is, and the constant whether derivatives are kept.
template <class T, class F>
FK_INLINE void specialised(const Mixtures<T>& mixtures, bool keep, F f) {
  const double half = 1.0 / (mixtures.levels - 1);
  const auto with_keep = [&](auto kind) { keep ? f(kind, std::true_type{}) : f(kind, std::false_type{}); };
  if (mixtures.gaussian) return with_keep(NormalDensity{});
  mixtures.levels ? with_keep(Interval{half, log(half)}) : with_keep(Density{});
}

// What a backward pass multiplies by its cotangents: the derivatives of a log-probability.
template <class T, class X = Number<T>>
FK_INLINE void put_derivatives(const Lanes<T>& lanes, const Mixtures<T>& mixtures, const Scratch<X>& scratch,
                               const Sums<X>& s, const MixtureDerivatives<T>& out) {
  const int64_t components = mixtures.components;
  const X scale = 1 / (s.probability * s.weight), least = X{} + mixtures.log_scale_min;
  for (int64_t k = 0; k < components; ++k) {
    const Component<X>& c = scratch.components[k];
    const Term<X>& t = scratch.terms[k];
    // The shares of the component in the probability and in the weights; of a single one the same number.
    const X part = t.high * s.weight, share = part * scale;
    put(lanes, out.by_logits + k, components, (part - c.logit * s.probability) * scale);
    put(lanes, out.by_means + k, components, -share * t.by_m * c.inverse);
    put(lanes, out.by_log_scales + k, components, select(c.raw < least, X{}, share * t.by_log_scale));
  }
}

template <class T>
void logistic_mixture(const Mixtures<T>& mixtures, Matrix<const T> x, T* out, const MixtureDerivatives<T>* derivatives,
                      void* memory, int64_t begin, int64_t end) {
  using X = Number<T>;
  const Scratch<X> scratch(memory, mixtures.components);
  specialised(mixtures, derivatives != nullptr, [&](auto kind, auto keep) {
    for (int64_t i = begin; i < end; i += kStep) {
      const Lanes<T> lanes(i, end, mixtures.columns);
      const Sums<X> s = sums<keep.value>(mixtures, kind, lanes, Places<T>(lanes, x).load(), scratch);
      put(lanes, out, 1, s.largest - s.largest_logit + log(s.probability / s.weight));
      if constexpr (keep.value) put_derivatives(lanes, mixtures, scratch, s, *derivatives);
    }
  });
}

#define FK_INSTANTIATE(T)                                                                                      \
  template size_t scratch_bytes<T>(int64_t);                                                                   \
  template void logistic_mixture(const Mixtures<T>&, Matrix<const T>, T*, const MixtureDerivatives<T>*, void*, \
                                 int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
