// The kernels of scans for one instruction set.
#include "cpu/scans/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
void pack_scan(const Scan&, const T*, T*, int64_t);
template <class T>
void pack_scan_backward(const Scan&, const T*, T*, int64_t);
template <class T>
void scan(const ScanForward<T>&, int64_t, int64_t, T*);
template <class T>
void scan_backward(const ScanBackward<T>&, int64_t, int64_t, T*);
template <class T>
void scan_weight_gradient(const ScanBackward<T>&, int64_t, int64_t, T*);

template <class T>
const ScanKernels<T>& scan_kernels() {
  static constexpr ScanKernels<T> kTable = {
      .lanes = kLanes<T>,
      .pack = &pack_scan<T>,
      .pack_backward = &pack_scan_backward<T>,
      .scan = &scan<T>,
      .scan_backward = &scan_backward<T>,
      .weight_gradient = &scan_weight_gradient<T>,
  };
  return kTable;
}
template const ScanKernels<float>& scan_kernels<float>();
template const ScanKernels<double>& scan_kernels<double>();

}  // namespace flowkern::FK_ISA
