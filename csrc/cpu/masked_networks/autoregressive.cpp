// Masked network, univariate map and log-determinant in one pass.
#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

template <class T, int R>
void autoregressive(const MaskedNetwork<T>& net, const Map<T>& map, Matrix<const T> x, T* z, T* log_det, T* saved,
                    int64_t index, T* scratch) {
  Tile<T, R> tile(net, index, scratch, saved);
  const int64_t features = net.plan.features();
  tile.gather(x, net.plan.feature_order(), features, tile.x);
  tile.forward();
  alignas(64) double sum[R] = {};
  map.kernels->forward[kTileKind<T, R>](map.map, features, tile.x, tile.out, tile.y, sum);
  tile.scatter(tile.y, net.plan.feature_order(), features, {z, features, 1});
  for (int64_t r = 0; r < tile.rows(); ++r) log_det[tile.first_row() + r] = static_cast<T>(sum[r]);
}

template <class T>
void autoregressive_backward(const MaskedNetwork<T>& net, const Map<T>& map, const TileBackward<T>& in, int64_t index,
                             T* scratch) {
  TileGradient<T> tile(net, in, index, scratch);
  constexpr int R = TileGradient<T>::R;
  const int64_t features = net.plan.features(), first = 0;
  alignas(64) T g_log_det[R];
  tile.gather(in.g_value, net.plan.feature_order(), features, tile.value);
  tile.gather(in.g_log_det, &first, 1, g_log_det);
  map.kernels->backward(map.map, features, tile.x, tile.out, tile.value, g_log_det, tile.g_x, tile.delta_out);
  tile.backward();
  tile.scatter(tile.g_x, net.plan.feature_order(), features, in.g_x);
  tile.emit();
}

#define FK_INSTANTIATE(T)                                                                                             \
  template void autoregressive<T, 1>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*, T*, T*, int64_t,    \
                                     T*);                                                                             \
  template void autoregressive<T, kSmallRows<T>>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*, T*, T*, \
                                                 int64_t, T*);                                                        \
  template void autoregressive<T, kTileRows<T>>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*, T*, T*,  \
                                                int64_t, T*);                                                         \
  template void autoregressive_backward<T>(const MaskedNetwork<T>&, const Map<T>&, const TileBackward<T>&, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
