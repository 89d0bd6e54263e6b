// The compiled form of an AutoregressivePlan, read without copying.
//
// flowkern/plan.py sorts the units of every layer by level and writes what the kernels need into one flat
// int64 array. This header is the only other place that knows its layout; change both together.
#pragma once

#include <cstdint>

#include "flowkern/panel.h"

namespace flowkern {

constexpr int64_t kPlanVersion = 4;
constexpr int kMaxHidden = 64;  // hidden layers; bounds the pointer arrays that live on the stack
constexpr int kMaxConditioners = 64;
// Nodes: hidden layers from 0, then the parameters, then the conditioners; before them these two.
constexpr int kInput = -1, kContext = -2;

// Panel of up to eight consecutive sorted rows of one linear map, all of one block.
struct Chunk {
  int64_t row;      // first sorted row
  int64_t rows;     // 1..8; the remaining columns of the panel are zero
  int64_t columns;  // sorted source columns stored in the panel
  int64_t dense;    // leading columns that every row sees; beyond it the mask bytes decide
  int64_t offset;   // of the panel in the packed buffer, in elements
  int64_t mask;     // of the mask bytes [columns - dense][8] in the plan's mask array
};

// W: source -> target. `source` is a hidden layer, kInput for the context and the features in one, or kContext for the
// context alone; `target` is a hidden layer, hidden() for the parameters of the features, or a conditioner.
class LinearView {
 public:
  explicit LinearView(const int64_t* base, const int64_t* record) : base_(base), r_(record) {}
  int source() const { return static_cast<int>(r_[0]); }
  int target() const { return static_cast<int>(r_[1]); }
  int64_t rows() const { return r_[2]; }  // live sorted rows
  int64_t original_rows() const { return r_[3]; }
  int64_t original_columns() const { return r_[4]; }
  const int64_t* row_order() const { return base_ + r_[5]; }  // sorted row -> original row
  const int64_t* column_order() const { return base_ + r_[6]; }
  int64_t chunks() const { return r_[7]; }
  const Chunk& chunk(int64_t i) const { return reinterpret_cast<const Chunk*>(base_ + r_[8])[i]; }
  const int64_t* block_chunks() const { return base_ + r_[9]; }  // first chunk of each block, blocks() + 1
  // The chunk that holds `row`, which lies in block b or later.
  FK_ALWAYS_INLINE int64_t chunk_of(int64_t row, int64_t b) const {
    int64_t i = block_chunks()[b];
    while (chunk(i).row + chunk(i).rows <= row) ++i;
    return i;
  }
  int64_t bias_offset() const { return r_[10]; }  // in the packed buffer; -1: none
  int64_t bias_index() const { return r_[11]; }   // in the list of biases; -1: none
  static constexpr int64_t kFields = 12;

 private:
  const int64_t* base_;
  const int64_t* r_;
};

class HiddenView {
 public:
  explicit HiddenView(const int64_t* base, const int64_t* record) : base_(base), r_(record) {}
  int64_t units() const { return r_[0]; }  // live units; those no output can see are dropped
  int64_t original_units() const { return r_[1]; }
  const int64_t* starts() const { return base_ + r_[2]; }          // first sorted unit of each level, levels() + 1
  const int64_t* order() const { return base_ + r_[3]; }           // sorted unit -> original unit
  int64_t offset() const { return r_[4]; }                         // units of the layers before this one
  bool activated() const { return r_[5] != 0; }                    // the next layer reads act(p) rather than p
  int residual() const { return static_cast<int>(r_[6]); }         // earlier layer that is added; -1: none
  const int64_t* residual_units() const { return base_ + r_[7]; }  // sorted unit here -> sorted unit there
  int addend() const { return static_cast<int>(r_[8]); }           // index of the per-row addend; -1: none
  bool kept() const { return r_[9] != 0; }                         // a later residual reads p, so it must survive
  int gate() const { return static_cast<int>(r_[10]); }            // index of the per-row factor; -1: none
  int64_t gate_offset() const { return r_[11]; }                   // units of the gated layers before this one
  static constexpr int64_t kFields = 12;

