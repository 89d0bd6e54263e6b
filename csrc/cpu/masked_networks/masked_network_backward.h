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

// g *= act' for n elements, a multiple of the tile's rows, hence of the lanes; `kept` is act where that gives the
// derivative, else what it was applied to.
template <class T>
void activation_backward(Activation kind, double constant, const T* kept, T* g, int64_t n) {
  const bool from_output = slope_from_output(kind, constant);
  with_activation(kind, [=](auto tag) {
    constexpr Activation Kind = decltype(tag)::value;
    if constexpr (Kind != Activation::identity)
      for (int64_t i = 0; i < n; i += kLanes<T>) {
        const auto v = load<Vec<T>>(kept + i);
        const auto slope = from_output ? slope_at_output<Kind, T>(v, constant) : activation_slope<Kind, T>(v, constant);
        store(g + i, load<Vec<T>>(g + i) * slope);
      }
  });
}

template <class T>
class TileGradient {
 public:
  static constexpr int R = kTileRows<T>;

  // The features are the rows order[i] of `state`, in the order of the plan, and after them the last `passing` features
  // of the context; `context` is [context][R], the others.
  TileGradient(const MaskedNetwork<T>& net, TileRows rows, const T* state, const int64_t* order, const T* context,
               const NetworkBackward<T>& in, T* scratch, int64_t passing = 0)
      : net_(net), plan_(net.plan), in_(in), rows_(rows) {
    const auto take = [&](int64_t n) {
      T* p = scratch;
      scratch += n * R;
      return p;
    };
    input_ = take(plan_.inputs());
    g_input_ = take(plan_.inputs());
    x = input_ + plan_.context() * R;
    g_x = g_input_ + plan_.context() * R;
    value = take(plan_.features());
    out = in.saved + plan_.units() * R;
    delta_out = in.deltas + plan_.units() * R;
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      residual_[l] = h.kept() ? take(h.units()) : nullptr;
      if (h.kept()) __builtin_memset(residual_[l], 0, h.units() * R * sizeof(T));
    }
    spare_ = scratch;
    __builtin_memset(g_input_, 0, plan_.inputs() * R * sizeof(T));
    g_passing = g_x - passing * R;
    if (context) __builtin_memcpy(input_, context, (plan_.context() - passing) * R * sizeof(T));
    gather_rows<T, R>(state, order + plan_.features(), passing, x - passing * R);
    gather_rows<T, R>(state, order, plan_.features(), x);
    // For the weight gradients. First, since it reads what was saved in one stream, which brings it into the cache.
    if (in.activations)
      for (int node = kInput; node < plan_.hidden(); ++node) transpose_inputs(node);
  }

  // From delta_out: cotangents of all pre-activations; those of the inputs are added to g_x.
  void backward() {
    condition(plan_.hidden(), 0, plan_.start(plan_.hidden(), plan_.levels()));
    for (int l = plan_.hidden() - 1; l >= kInput; --l)
      for (int64_t b = 0; b < plan_.blocks(); ++b) {
        const int64_t t0 = plan_.block_levels()[b], t1 = plan_.block_levels()[b + 1];
        const int64_t k0 = plan_.start(l, t0), k1 = plan_.start(l, t1);
        for (int c = 0; c < plan_.network_linears(); ++c)
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
      for (int c = 0; c < plan_.network_linears() && !last; ++c) {
        const LinearView w = plan_.linear(c);
        product(w, b + 1, t1, plan_.levels(), plan_.start(w.source(), t0), plan_.start(w.source(), t1),
                w.source() >= 0);
      }
      for (int64_t t = t1 - 1; t >= t0; --t) {
        for (int c = 0; c < plan_.network_linears(); ++c) {
          const LinearView w = plan_.linear(c);
          if (w.source() < 0) product(w, b, t + 1, t1, plan_.start(kInput, t), plan_.start(kInput, t + 1), false);
        }
        solve(plan_.feature_starts()[t], plan_.feature_starts()[t + 1]);
        condition(plan_.hidden(), plan_.start(plan_.hidden(), t), plan_.start(plan_.hidden(), t + 1));
        for (int l = plan_.hidden() - 1; l >= 0; --l) {
          const int64_t k0 = plan_.start(l, t), k1 = plan_.start(l, t + 1);
          for (int c = 0; c < plan_.network_linears(); ++c)
            if (plan_.linear(c).source() == l) product(plan_.linear(c), b, t, t1, k0, k1, last);
          finish(l, k0, k1);
        }
      }
    }
  }

  // After either of these: the cotangent of the context, of which that of what passes stays here; that of the others is
  // added to g [context][R], if anybody wants it.
  void add_context_cotangent(T* g) const {
    for (int c = 0; c < plan_.linears(); ++c) {
      const LinearView w = plan_.linear(c);
      if (w.source() < 0) product(w, 0, 0, plan_.levels(), 0, plan_.start(w.source(), 0), false);
    }
    for (T* from = g_input_; g && from < g_passing; ++from) *g++ += *from;
  }

  // Writes the cotangents of the addends and gates.
  void emit() const {
    if (!in_.g_addends) return;
    for (int node = 0; node <= plan_.hidden(); ++node) {
      const bool last = node == plan_.hidden();
      const int slot = last ? plan_.output_addend() : plan_.hidden(node).addend();
      if (slot < 0) continue;
      const int64_t* order = last ? plan_.linear(plan_.network_linears() - 1).row_order() : plan_.hidden(node).order();
      scatter<T, R>(delta(node), rows_, order, plan_.start(node, plan_.levels()), in_.g_addends[slot]);
    }
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      if (h.gate() >= 0 && h.gate() < plan_.addends())
        scatter<T, R>(in_.deltas + plan_.gate_row(h.gate_offset()) * R, rows_, h.order(), h.units(),
                      in_.g_addends[h.gate()]);
    }
  }

  T *x, *g_x, *value;  // features, their cotangents, room for the cotangents of their images
  T* g_passing;        // cotangents of the last features of the context
  const T* out;        // parameters
  T* delta_out;

 private:
  T* delta(int node) const { return in_.deltas + plan_.row_of(node) * R; }
  T* cotangent(int node) const { return node < 0 ? g_input_ : delta(node); }

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

  // Units [u0, u1): from the cotangent of the activation to that of the linear map, the residual path, the gate and the
  // conditioners included.
  void finish(int layer, int64_t u0, int64_t u1) const {
    const HiddenView h = plan_.hidden(layer);
    T* d = delta(layer);
    if (h.activated())
      activation_backward(static_cast<Activation>(plan_.activation()), plan_.activation_constant(),
                          in_.saved + (h.offset() + u0) * R, d + u0 * R, (u1 - u0) * R);
    if (residual_[layer])
      for (int64_t i = u0 * R; i < u1 * R; ++i) d[i] += residual_[layer][i];
    if (h.residual() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        T* to = residual_[h.residual()] + h.residual_units()[u] * R;
        for (int r = 0; r < R; ++r) to[r] += d[u * R + r];
      }
    if (h.gate() >= 0)
      for (int64_t u = u0; u < u1; ++u) gate(h, u, d + u * R);
    condition(layer, u0, u1);
  }

  // From the cotangent of a gated unit to those of its factor and of the value before the gate.
  void gate(const HiddenView& h, int64_t u, T* d) const {
    const int64_t row = (plan_.gate_row(h.gate_offset()) + u) * R;
    alignas(64) T factor[R];
    T* g_factor = in_.deltas + row;
    const int conditioner = h.gate() - plan_.addends();
    if (conditioner >= 0) {
      const ConditionerView c = plan_.conditioner(conditioner);
      const T* kept = in_.saved + (c.row() + u) * R;
      const auto kind = static_cast<Activation>(c.activation());
      if (slope_from_output(kind, c.activation_constant()))
        __builtin_memcpy(factor, kept, R * sizeof(T));
      else
        activate(kind, c.activation_constant(), kept, factor, R);
      g_factor = in_.deltas + (c.row() + u) * R;
    } else {
      gather<T, R>(net_.addends[h.gate()], rows_, h.order() + u, 1, factor);
      for (int64_t r = rows_.count; r < R; ++r) factor[r] = 0;
    }
    const T* ungated = in_.saved + row;
    for (int r = 0; r < R; ++r) {
      g_factor[r] = d[r] * ungated[r];
      d[r] *= factor[r];
    }
    if (conditioner >= 0) through_activation(conditioner, u, u + 1);
  }

  // The cotangents of what conditioners add to rows [u0, u1) of a layer, or of the parameters.
  void condition(int node, int64_t u0, int64_t u1) const {
    for (int i = 0; i < plan_.conditioners(); ++i) {
      const ConditionerView c = plan_.conditioner(i);
      if (c.layer() != node || c.gate()) continue;
      __builtin_memcpy(in_.deltas + (c.row() + u0) * R, delta(node) + u0 * R, (u1 - u0) * R * sizeof(T));
      through_activation(i, u0, u1);
    }
  }
  void through_activation(int conditioner, int64_t u0, int64_t u1) const {
    const ConditionerView c = plan_.conditioner(conditioner);
    activation_backward(static_cast<Activation>(c.activation()), c.activation_constant(),
                        in_.saved + (c.row() + u0) * R, in_.deltas + (c.row() + u0) * R, (u1 - u0) * R);
  }

  // Panels of R inputs of a linear map as [row][R inputs], the order in which weight_gradient reads them. Rows beyond
  // the batch, which it does not read, may be left out.
  void transpose_inputs(int node) const {
    constexpr int W = kLanes<T>;
    const int64_t n = plan_.start(node, plan_.levels());
    const T* source = node < 0 ? input_ : in_.saved + plan_.hidden(node).offset() * R;
    const auto kind = static_cast<Activation>(plan_.activation());
    const bool kept = slope_from_output(kind, plan_.activation_constant());
    T* to = in_.activations + (panel_offset(plan_, node, R) * in_.tiles + in_.tile) * R * R;
    for (int64_t k = 0; k < n; k += R, to += in_.tiles * R * R) {
      const int64_t units = n - k < R ? n - k : R;
      const T* from = source + k * R;
      if (node >= 0 && plan_.hidden(node).activated() && !kept) {
        activate(kind, plan_.activation_constant(), from, spare_, units * R);
        from = spare_;
      }
      for (int i = 0; i < R; i += W)
        for (int j = 0; j < rows_.count; j += W) {
          Vec<T> v[W];
          for (int u = 0; u < W; ++u) v[u] = i + u < units ? load<Vec<T>>(from + (i + u) * R + j) : Vec<T>{};
          transpose<T>(v);
          for (int r = 0; r < W; ++r) store(to + (j + r) * R + i, v[r]);
        }
    }
  }

  const MaskedNetwork<T>& net_;
  const PlanView& plan_;
  const NetworkBackward<T>& in_;
  TileRows rows_;
  T *input_, *g_input_;  // the context, then the features; their cotangents
  T* residual_[kMaxHidden];
  T* spare_;
};

// Cotangents of the rows of the tile; those of lanes beyond the batch are zero.
template <class T>
void gather_cotangents(Matrix<const T> m, TileRows rows, const int64_t* order, int64_t n, T* dst) {
  constexpr int R = kTileRows<T>;
  gather<T, R>(m, rows, order, n, dst);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = rows.count; r < R; ++r) dst[i * R + r] = 0;
}

}  // namespace flowkern::FK_ISA
