// Gradients of the weights of a masked network: products of cotangents and inputs over the rows of many tiles.
//
// They are summed in the sorted order of the plan, where whole vectors are stored, and put in the order of the tensors
// once at the end (measured: docs/measured.md).
#include "cpu/masked_networks/kernels.h"
#include "cpu/products.h"

namespace flowkern::FK_ISA {

template <class T>
void weight_gradient(const WeightGradient<T>& g, int linear, int64_t panel, int64_t begin, int64_t end) {
  constexpr int R = kTileRows<T>;
  const LinearView w = g.plan.linear(linear);
  const int64_t stride = g.deltas_stride, column = panel * R, width = sums_width(g.plan, linear, R);
  const int64_t target = g.plan.row_of(w.target());
  const T* inputs = g.activations + (panel_offset(g.plan, w.source(), R) + panel) * g.tiles * R * R;
  T* sums = g.sums + sums_offset(g.plan, linear, R) + column;
  for (int64_t c = begin; c < end; ++c) {
    const Chunk& k = w.chunk(c);
    const T* d = g.deltas + (target + k.row) * R;
    if (panel == 0 && w.bias_index() >= 0)
      for (int64_t i = 0; i < k.rows; ++i) {
        Vec<T> sum = {};
        for (int64_t tile = 0; tile < g.tiles; ++tile)
          for (int r = 0; r < R; r += kLanes<T>) sum += load<Vec<T>>(d + tile * stride + i * R + r);
        g.biases[w.bias_index()][w.row_order()[k.row + i]] += lane_sum<T>(sum);
      }
    if (k.columns <= column) continue;
    constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
    for (int64_t i = 0; i < k.rows; i += Rows)
      with_count<Rows>(k.rows - i < Rows ? k.rows - i : Rows, [&](auto n) {
        const T* from = d + i * R;
        T* to = sums + (k.row + i) * width;
        if (k.columns - column > kLanes<T>)
          outer_products<T, decltype(n)::value, 2>(g.rows, g.first, inputs, from, stride, to, width);
        else
          outer_products<T, decltype(n)::value, 1>(g.rows, g.first, inputs, from, stride, to, width);
      });
  }
}

// From the sums to the rows of a tensor, whole: what a mask removes is zero.
template <class T>
void unpack(const WeightGradient<T>& g, int linear, int64_t begin, int64_t end) {
  const LinearView w = g.plan.linear(linear);
  const int64_t width = sums_width(g.plan, linear, kTileRows<T>), original = w.original_columns();
  const int64_t* columns = w.column_order();
  for (int64_t c = begin; c < end; ++c) {
    const Chunk& k = w.chunk(c);
    for (int64_t i = 0; i < k.rows; ++i) {
      const T* from = g.sums + sums_offset(g.plan, linear, kTileRows<T>) + (k.row + i) * width;
      const uint8_t* visible = g.mask + k.mask + i;
      T* to = g.weights[linear] + w.row_order()[k.row + i] * original;
      __builtin_memset(to, 0, original * sizeof(T));
      for (int64_t q = 0; q < k.dense; ++q) to[columns[q]] = from[q];
      for (int64_t q = k.dense; q < k.columns; ++q, visible += kChunkRows)
        if (*visible) to[columns[q]] = from[q];
    }
  }
}

template <class T>
void add_row_sums(const T* rows, int64_t width, int64_t stride, int64_t tiles, int64_t n, T* sums) {
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t r = 0; r < width; ++r) sum += rows[tile * stride + i * width + r];
    sums[i] += static_cast<T>(sum);
  }
}

#define FK_INSTANTIATE(T)                                                                     \
  template void weight_gradient<T>(const WeightGradient<T>&, int, int64_t, int64_t, int64_t); \
  template void unpack<T>(const WeightGradient<T>&, int, int64_t, int64_t);                   \
  template void add_row_sums<T>(const T*, int64_t, int64_t, int64_t, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
