// Run-time choice of the instruction set. FLOWKERN_ISA caps it, so that every path can be tested on one machine.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <string_view>

namespace flowkern {
namespace {

InstructionSet choose() {
  const char* cap_text = std::getenv("FLOWKERN_ISA");
  [[maybe_unused]] const std::string_view cap = cap_text ? cap_text : "";
#ifdef FLOWKERN_HAS_avx512
  if (cap != "baseline" && cap != "avx2" && __builtin_cpu_supports("x86-64-v4")) return InstructionSet::avx512;
#endif
#ifdef FLOWKERN_HAS_avx2
  if (cap != "baseline" && __builtin_cpu_supports("x86-64-v3")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* instruction_set_name() {
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
  return kNames[static_cast<int>(instruction_set())];
}

}  // namespace flowkern
