// The operators on the channels of images: activation normalisation and the invertible 1x1 convolution.
#include "cpu/channels/kernels.h"

#include <cmath>

#include "ops/tensors.h"

namespace flowkern {
namespace {

ImageShape image_shape(const Tensor& x) { return {x.size(0), x.size(1), x.size(2)}; }

template <class T>
Images<T> images(const Tensor& t) {
  return {const_data<T>(t), t.stride(0), t.stride(1), t.stride(2)};
}

// The stride of dimensions [begin, end) of a tensor as one dimension, or -1 where they have none.
int64_t joined_stride(const Tensor& t, int64_t begin, int64_t end) {
  int64_t found = 0, next = -1;
  for (int64_t i = end - 1; i >= begin; --i) {
    const int64_t size = t.size(i), stride = t.stride(i);
    if (size == 1) continue;
    if (next < 0)
      found = stride;
    else if (stride != next)
      return -1;
    next = stride * size;
  }
  return found;
}

// A tensor whose channels are in some dimension as images: what is before it counts them, what is after it are pixels.
// It is copied where these have no common stride.
template <class T>
struct ImagesOf {
  ImagesOf(Tensor t, int64_t dim) : sizes(t.dim()), batch(t.dim() + dim), shape{1, t.size(batch), 1}, kept(t) {
    for (int64_t i = 0; i < t.dim(); ++i) {
      sizes[i] = t.size(i);
      if (i != batch) (i < batch ? shape.images : shape.pixels) *= sizes[i];
    }
    int64_t image = joined_stride(t, 0, batch), pixel = joined_stride(t, batch + 1, t.dim());
    if (image < 0 || pixel < 0) {
      kept = torch::stable::contiguous(t);
      image = shape.channels * shape.pixels;
      pixel = 1;
    }
    images = {const_data<T>(kept), image, kept.stride(batch), pixel};
  }

  std::vector<int64_t> sizes;
  int64_t batch;  // the number of dimensions that count images
  ImageShape shape;
  Tensor kept;
  Images<T> images;
};

// Images are shared among threads in parts of so many numbers or more; the sums of parts are added in their order.
constexpr int64_t kPart = 16384, kMostParts = 64;

int64_t part_count(const ImageShape& s) {
  return std::min({s.images, kMostParts, std::max<int64_t>(1, s.images * s.channels * s.pixels / kPart)});
}

// Calls f(part, begin, end) on parts of the images.
template <class F>
void parallel_images(const ImageShape& s, int64_t work, const F& f) {
  parallel_parts(s.images, part_count(s), work, f);
}

template <class T>
double sum_of(const Tensor& t) {
  double sum = 0;
  for (int64_t i = 0; i < t.size(0); ++i) sum += const_data<T>(t)[i * t.stride(0)];
  return sum;
}

// exp(log_scale) of every channel, or of its negative.
template <class T>
std::vector<T> scales(const Tensor& log_scale, bool inverse) {
  std::vector<T> out(log_scale.size(0));
  for (size_t c = 0; c < out.size(); ++c)
    out[c] = std::exp(inverse ? -const_data<T>(log_scale)[c] : const_data<T>(log_scale)[c]);
  return out;
}

std::tuple<Tensor, Tensor> actnorm(Tensor x, Tensor bias, Tensor log_scale, int64_t dim, bool inverse) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const ImagesOf<T> given(x, dim);
    const ImageShape& s = given.shape;
    Tensor z = empty<T>(given.sizes), log_det = empty<T>({given.sizes.begin(), given.sizes.begin() + given.batch});
    const std::vector<T> scale = scales<T>(log_scale, inverse);
    const double value = (inverse ? -1 : 1) * s.pixels * sum_of<T>(log_scale);
    parallel_images(s, x.numel(), [&](int64_t, int64_t begin, int64_t end) {
      channel_kernels<T>().actnorm(s, given.images, const_data<T>(bias), scale.data(), inverse, value, data<T>(z),
                                   data<T>(log_det), begin, end);
    });
    return {z, log_det};
  });
}

