// What the operators on masked networks and their gradients share.
#pragma once

#include "cpu/masked_networks/kernels.h"
#include "ops/tensors.h"

namespace flowkern {

template <class T>
T* tile_scratch(const PlanView& plan, int64_t rows) {
  return static_cast<T*>(scratch(scratch_rows(plan) * rows * sizeof(T)));
}

inline PlanView view(const Tensor& plan) {
  const PlanView v(const_data<int64_t>(plan));
  STD_TORCH_CHECK(v.version() == kPlanVersion, "flowkern: the plan has version ", v.version(),
                  ", this build reads version ", kPlanVersion, "; rebuild with `pip install -e .`");
  return v;
}

}  // namespace flowkern
