// Standard-normal log-density of each row plus a log-determinant.
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

template <class T>
void normal_log_prob(Matrix<const T> z, Matrix<const T> log_det, int64_t columns, T* out, int64_t row_begin,
                     int64_t row_end) {
  constexpr double kLogTwoPi = 1.8378770664093454836;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const double squares = row_sum(z, r, columns, [](auto v) { return v * v; });
    const double extra = log_det.data ? static_cast<double>(log_det(r, 0)) : 0.0;
    out[r] = static_cast<T>(extra - 0.5 * (squares + columns * kLogTwoPi));
  }
}

template void normal_log_prob(Matrix<const float>, Matrix<const float>, int64_t, float*, int64_t, int64_t);
template void normal_log_prob(Matrix<const double>, Matrix<const double>, int64_t, double*, int64_t, int64_t);

}  // namespace flowkern::FK_ISA
