// A whole masked network: x -> parameters of every feature.
#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

template <class T, int R>
void masked_mlp(const MaskedNetwork<T>& net, Matrix<const T> x, T* parameters, T* saved, int64_t index, T* scratch) {
  Tile<T, R> tile(net, index, scratch, saved);
  const LinearView last = net.plan.linear(net.plan.linears() - 1);
  tile.gather(x, net.plan.feature_order(), net.plan.features(), tile.x);
  tile.forward();
  tile.scatter(tile.out, last.row_order(), last.rows(), {parameters, last.original_rows(), 1});
}

template <class T>
void masked_mlp_backward(const MaskedNetwork<T>& net, const TileBackward<T>& in, int64_t index, T* scratch) {
  TileGradient<T> tile(net, in, index, scratch);
  const LinearView last = net.plan.linear(net.plan.linears() - 1);
  tile.gather(in.g_value, last.row_order(), last.rows(), tile.delta_out);
  tile.backward();
  tile.scatter(tile.g_x, net.plan.feature_order(), net.plan.features(), in.g_x);
  tile.emit();
}

#define FK_INSTANTIATE(T)                                                                                    \
  template void masked_mlp<T, 1>(const MaskedNetwork<T>&, Matrix<const T>, T*, T*, int64_t, T*);             \
  template void masked_mlp<T, kSmallRows<T>>(const MaskedNetwork<T>&, Matrix<const T>, T*, T*, int64_t, T*); \
  template void masked_mlp<T, kTileRows<T>>(const MaskedNetwork<T>&, Matrix<const T>, T*, T*, int64_t, T*);  \
  template void masked_mlp_backward<T>(const MaskedNetwork<T>&, const TileBackward<T>&, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
