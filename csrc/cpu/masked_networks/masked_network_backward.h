// Cotangents of a masked network on one bulk tile; the gradients of its weights follow in weight_gradient.cpp.
#pragma once

#include "cpu/masked_networks/masked_network.h"

namespace flowkern::FK_ISA {

constexpr int64_t kAhead = 4;  // panels; a walk down the panels is a pattern that no hardware prefetcher follows

template <class T, int N>
FK_INLINE void prefetch_panel(const LinearView& map, const T* packed, int64_t chunk, int64_t column) {
  if (chunk >= map.chunks()) return;
  const T* w = packed + map.chunk(chunk).offset + column * kChunkRows;
  for (int i = 0; i < N * kChunkRows; i += 64 / sizeof(T)) __builtin_prefetch(w + i);
}

// g[k] += sum_j w[k][j] d[j] for N columns k of the panels of several chunks: the transposed product, from the same
// packed weights. Where it `begins` the cotangent, g is written and not read.
template <class T, int N>
FK_INLINE void panel_transposed(const LinearView& map, const T* packed, int64_t chunk, int64_t r0, int64_t r1,
                                int64_t column, bool begins, const T* d, T* g) {
  constexpr int W = kLanes<T>;
  Vec<T> acc[N][2] = {};
  if (!begins)
    for (int i = 0; i < N; ++i) {
      acc[i][0] = load<Vec<T>>(g + i * 2 * W);
      acc[i][1] = load<Vec<T>>(g + i * 2 * W + W);
    }
  for (int64_t r = r0; r < r1; ++chunk) {
    const Chunk& k = map.chunk(chunk);
    const int64_t end = k.row + k.rows < r1 ? k.row + k.rows : r1;
    const T* w = packed + k.offset + column * kChunkRows + (r - k.row);
    prefetch_panel<T, N>(map, packed, chunk + kAhead, column);
    for (; r < end; ++r, ++w) {
      const auto d0 = load<Vec<T>>(d + r * 2 * W), d1 = load<Vec<T>>(d + r * 2 * W + W);
      for (int i = 0; i < N; ++i) {
        acc[i][0] += w[i * kChunkRows] * d0;
        acc[i][1] += w[i * kChunkRows] * d1;
      }
    }
  }
  for (int i = 0; i < N; ++i) {
    store(g + i * 2 * W, acc[i][0]);
    store(g + i * 2 * W + W, acc[i][1]);
  }
}

// g *= act'(p) for n elements, a multiple of the tile's rows, hence of the lanes.
template <class T>
void activation_backward(Activation kind, double constant, const T* p, T* g, int64_t n) {
  with_activation(kind, [=](auto tag) {
    constexpr Activation Kind = decltype(tag)::value;
    if constexpr (Kind != Activation::identity)
      for (int64_t i = 0; i < n; i += kLanes<T>)
        store(g + i, load<Vec<T>>(g + i) * activation_slope<Kind, T>(load<Vec<T>>(p + i), constant));
  });
}

template <class T>
class TileGradient {
 public:
  static constexpr int R = kTileRows<T>;

  TileGradient(const MaskedNetwork<T>& net, const TileBackward<T>& in, int64_t tile, T* scratch)
      : net_(net),
        plan_(net.plan),
        in_(in),
        tile_(tile),
        first_row_(tile * R),
        rows_(net.batch - first_row_ < R ? net.batch - first_row_ : R) {
    const auto take = [&](int64_t n) {
      T* p = scratch;
      scratch += n * R;
      return p;
    };
    x = take(plan_.features());
    g_x = take(plan_.features());
    value = take(plan_.features() * plan_.parameters());
    saved_ = in.saved + tile * plan_.saved_rows() * R;
    out = saved_ + plan_.units() * R;
    deltas_ = in.deltas + (tile - in.first_tile) * plan_.saved_rows() * R;
    delta_out = deltas_ + plan_.units() * R;
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      residual_[l] = h.kept() ? take(h.units()) : nullptr;
      if (h.kept()) __builtin_memset(residual_[l], 0, h.units() * R * sizeof(T));
    }
    spare_ = scratch;
    __builtin_memset(g_x, 0, plan_.features() * R * sizeof(T));
    Tile<T, R>::gather(in.x, first_row_, rows_, plan_.feature_order(), plan_.features(), x);
    // For the weight gradients. First, since it reads what was saved in one stream, which brings it into the cache.
    if (in.activations)
      for (int node = -1; node < plan_.hidden(); ++node) transpose_inputs(node);
  }

