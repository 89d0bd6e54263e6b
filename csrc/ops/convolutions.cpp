// The operators of causal convolutions.
#include "cpu/convolutions/kernels.h"
#include "ops/tensors.h"

namespace flowkern {
namespace {

Convolution convolution(const Tensor& x, const Tensor& weight, int64_t dilation, int64_t groups) {
  const bool fits = x.dim() == 3 && weight.dim() == 3 && x.size(1) == weight.size(1) * groups &&
                    weight.size(0) % groups == 0 && x.scalar_type() == weight.scalar_type() && x.is_contiguous() &&
                    weight.is_contiguous();
  STD_TORCH_CHECK(fits, "flowkern: the weight does not belong to this sequence");
  return {x.size(0), x.size(2), weight.size(1), weight.size(0) / groups, groups, weight.size(2), dilation};
}

// Multiply-adds of all tiles.
int64_t work(const Convolution& c) { return c.batch * c.time * c.weights(); }

template <class T>
Tensor convolve(const Convolution& c, const Tensor& x, const Tensor& weight, const T* bias) {
  const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
  Tensor y = empty<T>({c.batch, c.groups * c.outputs, c.time});
  prefer_huge_pages(y.mutable_data_ptr(), y.numel() * sizeof(T));
  T* packed = static_cast<T*>(scratch(c.packed_size() * sizeof(T), 1));
  parallel(c.groups * c.chunks(), c.packed_size(),
           [&](int64_t chunk) { kernels.pack(c, const_data<T>(weight), packed, chunk); });
  const int64_t turn = kernels.tile * kTurnTiles, turns = (c.time + turn - 1) / turn;
  parallel(c.batch * turns, work(c), [&](int64_t i) {
    T* memory = static_cast<T*>(scratch((c.columns() + kChunkRows) * kernels.tile * sizeof(T)));
    const int64_t begin = i % turns * turn, end = std::min(c.time, begin + turn);
    for (int64_t time = begin; time < end; time += kernels.tile)
      kernels.causal_conv1d(c, const_data<T>(x), packed, bias, data<T>(y), i / turns, time, memory);
  });
  return y;
}

Tensor causal_conv1d(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t dilation, int64_t groups) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    return convolve<T>(convolution(x, weight, dilation, groups), x, weight, bias ? const_data<T>(*bias) : nullptr);
  });
}

// Parts of the batch whose products are summed apart: their number does not depend on that of the threads.
int64_t gradient_parts(int64_t tiles, int64_t sums) {
  constexpr int64_t kParts = 16, kElements = int64_t{1} << 22;
  return std::clamp<int64_t>(std::min(tiles / kTurnTiles, kElements / std::max<int64_t>(sums, 1)), 1, kParts);
}

template <class T>
Tensor weight_gradient(const Convolution& c, const Tensor& g_y, const Tensor& x, const Tensor& weight) {
  const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
  const int64_t tiles = c.batch * (whole_tiles(c.time, kernels.tile) / kernels.tile);
  if (tiles == 0) return zeros<T>({weight.size(0), weight.size(1), weight.size(2)});
  Tensor g_weight = empty<T>({weight.size(0), weight.size(1), weight.size(2)});
  const int64_t size = gradient_sums(c, kernels.tile), parts = gradient_parts(tiles, size);
  T* sums = static_cast<T*>(scratch(parts * size * sizeof(T), 1));
  parallel(parts, work(c), [&](int64_t i) {
    T* memory = static_cast<T*>(scratch(gradient_scratch(c, kernels.tile) * sizeof(T)));
    kernels.weight_gradient(c, const_data<T>(x), const_data<T>(g_y), tiles * i / parts, tiles * (i + 1) / parts,
                            sums + i * size, memory);
  });
  parallel(c.groups * c.outputs, parts * size,
           [&](int64_t output) { kernels.unpack(c, sums, parts, output, data<T>(g_weight)); });
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
    if (of_x) gradients.push_back(convolve<T>(c.transpose(), g_y, weight, nullptr));
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
    parallel(c.batch, work(c), [&](int64_t row) {
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