 private:
  const int64_t* base_;
  const int64_t* r_;
};

// A linear map of the context, which a hidden layer, or the parameters, are given: added to them, or as their factor.
class ConditionerView {
 public:
  explicit ConditionerView(const int64_t* record) : r_(record) {}
  int layer() const { return static_cast<int>(r_[0]); }
  bool gate() const { return r_[1] != 0; }
  int activation() const { return static_cast<int>(r_[2]); }
  double activation_constant() const { return __builtin_bit_cast(double, r_[3]); }
  int64_t units() const { return r_[4]; }
  int64_t row() const { return r_[5]; }  // first of its rows among those that are saved
  static constexpr int64_t kFields = 6;

 private:
  const int64_t* r_;
};

class PlanView {
 public:
  explicit PlanView(const int64_t* base) : base_(base) {}
  int64_t version() const { return base_[0]; }
  int64_t features() const { return base_[1]; }
  int64_t parameters() const { return base_[2]; }  // per feature
  int64_t levels() const { return base_[3]; }
  int64_t blocks() const { return base_[4]; }
  int hidden() const { return static_cast<int>(base_[5]); }
  int linears() const { return static_cast<int>(base_[6]); }  // those of the network, then those of the conditioners
  int network_linears() const { return linears() - conditioners(); }
  int64_t packed_size() const { return base_[7]; }
  int activation() const { return static_cast<int>(base_[8]); }
  double activation_constant() const { return __builtin_bit_cast(double, base_[9]); }
  int64_t units() const { return base_[10]; }                          // live hidden units of all layers
  const int64_t* feature_starts() const { return base_ + base_[11]; }  // levels() + 1
  const int64_t* block_levels() const { return base_ + base_[12]; }    // first level of each block, blocks() + 1
  const int64_t* feature_order() const { return base_ + base_[13]; }   // sorted feature -> original feature
  HiddenView hidden(int i) const { return HiddenView(base_, base_ + base_[14] + i * HiddenView::kFields); }
  LinearView linear(int i) const { return LinearView(base_, base_ + base_[15] + i * LinearView::kFields); }
  int output_addend() const { return static_cast<int>(base_[16]); }
  int addends() const { return static_cast<int>(base_[17]); }  // matrices given per row: addends, then gates
  // The context is known before the first feature: it takes the first rows of the input.
  int64_t context() const { return base_[18]; }
  int64_t inputs() const { return context() + features(); }
  int conditioners() const { return static_cast<int>(base_[19]); }
  ConditionerView conditioner(int i) const { return ConditionerView(base_ + base_[20] + i * ConditionerView::kFields); }
  int64_t conditioner_units() const { return base_[21]; }
  int64_t saved_rows() const { return base_[22]; }  // see row_of
  int64_t conditioner_context() const {
    return base_[23];
  }  // the first features of the context, which conditioners read
  bool reads_features() const { return base_[24] != 0; }  // rather than the context alone

  // Rows (inputs, units or parameters) that are known before level t, for any source or target.
  FK_ALWAYS_INLINE int64_t start(int node, int64_t level) const {
    if (node == kInput) return context() + (reads_features() ? feature_starts()[level] : 0);
    if (node == kContext) return conditioner_context();
    if (node > hidden()) node = conditioner(node - hidden() - 1).layer();
    return node < hidden() ? hidden(node).starts()[level] : feature_starts()[level] * parameters();
  }
  // Rows of one tile that a backward pass needs: hidden layers, parameters, what the gates multiply, conditioners.
  FK_ALWAYS_INLINE int64_t row_of(int node) const {
    if (node < hidden()) return hidden(node).offset();
    return node == hidden() ? units() : conditioner(node - hidden() - 1).row();
  }
  FK_ALWAYS_INLINE int64_t gate_row(int64_t offset) const { return units() + features() * parameters() + offset; }

 private:
  const int64_t* base_;
};

}  // namespace flowkern
