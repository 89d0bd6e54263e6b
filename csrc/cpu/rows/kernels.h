// The CPU kernels on rows of matrices as seen from csrc/ops: plain functions on raw pointers. The maps of rows whose
// features are all transformed are in cpu/maps.
#pragma once

#include "cpu/maps/kernels.h"

namespace flowkern {

// The features of a coupling layer that are transformed, in the order of the columns of their parameters.
struct Transformed {
  const int64_t* features;
  int64_t count, width;
};

// Room for one row: three times the transformed features, and as many entries of the lists as the map has parameters.
template <class T>
struct CouplingScratch {
  T* values;
  Matrix<const T>* parameters;
  T** gradients;
};

// Elements, each with raw widths, heights, derivatives and, of rational-linear splines, lambdas of its own: rows of as
// many matrices.
template <class T>
struct SplineElements {
  static constexpr int kMostKinds = 4;
  Matrix<const T> x, parameters[kMostKinds];
  int kinds;
  int64_t counts[kMostKinds];
};

template <class T>
struct RowKernels {
  void (*coupling)(const Map<T>&, bool inverse, Matrix<const T> x, const Matrix<const T>* parameters,
                   const Transformed&, T* z, T* log_det, const CouplingScratch<T>&, int64_t row_begin, int64_t row_end);
  void (*coupling_backward)(const Map<T>&, bool rebuild, bool inverse, Matrix<const T> x,
                            const Matrix<const T>* parameters, Matrix<const T> g_z, Matrix<const T> g_log_det,
                            const Transformed&, T* g_x, T* const* g_parameters, const CouplingScratch<T>&,
                            int64_t row_begin, int64_t row_end);
  // Scratch memory: so many numbers, for a tile's parameters and their cotangents.
  int64_t (*spline_scratch)(int64_t parameters);
  void (*spline)(const Map<T>&, bool inverse, const SplineElements<T>&, T* z, T* log_slope, T* scratch, int64_t begin,
                 int64_t end);
  // The cotangents of the parameters are contiguous.
  void (*spline_backward)(const Map<T>&, bool inverse, const SplineElements<T>&, Matrix<const T> g_z,
                          Matrix<const T> g_log_slope, T* g_x, T* const* g_parameters, T* scratch, int64_t begin,
                          int64_t end);
  void (*log_det)(Matrix<const T> log_scale, int64_t columns, T* out, int64_t row_begin, int64_t row_end);
  void (*normal_log_prob)(Matrix<const T> z, Matrix<const T> log_det, int64_t columns, T* out, int64_t row_begin,
                          int64_t row_end);
};

}  // namespace flowkern

FK_KERNELS(RowKernels, row_kernels)
