// The CPU kernels on mixtures as seen from csrc/ops: plain functions on raw pointers.
//
// Elements are those of a matrix, numbered row by row; a range of them is worked on at a time.
#pragma once

#include <cstddef>

#include "cpu/dispatch.h"
#include "cpu/matrix.h"

namespace flowkern {

// So many numbers for every element of a matrix, with strides in elements.
template <class T>
struct Components {
  const T* data;
  int64_t row_stride, column_stride, component_stride;
};

// The mixtures of all elements, of logistics or of Gaussians; levels is 0 for densities.
template <class T>
struct Mixtures {
  int64_t columns, components, levels;
  bool gaussian;
  double log_scale_min;
  Components<T> logits, means, log_scales;
};

// The derivatives of every element's log-probability, contiguous.
template <class T>
struct MixtureDerivatives {
  T *by_logits, *by_means, *by_log_scales;
};

template <class T>
struct MixtureKernels {
  // Bytes of scratch memory that a thread needs, which begin at a multiple of 64.
  size_t (*scratch_bytes)(int64_t components);
  // The derivatives are null where none are wanted.
  void (*logistic_mixture)(const Mixtures<T>&, Matrix<const T> x, T* out, const MixtureDerivatives<T>*, void* scratch,
                           int64_t begin, int64_t end);
  void (*logistic_mixture_sample)(const Mixtures<T>&, Matrix<const T> u, const Components<T>& choice, T* out,
                                  int64_t begin, int64_t end);
};

}  // namespace flowkern

FK_KERNELS(MixtureKernels, mixture_kernels)
