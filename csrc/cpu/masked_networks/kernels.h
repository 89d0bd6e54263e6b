// The CPU kernels of masked networks as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/maps/kernels.h"
#include "flowkern/chain_view.h"
#include "flowkern/plan_view.h"

namespace flowkern {

// A masked network, its packed weights, and the rows that it is applied to.
template <class T>
struct MaskedNetwork {
  PlanView plan;
  const T* packed;
  const Matrix<const T>* addends;  // plan.addends() matrices [batch, original units]
  int64_t batch;
  const T* given = nullptr;  // where one context serves all rows, what it contributes: see `give`
};

// What the backward pass of one network reads and writes for one tile of a group of tiles.
template <class T>
struct NetworkBackward {
  const T* saved;              // [plan.saved_rows()][tile rows]
  T* deltas;                   // result: cotangents of pre-activations and parameters, the same
  T* activations;              // result: inputs of all linear maps, see weight_gradient; null where nobody wants them
  int64_t tile, tiles;         // of the group
  const Matrix<T>* g_addends;  // result, or null
};

// One step of a chain.
template <class T>
struct ChainStep {
  StepKind kind;
  // Where what the step takes, in its own order, lies in the state before it. Of a coupling: what it transforms, then
  // what passes; and once more, in the state after it.
  const int64_t* order;
  int64_t passing;
  int64_t row;     // of a network: first of its rows among those of all
  int64_t addend;  // first of its addends among those of all steps
  MaskedNetwork<T> net;
  Map<T> map;
  const T *shift, *scale;  // of an elementwise step [features]
  const T* entries;  // of a linear one: below the diagonal of L, above that of U, row by row, U's diagonal, the bias
};

// Transforms one after another on a batch. What a tile keeps for a backward pass is [kept][tile rows]: the context, the
// input, the state after each step, then the rows of every network.
template <class T>
struct Chain {
  const ChainStep<T>* steps;
  int64_t count, features, context;
  const int64_t* order;  // feature of the result -> feature of the last state
  Normal normal;
  int64_t kept, batch;
  int64_t scratch_rows;
};

// Steps that a tile goes through at once, one after another: those whose weights fit into the cache together.
struct StepRange {
  int64_t begin, end;
};

// Cotangents and results of a chain's backward pass over a group of tiles.
template <class T>
struct ChainBackward {
  const T* saved;                      // [tiles of the batch][kept][tile rows]
  Matrix<const T> g_value, g_log_det;  // either may be missing: zero
  Matrix<T> g_x, g_context;            // results, kept here between ranges of steps; nobody may want the second
  const Matrix<T>* g_addends;          // of all steps
  T* deltas;                           // [tiles of the group][delta_rows][tile rows]
  T* activations;                      // of step after step
  const int64_t *rows, *panels;        // of every step of the range: its first row in deltas, panel in activations
  int64_t delta_rows;
  int64_t first_tile, tiles;  // the group
};

template <class T>
struct WeightGradient {
  PlanView plan;
  const T* deltas;        // of the first tile
  int64_t deltas_stride;  // from tile to tile
  const T* activations;
  const uint8_t* mask;
  int64_t tiles, rows;  // rows of the batch in these tiles: lanes beyond them have no cotangents
  bool first;           // of the groups of tiles that a batch is cut into
  T* sums;              // over the groups, in sorted order: [rows][sums_width] of every linear map
  T* const* weights;    // result: dense gradients in the original layout
  T* const* biases;     // result, added to
};

// A tile is a group of rows processed together, one row per
// vector lane: `tile_rows` of them in bulk, or one of `small_rows` where lanes run over units instead.
template <class T>
struct MaskedNetworkKernels {
  int64_t tile_rows;
  int64_t small_rows[2];  // 1, and 4 or 2

  void (*pack)(PlanView, const Matrix<const T>* weights, const Matrix<const T>* biases, const uint8_t* mask, T* packed,
               int linear, int64_t chunk_begin, int64_t chunk_end);

  // What one context contributes to every row, in the rows of PlanView::row_of: of a layer, and of the parameters, the
  // biases and the products with the context, of which a coupling's network is given the first `own` features here; of
  // a conditioner its result.
  void (*give)(const MaskedNetwork<T>&, int64_t own, Matrix<const T> context, T* given);

  // Index 0, 1: small tiles; 2: bulk tiles. `saved` may be null. `scratch` holds scratch_rows(plan), or
  // chain.scratch_rows, tile rows.
  void (*masked_mlp[3])(const MaskedNetwork<T>&, Matrix<const T> x, Matrix<const T> context, T* parameters, T* saved,
                        int64_t tile, T* scratch);
  // One range after another, all tiles each.
  void (*autoregressive_chain[3])(const Chain<T>&, StepRange, Matrix<const T> x, Matrix<const T> context, T* z,
                                  T* log_det, T* saved, int64_t tile, T* scratch);

  void (*masked_mlp_backward)(const MaskedNetwork<T>&, Matrix<const T> x, Matrix<const T> context,
                              const NetworkBackward<T>&, Matrix<const T> g, Matrix<T> g_x, Matrix<T> g_context,
                              int64_t tile, T* scratch);
  void (*autoregressive_chain_backward)(const Chain<T>&, StepRange, const ChainBackward<T>&, int64_t tile, T* scratch);
  // One item: the source columns [panel * tile_rows, ...) of one linear map against its chunks [begin, end).
  void (*weight_gradient)(const WeightGradient<T>&, int linear, int64_t panel, int64_t begin, int64_t end);
  // After the last group: the weights' gradients from the sums of the chunks [begin, end).
  void (*unpack)(const WeightGradient<T>&, int linear, int64_t begin, int64_t end);
  // sums[i] += the numbers [i * width, (i + 1) * width) of all tiles, which lie `stride` numbers apart.
  void (*add_row_sums)(const T* rows, int64_t width, int64_t stride, int64_t tiles, int64_t n, T* sums);
};

// Tile rows of scratch that every kernel above can rely on: input, result, parameters, and for each hidden unit its
// pre-activation, activation, cotangent and a spare; padded so that no vector store leaves the buffer.
FK_ALWAYS_INLINE inline int64_t scratch_rows(const PlanView& plan) {
  return 4 * plan.inputs() + 2 * plan.features() * plan.parameters() + 4 * plan.units() + 2 * plan.conditioner_units() +
         64;
}

// Rows of the transposed inputs of all linear maps: the context and x, and every hidden layer, each padded to whole
// panels. Conditioners read the first of them.
FK_ALWAYS_INLINE inline int64_t panel_offset(const PlanView& plan, int source, int64_t tile_rows) {
  int64_t panels = 0;
  const auto whole = [&](int64_t n) { return (n + tile_rows - 1) / tile_rows; };
  if (source >= 0) panels += whole(plan.inputs());
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