  // From delta_out: cotangents of all pre-activations; those of the inputs are added to g_x.
  void backward() {
    for (int l = plan_.hidden() - 1; l >= -1; --l)
      for (int64_t b = 0; b < plan_.blocks(); ++b) {
        const int64_t t0 = plan_.block_levels()[b], t1 = plan_.block_levels()[b + 1];
        const int64_t k0 = plan_.start(l, t0), k1 = plan_.start(l, t1);
        for (int c = 0; c < plan_.linears(); ++c)
          if (plan_.linear(c).source() == l) product(plan_.linear(c), b, t0, plan_.levels(), k0, k1, l >= 0);
        if (l >= 0) finish(l, k0, k1);
      }
  }

  // The transposed network level by level from the last (the gradient of the sweep). `solve(first, last)` turns g_x of
  // the sorted features [first, last), complete for the network's part, into their rows of delta_out.
  template <class Solve>
  void sweep(Solve solve) {
    const int64_t* levels = plan_.block_levels();
    for (int64_t b = plan_.blocks() - 1; b >= 0; --b) {
      const int64_t t0 = levels[b], t1 = levels[b + 1];
      const bool last = b + 1 == plan_.blocks();
      for (int c = 0; c < plan_.linears() && !last; ++c) {
        const LinearView w = plan_.linear(c);
        product(w, b + 1, t1, plan_.levels(), plan_.start(w.source(), t0), plan_.start(w.source(), t1),
                w.source() >= 0);
      }
      for (int64_t t = t1 - 1; t >= t0; --t) {
        for (int c = 0; c < plan_.linears(); ++c) {
          const LinearView w = plan_.linear(c);
          if (w.source() < 0) product(w, b, t + 1, t1, plan_.start(-1, t), plan_.start(-1, t + 1), false);
        }
        solve(plan_.feature_starts()[t], plan_.feature_starts()[t + 1]);
        for (int l = plan_.hidden() - 1; l >= 0; --l) {
          const int64_t k0 = plan_.start(l, t), k1 = plan_.start(l, t + 1);
          for (int c = 0; c < plan_.linears(); ++c)
            if (plan_.linear(c).source() == l) product(plan_.linear(c), b, t, t1, k0, k1, last);
          finish(l, k0, k1);
        }
      }
    }
  }

