"""flowkern: fused kernels for autoregressive flows in PyTorch."""

from flowkern import ops, reference
from flowkern.backends import backend
from flowkern.plan import AutoregressivePlan

__version__ = "0.1.0"
__all__ = ["AutoregressivePlan", "backend", "ops", "reference"]
