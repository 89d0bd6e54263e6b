// flowkern._C: importing it loads the library and registers the operators; it also says how it was built.
#include <pybind11/pybind11.h>

#include "cpu/dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of flowkern.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = FLOWKERN_VERSION;
        info["compiler"] = FLOWKERN_COMPILER;
        info["torch"] = FLOWKERN_TORCH;
        info["sanitizers"] = FLOWKERN_SANITIZERS;
        info["plan_version"] = flowkern::kPlanVersion;
        return info;
      },
      "How this extension was built.");
  m.def("instruction_set", &flowkern::instruction_set, "The instruction set of the CPU kernels in this process.");
  m.def(
      "tile_rows",
      [](int bytes) {
        return bytes == 8 ? flowkern::kernels<double>().tile_rows : flowkern::kernels<float>().tile_rows;
      },
      py::arg("bytes"), "Rows that one bulk tile holds, for elements of 4 or 8 bytes.");
}
