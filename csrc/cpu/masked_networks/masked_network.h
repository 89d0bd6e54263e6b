// A masked network on one tile of rows: forward and one-sweep inverse. Their gradients are in
// masked_network_backward.h.
//
// A tile keeps every quantity as [unit][R rows]. In bulk R is two vectors, so a weight is broadcast and the rows
// fill the lanes; in a small tile (R = 1 or 4) the eight units of a packed panel fill the lanes. Units are sorted by
// level, so what a unit may read is a prefix of its source, and a block of levels is a range of rows.
#pragma once

#include "cpu/masked_networks/kernels.h"
#include "flowkern/activations.h"

namespace flowkern::FK_ISA {

// out = act(in) for n elements; `in` may be `out`.
template <class T>
void activate(Activation kind, double constant, const T* in, T* out, int64_t n) {
  with_activation(kind, [=](auto tag) {
    map_elements(in, out, n, [=](Vec<T> x) { return activation<decltype(tag)::value, T>(x, constant); });
  });
}

// p[i] += sum_k w[k][i] a[k] for N rows i of a panel, one row of the batch per lane.
template <class T, int N>
FK_INLINE void panel_rows(const T* w, const T* a, int64_t columns, T* p) {
  constexpr int W = kLanes<T>;
  Vec<T> acc[N][2];
  for (int i = 0; i < N; ++i) {
    acc[i][0] = load<Vec<T>>(p + i * 2 * W);
    acc[i][1] = load<Vec<T>>(p + i * 2 * W + W);
  }
  for (int64_t k = 0; k < columns; ++k, w += kChunkRows, a += 2 * W) {
    const auto a0 = load<Vec<T>>(a), a1 = load<Vec<T>>(a + W);
    for (int i = 0; i < N; ++i) {
      acc[i][0] += w[i] * a0;
      acc[i][1] += w[i] * a1;
    }
  }
  for (int i = 0; i < N; ++i) {
    store(p + i * 2 * W, acc[i][0]);
    store(p + i * 2 * W + W, acc[i][1]);
  }
}

// The same with the eight units in the lanes; lanes outside [first, first + n) are dropped.
template <class T, int R>
void panel_units(const T* w, const T* a, int64_t columns, T* p, int64_t first, int64_t n) {
  using P = Panel8<T>;
  constexpr int Unroll = R == 1 ? 4 : 2;  // independent sums hide the latency of the additions
  P acc[Unroll][R] = {};
  int64_t k = 0;
  for (; k + Unroll <= columns; k += Unroll)
    for (int u = 0; u < Unroll; ++u) {
      const P column = load<P>(w + (k + u) * kChunkRows);
      for (int r = 0; r < R; ++r) acc[u][r] += a[(k + u) * R + r] * column;
    }
  for (; k < columns; ++k)
    for (int r = 0; r < R; ++r) acc[0][r] += a[k * R + r] * load<P>(w + k * kChunkRows);
  for (int r = 0; r < R; ++r) {
    P sum = acc[0][r];
    for (int u = 1; u < Unroll; ++u) sum += acc[u][r];
    for (int64_t i = 0; i < n; ++i) p[i * R + r] += sum[first + i];
  }
}

// Rows [first, first + n) of a panel whose first stored column is w.
template <class T, int R>
void panel(const T* w, int64_t first, int64_t n, const T* a, int64_t columns, T* p) {
  if constexpr (R < kTileRows<T>) {
    panel_units<T, R>(w, a, columns, p, first, n);
  } else {
    w += first;
    // Sixteen sums of two vectors need 32 registers; with 16, four rows at a time.
    constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
    for (; n >= Rows; n -= Rows, w += Rows, p += Rows * R) panel_rows<T, Rows>(w, a, columns, p);
    if (n > 0) with_count<Rows - 1>(n, [&](auto count) { panel_rows<T, decltype(count)::value>(w, a, columns, p); });
  }
}

// One tile: pointers into scratch (or into `saved`) for every node of the network.
template <class T, int R>
class Tile {
 public:
  Tile(const MaskedNetwork<T>& net, int64_t tile, T* scratch, T* saved)
      : net_(net),
        plan_(net.plan),
        first_row_(tile * R),
        rows_(net.batch - first_row_ < R ? net.batch - first_row_ : R) {
    const auto take = [&](int64_t n) {
      T* p = scratch;
      scratch += n * R;
      return p;
    };
    x = take(plan_.features());
    y = take(plan_.features());
    T* kept = saved ? saved + tile * plan_.saved_rows() * R : nullptr;
    out = kept ? kept + plan_.units() * R : take(plan_.features() * plan_.parameters());
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      p[l] = kept ? kept + h.offset() * R : take(h.units());
      ungated_[l] = kept && h.gate() >= 0 ? kept + plan_.gate_row(h.gate_offset()) * R : nullptr;
      // The activation may overwrite p unless someone still reads p.
      a[l] = h.activated() && (kept || h.kept()) ? take(h.units()) : p[l];
    }
  }

