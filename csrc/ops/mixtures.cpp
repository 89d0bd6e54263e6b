// The operators on mixtures.
#include "cpu/mixtures/kernels.h"

#include "ops/tensors.h"

namespace flowkern {
namespace {

constexpr int64_t kElements = 512;          // of one piece of work
constexpr int64_t kWorkOfAComponent = 128;  // multiply-adds that its exponentials are worth

// Calls f(begin, end) on ranges of elements.
template <class F>
void parallel_elements(int64_t elements, int64_t components, const F& f) {
  parallel_ranges(elements, kElements, elements * components * kWorkOfAComponent, f);
}

template <class T>
Components<T> components_of(const Tensor& t) {
  return {const_data<T>(t), t.stride(0), t.stride(1), t.stride(2)};
}

template <class T>
Mixtures<T> mixtures_of(const Tensor& logits, const Tensor& means, const Tensor& log_scales, int64_t levels,
                        double log_scale_min, bool gaussian = false) {
  return {logits.size(1),
          logits.size(2),
          levels,
          gaussian,
          log_scale_min,
          components_of<T>(logits),
          components_of<T>(means),
          components_of<T>(log_scales)};
}

std::tuple<Tensor, Tensors> logistic_mixture(Tensor x, Tensor logits, Tensor means, Tensor log_scales, int64_t levels,
                                             double log_scale_min, bool gaussian, bool keep) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensors> {
    using T = decltype(zero);
    const auto mixtures = mixtures_of<T>(logits, means, log_scales, levels, log_scale_min, gaussian);
    const MixtureKernels<T>& kernels = mixture_kernels<T>();
    const int64_t rows = x.size(0), columns = x.size(1);
    Tensor out = empty<T>({rows, columns});
    Tensors kept;
    for (int i = 0; keep && i < 3; ++i) kept.push_back(empty<T>({rows, columns, mixtures.components}));
    MixtureDerivatives<T> derivatives = {};
    if (keep) derivatives = {data<T>(kept[0]), data<T>(kept[1]), data<T>(kept[2])};
    parallel_elements(x.numel(), mixtures.components, [&](int64_t begin, int64_t end) {
      kernels.logistic_mixture(mixtures, matrix<T>(x), data<T>(out), keep ? &derivatives : nullptr,
                               scratch(kernels.scratch_bytes(mixtures.components)), begin, end);
    });
    return {out, kept};
  });
}

Tensor logistic_mixture_sample(Tensor u, Tensor choice, Tensor logits, Tensor means, Tensor log_scales, int64_t levels,
                               double log_scale_min) {
  return for_dtype(u, [&](auto zero) {
    using T = decltype(zero);
    const auto mixtures = mixtures_of<T>(logits, means, log_scales, levels, log_scale_min);
    Tensor out = empty<T>({u.size(0), u.size(1)});
    parallel_elements(u.numel(), mixtures.components, [&](int64_t begin, int64_t end) {
      mixture_kernels<T>().logistic_mixture_sample(mixtures, matrix<T>(u), components_of<T>(choice), data<T>(out),
                                                   begin, end);
    });
    return out;
  });
}

}  // namespace
}  // namespace flowkern

#define FK_MIXTURES "Tensor logits, Tensor means, Tensor log_scales, int levels, float log_scale_min"

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("logistic_mixture(Tensor x, " FK_MIXTURES ", bool gaussian, bool keep) -> (Tensor, Tensor[])");
  m.def("logistic_mixture_sample(Tensor u, Tensor choice, " FK_MIXTURES ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("logistic_mixture", TORCH_BOX(&logistic_mixture));
  m.impl("logistic_mixture_sample", TORCH_BOX(&logistic_mixture_sample));
}
