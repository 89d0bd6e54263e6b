// Activation normalisation: every channel shifted and scaled, in one pass with the search for numbers that are not
// finite.
#include "cpu/channels/kernels.h"
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

// out[i] = f(in[i], i) on n numbers of a stride; their differences to themselves, NaN where one is not finite, are
// added.
template <class T, class F>
FK_INLINE void map_finite(const T* in, int64_t stride, T* out, int64_t n, Vec<T>& finite, F f) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + W <= n; i += W) {
      const auto v = load<Vec<T>>(in + i);
      finite += v - v;
      store(out + i, f(v, i));
    }
  for (; i < n; ++i) {
    const Vec<T> v = Vec<T>{} + in[i * stride];
    finite += v - v;
    out[i] = f(v, i)[0];
  }
}

template <class T>
FK_INLINE Vec<T> per_lane(const T* numbers, int64_t i, int64_t n) {
  return i + kLanes<T> <= n ? load<Vec<T>>(numbers + i) : Vec<T>{} + numbers[i];
}

template <class T>
void actnorm(const ImageShape& shape, Images<T> x, const T* bias, const T* scale, bool inverse, double value, T* z,
             T* log_det, int64_t begin, int64_t end) {
  const int64_t channels = shape.channels, pixels = shape.pixels;
  for (int64_t b = begin; b < end; ++b) {
    const T* in = x.data + b * x.image_stride;
    T* out = z + b * channels * pixels;
    Vec<T> finite = {};
    if (pixels == 1)  // the channels are in the lanes
      map_finite(in, x.channel_stride, out, channels, finite, [&](Vec<T> v, int64_t i) {
        const Vec<T> t = per_lane(bias, i, channels), s = per_lane(scale, i, channels);
        return inverse ? v * s - t : (v + t) * s;
      });
    else
      for (int64_t c = 0; c < channels; ++c) {
        const T t = bias[c], s = scale[c];
        map_finite(in + c * x.channel_stride, x.pixel_stride, out + c * pixels, pixels, finite,
                   [&](Vec<T> v, int64_t) { return inverse ? v * s - t : (v + t) * s; });
      }
    log_det[b] = static_cast<T>(value) + lane_sum<T>(finite);
  }
}

template <class T>
int64_t actnorm_lanes(int64_t pixels) {
  return pixels == 1 ? 1 : kLanes<double>;
}

template <class T>
void actnorm_backward(const ImageShape& shape, Images<T> g_z, Images<T> x, const T* bias, const T* scale, bool inverse,
                      T* g_x, double* sums, int64_t begin, int64_t end) {
  constexpr int64_t W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  const int64_t channels = shape.channels, pixels = shape.pixels, lanes = actnorm_lanes<T>(pixels);
  double* const products = sums + channels * lanes;
  for (int64_t b = begin; b < end; ++b)
    for (int64_t c = 0; c < channels; ++c) {
      const T* g = g_z.data + b * g_z.image_stride + c * g_z.channel_stride;
      const T* u = x.data + b * x.image_stride + c * x.channel_stride;
      T* out = g_x + (b * channels + c) * pixels;
      const T t = inverse ? T(0) : bias[c], s = scale[c];
      double *const sum = sums + c * lanes, *const product = products + c * lanes;
      int64_t i = 0;
      if (W <= pixels && g_z.pixel_stride == 1 && x.pixel_stride == 1) {
        auto wide_sum = load<VecD>(sum), wide_product = load<VecD>(product);
        for (; i + W <= pixels; i += W) {
          const auto v = load<Part>(g + i);
          const VecD wide = __builtin_convertvector(v, VecD);
          wide_sum += wide;
          wide_product += wide * __builtin_convertvector(load<Part>(u + i) + t, VecD);
          store(out + i, v * s);
        }
        store(sum, wide_sum);
        store(product, wide_product);
      }
      for (; i < pixels; ++i) {
        const T v = g[i * g_z.pixel_stride];
        *sum += v;
        *product += static_cast<double>(v) * (u[i * x.pixel_stride] + t);
        out[i] = v * s;
      }
    }
}

#define FK_INSTANTIATE(T)                                                                                          \
  template void actnorm(const ImageShape&, Images<T>, const T*, const T*, bool, double, T*, T*, int64_t, int64_t); \
  template int64_t actnorm_lanes<T>(int64_t);                                                                      \
  template void actnorm_backward(const ImageShape&, Images<T>, Images<T>, const T*, const T*, bool, T*, double*,   \
                                 int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
