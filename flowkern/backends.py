"""Which kernels exist here, how one is chosen, how a user overrides it.

``native`` is C++ and CUDA, ``triton`` the kernels written in Triton, ``reference`` plain PyTorch. By default each call takes
the native kernel on the CPU, on a GPU the native one where there is one and else Triton's, and plain PyTorch where
there is none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR, REBUILD
from flowkern._opaque import constant_while_compiling
from flowkern.cuda import code

__all__ = ["BACKENDS", "backend", "chosen_backend"]

BACKENDS = ("auto", "native", "triton", "reference")
TRITON_OPERATORS = ("affine", "autoregressive", "coupling", "log_det", "masked_mlp", "normal_log_prob")
CUDA_OPERATORS = ("autoregressive_inverse",)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own variable; read when a kernel is first imported
_TRITON_LEAST = 3, 6

# What was forced, else "auto". A plain global: torch.compile traces it, and guards on it.
_current = os.environ.get("FLOWKERN_BACKEND", "auto")
if _current not in BACKENDS:
    raise ValueError(f"FLOWKERN_BACKEND: expected one of {', '.join(BACKENDS)}, got {_current!r}")
_warned = False


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend while open: ``"native"``, ``"triton"``, ``"reference"``, or ``"auto"`` for the default choice.

    It holds for the whole process, like the flags of torch.backends; the environment variable FLOWKERN_BACKEND sets it
    from the start. Forcing kernels where they cannot run is an error that says why.

    What torch.export, torch.onnx and torch.jit.trace record is plain PyTorch, unless kernels are forced: such a program runs
    without flowkern, and has gradients. With forced kernels, under ``torch.no_grad()``, a program holds flowkern's operators:
    import flowkern where it is loaded.

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
        return str(BUILD_ERROR)
    return None


def native_obstacle(x: Tensor, operator: str) -> str | None:
    """The same, for one operator on any device."""
    if x.device.type != "cuda":
        return obstacle(x)
    if operator not in CUDA_OPERATORS:
        return f"{operator} has no native kernel for device 'cuda'"
    return "there is no native kernel for AMD's GPUs" if torch.version.hip is not None else _cuda_obstacle(x.device.index or 0)


@constant_while_compiling
def _cuda_obstacle(index: int) -> str | None:
    return code.obstacle(torch.cuda.get_device_capability(index))


def triton_obstacle(x: Tensor, operator: str) -> str | None:
    """Why the Triton kernels cannot serve a call of an operator on ``x``, or ``None`` if they can."""
    if operator not in TRITON_OPERATORS:
        return f"{operator} has no Triton kernel"
    if _TRITON_MISSING is not None:
        return _TRITON_MISSING
    if x.device.type == "cpu":
        return None if INTERPRETED else "Triton kernels run on GPUs; with TRITON_INTERPRET=1 set, slowly, on the CPU"
    if x.device.type != "cuda":
        return f"there is no Triton kernel for device {x.device.type!r}"
    return _architecture_obstacle(x.device.index or 0)


def triton_version() -> str | None:
    """Of the package that brings Triton: PyTorch's wheels for AMD have their own."""
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _triton_missing() -> str | None:
    version = triton_version()
    if version is None:
        return "Triton is not installed; `pip install triton` mends it"
    if tuple(map(int, version.split(".")[:2])) < _TRITON_LEAST:
        return f"Triton {version} is too old; `pip install 'triton>={'.'.join(map(str, _TRITON_LEAST))}'` mends it"
    if importlib.util.find_spec("numpy") is None:
        return "NumPy is not installed; `pip install numpy` mends it"
    if importlib.util.find_spec("flowkern.kernels") is None:
        return f"flowkern itself is not installed, and its kernels are in another folder; {REBUILD} mends it"
    return None


_TRITON_MISSING = _triton_missing()


@constant_while_compiling
def _architecture_obstacle(index: int) -> str | None:
    if torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(index)
    return None if major >= 8 else f"the Triton kernels need compute capability 8.0, this GPU has {major}.{minor}"


def chosen_backend(x: Tensor, operator: str) -> str:
    """What serves a call of an operator whose main argument is ``x``.

    ``"native"`` or ``"triton"``; ``"reference"``, the oracle, where it was forced; else ``"torch"``, the fall-back. The last
    two differ only for the inverse, whose oracle is a pass per feature and whose fall-back is one sweep.
    """
    if _current == "reference":
        return _current
    native = x.device.type == "cpu" or operator in CUDA_OPERATORS
    kernels = _current if _current != "auto" else "native" if native else "triton"
    reason = native_obstacle(x, operator) if kernels == "native" else triton_obstacle(x, operator)
    if _current != "auto":
        why = reason or _rule_obstacle()
        if why is not None:
            raise RuntimeError(f"backend {_current!r} was forced, but {why}")
        return kernels
    if _transformed() or exporting():
        return "torch"
    if reason is None:
        return kernels
    mendable = operator in TRITON_OPERATORS or torch.version.hip is None
    if x.device.type == "cpu" or (x.device.type == "cuda" and mendable):
        _warn_once(reason)  # something is missing here
    return "torch"


@constant_while_compiling
def product_precision() -> str:
    """How a GPU multiplies float32 matrices: tf32 only where torch's own setting allows it. A compiled graph keeps it."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


@constant_while_compiling  # torch.compile of earlier PyTorch takes is_exporting for true
def exporting() -> bool:
    """Whether the call is recorded for a program that is to run elsewhere: torch.export, torch.onnx, torch.jit.trace.

    It is recorded in plain PyTorch: such a program needs no flowkern where it runs, has gradients, and can be translated.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@constant_while_compiling
def _exporting_to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


def _rule_obstacle() -> str | None:
    """Why kernels that were forced cannot serve a call now, whatever its arguments."""
    if _transformed():
        return "torch.func transforms have rules for plain PyTorch only"
    if not exporting():
        return None
    if _exporting_to_onnx():
        return "ONNX has no such operators; export in plain PyTorch, as without a forced backend"
    if torch.is_grad_enabled():
        return "an exported program has no gradients of kernels; export it under torch.no_grad()"
    return None


@constant_while_compiling
def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        message = f"flowkern runs without its kernels: {reason} (`flowkern doctor` says more)"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
