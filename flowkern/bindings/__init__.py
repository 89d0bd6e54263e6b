"""What is registered from Python, one file per family: the operators of GPU kernels, and the shapes of all operators.

The operators of the CPU kernels are registered by csrc/ops.
"""

from flowkern.bindings import channels, convolutions, masked_networks, mixtures, rows, scans

__all__ = ["channels", "convolutions", "masked_networks", "mixtures", "rows", "scans"]
