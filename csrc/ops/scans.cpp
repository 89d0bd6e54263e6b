// The operators of LSTMs that run over images.
#include "cpu/scans/kernels.h"
#include "ops/tensors.h"

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

// Calls f(first image, images) for every group of them, [begin, end).
template <class F>
void for_groups(const Scan& s, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end; ++i) f(i * s.group(), std::min(s.group(), s.batch - i * s.group()));
}

// The states; and, for gradients, cells and gates.
std::tuple<Tensor, Tensors> scan(const Tensor& x, const Tensor& weight, bool keep, bool diagonal, bool mirrored) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const ScanKernels<T>& kernels = scan_kernels<T>();
    const Scan s = scan_of(x, weight, diagonal, mirrored);
    Tensor h = empty<T>({s.batch, s.height, s.width, s.hidden});
    Tensors kept;
    if (keep) {
      kept.push_back(empty<T>({s.batch, s.height, s.width, s.hidden}));
      kept.push_back(empty<T>({s.batch, s.height, s.width, 4 * s.hidden}));
      for (const Tensor& t : {h, kept[0], kept[1]}) prefer_huge_pages(t.mutable_data_ptr(), t.numel() * sizeof(T));
    }
    T* packed = static_cast<T*>(scratch(packed_size(s, kernels.lanes) * sizeof(T), 1));
    parallel(blocks(s.hidden, kernels.lanes), s.weights(),
             [&](int64_t block) { kernels.pack(s, const_data<T>(weight), packed, block); });
    const ScanForward<T> forward{
        s, const_data<T>(x), packed, data<T>(h), keep ? data<T>(kept[0]) : nullptr, keep ? data<T>(kept[1]) : nullptr};
    parallel(s.groups(), s.work(), [&](int64_t i) {
      T* memory = static_cast<T*>(scratch(scan_scratch(s) * sizeof(T)));
      for_groups(s, i, i + 1, [&](int64_t first, int64_t images) { kernels.scan(forward, first, images, memory); });
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
    Tensors gradients{empty<T>({s.batch, s.height, s.width, 4 * s.hidden})};
    prefer_huge_pages(gradients[0].mutable_data_ptr(), gradients[0].numel() * sizeof(T));
    // Parts of the batch whose products are summed apart: their number does not depend on that of the threads.
    constexpr int64_t kParts = 16;
    const int64_t groups = s.groups(), parts = std::clamp<int64_t>(groups, 1, kParts),
                  weights = packed_backward_size(s, kernels.lanes), sums = gradient_sums(s, kernels.lanes);
    T* packed = static_cast<T*>(scratch((weights + (of_weight ? parts * sums : 0)) * sizeof(T), 1));
    parallel(blocks(s.hidden, kBackwardVectors * kernels.lanes), s.weights(),
             [&](int64_t block) { kernels.pack_backward(s, const_data<T>(weight), packed, block); });
    const ScanBackward<T> backward{
        s,      const_data<T>(g_h),   const_data<T>(h), const_data<T>(cells), const_data<T>(gates),
        packed, data<T>(gradients[0])};
    parallel(parts, (1 + of_weight) * s.work(), [&](int64_t part) {
      T *memory = static_cast<T*>(scratch(scan_scratch(s) * sizeof(T))), *sum = packed + weights + part * sums;
      if (of_weight) std::memset(sum, 0, sums * sizeof(T));
      for_groups(s, groups * part / parts, groups * (part + 1) / parts, [&](int64_t first, int64_t images) {
        kernels.scan_backward(backward, first, images, memory);
        if (of_weight) kernels.weight_gradient(backward, first, images, sum);
      });
    });
    if (of_weight) {
      gradients.push_back(empty<T>({4 * s.hidden, s.hidden, s.taps}));
      kernels.unpack(s, packed + weights, parts, data<T>(gradients[1]));
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
