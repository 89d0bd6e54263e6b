// The operators of causal convolutions.
#include "ops/convolutions.h"

namespace flowkern {
namespace {

Convolution convolution(const Tensor& x, const Tensor& weight, int64_t dilation, int64_t groups) {
  const bool fits = x.dim() == 3 && weight.dim() == 3 && x.size(1) == weight.size(1) * groups &&
                    weight.size(0) % groups == 0 && x.scalar_type() == weight.scalar_type() && x.is_contiguous() &&
                    weight.is_contiguous();
  STD_TORCH_CHECK(fits, "flowkern: the weight does not belong to this sequence");
  return {x.size(0), x.size(2), weight.size(1), weight.size(0) / groups, groups, weight.size(2), dilation};
}

Tensor causal_conv1d(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t dilation, int64_t groups) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Convolution c = convolution(x, weight, dilation, groups);
    Tensor y = outputs_of<T>(c);
    convolve<T>(c, x, weight, y, bias ? const_data<T>(*bias) : nullptr);
    return y;
  });
}

template <class T>
Tensor weight_gradient(const Convolution& any, const Tensor& g_y, const Tensor& x, const Tensor& weight) {
  const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
  const Convolution c = any.pairs(kernels.tile / 2);
  const int64_t turns = c.turns(kernels.tile);
  if (turns == 0) return zeros<T>({weight.size(0), weight.size(1), weight.size(2)});
  Tensor g_weight = empty<T>({weight.size(0), weight.size(1), weight.size(2)});
  const int64_t size = gradient_sums(c, kernels.tile), parts = gradient_parts(turns, size);
  T* sums = static_cast<T*>(scratch(parts * size * sizeof(T), 1));
  parallel_parts(turns, parts, c.work(), [&](int64_t part, int64_t begin, int64_t end) {
    T* memory = static_cast<T*>(scratch(gradient_scratch(c, kernels.tile) * sizeof(T)));
    kernels.weight_gradient(c, const_data<T>(x), const_data<T>(g_y), begin, end, sums + part * size, memory);
  });
  unpack_all(c, sums, parts, data<T>(g_weight));
  return g_weight;
}

// The gradients that are wanted of x, weight and bias, one after another.
Tensors causal_conv1d_backward(Tensor g_y, Tensor x, Tensor weight, int64_t dilation, int64_t groups, bool of_x,
                               bool of_weight, bool of_bias) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Convolution c = convolution(x, weight, dilation, groups);
    STD_TORCH_CHECK(g_y.is_contiguous() && g_y.numel() == c.batch * c.groups * c.outputs * c.time,
                    "flowkern: the cotangent does not belong to this sequence");
    Tensors gradients;
    if (of_x) {
      gradients.push_back(outputs_of<T>(c.transpose()));
      convolve<T>(c.transpose(), g_y, weight, gradients.back());
    }
    if (of_weight) gradients.push_back(weight_gradient<T>(c, g_y, x, weight));
    if (of_bias) {
      gradients.push_back(empty<T>({weight.size(0)}));
      parallel(weight.size(0), 2 * g_y.numel(), [&](int64_t output) {
        convolution_kernels<T>().bias_gradient(c, const_data<T>(g_y), output, data<T>(gradients.back()));
      });
    }
    return gradients;
  });
}

// The ring `state` is changed in place.
Tensor causal_conv1d_update(Tensor x, Tensor state, int64_t step, Tensor weight, std::optional<Tensor> bias,
                            int64_t dilation, int64_t groups) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Convolution c{x.size(0), 1, weight.size(1), weight.size(0) / groups, groups, weight.size(2), dilation};
    const int64_t channels = x.size(1), length = (c.taps - 1) * dilation;
    STD_TORCH_CHECK(channels == c.inputs * groups && state.numel() == c.batch * channels * length &&
                        x.is_contiguous() && state.is_contiguous() && weight.is_contiguous(),
                    "flowkern: the weight and the state do not belong to these inputs");
    Tensor y = empty<T>({c.batch, weight.size(0)});
    parallel(c.batch, c.work(), [&](int64_t row) {
      convolution_kernels<T>().causal_conv1d_update(
          c, const_data<T>(x) + row * channels, data<T>(state) + row * channels * length, step, const_data<T>(weight),
          bias ? const_data<T>(*bias) : nullptr, data<T>(y) + row * weight.size(0),
          static_cast<T*>(scratch(channels * c.taps * sizeof(T))));
    });
    return y;
  });
}

}  // namespace
}  // namespace flowkern

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, int dilation, int groups) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor g_y, Tensor x, Tensor weight, int dilation, int groups, bool of_x, bool "
      "of_weight, "
      "bool of_bias) -> Tensor[]");
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) state, int step, Tensor weight, Tensor? bias, int dilation, int "
      "groups) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("causal_conv1d", TORCH_BOX(&causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&causal_conv1d_backward));
  m.impl("causal_conv1d_update", TORCH_BOX(&causal_conv1d_update));
}
