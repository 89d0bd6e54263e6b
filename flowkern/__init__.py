"""flowkern: fused kernels for autoregressive flows in PyTorch.

>>> import flowkern as fk
>>> flow = fk.flows.MAF(3, transforms=2, hidden=(16, 16))
>>> flow.sample((5,)).shape
torch.Size([5, 3])
"""

from flowkern import adapters, flows, nn, ops, reference
from flowkern._version import __version__
from flowkern.adapters import accelerate, explain, restore
from flowkern.backends import backend
from flowkern.nn.made import frozen
from flowkern.plan import AutoregressivePlan

__all__ = [
    "AutoregressivePlan",
    "__version__",
    "accelerate",
    "adapters",
    "backend",
    "explain",
    "flows",
    "frozen",
    "nn",
    "ops",
    "reference",
    "restore",
]
