// flowkern._C: importing it loads the library and registers the operators; it also says how it was built.
#include <pybind11/pybind11.h>

#include "cpu/dispatch.h"
#include "cpu/masked_networks/kernels.h"

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
        py::list kinds;
        const auto& families = flowkern::map_families<float>();
        for (int i = 0; i < families.count; ++i) kinds.append(families.begin[i].kind);
        info["maps"] = kinds;
        return info;
      },
      "How this extension was built.");
  m.def("instruction_set", &flowkern::instruction_set_name, "The instruction set of the CPU kernels in this process.");
  m.def(
      "tile_rows",
      [](int bytes) {
        return bytes == 8 ? flowkern::masked_network_kernels<double>().tile_rows
                          : flowkern::masked_network_kernels<float>().tile_rows;
      },
      py::arg("bytes"), "Rows that one bulk tile holds, for elements of 4 or 8 bytes.");
}
