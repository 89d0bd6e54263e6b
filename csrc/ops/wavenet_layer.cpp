// A layer of a WaveNet.
#include "ops/convolutions.h"

namespace flowkern {
namespace {

using Optional = std::optional<Tensor>;

// A map of channels at every time, or none.
Convolution pointwise(const Convolution& gate, int64_t inputs, int64_t outputs) {
  return {gate.batch, gate.time, inputs, outputs, 1, 1, 1};
}

template <class T>
WaveNetLayer<T> layer(const Tensor& x, const Tensor& gate_weight, const Tensor& gate_bias,
                      const Tensor& residual_weight, const Tensor& skip_weight, const Optional& condition,
                      const Optional& condition_weight, int64_t dilation) {
  WaveNetLayer<T> n{};
  const Convolution gate{x.size(0), x.size(2), x.size(1), gate_weight.size(0), 1, gate_weight.size(2), dilation};
  n.gate = gate.pairs(convolution_kernels<T>().tile / 2);
  n.condition = pointwise(n.gate, condition ? condition->size(1) : 0, n.gate.outputs);
  n.residual = pointwise(n.gate, residual_weight.size(1), x.size(1));
  n.skip = pointwise(n.gate, skip_weight.size(1), skip_weight.size(0));
  const int64_t units = n.residual.inputs;
  const bool fits = gate_weight.size(1) == x.size(1) && n.gate.outputs == 2 * units && n.skip.inputs == units &&
                    residual_weight.size(0) == x.size(1) && condition.has_value() == condition_weight.has_value() &&
                    (!condition || (condition->numel() == n.gate.batch * n.condition.inputs * n.gate.time &&
                                    condition_weight->numel() == n.condition.weights()));
  STD_TORCH_CHECK(fits, "flowkern: the weights do not belong to this sequence");
  for (const Tensor& t :
       {x, gate_weight, gate_bias, residual_weight, skip_weight, condition.value_or(x), condition_weight.value_or(x)})
    STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == kDtype<T>,
                    "flowkern: expected contiguous tensors of one dtype");
  n.x = const_data<T>(x);
  n.condition_x = condition ? const_data<T>(*condition) : nullptr;
  n.gate_bias = const_data<T>(gate_bias);
  n.gate_bias_stride = gate_bias.dim() == 2 ? gate_bias.size(1) : 0;
  return n;
}

// Packs the weights of gate and condition, and those of residual and skip, transposed or not. Returns as many elements
// of memory as are wanted for more.
template <class T>
T* pack_layer(WaveNetLayer<T>& n, const Tensor& gate_weight, const Tensor& residual_weight, const Tensor& skip_weight,
              const Optional& condition_weight, bool transposed, int64_t more) {
  const Convolution residual = transposed ? n.residual.transpose() : n.residual,
                    skip = transposed ? n.skip.transpose() : n.skip;
  const int64_t size =
      n.gate.packed_size() + n.condition.packed_size() + residual.packed_size() + skip.packed_size() + more;
  T* memory = static_cast<T*>(scratch(size * sizeof(T), 1));
  const auto packed = [&](const Convolution& c, const Tensor& weight) {
    T* to = memory;
    memory += c.packed_size();
    pack_all(c, weight, to);
    return to;
  };
  n.gate_weight = packed(n.gate, gate_weight);
  n.condition_weight = condition_weight ? packed(n.condition, *condition_weight) : nullptr;
  n.residual_weight = packed(residual, residual_weight);
  n.skip_weight = packed(skip, skip_weight);
  return memory;
}

std::tuple<Tensor, Tensor> wavenet_layer(Tensor x, Optional skips, Tensor gate_weight, Tensor gate_bias,
                                         Tensor residual_weight, Tensor residual_bias, Tensor skip_weight,
                                         Tensor skip_bias, Optional condition, Optional condition_weight,
                                         int64_t dilation) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
    WaveNetLayer<T> n =
        layer<T>(x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, dilation);
    // The sum first: it takes the place of the sum before the last one, which is free by now. Else y would, which stays
    // for the gradients, and every layer would need memory for another sum (docs/measured.md).
    Tensor sum = outputs_of<T>(n.skip);
    Tensor y = outputs_of<T>(n.residual);
    STD_TORCH_CHECK(!skips || (skips->is_contiguous() && skips->numel() == sum.numel()),
                    "flowkern: the skips do not belong to this sequence");
    n.y = data<T>(y), n.y_skips = data<T>(sum);
    n.skips = skips ? const_data<T>(*skips) : nullptr;
    n.residual_bias = const_data<T>(residual_bias), n.skip_bias = const_data<T>(skip_bias);
    pack_layer(n, gate_weight, residual_weight, skip_weight, condition_weight, false, 0);
    parallel(n.gate.turns(kernels.tile), n.work(), [&](int64_t i) {
      T* memory = static_cast<T*>(scratch(layer_scratch(n, kernels.tile) * sizeof(T)));
      kernels.wavenet_layer(n, n.gate.turn(i, kernels.tile), memory);
    });
    return std::make_tuple(y, sum);
  });
}

template <class T>
Tensor bias_gradient(const Convolution& c, const T* sums, int64_t turns, bool of_rows) {
  const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
  const int64_t width = whole_tiles(c.outputs, kernels.tile), rows = of_rows ? c.batch : 1;
  Tensor g = of_rows ? empty<T>({rows, c.outputs}) : empty<T>({c.outputs});
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < c.outputs; ++i)
      data<T>(g)[row * c.outputs + i] =
          kernels.sum_of_turns(sums + turns * row / rows * width + i, turns / rows, width);
  return g;
}

