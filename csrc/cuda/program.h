// A sweep as flowkern/cuda/program.py writes it: one array of 32-bit integers, these records first among them. Both
// change together.
#pragma once

#include "cuda/numbers.h"

namespace flowkern::FK_ISA {

struct alignas(16) Header {
  int steps, steps_at, nodes_at, items_at, value_rows, partial_rows, triangle, features, parameters, order_at, zeros_at,
      zeros, parameters_at, chunks, chunks_at, biases_at;
};
// A layer: the hidden ones, and the head, whose units are features.
struct alignas(16) Node {
  int head, values, saved, bias, order_at, addend, gate, activated, residual_at, kept, gate_saved, unused;
};
// The units [first, first + count) of a node, all of one level. `row` is their first row's place among the node's rows
// of this block of levels.
struct alignas(16) SweepStep {
  int node, first, count, items, items_end, triangle, triangle_size, partial, stride, segments, row;
  struct {
    int values, columns, weights, stride;  // stride: from eight rows to the next eight in the triangle
  } inner[2];                              // in-block columns of the node's linear map, and of the skip connection
  int unused;
};
// Up to eight rows against a range of columns.
struct alignas(16) Item {
  int weights, columns, values, partial, rows, unused[3];
};
// What one program of `pack` writes: rows [0, rows) against columns [0, columns) as a panel [columns][8].
struct alignas(16) Chunk {
  int linear, transposed, rows_at, rows, columns_at, columns, packed, mask, mask_columns, unused[3];
};
static_assert(sizeof(Header) == 64 && sizeof(Node) == 48 && sizeof(SweepStep) == 80 && sizeof(Item) == 32);
static_assert(sizeof(Chunk) == 48);

}  // namespace flowkern::FK_ISA
