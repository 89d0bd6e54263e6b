// What the operators on masked networks and their gradients share.
#pragma once

#include "cpu/masked_networks/kernels.h"
#include "ops/tensors.h"

namespace flowkern {

template <class T>
T* tile_scratch(int64_t rows, int64_t tile_rows) {
  return static_cast<T*>(scratch(rows * tile_rows * sizeof(T)));
}

// Room for packed weights that nobody needs after the call. Fresh memory would cost more than the packing.
template <class T>
T* packing_scratch(int64_t size) {
  return static_cast<T*>(scratch(size * sizeof(T), 1));
}

inline PlanView checked(const PlanView& v) {
  STD_TORCH_CHECK(v.version() == kPlanVersion, "flowkern: the plan has version ", v.version(),
                  ", this build reads version ", kPlanVersion, "; rebuild with `pip install -e .`");
  return v;
}

inline int64_t biased(const PlanView& plan) {
  int64_t n = 0;
  for (int l = 0; l < plan.linears(); ++l) n += plan.linear(l).bias_index() >= 0;
  return n;
}

// The per-row matrices of a plan, which the kernels read.
template <class T>
void append_addends(const PlanView& plan, const Tensor* addends, const Tensor* end, int64_t batch,
                    std::vector<Matrix<const T>>& matrices) {
  const auto units = [&](int slot) {  // of the layer that receives the addend or gate
    for (int l = 0; l < plan.hidden(); ++l)
      if (plan.hidden(l).addend() == slot || plan.hidden(l).gate() == slot) return plan.hidden(l).original_units();
    return plan.linear(plan.hidden()).original_rows();
  };
  for (int slot = 0; slot < plan.addends(); ++slot, ++addends) {
    STD_TORCH_CHECK(addends < end && on_cpu(*addends) && addends->dim() == 2 && addends->size(0) == batch &&
                        addends->size(1) == units(slot) && addends->scalar_type() == kDtype<T>,
                    "flowkern: the addends do not belong to this batch and these plans");
    matrices.push_back(matrix<T>(*addends));
  }
}

// A context of every row, or no matrix at all where a plan takes none.
template <class T>
Matrix<const T> context_matrix(const std::optional<Tensor>& context, int64_t batch, int64_t features) {
  if (features == 0 && !context) return {};
  STD_TORCH_CHECK(context && on_cpu(*context) && context->dim() == 2 && context->size(0) == batch &&
                      context->size(1) == features && context->scalar_type() == kDtype<T>,
                  "flowkern: the context does not belong to this batch and these plans");
  return matrix<T>(*context);
}

// The weights of one network on their way into its packed buffer, in parts that threads can share.
template <class T>
class Packing {
 public:
  Packing(const PlanView& plan, const Tensor* weights, const Tensor* biases, const uint8_t* mask, T* out)
      : plan_(plan), mask_(mask), out_(out) {
    const auto fits = [](const Tensor& t, int64_t rows, int64_t columns) {
      return on_cpu(t) && t.scalar_type() == kDtype<T> && t.dim() == (columns < 0 ? 1 : 2) && t.size(0) == rows &&
             (columns < 0 || t.size(1) == columns);
    };
    for (int l = 0; l < plan.linears(); ++l) {
      const LinearView m = plan.linear(l);
      bool good = fits(weights[l], m.original_rows(), m.original_columns());
      weights_.push_back(matrix<T>(weights[l]));
      if (m.bias_index() >= 0) {
        good = good && fits(biases[m.bias_index()], m.original_rows(), -1);
        biases_.push_back(matrix<T>(biases[m.bias_index()]));
        // The biases are padded to whole vectors; leave nothing undefined.
        std::fill_n(out + m.bias_offset() + m.rows(), (16 - m.rows() % 16) % 16, T(0));
      }
      STD_TORCH_CHECK(good, "flowkern: the weights do not belong to this plan");
    }
  }

  int64_t parts() const {
    constexpr int64_t kPart = 8192;  // weights per turn of a thread; fewer are not worth waking one
    return std::clamp<int64_t>(plan_.packed_size() / kPart, 1, 64);
  }

  void run(int64_t part) const {
    for (int l = 0; l < plan_.linears(); ++l) {
      const int64_t n = plan_.linear(l).chunks();
      masked_network_kernels<T>().pack(plan_, weights_.data(), biases_.data(), mask_, out_, l, n * part / parts(),
                                       n * (part + 1) / parts());
    }
  }

 private:
  PlanView plan_;
  std::vector<Matrix<const T>> weights_, biases_;
  const uint8_t* mask_;
  T* out_;
};

// Which tiles a batch is cut into: index 2 is the bulk tile. Without a batch that fills the lanes, the units do
// (measured: docs/measured.md).
template <class T>
struct Tiles {
  Tiles(int64_t batch, bool save) : kind(save || batch > 8 ? 2 : batch > 1 ? 1 : 0) {
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    rows = kind == 2 ? k.tile_rows : k.small_rows[kind];
    count = (batch + rows - 1) / rows;
  }
  int kind;
  int64_t rows, count;
};

}  // namespace flowkern
