// The CPU kernels of masked networks as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/maps/kernels.h"
#include "flowkern/plan_view.h"

namespace flowkern {

// A masked network, its packed weights, and the rows that it is applied to.
template <class T>
struct MaskedNetwork {
  PlanView plan;
  const T* packed;
  const Matrix<const T>* addends;  // plan.addends() matrices [batch, original units]
  int64_t batch;
};

// Cotangents and results of a backward pass over a range of tiles, in rows of the whole batch.
template <class T>
struct TileBackward {
  Matrix<const T> x;          // input of the network [batch, features]
  const T* saved;             // [tiles][saved_rows][tile rows]
  Matrix<const T> g_value;    // cotangent of the value: of z, of x for the inverse, of the parameters for the MLP
  Matrix<const T> g_log_det;  // [batch, 1]
  Matrix<T> g_x;              // result: cotangent of the input; for the inverse, of z
  const Matrix<T>* g_addends;
  T* deltas;       // result: cotangents of pre-activations and parameters [tiles of this range][saved_rows][tile rows]
  T* activations;  // result: inputs of every linear map, transposed into panels, see weight_gradient
  int64_t first_tile, tiles;  // the range that deltas and activations hold
};

template <class T>
struct WeightGradient {
  PlanView plan;
  const T* deltas;
  const T* activations;
  const uint8_t* mask;
  int64_t tiles;
  bool first;         // of the groups of tiles that a batch is cut into
  T* sums;            // over the groups, in sorted order: [rows][sums_width] of every linear map
  T* const* weights;  // result: dense gradients in the original layout
  T* const* biases;   // result, added to
};

// A tile is a group of rows processed together, one row per
// vector lane: `tile_rows` of them in bulk, or one of `small_rows` where lanes run over units instead.
template <class T>
struct MaskedNetworkKernels {
  int64_t tile_rows;
  int64_t small_rows[2];  // 1, and 4 or 2

  void (*pack)(PlanView, const Matrix<const T>* weights, const Matrix<const T>* biases, const uint8_t* mask, T* packed,
               int linear, int64_t chunk_begin, int64_t chunk_end);

  // Index 0, 1: small tiles; 2: bulk tiles. `saved` may be null. `scratch` holds scratch_rows(plan) tile rows.
  void (*masked_mlp[3])(const MaskedNetwork<T>&, Matrix<const T> x, T* parameters, T* saved, int64_t tile, T* scratch);
  void (*autoregressive[3])(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T> x, T* z, T* log_det, T* saved,
                            int64_t tile, T* scratch);
  void (*autoregressive_inverse[3])(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T> z, T* x, T* log_det,
                                    T* saved, int64_t tile, T* scratch);

  void (*masked_mlp_backward)(const MaskedNetwork<T>&, const TileBackward<T>&, int64_t tile, T* scratch);
  void (*autoregressive_backward)(const MaskedNetwork<T>&, const Map<T>&, const TileBackward<T>&, int64_t tile,
                                  T* scratch);
  void (*autoregressive_inverse_backward)(const MaskedNetwork<T>&, const Map<T>&, const TileBackward<T>&, int64_t tile,
                                          T* scratch);
  // One item: the source columns [panel * tile_rows, ...) of one linear map against its chunks [begin, end).
  void (*weight_gradient)(const WeightGradient<T>&, int linear, int64_t panel, int64_t begin, int64_t end);
  // After the last group: the weights' gradients from the sums of the chunks [begin, end).
  void (*unpack)(const WeightGradient<T>&, int linear, int64_t begin, int64_t end);
};

// Tile rows of scratch that every kernel above can rely on: input, result, parameters, and for each hidden unit its
// pre-activation, activation, cotangent and a spare; padded so that no vector store leaves the buffer.
FK_ALWAYS_INLINE inline int64_t scratch_rows(const PlanView& plan) {
  return 4 * plan.features() + 2 * plan.features() * plan.parameters() + 4 * plan.units() + 64;
}

// Rows of the transposed inputs of all linear maps: x and every hidden layer, each padded to whole panels.
FK_ALWAYS_INLINE inline int64_t panel_offset(const PlanView& plan, int source, int64_t tile_rows) {
  int64_t panels = 0;
  const auto whole = [&](int64_t n) { return (n + tile_rows - 1) / tile_rows; };
  if (source >= 0) panels += whole(plan.features());
  for (int i = 0; i < source; ++i) panels += whole(plan.hidden(i).units());
  return panels;
}

// The sums of one linear map's weight gradients: sorted rows of whole vectors, those of the maps before it first.
FK_ALWAYS_INLINE inline int64_t sums_width(const PlanView& plan, int linear, int64_t tile_rows) {
  const int64_t columns = plan.start(plan.linear(linear).source(), plan.levels());
  return (columns + tile_rows - 1) / tile_rows * tile_rows;
}
FK_ALWAYS_INLINE inline int64_t sums_offset(const PlanView& plan, int linear, int64_t tile_rows) {
  int64_t offset = 0;
  for (int l = 0; l < linear; ++l) offset += plan.linear(l).rows() * sums_width(plan, l, tile_rows);
  return offset;
}

}  // namespace flowkern

FK_KERNELS(MaskedNetworkKernels, masked_network_kernels)