std::tuple<Tensor, Tensor, Tensor> actnorm_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor bias,
                                                    Tensor log_scale, int64_t dim, bool inverse) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const ImagesOf<T> given(x, dim), cotangents(g_z, dim);
    const ImageShape& s = given.shape;
    Tensor g_x = empty<T>(given.sizes), g_bias = empty<T>({s.channels}), g_log_scale = empty<T>({s.channels});
    const std::vector<T> scale = scales<T>(log_scale, inverse);
    const int64_t lanes = channel_kernels<T>().actnorm_lanes(s.pixels);
    const int64_t parts = part_count(s), size = 2 * s.channels * lanes;
    std::vector<double> sums(parts * size);
    parallel_images(s, x.numel(), [&](int64_t part, int64_t begin, int64_t end) {
      channel_kernels<T>().actnorm_backward(s, cotangents.images, given.images, const_data<T>(bias), scale.data(),
                                            inverse, data<T>(g_x), sums.data() + part * size, begin, end);
    });
    const auto total = [&](int64_t row) {
      double sum = 0;
      for (int64_t i = 0; i < parts * lanes; ++i) sum += sums[i / lanes * size + row * lanes + i % lanes];
      return sum;
    };
    const double of_log_det = s.pixels * sum_of<T>(g_log_det);
    for (int64_t c = 0; c < s.channels; ++c) {
      const double sum = total(c), product = total(s.channels + c) * scale[c];
      data<T>(g_bias)[c] = static_cast<T>(inverse ? -sum : sum * scale[c]);
      data<T>(g_log_scale)[c] = static_cast<T>(inverse ? -product - of_log_det : product + of_log_det);
    }
    return {g_x, g_bias, g_log_scale};
  });
}

// The matrix of a call, W = (L U)[order], or W alone, as the kernels take it. The diagonal of U is sign exp(log_scale),
// or its own; then the log-determinant is the caller's. Everything lies in the calling thread's scratch memory.
template <class T>
class MixingMatrix {
 public:
  // `sums`: numbers that the caller needs behind the matrices.
  MixingMatrix(const Tensor& lower, const std::optional<Tensor>& upper, const std::optional<Tensor>& log_scale,
               const std::optional<Tensor>& order, const std::optional<Tensor>& sign, bool inverse, bool transposed,
               int64_t sums)
      : channels_(lower.size(0)), lower_(const_data<T>(lower)), kernels_(channel_kernels<T>()) {
    const int64_t n = channels_, square = n * n, panels = packed_size(n);
    T* memory = static_cast<T*>(scratch((2 * square + 2 * panels + 2 * n + sums) * sizeof(T), 1));
    this->sums = memory + 2 * square + 2 * panels + 2 * n;
    this->order = order ? const_data<int64_t>(*order) : nullptr;
    T *packed = memory + 2 * square, *const scales = packed + 2 * panels;
    this->packed = packed;
    if (!upper) {
      pack(lower_, transposed, T(1), packed);
      return;
    }
    const T* given = const_data<T>(*upper);
    this->upper = memory;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) memory[i * n + j] = j > i ? given[i * n + j] : T(0);
      memory[i * n + i] =
          log_scale ? const_data<T>(*sign)[i] * std::exp(const_data<T>(*log_scale)[i]) : given[i * n + i];
      if (log_scale) log_det += const_data<T>(*log_scale)[i];
    }
    if (!inverse) {
      kernels_.multiply(lower_, memory, n, memory + square);
      pack(memory + square, transposed, T(1), packed);
      return;
    }
    // Of the inverse the systems; those of the transposed matrix change places.
    for (int64_t i = 0; i < n; ++i) {
      scales[i] = 1;
      scales[n + i] = 1 / memory[i * n + i];
    }
    T *of_lower = packed, *of_upper = packed + panels;
    if (transposed) std::swap(of_lower, of_upper);
    pack(lower_, transposed, T(-1), of_lower);
    pack(memory, transposed, T(-1), of_upper);
    found_ = {packed, packed + panels, transposed ? scales + n : scales, transposed ? scales : scales + n};
    factors = &found_;
  }
  MixingMatrix(const MixingMatrix&) = delete;

  const T *packed, *upper = nullptr;
  const Factors<T>* factors = nullptr;
  const int64_t* order;
  T* sums;
  double log_det = 0;

 private:
  void pack(const T* matrix, bool transposed, T sign, T* to) const {
    kernels_.pack(matrix, transposed ? 1 : channels_, transposed ? channels_ : 1, channels_, sign, to);
  }

  int64_t channels_;
  const T* lower_;
  const ChannelKernels<T>& kernels_;
  Factors<T> found_;
};

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> invertible_conv1x1(Tensor x, Tensor lower, Optional upper, Optional log_scale,
                                              Optional order, Optional sign, bool inverse) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const ChannelKernels<T>& kernels = channel_kernels<T>();
    const ImageShape s = image_shape(x);
    Tensor z = empty<T>({s.images, s.channels, s.pixels}), log_det = empty<T>({s.images});
    const MixingMatrix<T> w(lower, upper, log_scale, order, sign, inverse, false, 0);
    const double value = (inverse ? -1 : 1) * s.pixels * w.log_det;
    parallel_images(s, x.numel() * s.channels, [&](int64_t, int64_t begin, int64_t end) {
      T* memory = static_cast<T*>(scratch(kernels.scratch(s.channels) * sizeof(T)));
      kernels.mix(s, images<T>(x), w.packed, w.factors, w.order, value, data<T>(z), data<T>(log_det), memory, begin,
                  end);
    });
    return {z, log_det};
  });
}

