// Masks, permutes and lays out the weights: the panels that every masked-network kernel reads.
#include "cpu/masked_networks/kernels.h"

namespace flowkern::FK_ISA {

// The columns of a panel come in the order of their levels, in which no hardware prefetcher follows a row.
template <class T>
void prefetch_rows(Matrix<const T> weight, const int64_t* order, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = 0; at < columns; at += 64 / sizeof(T)) __builtin_prefetch(&weight(order[i], at));
}

template <class T>
void pack(PlanView plan, const Matrix<const T>* weights, const Matrix<const T>* biases, const uint8_t* mask, T* packed,
          int linear, int64_t chunk_begin, int64_t chunk_end) {
  const LinearView map = plan.linear(linear);
  const Matrix<const T> weight = weights[linear];
  const int64_t* columns = map.column_order();
  for (int64_t c = chunk_begin; c < chunk_end; ++c) {
    const Chunk& k = map.chunk(c);
    const int64_t* order = map.row_order() + k.row;
    T* panel = packed + k.offset;
    const T* rows[kChunkRows];
    for (int64_t i = 0; i < kChunkRows; ++i) rows[i] = weight.data + order[i < k.rows ? i : 0] * weight.row_stride;
    if (c + 1 < chunk_end) prefetch_rows(weight, order + k.rows, map.chunk(c + 1).rows, map.original_columns());
    for (int64_t q = 0; q < k.columns; ++q) {
      const int64_t at = columns[q] * weight.column_stride;
      for (int64_t i = 0; i < kChunkRows; ++i) panel[q * kChunkRows + i] = rows[i][at];
    }
    // Masked weights and the rows that pad the panel are zero, whatever the tensor holds there.
    const uint8_t* visible = mask + k.mask;
    for (int64_t q = k.dense; q < k.columns; ++q)
      for (int64_t i = 0; i < k.rows; ++i)
        if (!visible[(q - k.dense) * kChunkRows + i]) panel[q * kChunkRows + i] = 0;
    if (k.rows < kChunkRows)
      for (int64_t q = 0; q < k.columns; ++q)
        for (int64_t i = k.rows; i < kChunkRows; ++i) panel[q * kChunkRows + i] = 0;
    if (map.bias_offset() >= 0)
      for (int64_t i = 0; i < k.rows; ++i)
        packed[map.bias_offset() + k.row + i] = biases[map.bias_index()](order[i], 0);
  }
}

template void pack(PlanView, const Matrix<const float>*, const Matrix<const float>*, const uint8_t*, float*, int,
                   int64_t, int64_t);
template void pack(PlanView, const Matrix<const double>*, const Matrix<const double>*, const uint8_t*, double*, int,
                   int64_t, int64_t);

}  // namespace flowkern::FK_ISA