  int64_t rows() const { return rows_; }
  int64_t first_row() const { return first_row_; }
  T* target(int node) const { return node == plan_.hidden() ? out : p[node]; }
  const T* source(int node) const { return node < 0 ? x : a[node]; }

  // dst[i] = m[rows of the tile, order[i]]. Lanes beyond the batch repeat its last row: whatever they compute is as
  // finite as that row, so that a cotangent of zero stays zero.
  static void gather(Matrix<const T> m, int64_t row, int64_t rows, const int64_t* order, int64_t n, T* dst) {
    for (int64_t i = 0; i < n; ++i, dst += R) {
      const T* src = m.data + row * m.row_stride + order[i] * m.column_stride;
      for (int64_t r = 0; r < rows; ++r) dst[r] = src[r * m.row_stride];
      for (int64_t r = rows; r < R; ++r) dst[r] = dst[rows - 1];
    }
  }
  void gather(Matrix<const T> m, const int64_t* order, int64_t n, T* dst) const {
    gather(m, first_row_, rows_, order, n, dst);
  }
  void scatter(const T* src, const int64_t* order, int64_t n, Matrix<T> m) const {
    scatter(src, first_row_, rows_, order, n, m);
  }
  static void scatter(const T* src, int64_t row, int64_t rows, const int64_t* order, int64_t n, Matrix<T> m) {
    for (int64_t i = 0; i < n; ++i, src += R) {
      T* dst = m.data + row * m.row_stride + order[i] * m.column_stride;
      for (int64_t r = 0; r < rows; ++r) dst[r * m.row_stride] = src[r];
    }
  }

  // Every parameter and pre-activation from x.
  void forward() {
    for (int c = 0; c < plan_.linears(); ++c) {
      const LinearView w = plan_.linear(c);
      for (int64_t i = 0; i < w.chunks(); ++i) {
        const Chunk& k = w.chunk(i);
        if (begins(c)) initialise(w, k.row, k.row + k.rows);
        panel<T, R>(net_.packed + k.offset, 0, k.rows, source(w.source()), k.columns, target(w.target()) + k.row * R);
        if (w.target() < plan_.hidden()) finish(w.target(), k.row, k.row + k.rows);
      }
    }
  }

