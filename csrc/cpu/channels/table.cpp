// The kernels on the channels of images for one instruction set.
#include "cpu/channels/kernels.h"

namespace flowkern::FK_ISA {

template <class T>
void actnorm(const ImageShape&, Images<T>, const T*, const T*, bool, double, T*, T*, int64_t, int64_t);
template <class T>
int64_t actnorm_lanes(int64_t);
template <class T>
void actnorm_backward(const ImageShape&, Images<T>, Images<T>, const T*, const T*, bool, T*, double*, int64_t, int64_t);
template <class T>
int64_t scratch(int64_t);
template <class T>
int64_t sums_width(int64_t);
template <class T>
void pack(const T*, int64_t, int64_t, int64_t, T, T*);
template <class T>
void mix(const ImageShape&, Images<T>, const T*, const Factors<T>*, const int64_t*, double, T*, T*, T*, int64_t,
         int64_t);
template <class T>
void mix_backward(const ImageShape&, Images<T>, Images<T>, const T*, const Factors<T>*, const int64_t*, T*, T*, T*,
                  int64_t, int64_t);
template <class T>
void multiply(const T*, const T*, int64_t, T*);
template <class T>
void multiply_backward(const T*, const T*, const T*, int64_t, T*, T*);

template <class T>
const ChannelKernels<T>& channel_kernels() {
  static constexpr ChannelKernels<T> kTable = {
      .actnorm = &actnorm<T>,
      .actnorm_lanes = &actnorm_lanes<T>,
      .actnorm_backward = &actnorm_backward<T>,
      .scratch = &scratch<T>,
      .sums_width = &sums_width<T>,
      .pack = &pack<T>,
      .mix = &mix<T>,
      .mix_backward = &mix_backward<T>,
      .multiply = &multiply<T>,
      .multiply_backward = &multiply_backward<T>,
  };
  return kTable;
}
template const ChannelKernels<float>& channel_kernels<float>();
template const ChannelKernels<double>& channel_kernels<double>();

}  // namespace flowkern::FK_ISA
