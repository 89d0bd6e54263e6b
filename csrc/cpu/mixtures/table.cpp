// The kernels on mixtures of logistics for one instruction set.
#include "cpu/mixtures/kernels.h"

namespace flowkern::FK_ISA {

template <class T>
size_t scratch_bytes(int64_t);
template <class T>
void logistic_mixture(const Mixtures<T>&, Matrix<const T>, T*, const MixtureDerivatives<T>*, void*, int64_t, int64_t);
template <class T>
void logistic_mixture_sample(const Mixtures<T>&, Matrix<const T>, const Components<T>&, T*, int64_t, int64_t);

template <class T>
const MixtureKernels<T>& mixture_kernels() {
  static constexpr MixtureKernels<T> kTable = {
      .scratch_bytes = &scratch_bytes<T>,
      .logistic_mixture = &logistic_mixture<T>,
      .logistic_mixture_sample = &logistic_mixture_sample<T>,
  };
  return kTable;
}
template const MixtureKernels<float>& mixture_kernels<float>();
template const MixtureKernels<double>& mixture_kernels<double>();

}  // namespace flowkern::FK_ISA
