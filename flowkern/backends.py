"""Which kernels exist here, how one is chosen, how a user overrides it.

``native`` is the C++ extension, ``reference`` plain PyTorch. By default each call takes the native kernel where one
exists for its device and dtype, and plain PyTorch otherwise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR

__all__ = ["BACKENDS", "backend", "chosen_backend"]

BACKENDS = ("auto", "native", "reference")
REBUILD = "pip install --no-build-isolation -e ."

# What was forced, else "auto". A plain global: torch.compile traces it, and guards on it.
_current = os.environ.get("FLOWKERN_BACKEND", "auto")
if _current not in BACKENDS:
    raise ValueError(f"FLOWKERN_BACKEND: expected one of {', '.join(BACKENDS)}, got {_current!r}")
_warned = False


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend while open: ``"native"``, ``"reference"``, or ``"auto"`` for the default choice.

    It holds for the whole process, like the flags of torch.backends; the environment variable FLOWKERN_BACKEND sets it
    from the start. Forcing ``"native"`` where it cannot run is an error that says why.

    Args:
        name: the backend.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> import flowkern as fk
        >>> flow = fk.flows.MAF(3, transforms=1, hidden=(8,))
        >>> x = torch.randn(5, 3)
        >>> with fk.backend("reference"):
        ...     slow = flow.log_prob(x)
        >>> torch.allclose(slow, flow.log_prob(x), atol=1e-5)
        True
    """
    global _current
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


def obstacle(x: Tensor) -> str | None:
    """Why the native kernels cannot serve a call on ``x``, or ``None`` if they can."""
    if x.device.type != "cpu":
        return f"there is no native kernel for device {x.device.type!r}"
    if BUILD_ERROR is not None:
        return f"the extension is not built ({BUILD_ERROR}); build it with `{REBUILD}`"
    return None


def chosen_backend(x: Tensor) -> str:
    """What serves a call whose main argument is ``x``.

    ``"native"``; ``"reference"``, the oracle, where it was forced; else ``"torch"``, the fall-back. The last two differ
    only for the inverse, whose oracle is a pass per feature and whose fall-back is one sweep.
    """
    if _current == "reference":
        return _current
    reason, transformed = obstacle(x), _transformed()
    if _current == "native" and (reason is not None or transformed):
        raise RuntimeError(
            f"backend 'native' was forced, but {reason or 'torch.func transforms have rules for plain PyTorch only'}"
        )
    if transformed:
        return "torch"
    if reason is None:
        return "native"
    if x.device.type == "cpu":
        _warn_once(reason)
    return "torch"


def _transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"flowkern runs without its kernels: {reason}", RuntimeWarning, stacklevel=4)
