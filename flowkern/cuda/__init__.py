"""The CUDA kernels' side of the host: the program of a sweep, compiled code, launches. The kernels are in csrc/cuda."""
