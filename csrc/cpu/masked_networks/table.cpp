// The kernels of masked networks for one instruction set.
#include "cpu/masked_networks/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(PlanView, const Matrix<const T>*, const Matrix<const T>*, const uint8_t*, T*, int, int64_t, int64_t);
template <class T>
void give(const MaskedNetwork<T>&, int64_t, Matrix<const T>, T*);
template <class T, int R>
void masked_mlp(const MaskedNetwork<T>&, Matrix<const T>, Matrix<const T>, T*, T*, int64_t, T*);
template <class T, int R>
void autoregressive_chain(const Chain<T>&, StepRange, Matrix<const T>, Matrix<const T>, T*, T*, T*, int64_t, T*);
template <class T>
void masked_mlp_backward(const MaskedNetwork<T>&, Matrix<const T>, Matrix<const T>, const NetworkBackward<T>&,
                         Matrix<const T>, Matrix<T>, Matrix<T>, int64_t, T*);
template <class T>
void autoregressive_chain_backward(const Chain<T>&, StepRange, const ChainBackward<T>&, int64_t, T*);
template <class T>
void weight_gradient(const WeightGradient<T>&, int, int64_t, int64_t, int64_t);
template <class T>
void unpack(const WeightGradient<T>&, int, int64_t, int64_t);
template <class T>
void add_row_sums(const T*, int64_t, int64_t, int64_t, int64_t, T*);
template <class T>
const MaskedNetworkKernels<T>& masked_network_kernels() {
  static constexpr MaskedNetworkKernels<T> kTable = {
      .tile_rows = kTileRows<T>,
      .small_rows = {1, kSmallRows<T>},
      .pack = &pack<T>,
      .give = &give<T>,
      .masked_mlp = {&masked_mlp<T, 1>, &masked_mlp<T, kSmallRows<T>>, &masked_mlp<T, kTileRows<T>>},
      .autoregressive_chain = {&autoregressive_chain<T, 1>, &autoregressive_chain<T, kSmallRows<T>>,
                               &autoregressive_chain<T, kTileRows<T>>},
      .masked_mlp_backward = &masked_mlp_backward<T>,
      .autoregressive_chain_backward = &autoregressive_chain_backward<T>,
      .weight_gradient = &weight_gradient<T>,
      .unpack = &unpack<T>,
      .add_row_sums = &add_row_sums<T>,
  };
  return kTable;
}
template const MaskedNetworkKernels<float>& masked_network_kernels<float>();
template const MaskedNetworkKernels<double>& masked_network_kernels<double>();

}  // namespace flowkern::FK_ISA
