// Affine maps of contiguous ranges of rows; `coupling` calls them on the features that it transforms.
#pragma once

#include "cpu/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
void affine(const UnivariateMap&, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>, int64_t, T*, T*, int64_t,
            int64_t);
template <class T>
void affine_backward(const UnivariateMap&, bool, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>,
                     Matrix<const T>, Matrix<const T>, int64_t, T*, T*, T*, int64_t, int64_t);

}  // namespace flowkern::FK_ISA
