// Kernels are compiled once per instruction set, each time into a namespace of that name; here one is chosen.
#pragma once

namespace flowkern {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet instruction_set();  // what the kernels run with in this process
const char* instruction_set_name();

}  // namespace flowkern

// Declares NAME<T>(), the kernels TABLE<T> of a family: one for every instruction set, which the family's table.cpp
// defines, and the one that runs here.
#define FK_KERNELS(TABLE, NAME)                                 \
  namespace flowkern {                                          \
  namespace baseline {                                          \
  template <class T>                                            \
  const TABLE<T>& NAME();                                       \
  }                                                             \
  namespace avx2 {                                              \
  template <class T>                                            \
  const TABLE<T>& NAME();                                       \
  }                                                             \
  namespace avx512 {                                            \
  template <class T>                                            \
  const TABLE<T>& NAME();                                       \
  }                                                             \
  template <class T>                                            \
  const TABLE<T>& NAME() {                                      \
    switch (instruction_set()) {                                \
      case InstructionSet::avx512: return FK_AVX512(NAME<T>()); \
      case InstructionSet::avx2: return FK_AVX2(NAME<T>());     \
      default: return baseline::NAME<T>();                      \
    }                                                           \
  }                                                             \
  }

// A set that was not compiled is never chosen.
#ifdef FLOWKERN_HAS_avx512
#define FK_AVX512(CALL) avx512::CALL
#else
#define FK_AVX512(CALL) baseline::CALL
#endif
#ifdef FLOWKERN_HAS_avx2
#define FK_AVX2(CALL) avx2::CALL
#else
#define FK_AVX2(CALL) baseline::CALL
#endif