// The gradients that are wanted: of all weights and biases in the order of the arguments, of x, of the condition.
Tensors wavenet_layer_backward(Tensor g_y, Tensor g_skips, Tensor x, Tensor gate_weight, Tensor gate_bias,
                               Tensor residual_weight, Tensor skip_weight, Optional condition,
                               Optional condition_weight, int64_t dilation, bool of_parameters, bool of_x,
                               bool of_condition) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const ConvolutionKernels<T>& kernels = convolution_kernels<T>();
    WaveNetLayerBackward<T> b{};
    WaveNetLayer<T>& n = b.layer;
    n = layer<T>(x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, dilation);
    const int64_t batch = n.gate.batch, time = n.gate.time, tile = kernels.tile;
    STD_TORCH_CHECK(g_y.is_contiguous() && g_skips.is_contiguous() && g_y.numel() == x.numel() &&
                        g_skips.numel() == batch * n.skip.outputs * time,
                    "flowkern: the cotangents do not belong to this sequence");
    // What stays for long comes first: it takes the place of the input of the layer after this one, whole, before small
    // gradients take a part of that (docs/measured.md).
    Tensors of_sequences;
    if (of_x) of_sequences.push_back(outputs_of<T>(n.gate.transpose()));
    if (of_condition) of_sequences.push_back(outputs_of<T>(n.condition.transpose()));
    Tensor g_z = outputs_of<T>(n.gate);
    b.g_y = const_data<T>(g_y), b.g_skips = const_data<T>(g_skips), b.g_z = data<T>(g_z);

    const int64_t turns = n.gate.turns(tile);
    int64_t products = 0, biases = 0;
    for (const Convolution& c : {n.gate, n.condition, n.residual, n.skip}) products += gradient_sums(c, tile);
    for (const Convolution& c : {n.gate, n.residual, n.skip}) biases += turns * whole_tiles(c.outputs, tile);
    const int64_t parts = gradient_parts(turns, products);
    T* memory = pack_layer(n, gate_weight, residual_weight, skip_weight, condition_weight, true,
                           of_parameters ? parts * products + biases : 0);
    const auto place = [&](const Convolution& c, bool has_bias) {
      ParameterSums<T> place{memory, nullptr};
      memory += parts * gradient_sums(c, tile);
      if (has_bias) place.biases = memory, memory += turns * whole_tiles(c.outputs, tile);
      return place;
    };
    if (of_parameters) {
      b.gate = place(n.gate, true), b.condition = place(n.condition, false);
      b.residual = place(n.residual, true), b.skip = place(n.skip, true);
    }
    parallel_parts(turns, parts, 3 * n.work(), [&](int64_t part, int64_t begin, int64_t end) {
      kernels.wavenet_layer_backward(b, part, begin, end,
                                     static_cast<T*>(scratch(layer_backward_scratch(n, tile) * sizeof(T))));
    });

    Tensors gradients;
    const auto weight_gradient = [&](const Convolution& c, const ParameterSums<T>& sums, std::vector<int64_t> sizes) {
      gradients.push_back(empty<T>(sizes));
      unpack_all(c, sums.products, turns > 0 ? parts : 0, data<T>(gradients.back()));
    };
    if (of_parameters) {
      weight_gradient(n.gate, b.gate, {n.gate.outputs, n.gate.inputs, n.gate.taps});
      gradients.push_back(bias_gradient(n.gate, b.gate.biases, turns, gate_bias.dim() == 2));
      weight_gradient(n.residual, b.residual, {n.residual.outputs, n.residual.inputs});
      gradients.push_back(bias_gradient(n.residual, b.residual.biases, turns, false));
      weight_gradient(n.skip, b.skip, {n.skip.outputs, n.skip.inputs});
      gradients.push_back(bias_gradient(n.skip, b.skip.biases, turns, false));
      if (condition) weight_gradient(n.condition, b.condition, {n.condition.outputs, n.condition.inputs});
    }
    // These take the scratch memory of the sums.
    if (of_x) convolve<T>(n.gate.transpose(), g_z, gate_weight, of_sequences.front(), nullptr, b.g_y);
    if (of_condition) convolve<T>(n.condition.transpose(), g_z, *condition_weight, of_sequences.back());
    gradients.insert(gradients.end(), of_sequences.begin(), of_sequences.end());
    return gradients;
  });
}

}  // namespace
}  // namespace flowkern

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def(
      "wavenet_layer(Tensor x, Tensor? skips, Tensor gate_weight, Tensor gate_bias, Tensor residual_weight, Tensor "
      "residual_bias, Tensor skip_weight, Tensor skip_bias, Tensor? condition, Tensor? condition_weight, int dilation) "
      "-> (Tensor, Tensor)");
  m.def(
      "wavenet_layer_backward(Tensor g_y, Tensor g_skips, Tensor x, Tensor gate_weight, Tensor gate_bias, Tensor "
      "residual_weight, Tensor skip_weight, Tensor? condition, Tensor? condition_weight, int dilation, bool "
      "of_parameters, bool of_x, bool of_condition) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("wavenet_layer", TORCH_BOX(&flowkern::wavenet_layer));
  m.impl("wavenet_layer_backward", TORCH_BOX(&flowkern::wavenet_layer_backward));
}
