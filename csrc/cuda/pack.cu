// Masked, sorted weights as the panels that a sweep reads, and its biases: one block of threads per panel.
#include "cuda/program.h"

namespace flowkern::FK_ISA {

constexpr int kMaxLinears = 66;
constexpr int kPackThreads = 128;

// flowkern/cuda/launch.py fills this in.
struct PackArguments {
  const int* program;
  const unsigned char* masks;  // of all linear maps, one after another
  void *packed, *packed_biases;
  int biases, unused;
  struct {
    const void *weight, *bias;  // no bias: null
    long long row, column, step;
  } linears[kMaxLinears];
};
static_assert(sizeof(PackArguments) == 2680, "launch.py has the same, and 4096 bytes are the most that a launch takes");

template <class W>
struct alignas(16) Column {
  W rows[8];
};

// Each thread takes columns of the panel, all eight rows of them.
template <class W>
FK_INLINE void pack_panel(const PackArguments& in, const Chunk& chunk) {
  const int *rows = in.program + chunk.rows_at, *columns = in.program + chunk.columns_at;
  const auto& linear = in.linears[chunk.linear];
  auto* panel = reinterpret_cast<Column<W>*>(static_cast<W*>(in.packed) + chunk.packed);
  for (int q = thread(); q < chunk.columns; q += kPackThreads) {
    Column<W> column = {};
    FK_UNROLL
    for (int i = 0; i < 8; ++i)
      if (i < chunk.rows) {
        const long long r = chunk.transposed ? columns[q] : rows[i], c = chunk.transposed ? rows[i] : columns[q];
        if (in.masks[chunk.mask + r * chunk.mask_columns + c])
          column.rows[i] = static_cast<const W*>(linear.weight)[r * linear.row + c * linear.column];
      }
    panel[q] = column;
  }
}

// Pairs of linear map and row, in the order in which the layers' units are swept.
template <class T>
FK_INLINE void pack_biases(const PackArguments& in, const int* pairs, int i) {
  if (i >= in.biases) return;
  const auto& linear = in.linears[pairs[2 * i]];
  static_cast<T*>(in.packed_biases)[i] =
      linear.bias ? static_cast<const T*>(linear.bias)[pairs[2 * i + 1] * linear.step] : T(0);
}

template <class W, class T>
FK_INLINE void pack(const PackArguments& in) {
  const Header& header = *reinterpret_cast<const Header*>(in.program);
  if (block() < header.chunks)
    pack_panel<W>(in, reinterpret_cast<const Chunk*>(in.program + header.chunks_at)[block()]);
  else
    pack_biases<T>(in, in.program + header.biases_at, (block() - header.chunks) * kPackThreads + thread());
}

}  // namespace flowkern::FK_ISA

#define FK_PACK(VARIANT, W, T)              \
  FK_KERNEL(flowkern::FK_ISA::kPackThreads) \
  pack_##VARIANT(FK_ARGUMENTS(flowkern::FK_ISA::PackArguments)) { flowkern::FK_ISA::pack<W, T>(arguments); }
FK_PACK(f32, float, float)
FK_PACK(f64, double, double)
FK_PACK(bf16, flowkern::FK_ISA::Bf16, float)
FK_PACK(f16, flowkern::FK_ISA::Half, float)