  // The degree-ordered sweep. `solve(first, last)` turns the parameters of the sorted features [first, last) into x.
  // Per block of levels: what earlier blocks contribute, as dense panels; then level by level the small rest.
  template <class Solve>
  void sweep(Solve solve) {
    const int64_t* levels = plan_.block_levels();
    for (int64_t b = 0; b < plan_.blocks(); ++b) {
      const int64_t t0 = levels[b], t1 = levels[b + 1];
      for (int c = 0; c < plan_.linears(); ++c) {
        const LinearView w = plan_.linear(c);
        const int64_t r0 = plan_.start(w.target(), t0), r1 = plan_.start(w.target(), t1);
        if (begins(c)) initialise(w, r0, r1);
        product(w, b, r0, r1, 0, plan_.start(w.source(), t0));
      }
      for (int64_t t = t0; t < t1; ++t) {
        for (int c = 0; c < plan_.linears(); ++c) {
          const LinearView w = plan_.linear(c);
          const int64_t r0 = plan_.start(w.target(), t), r1 = plan_.start(w.target(), t + 1);
          const int64_t seen = plan_.start(w.source(), w.source() < 0 ? t : t + 1);
          product(w, b, r0, r1, plan_.start(w.source(), t0), seen);
          if (w.target() < plan_.hidden()) finish(w.target(), r0, r1);
        }
        solve(plan_.feature_starts()[t], plan_.feature_starts()[t + 1]);
      }
    }
  }

  T *x, *y, *out;  // input, image under the univariate map, parameters
  T *p[kMaxHidden], *a[kMaxHidden];

 private:
  // The first linear map into a target writes it, a skip connection adds to it.
  bool begins(int c) const { return c == 0 || plan_.linear(c).target() != plan_.linear(c - 1).target(); }

  // Rows [r0, r1) of the target of w: the bias and, where the plan has one, the addend of each row of the batch.
  void initialise(const LinearView& w, int64_t r0, int64_t r1) const {
    const int node = w.target();
    const int slot = node == plan_.hidden() ? plan_.output_addend() : plan_.hidden(node).addend();
    T* dst = target(node) + r0 * R;
    if (slot >= 0) gather(net_.addends[slot], w.row_order() + r0, r1 - r0, dst);
    const T* bias = w.bias_offset() < 0 ? nullptr : net_.packed + w.bias_offset();
    for (int64_t i = r0; i < r1; ++i, dst += R) {
      const T b = bias ? bias[i] : T(0);
      if (slot >= 0) {
        for (int r = 0; r < R; ++r) dst[r] += b;
      } else {
        for (int r = 0; r < R; ++r) dst[r] = b;
      }
    }
  }

  // Adds the sorted columns [k0, k1) of w to its rows [r0, r1), all in block b.
  void product(const LinearView& w, int64_t b, int64_t r0, int64_t r1, int64_t k0, int64_t k1) const {
    if (k0 >= k1 || r0 >= r1) return;
    for (int64_t i = w.chunk_of(r0, b), r = r0; r < r1; ++i) {
      const Chunk& k = w.chunk(i);
      const int64_t end = k.row + k.rows < r1 ? k.row + k.rows : r1;
      panel<T, R>(net_.packed + k.offset + k0 * kChunkRows, r - k.row, end - r, source(w.source()) + k0 * R, k1 - k0,
                  target(w.target()) + r * R);
      r = end;
    }
  }

  // Units [u0, u1) have all their products: gate, residual sum, then the activation.
  void finish(int layer, int64_t u0, int64_t u1) const {
    const HiddenView h = plan_.hidden(layer);
    if (h.gate() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        alignas(64) T factor[R];
        T* value = p[layer] + u * R;
        gather(net_.addends[h.gate()], h.order() + u, 1, factor);
        if (ungated_[layer]) __builtin_memcpy(ungated_[layer] + u * R, value, R * sizeof(T));
        for (int r = 0; r < R; ++r) value[r] *= factor[r];
      }
    if (h.residual() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        const T* from = p[h.residual()] + h.residual_units()[u] * R;
        for (int r = 0; r < R; ++r) p[layer][u * R + r] += from[r];
      }
    if (h.activated())
      activate(static_cast<Activation>(plan_.activation()), plan_.activation_constant(), p[layer] + u0 * R,
               a[layer] + u0 * R, (u1 - u0) * R);
  }

  const MaskedNetwork<T>& net_;
  const PlanView& plan_;
  int64_t first_row_, rows_;
  T* ungated_[kMaxHidden];  // where a gated layer keeps its value before the gate, or null
};

}  // namespace flowkern::FK_ISA