  // Writes the cotangents of the addends and gates.
  void emit() const {
    for (int node = 0; node <= plan_.hidden(); ++node) {
      const bool last = node == plan_.hidden();
      const int slot = last ? plan_.output_addend() : plan_.hidden(node).addend();
      if (slot < 0 || !in_.g_addends) continue;
      const int64_t* order = last ? plan_.linear(plan_.linears() - 1).row_order() : plan_.hidden(node).order();
      scatter(delta(node), order, plan_.start(node, plan_.levels()), in_.g_addends[slot]);
    }
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      if (h.gate() >= 0 && in_.g_addends)
        scatter(deltas_ + plan_.gate_row(h.gate_offset()) * R, h.order(), h.units(), in_.g_addends[h.gate()]);
    }
  }

  // Cotangents of the rows of the tile; those of lanes beyond the batch are zero.
  void gather(Matrix<const T> m, const int64_t* order, int64_t n, T* dst) const {
    Tile<T, R>::gather(m, first_row_, rows_, order, n, dst);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = rows_; r < R; ++r) dst[i * R + r] = 0;
  }
  void scatter(const T* src, const int64_t* order, int64_t n, Matrix<T> m) const {
    Tile<T, R>::scatter(src, first_row_, rows_, order, n, m);
  }

  T *x, *g_x, *value;  // input, its cotangent, room for the cotangent of the value
  const T* out;        // parameters
  T* delta_out;

 private:
  T* delta(int node) const { return node == plan_.hidden() ? delta_out : deltas_ + plan_.hidden(node).offset() * R; }
  T* cotangent(int node) const { return node < 0 ? g_x : delta(node); }

  // Adds to the cotangents of source columns [k0, k1) what the target rows of levels [t0, t1) send back; t0 in block b.
  // A hidden layer is read by one linear map, whose first product `begins` the cotangents.
  void product(const LinearView& w, int64_t b, int64_t t0, int64_t t1, int64_t k0, int64_t k1, bool begins) const {
    const int64_t r0 = plan_.start(w.target(), t0), r1 = plan_.start(w.target(), t1);
    T* g = cotangent(w.source());
    if (r0 >= r1 || k0 >= k1) {
      if (begins && k0 < k1) __builtin_memset(g + k0 * R, 0, (k1 - k0) * R * sizeof(T));
      return;
    }
    const int64_t chunk = w.chunk_of(r0, b);
    constexpr int Group = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
    for (int64_t groups = (k1 - k0 + Group - 1) / Group, i = 0; i < groups; ++i) {
      const int64_t begin = k0 + (k1 - k0) * i / groups, end = k0 + (k1 - k0) * (i + 1) / groups;
      with_count<Group>(end - begin, [&](auto n) {
        panel_transposed<T, decltype(n)::value>(w, net_.packed, chunk, r0, r1, begin, begins, delta(w.target()),
                                                g + begin * R);
      });
    }
  }

  // Units [u0, u1): from the cotangent of the activation to that of the linear map, the residual path and the gate
  // included.
  void finish(int layer, int64_t u0, int64_t u1) const {
    const HiddenView h = plan_.hidden(layer);
    T* d = delta(layer);
    if (h.activated())
      activation_backward(static_cast<Activation>(plan_.activation()), plan_.activation_constant(),
                          saved_ + (h.offset() + u0) * R, d + u0 * R, (u1 - u0) * R);
    if (residual_[layer])
      for (int64_t i = u0 * R; i < u1 * R; ++i) d[i] += residual_[layer][i];
    if (h.residual() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        T* to = residual_[h.residual()] + h.residual_units()[u] * R;
        for (int r = 0; r < R; ++r) to[r] += d[u * R + r];
      }
    if (h.gate() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        alignas(64) T factor[R];
        const int64_t row = (plan_.gate_row(h.gate_offset()) + u) * R;
        gather(net_.addends[h.gate()], h.order() + u, 1, factor);
        for (int r = 0; r < R; ++r) {
          deltas_[row + r] = d[u * R + r] * saved_[row + r];
          d[u * R + r] *= factor[r];
        }
      }
  }

  // Panels of R inputs of a linear map as [row][R inputs], the order in which weight_gradient reads them.
  void transpose_inputs(int node) const {
    constexpr int W = kLanes<T>;
    const int64_t n = plan_.start(node, plan_.levels());
    const T* source = node < 0 ? x : saved_ + plan_.hidden(node).offset() * R;
    T* to = in_.activations + (panel_offset(plan_, node, R) * in_.tiles + tile_ - in_.first_tile) * R * R;
    for (int64_t k = 0; k < n; k += R, to += in_.tiles * R * R) {
      const int64_t units = n - k < R ? n - k : R;
      const T* from = source + k * R;
      if (node >= 0 && plan_.hidden(node).activated()) {
        activate(static_cast<Activation>(plan_.activation()), plan_.activation_constant(), from, spare_, units * R);
        from = spare_;
      }
      for (int i = 0; i < R; i += W)
        for (int j = 0; j < R; j += W) {
          Vec<T> v[W];
          for (int u = 0; u < W; ++u) v[u] = i + u < units ? load<Vec<T>>(from + (i + u) * R + j) : Vec<T>{};
          transpose<T>(v);
          for (int r = 0; r < W; ++r) store(to + (j + r) * R + i, v[r]);
        }
    }
  }

  const MaskedNetwork<T>& net_;
  const PlanView& plan_;
  const TileBackward<T>& in_;
  int64_t tile_, first_row_, rows_;
  const T* saved_;
  T* deltas_;
  T* residual_[kMaxHidden];
  T* spare_;
};

}  // namespace flowkern::FK_ISA
