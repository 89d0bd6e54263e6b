// Convolutions of tensors, for the operators that consist of some.
#pragma once

#include "cpu/convolutions/kernels.h"
#include "ops/tensors.h"

namespace flowkern {

template <class T>
void pack_all(const Convolution& c, const Tensor& weight, T* packed) {
  parallel(c.groups * c.chunks(), c.packed_size(),
           [&](int64_t chunk) { convolution_kernels<T>().pack(c, const_data<T>(weight), packed, chunk); });
}

// Memory for what a convolution gives.
template <class T>
Tensor outputs_of(const Convolution& c) {
  return large<T>({c.batch, c.groups * c.outputs, c.time});
}

// `add` is an addend like the result.
template <class T>
void convolve(const Convolution& any, const Tensor& x, const Tensor& weight, Tensor& y, const T* bias = nullptr,
              const T* add = nullptr) {
  const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
  const Convolution c = any.pairs(kernels.tile / 2);
  T* packed = static_cast<T*>(scratch(c.packed_size() * sizeof(T), 1));
  pack_all(c, weight, packed);
  parallel(c.turns(kernels.tile), c.work(), [&](int64_t i) {
    T* memory = static_cast<T*>(scratch(read_scratch(c, kernels.tile) * sizeof(T)));
    kernels.causal_conv1d(c, const_data<T>(x), packed, bias, add, data<T>(y), c.turn(i, kernels.tile), memory);
  });
}

template <class T>
void unpack_all(const Convolution& c, const T* sums, int64_t parts, T* g_weight) {
  parallel(c.groups * c.taps * c.inputs, parts * gradient_sums(c, convolution_kernels<T>().tile),
           [&](int64_t column) { convolution_kernels<T>().unpack(c, sums, parts, column, g_weight); });
}

}  // namespace flowkern
