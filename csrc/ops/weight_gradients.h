// The backward pass of masked networks over groups of tiles: cotangents tile by tile, then the gradients of the weights
// as products over the rows of the group.
#pragma once

#include "ops/masked_networks.h"

namespace flowkern {

// Rows whose cotangents are held at once, which bounds the memory of a backward pass: so many, or more of a small
// network.
constexpr int64_t kBackwardRows = 512;
constexpr int64_t kBackwardBytes = int64_t{1} << 22;

// The gradients of the addends [batch, units], where kernels write them.
template <class T>
struct AddendGradients {
  explicit AddendGradients(const Tensors& addends) {
    for (const Tensor& t : addends) {
      tensors.push_back(zeros<T>({t.size(0), t.size(1)}));
      matrices.push_back({data<T>(tensors.back()), t.size(1), 1});
    }
  }
  Tensors tensors;
  std::vector<Matrix<T>> matrices;
};

template <class T>
class WeightGradients {
 public:
  // Where the tiles [first, first + count) put what the products read.
  struct Group {
    T *deltas, *activations;       // no activations where nobody wants the products
    const int64_t *rows, *panels;  // of every step: its first row in deltas, its first panel in activations
    int64_t delta_rows, first, count;
  };

  explicit WeightGradients(bool wanted) : wanted_(wanted), rows_(masked_network_kernels<T>().tile_rows) {}

  // The next step, a network.
  void add(const PlanView& plan, const uint8_t* mask) {
    const int64_t row = begin_step(plan.saved_rows());
    if (!wanted_) return;
    add_items(plan);
    networks_.push_back({plan, mask, row, panel_count_, sums_, shapes_.size()});
    for (int l = 0; l < plan.linears(); ++l) {
      const LinearView m = plan.linear(l);
      // Rows that no output can see are not in the plan.
      shapes_.push_back({{m.original_rows(), m.original_columns()}, m.rows() < m.original_rows()});
    }
    for (int l = 0; l < plan.linears(); ++l)
      if (plan.linear(l).bias_index() >= 0) shapes_.push_back({{plan.linear(l).original_rows()}, true});
    panel_count_ += panel_offset(plan, plan.hidden(), rows_);
    sums_ += sums_offset(plan, plan.linears(), rows_);
  }

  // The next step, elementwise: `features` shifts and as many scales.
  void add_elementwise(int64_t features) {
    const int64_t row = begin_step(2 * features);
    if (!wanted_) return;
    for (int64_t i = 0; i < 2; ++i) {
      vectors_.push_back({(row + i * features) * rows_, rows_, features, shapes_.size()});
      shapes_.push_back({{features}, true});
    }
  }

  // The next step, linear: its entries, whose cotangents a tile sums over its rows.
  void add_lu_linear(int64_t features) {
    const int64_t below = features * (features - 1) / 2, entries = features * (features + 1);
    int64_t at = begin_step((entries + rows_ - 1) / rows_) * rows_;
    if (!wanted_) return;
    for (int64_t size : {below, below, features, features}) {
      vectors_.push_back({at, 1, size, shapes_.size()});
      shapes_.push_back({{size}, true});
      at += size;
    }
  }

