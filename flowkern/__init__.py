"""flowkern: fused kernels for autoregressive flows in PyTorch.

>>> import flowkern as fk
>>> flow = fk.flows.MAF(3, transforms=2, hidden=(16, 16))
>>> flow.sample((5,)).shape
torch.Size([5, 3])
"""

from flowkern import flows, nn, ops, reference
from flowkern.backends import backend
from flowkern.nn.made import frozen
from flowkern.plan import AutoregressivePlan

__version__ = "0.1.0"
__all__ = ["AutoregressivePlan", "backend", "flows", "frozen", "nn", "ops", "reference"]
