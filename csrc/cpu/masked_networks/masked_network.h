// A masked network on one tile of rows: forward and one-sweep inverse. Their gradients are in
// masked_network_backward.h.
//
// A tile keeps every quantity as [unit][R rows]. In bulk R is two vectors, so a weight is broadcast and the rows
// fill the lanes; in a small tile (R = 1 or 4) the eight units of a packed panel fill the lanes. Units are sorted by
// level, so what a unit may read is a prefix of its source, and a block of levels is a range of rows. The context is
// known before the first level, so it is the beginning of the input.
#pragma once

#include "cpu/masked_networks/kernels.h"
#include "cpu/products.h"
#include "cpu/tile_rows.h"
#include "flowkern/activations.h"

namespace flowkern::FK_ISA {

// out = act(in) for n elements; `in` may be `out`.
template <class T>
void activate(Activation kind, double constant, const T* in, T* out, int64_t n) {
  with_activation(kind, [=](auto tag) {
    map_elements(in, out, n, [=](Vec<T> x) { return activation<decltype(tag)::value, T>(x, constant); });
  });
}

// One tile: pointers into scratch, or into what is kept for a backward pass, for every node of the network.
template <class T, int R>
class Tile {
 public:
  // `context` [context][R], `scratch` of scratch_rows(plan) rows, `kept` of plan.saved_rows() rows or null. The last
  // features of the context may be the rows order[i] of `state`, `passing` of them.
  Tile(const MaskedNetwork<T>& net, TileRows rows, const T* context, T* scratch, T* kept, const T* state = nullptr,
       const int64_t* order = nullptr, int64_t passing = 0)
      : net_(net), plan_(net.plan), rows_(rows), own_(net.plan.context() - passing) {
    const auto take = [&](int64_t n) {
      T* p = scratch;
      scratch += n * R;
      return p;
    };
    input_ = take(plan_.inputs());
    x = input_ + plan_.context() * R;
    y = take(plan_.features());
    out = kept ? kept + plan_.units() * R : take(plan_.features() * plan_.parameters());
    const auto kind = static_cast<Activation>(plan_.activation());
    const bool keeps_output = kept && slope_from_output(kind, plan_.activation_constant());
    for (int l = 0; l < plan_.hidden(); ++l) {
      const HiddenView h = plan_.hidden(l);
      T* keep = kept ? kept + h.offset() * R : take(h.units());
      ungated_[l] = kept && h.gate() >= 0 ? kept + plan_.gate_row(h.gate_offset()) * R : nullptr;
      // The activation may overwrite p unless someone still reads p, be it the backward pass.
      const bool apart = h.activated() && (h.kept() || (kept && !keeps_output));
      T* other = apart ? take(h.units()) : keep;
      p[l] = keeps_output ? other : keep;
      a[l] = keeps_output ? keep : other;
    }
    if (context) __builtin_memcpy(input_, context, own_ * R * sizeof(T));
    gather_rows<T, R>(state, order, passing, x - passing * R);
    condition(kept, take);
  }

  T* target(int node) const {
    return node < plan_.hidden() ? p[node] : node == plan_.hidden() ? out : conditioners_[node - plan_.hidden() - 1];
  }
  const T* source(int node) const { return node < 0 ? input_ : a[node]; }

