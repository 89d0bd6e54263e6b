// A sample of every mixture of some elements, from given random numbers.
#pragma once

#include "cpu/mixtures/lanes.h"

namespace flowkern::FK_ISA {

// The nearest of so many values from -1 to 1.
template <class X>
FK_INLINE X nearest_level(X x, int64_t levels) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const X steps = X{} + (levels - 1) * 0.5;
  x = select(x < -1, X{} - 1, select(x > 1, X{} + 1, x));
  return ((x + 1) * steps + kRound - kRound) / steps - 1;
}

// mean + scale x of the component with the largest of the logits with Gumbel noise; x is v, a number of the standard
// normal distribution, or of logistics log(v / (1 - v)) of a uniform one.
template <class T>
FK_INLINE void sample_mixtures(const Mixtures<T>& mixtures, Matrix<const T> v, const Components<T>& choice, T* out,
                               int64_t begin, int64_t end) {
  using X = Number<T>;
  const X least = X{} + mixtures.log_scale_min;
  for (int64_t i = begin; i < end; i += kStep) {
    const Lanes<T> lanes(i, end, mixtures.columns);
    const Places<T> choices(lanes, choice), logits(lanes, mixtures.logits), means(lanes, mixtures.means),
        log_scales(lanes, mixtures.log_scales);
    X best = X{} - HUGE_VAL, mean = means.load(), log_scale = log_scales.load();
    for (int64_t k = 0; k < mixtures.components; ++k) {
      const X c = choices.load(k * choice.component_stride);
      const X score = logits.load(k * mixtures.logits.component_stride) - log(-log(c));
      const auto better = score > best;
      best = select(better, score, best);
      mean = select(better, means.load(k * mixtures.means.component_stride), mean);
      log_scale = select(better, log_scales.load(k * mixtures.log_scales.component_stride), log_scale);
    }
    const X number = Places<T>(lanes, v).load(), standard = mixtures.gaussian ? number : log(number / (1 - number));
    X x = mean + exp(select(log_scale < least, least, log_scale)) * standard;
    if (mixtures.levels) x = nearest_level(x, mixtures.levels);
    put(lanes, out, 1, x);
  }
}

}  // namespace flowkern::FK_ISA
