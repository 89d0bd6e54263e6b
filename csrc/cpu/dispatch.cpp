// Run-time choice of the instruction set. FLOWKERN_ISA caps it, so that every path can be tested on one machine.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <string_view>

namespace flowkern {

#define FK_DECLARE(ISA)                  \
  namespace ISA {                        \
  extern const Kernels<float>& kFloat;   \
  extern const Kernels<double>& kDouble; \
  }
FK_DECLARE(baseline)
#ifdef FLOWKERN_HAS_avx2
FK_DECLARE(avx2)
#endif
#ifdef FLOWKERN_HAS_avx512
FK_DECLARE(avx512)
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

Choice choose() {
  const char* cap_text = std::getenv("FLOWKERN_ISA");
  [[maybe_unused]] const std::string_view cap = cap_text ? cap_text : "";
#ifdef FLOWKERN_HAS_avx512
  if (cap != "baseline" && cap != "avx2" && __builtin_cpu_supports("x86-64-v4"))
    return {"avx512", &avx512::kFloat, &avx512::kDouble};
#endif
#ifdef FLOWKERN_HAS_avx2
  if (cap != "baseline" && __builtin_cpu_supports("x86-64-v3")) return {"avx2", &avx2::kFloat, &avx2::kDouble};
#endif
  return {"baseline", &baseline::kFloat, &baseline::kDouble};
}

const Choice& chosen() {
  static const Choice c = choose();
  return c;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return *chosen().f32;
}
template <>
const Kernels<double>& kernels<double>() {
  return *chosen().f64;
}

const char* instruction_set() { return chosen().name; }

}  // namespace flowkern
