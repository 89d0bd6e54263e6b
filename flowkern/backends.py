"""Which kernels exist here, how one is chosen, how a user overrides it.

``native`` is the C++ extension, ``reference`` plain PyTorch. By default each call takes the native kernel where one
exists for its device and dtype, and plain PyTorch otherwise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR

__all__ = ["BACKENDS", "backend", "chosen_backend"]

BACKENDS = ("auto", "native", "reference")
REBUILD = "pip install --no-build-isolation -e ."

_environment = os.environ.get("FLOWKERN_BACKEND", "auto")
if _environment not in BACKENDS:
    raise ValueError(f"FLOWKERN_BACKEND: expected one of {', '.join(BACKENDS)}, got {_environment!r}")
_current: ContextVar[str] = ContextVar("flowkern_backend", default=_environment)
_forced = int(_environment != "auto")  # how many `backend` blocks are open: the common call skips the variable
_warned = False


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend for the calls inside: ``"native"``, ``"reference"``, or ``"auto"`` for the default choice.

    The environment variable FLOWKERN_BACKEND does the same for a whole process. Forcing ``"native"`` where it cannot
    run is an error that says why.

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
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    token = _current.set(name)
    _forced += 1
    try:
        yield
    finally:
        _current.reset(token)
        _forced -= 1


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
    name = _current.get() if _forced else "auto"
    if name == "reference":
        return name
    reason = obstacle(x)
    if name == "native" and reason is not None:
        raise RuntimeError(f"backend 'native' was forced, but {reason}")
    if _transformed():
        return "torch"  # vmap, jvp and their kin have rules for plain PyTorch only
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
