// The operators of LSTMs that run over images.
#include "cpu/scans/kernels.h"
#include "ops/convolutions.h"

namespace flowkern {
namespace {

Scan scan_of(const Tensor& x, const Tensor& weight, bool diagonal, bool mirrored) {
  const bool fits = x.dim() == 4 && weight.dim() == 3 && x.size(3) == weight.size(0) &&
                    weight.size(0) == 4 * weight.size(1) && x.scalar_type() == weight.scalar_type() &&
                    x.is_contiguous() && weight.is_contiguous() &&
                    (diagonal ? weight.size(2) == 2 : weight.size(2) % 2);
  STD_TORCH_CHECK(fits, "flowkern: the weight does not belong to these images");
  return {x.size(0), x.size(1), x.size(2), weight.size(1), weight.size(2), diagonal, mirrored};
}

// The gradient of the weights, [taps][states][gates], is summed like that of a map of channels.
Convolution as_convolution(const Scan& s) { return {0, 0, s.hidden, 4 * s.hidden, 1, s.taps, 1}; }

// The states; and, for gradients, cells and gates.
std::tuple<Tensor, Tensors> scan(const Tensor& x, const Tensor& weight, bool keep, bool diagonal, bool mirrored) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const ScanKernels<T>& kernels = scan_kernels<T>();
    const Scan s = scan_of(x, weight, diagonal, mirrored);
    Tensor h = large<T>({s.batch, s.height, s.width, s.hidden});
    Tensors kept;
    if (keep)
      for (const int64_t channels : {s.hidden, 4 * s.hidden})
        kept.push_back(large<T>({s.batch, s.height, s.width, channels}));
    T* packed = static_cast<T*>(scratch(packed_size(s, kernels.lanes) * sizeof(T), 1));
    parallel(blocks(s.hidden, kernels.lanes), s.weights(),
             [&](int64_t block) { kernels.pack(s, const_data<T>(weight), packed, block); });
    const ScanForward<T> forward{
        s, const_data<T>(x), packed, data<T>(h), keep ? data<T>(kept[0]) : nullptr, keep ? data<T>(kept[1]) : nullptr};
    parallel_ranges(s.batch, s.group(), s.work(), [&](int64_t begin, int64_t end) {
      kernels.scan(forward, begin, end - begin, static_cast<T*>(scratch(scan_scratch(s) * sizeof(T))));
    });
    return std::make_tuple(h, kept);
  });
}

// The gradients of x, and of the weight where it is wanted.
Tensors scan_backward(const Tensor& g_h, const Tensor& h, const Tensor& cells, const Tensor& gates,
                      const Tensor& weight, bool of_weight, bool diagonal, bool mirrored) {
  return for_dtype(gates, [&](auto zero) {
    using T = decltype(zero);
    const ScanKernels<T>& kernels = scan_kernels<T>();
    const Scan s = scan_of(gates, weight, diagonal, mirrored);
    for (const Tensor& t : {g_h, h, cells})
      STD_TORCH_CHECK(t.is_contiguous() && t.numel() == s.pixels() * s.hidden && t.scalar_type() == kDtype<T>,
                      "flowkern: the states do not belong to these images");
    Tensors gradients{large<T>({s.batch, s.height, s.width, 4 * s.hidden})};
    const Convolution map = as_convolution(s);
    const int64_t sums = gradient_sums(map, convolution_kernels<T>().tile), parts = gradient_parts(s.groups(), sums),
                  weights = packed_backward_size(s, kernels.lanes);
    T* packed = static_cast<T*>(scratch((weights + (of_weight ? parts * sums : 0)) * sizeof(T), 1));
    parallel(blocks(s.hidden, kBackwardVectors * kernels.lanes), s.weights(),
             [&](int64_t block) { kernels.pack_backward(s, const_data<T>(weight), packed, block); });
    const ScanBackward<T> backward{
        s,      const_data<T>(g_h),   const_data<T>(h), const_data<T>(cells), const_data<T>(gates),
        packed, data<T>(gradients[0])};
    parallel_parts(s.groups(), parts, (1 + of_weight) * s.work(), [&](int64_t part, int64_t begin, int64_t end) {
      T *memory = static_cast<T*>(scratch(scan_scratch(s) * sizeof(T))), *sum = packed + weights + part * sums;
      if (of_weight) std::memset(sum, 0, sums * sizeof(T));
      for (int64_t first = begin * s.group(); first < std::min(end * s.group(), s.batch); first += s.group()) {
        const int64_t images = std::min(s.group(), s.batch - first);
        kernels.scan_backward(backward, first, images, memory);
        if (of_weight) kernels.weight_gradient(backward, first, images, sum);
      }
    });
    if (of_weight) {
      gradients.push_back(empty<T>({4 * s.hidden, s.hidden, s.taps}));
      unpack_all(map, packed + weights, parts, data<T>(gradients[1]));
    }
    return gradients;
  });
}

std::tuple<Tensor, Tensors> row_lstm(Tensor x, Tensor weight, bool keep) { return scan(x, weight, keep, false, false); }

Tensors row_lstm_backward(Tensor g_h, Tensor h, Tensor cells, Tensor gates, Tensor weight, bool of_weight) {
  return scan_backward(g_h, h, cells, gates, weight, of_weight, false, false);
}

std::tuple<Tensor, Tensors> diagonal_lstm(Tensor x, Tensor weight, bool mirrored, bool keep) {
  return scan(x, weight, keep, true, mirrored);
}

Tensors diagonal_lstm_backward(Tensor g_h, Tensor h, Tensor cells, Tensor gates, Tensor weight, bool mirrored,
                               bool of_weight) {
  return scan_backward(g_h, h, cells, gates, weight, of_weight, true, mirrored);
}

}  // namespace
}  // namespace flowkern

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("row_lstm(Tensor x, Tensor weight, bool keep) -> (Tensor, Tensor[])");
  m.def(
      "row_lstm_backward(Tensor g_h, Tensor h, Tensor cells, Tensor gates, Tensor weight, bool of_weight) -> Tensor[]");
  m.def("diagonal_lstm(Tensor x, Tensor weight, bool mirrored, bool keep) -> (Tensor, Tensor[])");
  m.def(
      "diagonal_lstm_backward(Tensor g_h, Tensor h, Tensor cells, Tensor gates, Tensor weight, bool mirrored, bool "
      "of_weight) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("row_lstm", TORCH_BOX(&row_lstm));
  m.impl("row_lstm_backward", TORCH_BOX(&row_lstm_backward));
  m.impl("diagonal_lstm", TORCH_BOX(&diagonal_lstm));
  m.impl("diagonal_lstm_backward", TORCH_BOX(&diagonal_lstm_backward));
}
