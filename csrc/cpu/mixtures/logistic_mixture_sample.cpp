// Samples of mixtures of logistics from given uniform numbers.
#include "cpu/mixtures/sample.h"

namespace flowkern::FK_ISA {

template <class T>
void logistic_mixture_sample(const Mixtures<T>& mixtures, Matrix<const T> u, const Components<T>& choice, T* out,
                             int64_t begin, int64_t end) {
  sample_mixtures(mixtures, u, choice, out, begin, end);
}

template void logistic_mixture_sample(const Mixtures<float>&, Matrix<const float>, const Components<float>&, float*,
                                      int64_t, int64_t);
template void logistic_mixture_sample(const Mixtures<double>&, Matrix<const double>, const Components<double>&, double*,
                                      int64_t, int64_t);

}  // namespace flowkern::FK_ISA
