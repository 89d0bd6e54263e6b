// The kernels of causal convolutions for one instruction set.
#include "cpu/convolutions/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(const Convolution&, const T*, T*, int64_t);
template <class T>
void causal_conv1d(const Convolution&, const T*, const T*, const T*, const T*, T*, Turn, T*);
template <class T>
void weight_gradient(const Convolution&, const T*, const T*, int64_t, int64_t, T*, T*);
template <class T>
void unpack(const Convolution&, const T*, int64_t, int64_t, T*);
template <class T>
void bias_gradient(const Convolution&, const T*, int64_t, T*);
template <class T>
T sum_of_turns(const T*, int64_t, int64_t);
template <class T>
void wavenet_layer(const WaveNetLayer<T>&, Turn, T*);
template <class T>
void wavenet_layer_backward(const WaveNetLayerBackward<T>&, int64_t, int64_t, int64_t, T*);
template <class T>
void causal_conv1d_update(const Convolution&, const T*, T*, int64_t, const T*, const T*, T*, T*);

template <class T>
const ConvolutionKernels<T>& convolution_kernels() {
  static constexpr ConvolutionKernels<T> kTable = {
      .tile = kTileRows<T>,
      .pack = &pack<T>,
      .causal_conv1d = &causal_conv1d<T>,
      .weight_gradient = &weight_gradient<T>,
      .unpack = &unpack<T>,
      .bias_gradient = &bias_gradient<T>,
      .sum_of_turns = &sum_of_turns<T>,
      .wavenet_layer = &wavenet_layer<T>,
      .wavenet_layer_backward = &wavenet_layer_backward<T>,
      .causal_conv1d_update = &causal_conv1d_update<T>,
  };
  return kTable;
}
template const ConvolutionKernels<float>& convolution_kernels<float>();
template const ConvolutionKernels<double>& convolution_kernels<double>();

}  // namespace flowkern::FK_ISA
