// One time of a causal convolution: its window, in the order of the weights, against each output's row of them.
#include "cpu/convolutions/kernels.h"
#include "cpu/dot.h"

namespace flowkern::FK_ISA {

template <class T>
void causal_conv1d_update(const Convolution& c, const T* x, T* state, int64_t step, const T* weight, const T* bias,
                          T* y, T* window) {
  const int64_t length = (c.taps - 1) * c.dilation, now = length ? step % length : 0;
  for (int64_t i = 0; i < c.groups * c.inputs; ++i, state += length) {
    T* taps = window + i * c.taps;
    for (int64_t j = 0; j + 1 < c.taps; ++j) taps[j] = state[(now + j * c.dilation) % length];
    taps[c.taps - 1] = x[i];
    if (length) state[now] = x[i];
  }
  for (int64_t o = 0; o < c.groups * c.outputs; ++o)
    y[o] = dot(weight + o * c.columns(), window + o / c.outputs * c.columns(), c.columns()) + (bias ? bias[o] : T(0));
}

#define FK_INSTANTIATE(T) \
  template void causal_conv1d_update<T>(const Convolution&, const T*, T*, int64_t, const T*, const T*, T*, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
