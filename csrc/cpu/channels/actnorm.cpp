// Activation normalisation: every channel shifted and scaled, in one pass with the search for numbers that are not
// finite.
#include "cpu/channels/kernels.h"
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

// out[i] = f(in[i], i) on n numbers of a stride; their differences to themselves, NaN where one is not finite, are
// added.
template <class T, class F>
FK_INLINE T map_finite(const T* in, int64_t stride, T* out, int64_t n, F f) {
  constexpr int W = kLanes<T>;
  Vec<T> sum = {};
  T rest = 0;
  int64_t i = 0;
  if (stride == 1)
    for (; i + W <= n; i += W) {
      const auto v = load<Vec<T>>(in + i);
      sum += v - v;
      store(out + i, f(v, i));
    }
  for (; i < n; ++i) {
    const T v = in[i * stride];
    rest += v - v;
    const Vec<T> all = Vec<T>{} + v;
    out[i] = f(all, i)[0];
  }
  return rest + lane_sum<T>(sum);
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
    T *out = z + b * channels * pixels, finite = 0;
    if (pixels == 1)  // the channels are in the lanes
      finite = map_finite(in, x.channel_stride, out, channels, [&](Vec<T> v, int64_t i) {
        const Vec<T> t = per_lane(bias, i, channels), s = per_lane(scale, i, channels);
        return inverse ? v * s - t : (v + t) * s;
      });
    else
      for (int64_t c = 0; c < channels; ++c) {
        const T t = bias[c], s = scale[c];
        finite += map_finite(in + c * x.channel_stride, x.pixel_stride, out + c * pixels, pixels,
                             [&](Vec<T> v, int64_t) { return inverse ? v * s - t : (v + t) * s; });
      }
    log_det[b] = static_cast<T>(value) + finite;
  }
}

// Sums of g and of g (x + bias) over n pixels in double, g_x on the way.
template <class T>
FK_INLINE void backward_of_channel(const T* g, int64_t g_stride, const T* x, int64_t x_stride, T bias, T scale, T* g_x,
                                   int64_t n, double* sum, double* product) {
  constexpr int W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  VecD sums = {}, products = {};
  int64_t i = 0;
  if (g_stride == 1 && x_stride == 1)
    for (; i + W <= n; i += W) {
      const auto v = load<Part>(g + i);
      const auto u = load<Part>(x + i) + bias;
      store(g_x + i, v * scale);
      const VecD wide = __builtin_convertvector(v, VecD);
      sums += wide;
      products += wide * __builtin_convertvector(u, VecD);
    }
  *sum += lane_sum<double>(sums);
  *product += lane_sum<double>(products);
  for (; i < n; ++i) {
    const T v = g[i * g_stride];
    g_x[i] = v * scale;
    *sum += v;
    *product += static_cast<double>(v) * (x[i * x_stride] + bias);
  }
}

template <class T>
void actnorm_backward(const ImageShape& shape, Images<T> g_z, Images<T> x, const T* bias, const T* scale, bool inverse,
                      T* g_x, double* sums, int64_t begin, int64_t end) {
  const int64_t channels = shape.channels, pixels = shape.pixels;
  for (int64_t b = begin; b < end; ++b)
    for (int64_t c = 0; c < channels; ++c)
      backward_of_channel(g_z.data + b * g_z.image_stride + c * g_z.channel_stride, g_z.pixel_stride,
                          x.data + b * x.image_stride + c * x.channel_stride, x.pixel_stride, inverse ? T(0) : bias[c],
                          scale[c], g_x + (b * channels + c) * pixels, pixels, sums + c, sums + channels + c);
}

#define FK_INSTANTIATE(T)                                                                                          \
  template void actnorm(const ImageShape&, Images<T>, const T*, const T*, bool, double, T*, T*, int64_t, int64_t); \
  template void actnorm_backward(const ImageShape&, Images<T>, Images<T>, const T*, const T*, bool, T*, double*,   \
                                 int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