// Cotangents of x, of `lower` (or of W), `upper` and `log_scale`; the last two are empty where they were not given. In
// place of x the inverse takes its result.
std::tuple<Tensor, Tensor, Tensor, Tensor> invertible_conv1x1_backward(Tensor g_z, Tensor g_log_det, Tensor x,
                                                                       Tensor lower, Optional upper, Optional log_scale,
                                                                       Optional order, Optional sign, bool inverse) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const ChannelKernels<T>& kernels = channel_kernels<T>();
    const ImageShape s = image_shape(x);
    const int64_t n = s.channels, width = kernels.sums_width(n), parts = part_count(s);
    Tensor g_x = empty<T>({s.images, n, s.pixels}), g_lower = empty<T>({n, n});
    const MixingMatrix<T> w(lower, upper, log_scale, order, sign, inverse, true, parts * n * width + n * n);
    parallel_images(s, 2 * x.numel() * n, [&](int64_t part, int64_t begin, int64_t end) {
      T* memory = static_cast<T*>(scratch(kernels.scratch(n) * sizeof(T)));
      kernels.mix_backward(s, images<T>(g_z), images<T>(x), w.packed, w.factors, w.order, data<T>(g_x),
                           w.sums + part * n * width, memory, begin, end);
    });
    T* const g = log_scale ? w.sums + parts * n * width : data<T>(g_lower);
    parallel(n, parts * n * n, [&](int64_t i) {
      const int64_t row = w.order && !log_scale ? w.order[i] : i;
      std::vector<double> sum(n);
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t k = 0; k < n; ++k) sum[k] += w.sums[(part * n + row) * width + k];
      for (int64_t k = 0; k < n; ++k) g[i * n + k] = static_cast<T>(inverse ? -sum[k] : sum[k]);
    });
    if (!log_scale) return {g_x, g_lower, empty<T>({0}), empty<T>({0})};
    Tensor g_upper = empty<T>({n, n}), g_log_scale = empty<T>({n});
    kernels.multiply_backward(const_data<T>(lower), w.upper, g, n, data<T>(g_lower), data<T>(g_upper));
    const double of_log_det = (inverse ? -1 : 1) * s.pixels * sum_of<T>(g_log_det);
    for (int64_t i = 0; i < n; ++i) {
      T& of_diagonal = data<T>(g_upper)[i * n + i];
      data<T>(g_log_scale)[i] = static_cast<T>(static_cast<double>(of_diagonal) * w.upper[i * n + i] + of_log_det);
      of_diagonal = 0;
    }
    return {g_x, g_lower, g_upper, g_log_scale};
  });
}

}  // namespace
}  // namespace flowkern

#define FK_MATRIX "Tensor lower, Tensor? upper, Tensor? log_scale, Tensor? order, Tensor? sign"

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("actnorm(Tensor x, Tensor bias, Tensor log_scale, int dim, bool inverse) -> (Tensor, Tensor)");
  m.def(
      "actnorm_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor bias, Tensor log_scale, int dim, bool inverse) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("invertible_conv1x1(Tensor x, " FK_MATRIX ", bool inverse) -> (Tensor, Tensor)");
  m.def("invertible_conv1x1_backward(Tensor g_z, Tensor g_log_det, Tensor x, " FK_MATRIX
        ", bool inverse) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("actnorm", TORCH_BOX(&actnorm));
  m.impl("actnorm_backward", TORCH_BOX(&actnorm_backward));
  m.impl("invertible_conv1x1", TORCH_BOX(&invertible_conv1x1));
  m.impl("invertible_conv1x1_backward", TORCH_BOX(&invertible_conv1x1_backward));
}