  // Runs `tile(group, index)` for all tiles of a batch, group by group.
  template <class Tile>
  void run(int64_t batch, int64_t work, const Tile& tile) {
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    const int64_t tiles = (batch + rows_ - 1) / rows_;
    const int64_t deltas = delta_rows_ * rows_, inputs = panel_count_ * rows_ * rows_;  // of one tile
    const int64_t bytes = (deltas + inputs) * static_cast<int64_t>(sizeof(T));
    const int64_t group = std::clamp<int64_t>(
        std::max(kBackwardRows / rows_, kBackwardBytes / std::max<int64_t>(bytes, 1)), 1, std::max<int64_t>(tiles, 1));
    T* memory = static_cast<T*>(scratch((group * (deltas + inputs) + sums_) * sizeof(T), 1));
    T *activations = memory + group * deltas, *sums = activations + group * inputs;
    std::vector<T*> found(shapes_.size());
    std::vector<WeightGradient<T>> products;
    for (const Network& n : networks_)
      products.push_back({n.plan, memory + n.row * rows_, deltas, nullptr, n.mask, 0, 0, true, sums + n.sums,
                          found.data() + n.first, found.data() + n.first + n.plan.linears()});
    const auto allocate = [&] {  // takes as long as a tile of a small network
      for (size_t i = results.size(); i < shapes_.size(); ++i) {
        results.push_back(shapes_[i].cleared ? zeros<T>(shapes_[i].sizes) : empty<T>(shapes_[i].sizes));
        found[i] = data<T>(results[i]);
      }
    };
    for (int64_t first = 0; first == 0 || first < tiles; first += group) {  // once for an empty batch: zeros
      const int64_t count = std::min(group, tiles - first);
      const Group now{memory, wanted_ ? activations : nullptr, first_rows_.data(), panels_.data(), delta_rows_, first,
                      count};
      parallel(count, work * rows_ * count, [&](int64_t i) { tile(now, first + i); }, allocate);
      if (!wanted_) continue;
      for (size_t i = 0; i < products.size(); ++i) {
        products[i].tiles = count, products[i].rows = std::min(count * rows_, batch - first * rows_);
        products[i].first = first == 0;
        products[i].activations = activations + networks_[i].panel * count * rows_ * rows_;
      }
      parallel(static_cast<int64_t>(items_.size()), work * rows_ * count, [&](int64_t i) {
        const Item& m = items_[i];
        k.weight_gradient(products[m.network], m.linear, m.panel, m.begin, m.end);
      });
      for (const Vector& v : vectors_) k.add_row_sums(memory + v.at, v.width, deltas, count, v.size, found[v.result]);
    }
    parallel(static_cast<int64_t>(items_.size()), 2 * work * rows_, [&](int64_t i) {
      const Item& m = items_[i];
      if (m.panel == 0) k.unpack(products[m.network], m.linear, m.begin, m.end);
    });
  }

  Tensors results;  // of each step in turn: weights, then biases; or shift and scale

 private:
  struct Network {
    PlanView plan;
    const uint8_t* mask;
    int64_t row, panel, sums;
    size_t first;  // of its results
  };
  struct Shape {
    std::vector<int64_t> sizes;
    bool cleared;
  };
  // Chunks [begin, end) of one linear map against the inputs of one panel: what a thread takes at a time.
  struct Item {
    size_t network;
    int linear;
    int64_t panel, begin, end;
  };
  struct Vector {
    int64_t at, width, size;  // of each tile: where it begins, over how many numbers each of its own is summed
    size_t result;
  };

  int64_t begin_step(int64_t rows) {
    first_rows_.push_back(delta_rows_);
    panels_.push_back(panel_count_);
    delta_rows_ += rows;
    return first_rows_.back();
  }
  void add_items(const PlanView& plan) {
    constexpr int64_t kChunks = 4;
    for (int l = 0; l < plan.linears(); ++l) {
      const LinearView map = plan.linear(l);
      const int64_t columns = plan.start(map.source(), plan.levels());
      for (int64_t p = 0; p * rows_ < std::max<int64_t>(columns, 1); ++p)
        for (int64_t c = 0; c < map.chunks(); c += kChunks) {
          const int64_t end = std::min(c + kChunks, map.chunks());
          if (p == 0 || map.chunk(end - 1).columns > p * rows_) items_.push_back({networks_.size(), l, p, c, end});
        }
    }
  }

  bool wanted_;
  int64_t rows_, delta_rows_ = 0, panel_count_ = 0, sums_ = 0;
  std::vector<int64_t> first_rows_, panels_;
  std::vector<Shape> shapes_;  // of the results
  std::vector<Network> networks_;
  std::vector<Item> items_;
  std::vector<Vector> vectors_;
};

}  // namespace flowkern
