"""flowkern: fused kernels for autoregressive flows in PyTorch.

>>> import flowkern as fk
>>> flow = fk.flows.MAF(3, transforms=2, hidden=(16, 16))
>>> flow.sample((5,)).shape
torch.Size([5, 3])
"""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from flowkern._version import __version__


def _is_command_line() -> bool:
    """Whether this is `flowkern ...` or `python -m flowkern`: it imports what a command needs, lest --help wait for torch."""
    program = PurePath(sys.argv[0] if getattr(sys, "argv", None) else "").stem
    module = program == "-m" and {("-m", "flowkern"), ("-m", "flowkern.cli")} & set(pairwise(sys.orig_argv))
    return program == "flowkern" or bool(module)


if not _is_command_line():
    from flowkern import adapters, flows, models, nn, ops, reference
    from flowkern.adapters import accelerate, explain, restore
    from flowkern.backends import backend
    from flowkern.model import Model
    from flowkern.nn.made import frozen
    from flowkern.plan import AutoregressivePlan


def __getattr__(name: str) -> Any:
    """What was left out above: all of it for code that the command line runs, and what few programs need."""
    if name not in __all__:
        raise AttributeError(f"module 'flowkern' has no attribute {name!r}")
    homes = {"backend": "backends", "frozen": "nn.made", "AutoregressivePlan": "plan", "Model": "model"}
    homes |= dict.fromkeys(("accelerate", "explain", "restore"), "adapters")
    return getattr(import_module(f"flowkern.{homes[name]}"), name) if name in homes else import_module(f"flowkern.{name}")


__all__ = [
    "AutoregressivePlan",
    "Model",
    "__version__",
    "accelerate",
    "adapters",
    "backend",
    "explain",
    "flows",
    "frozen",
    "models",
    "nn",
    "ops",
    "pretrained",
    "reference",
    "restore",
]