  // Every parameter and pre-activation from x.
  void forward() {
    for (int c = 0; c < plan_.network_linears(); ++c) {
      const LinearView w = plan_.linear(c);
      for (int64_t i = 0; i < w.chunks(); ++i) {
        const Chunk& k = w.chunk(i);
        if (begins(c)) initialise(w, k.row, k.row + k.rows);
        const int64_t known = contributed(w);
        panel<T, R>(net_.packed + k.offset + known * kChunkRows, 0, k.rows, source(w.source()) + known * R,
                    k.columns - known, target(w.target()) + k.row * R);
        if (ends(c)) finish(w.target(), k.row, k.row + k.rows);
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
      for (int c = 0; c < plan_.network_linears(); ++c) {
        const LinearView w = plan_.linear(c);
        const int64_t r0 = plan_.start(w.target(), t0), r1 = plan_.start(w.target(), t1);
        if (begins(c)) initialise(w, r0, r1);
        product(w, b, r0, r1, contributed(w), plan_.start(w.source(), t0));
      }
      for (int64_t t = t0; t < t1; ++t) {
        for (int c = 0; c < plan_.network_linears(); ++c) {
          const LinearView w = plan_.linear(c);
          const int64_t r0 = plan_.start(w.target(), t), r1 = plan_.start(w.target(), t + 1);
          const int64_t seen = plan_.start(w.source(), w.source() < 0 ? t : t + 1);
          product(w, b, r0, r1, plan_.start(w.source(), t0), seen);
          if (ends(c)) finish(w.target(), r0, r1);
        }
        solve(plan_.feature_starts()[t], plan_.feature_starts()[t + 1]);
      }
    }
  }

  T *x, *y, *out;  // features, their images under the univariate map, parameters
  T *p[kMaxHidden], *a[kMaxHidden];

 private:
  // The first linear map into a target writes it, a skip connection adds to it.
  bool begins(int c) const { return c == 0 || plan_.linear(c).target() != plan_.linear(c - 1).target(); }
  bool ends(int c) const {
    return c + 1 == plan_.network_linears() || plan_.linear(c).target() != plan_.linear(c + 1).target();
  }

  // Columns of w whose products are in net_.given already.
  int64_t contributed(const LinearView& w) const { return net_.given && w.source() < 0 ? own_ : 0; }

  // The conditioners from the context: what each layer will be given.
  template <class Take>
  void condition(T* kept, Take take) {
    for (int i = 0; i < plan_.conditioners(); ++i) {
      const ConditionerView c = plan_.conditioner(i);
      const auto kind = static_cast<Activation>(c.activation());
      const bool keeps_output = kept && slope_from_output(kind, c.activation_constant());
      T* keep = kept ? kept + c.row() * R : take(c.units());
      T* other = kept && !keeps_output ? take(c.units()) : keep;
      conditioners_[i] = keeps_output ? other : keep;
      conditions_[i] = keeps_output ? keep : other;
      if (net_.given) {
        for (int64_t u = 0; u < c.units(); ++u)
          for (int r = 0; r < R; ++r) conditions_[i][u * R + r] = net_.given[c.row() + u];
        continue;
      }
      const LinearView w = plan_.linear(plan_.network_linears() + i);
      for (int64_t j = 0; j < w.chunks(); ++j) {
        const Chunk& k = w.chunk(j);
        initialise(w, k.row, k.row + k.rows);
        panel<T, R>(net_.packed + k.offset, 0, k.rows, input_, k.columns, conditioners_[i] + k.row * R);
      }
      activate(kind, c.activation_constant(), conditioners_[i], conditions_[i], c.units() * R);
    }
  }

  // Rows [r0, r1) of the target of w: the bias and, where the plan has one, the addend of each row of the batch.
  void initialise(const LinearView& w, int64_t r0, int64_t r1) const {
    const int node = w.target();
    const int slot = node < plan_.hidden()    ? plan_.hidden(node).addend()
                     : node == plan_.hidden() ? plan_.output_addend()
                                              : -1;
    T* dst = target(node) + r0 * R;
    if (slot >= 0) gather<T, R>(net_.addends[slot], rows_, w.row_order() + r0, r1 - r0, dst);
    const T* bias = net_.given            ? net_.given + plan_.row_of(node)
                    : w.bias_offset() < 0 ? nullptr
                                          : net_.packed + w.bias_offset();
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

  // Rows [u0, u1) of a layer, or of the parameters, have all their products: conditioners, gate, residual sum, then the
  // activation.
  void finish(int node, int64_t u0, int64_t u1) const {
    T* value = target(node);
    const int64_t n = (u1 - u0) * R, at = u0 * R;
    for (int i = 0; i < plan_.conditioners(); ++i)
      if (plan_.conditioner(i).layer() == node && !plan_.conditioner(i).gate())
        for (int64_t j = 0; j < n; ++j) value[at + j] += conditions_[i][at + j];
    if (node == plan_.hidden()) return;
    const HiddenView h = plan_.hidden(node);
    if (h.gate() >= 0 && ungated_[node]) __builtin_memcpy(ungated_[node] + at, value + at, n * sizeof(T));
    if (h.gate() >= plan_.addends()) {
      const T* factor = conditions_[h.gate() - plan_.addends()];
      for (int64_t j = 0; j < n; ++j) value[at + j] *= factor[at + j];
    } else if (h.gate() >= 0) {
      for (int64_t u = u0; u < u1; ++u) {
        alignas(64) T factor[R];
        gather<T, R>(net_.addends[h.gate()], rows_, h.order() + u, 1, factor);
        for (int r = 0; r < R; ++r) value[u * R + r] *= factor[r];
      }
    }
    if (h.residual() >= 0)
      for (int64_t u = u0; u < u1; ++u) {
        const T* from = p[h.residual()] + h.residual_units()[u] * R;
        for (int r = 0; r < R; ++r) value[u * R + r] += from[r];
      }
    if (h.activated())
      activate(static_cast<Activation>(plan_.activation()), plan_.activation_constant(), value + at, a[node] + at, n);
  }

  const MaskedNetwork<T>& net_;
  const PlanView& plan_;
  TileRows rows_;
  int64_t own_;                        // features of the context but for those of the state
  T* input_;                           // the context, then the features
  T* ungated_[kMaxHidden];             // where a gated layer keeps its value before the gate, or null
  T* conditioners_[kMaxConditioners];  // before and after their activation
  T* conditions_[kMaxConditioners];
};

}  // namespace flowkern::FK_ISA
