// The kernels on rows for one instruction set.
#include "cpu/rows/kernels.h"

namespace flowkern::FK_ISA {

template <class T>
void coupling(const Map<T>&, bool, Matrix<const T>, const Matrix<const T>*, const Transformed&, T*, T*,
              const CouplingScratch<T>&, int64_t, int64_t);
template <class T>
void coupling_backward(const Map<T>&, bool, bool, Matrix<const T>, const Matrix<const T>*, Matrix<const T>,
                       Matrix<const T>, const Transformed&, T*, T* const*, const CouplingScratch<T>&, int64_t, int64_t);
template <class T>
int64_t spline_scratch(int64_t);
template <class T>
void spline(const Map<T>&, bool, const SplineElements<T>&, T*, T*, T*, int64_t, int64_t);
template <class T>
void spline_backward(const Map<T>&, bool, const SplineElements<T>&, Matrix<const T>, Matrix<const T>, T*, T* const*, T*,
                     int64_t, int64_t);
template <class T>
void log_det(Matrix<const T>, int64_t, T*, int64_t, int64_t);
template <class T>
void normal_log_prob(Matrix<const T>, Matrix<const T>, int64_t, T*, int64_t, int64_t);

template <class T>
const RowKernels<T>& row_kernels() {
  static constexpr RowKernels<T> kTable = {
      .coupling = &coupling<T>,
      .coupling_backward = &coupling_backward<T>,
      .spline_scratch = &spline_scratch<T>,
      .spline = &spline<T>,
      .spline_backward = &spline_backward<T>,
      .log_det = &log_det<T>,
      .normal_log_prob = &normal_log_prob<T>,
  };
  return kTable;
}
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace flowkern::FK_ISA
