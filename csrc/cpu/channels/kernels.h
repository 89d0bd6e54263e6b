// The CPU kernels on the channels of images as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "flowkern/panel.h"

namespace flowkern {

// Images [image][channel][pixel]; vectors are images of one pixel. What kernels write is contiguous.
struct ImageShape {
  int64_t images, channels, pixels;
};
template <class T>
struct Images {
  const T* data;
  int64_t image_stride, channel_stride, pixel_stride;
};

// A lower and an upper triangular matrix whose product is inverted: without their diagonals and with the opposite sign,
// packed in panels of eight rows, the reciprocals of the diagonals apart.
template <class T>
struct Factors {
  const T *lower, *upper, *lower_scale, *upper_scale;
};

// Numbers that the square matrix of so many channels has, packed.
FK_ALWAYS_INLINE inline int64_t packed_size(int64_t channels) {
  return (channels + kChunkRows - 1) / kChunkRows * kChunkRows * channels;
}

// Kernels work on images [begin, end). `order` holds the row of the matrices that each channel of z belongs to, null
// where that is its own. log_det is `value` for every image whose numbers are finite.
template <class T>
struct ChannelKernels {
  // z = (x + bias) scale, or for the inverse x scale - bias.
  void (*actnorm)(const ImageShape&, Images<T> x, const T* bias, const T* scale, bool inverse, double value, T* z,
                  T* log_det, int64_t begin, int64_t end);
  // g_x, and added to `sums` [2][channels][lanes] those of g_z and of g_z (x + bias), for the inverse of g_z x.
  int64_t (*actnorm_lanes)(int64_t pixels);
  void (*actnorm_backward)(const ImageShape&, Images<T> g_z, Images<T> x, const T* bias, const T* scale, bool inverse,
                           T* g_x, double* sums, int64_t begin, int64_t end);

  int64_t (*scratch)(int64_t channels);     // numbers that the kernels below need
  int64_t (*sums_width)(int64_t channels);  // of a row of the sums of products
  void (*pack)(const T* matrix, int64_t row_stride, int64_t column_stride, int64_t channels, T sign, T* packed);
  // Products with a packed matrix, or with the inverse of that of the factors where there are some.
  void (*mix)(const ImageShape&, Images<T> x, const T* packed, const Factors<T>* factors, const int64_t* order,
              double value, T* z, T* log_det, T* scratch, int64_t begin, int64_t end);
  // The same for cotangents, with the transposed matrices, and in `sums` [channels][sums_width] the products of those
  // of the matrix's result with `a`: x, for the inverse its result.
  void (*mix_backward)(const ImageShape&, Images<T> g_z, Images<T> a, const T* packed, const Factors<T>* factors,
                       const int64_t* order, T* g_x, T* sums, T* scratch, int64_t begin, int64_t end);

  // The product of a unit lower and an upper triangular matrix; what else the first one holds counts for nothing.
  void (*multiply)(const T* lower, const T* upper, int64_t channels, T* product);
  // Cotangents of the two triangles from that of their product.
  void (*multiply_backward)(const T* lower, const T* upper, const T* g, int64_t channels, T* g_lower, T* g_upper);
};

}  // namespace flowkern

FK_KERNELS(ChannelKernels, channel_kernels)
