// The compiled form of a chain of transforms, read without copying.
//
// flowkern/chain.py writes it: one flat int64 array that holds the plans and the maps of all steps. The two change
// together.
#pragma once

#include "flowkern/plan_view.h"

namespace flowkern {

constexpr int64_t kChainVersion = 3;

// What a chain adds to its log-determinant: nothing; the log-density of its result under the standard normal, which
// gives that of its input; or that of its input, from which the log-determinant is then taken away, which gives that of
// its result.
enum class Normal : int64_t { none, output, input };

// autoregressive, its inverse, u * scale + shift, (u - shift) / scale, a coupling, its inverse, L U u + bias, its
// inverse.
enum class StepKind : int64_t {
  density,
  inverse,
  scale_shift,
  standardize,
  coupling,
  coupling_inverse,
  lu_linear,
  lu_linear_inverse
};

class StepView {
 public:
  explicit StepView(const int64_t* base, const int64_t* record) : base_(base), r_(record) {}
  StepKind kind() const { return static_cast<StepKind>(r_[0]); }
  bool elementwise() const { return kind() == StepKind::scale_shift || kind() == StepKind::standardize; }
  bool lu_linear() const { return kind() == StepKind::lu_linear || kind() == StepKind::lu_linear_inverse; }
  bool network() const { return !elementwise() && !lu_linear(); }
  const int64_t* order() const { return base_ + r_[1]; }  // see ChainStep
  PlanView plan() const { return PlanView(base_ + r_[2]); }
  const uint8_t* mask() const { return reinterpret_cast<const uint8_t*>(base_ + r_[3]); }
  const double* map() const { return reinterpret_cast<const double*>(base_ + r_[4]); }
  int64_t packed() const { return r_[5]; }   // first of its numbers in the packed buffer
  int64_t row() const { return r_[6]; }      // of a network: first of its rows among those of all
  int64_t passing() const { return r_[7]; }  // features that a coupling lets pass
  static constexpr int64_t kFields = 8;

 private:
  const int64_t* base_;
  const int64_t* r_;
};

class ChainView {
 public:
  explicit ChainView(const int64_t* base) : base_(base) {}
  int64_t version() const { return base_[0]; }
  int64_t size() const { return base_[1]; }  // of the array
  int64_t steps() const { return base_[2]; }
  int64_t features() const { return base_[3]; }
  int64_t context() const { return base_[4]; }
  Normal normal() const { return static_cast<Normal>(base_[5]); }
  const int64_t* order() const { return base_ + base_[6]; }  // feature of the result -> feature of the last state
  int64_t packed_size() const { return base_[7]; }
  int64_t network_rows() const { return base_[8]; }
  int64_t work() const { return base_[9]; }  // multiply-adds of a row
  StepView step(int64_t i) const { return StepView(base_, base_ + base_[10] + i * StepView::kFields); }
  // Rows of a tile that a backward pass needs: the context, the input and every state, then those of the networks.
  FK_ALWAYS_INLINE int64_t kept() const { return context() + (steps() + 1) * features() + network_rows(); }

 private:
  const int64_t* base_;
};

}  // namespace flowkern
