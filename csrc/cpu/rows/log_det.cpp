// Sum of the log-scales of each row, accumulated in double in a fixed order.
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

template <class T>
void log_det(Matrix<const T> log_scale, int64_t columns, T* out, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r)
    out[r] = static_cast<T>(row_sum(log_scale, r, columns, [](auto v) { return v; }));
}

template void log_det(Matrix<const float>, int64_t, float*, int64_t, int64_t);
template void log_det(Matrix<const double>, int64_t, double*, int64_t, int64_t);

}  // namespace flowkern::FK_ISA
