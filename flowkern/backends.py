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
from typing import NamedTuple

import torch
from torch import Tensor

from flowkern._checks import one_of
from flowkern._compiling import constant_while_compiling
from flowkern._library import BUILD_ERROR, MAPS, REBUILD
from flowkern.cuda import code
from flowkern.operators import OPERATORS
from flowkern.univariate import UnivariateMap

__all__ = ["BACKENDS", "Kernels", "backend", "kernels_for"]

BACKENDS = ("auto", "native", "triton", "reference")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own variable; read when a kernel is first imported
_TRITON_LEAST = 3, 6

# What was forced, else "auto". A plain global: torch.compile traces it, and guards on it.
_current = os.environ.get("FLOWKERN_BACKEND", "auto")
one_of("FLOWKERN_BACKEND", _current, BACKENDS)
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
    one_of("backend", name, BACKENDS)
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


class Kernels(NamedTuple):
    """What serves a call: the operators of a namespace of torch.ops, or plain PyTorch where there is no namespace.

    ``precision``: how the kernels multiply float32 matrices, "tf32" or "ieee". It is ``None`` on the CPU, where there is no
    choice, and where half precision is computed in float32. Kernels of a GPU compute in it, and take a plan by its key.
    """

    backend: str
    namespace: str = ""
    precision: str | None = None

    @property
    def plain(self) -> bool:
        """Whether a call runs in plain PyTorch."""
        return not self.namespace

    @property
    def on_cpu(self) -> bool:
        """Whether these are the CPU's kernels, which take a plan and packed weights as tensors."""
        return self.namespace == "flowkern"


ORACLE, FALL_BACK = Kernels("reference"), Kernels("torch")  # these differ only for the inverse: a pass per feature, one sweep
_CPU = Kernels("native", "flowkern")


def device_of(x: Tensor) -> str:
    """The type of device whose kernels serve a call on ``x``. Tests that run GPU kernels on the host change it."""
    return x.device.type


def native_obstacle(x: Tensor, operator: str, map: UnivariateMap | None = None) -> str | None:
    """Why the native kernels cannot serve a call of an operator on ``x``, or ``None`` if they can."""
    device, kernels = device_of(x), OPERATORS[operator].kernels
    if device == "cpu":
        if BUILD_ERROR is not None:
            return str(BUILD_ERROR)
        return None if map is None or map.kind in MAPS else f"this build has no kernels for {map.family} maps"
    if device != "cuda":
        return f"there is no native kernel for device {device!r}"
    if "cuda" not in kernels:
        return f"{operator} has no native kernel for device 'cuda'"
    if map is not None and map.gpu_obstacle is not None:
        return map.gpu_obstacle
    return "there is no native kernel for AMD's GPUs" if torch.version.hip is not None else _cuda_obstacle(x.device.index or 0)


@constant_while_compiling
def _cuda_obstacle(index: int) -> str | None:
    return code.obstacle(torch.cuda.get_device_capability(index))


def triton_obstacle(x: Tensor, operator: str, map: UnivariateMap | None = None) -> str | None:
    """Why the Triton kernels cannot serve a call of an operator on ``x``, or ``None`` if they can."""
    row = OPERATORS[operator]
    if "triton" not in row.kernels:
        return f"{operator} has no Triton kernel"
    if _TRITON_MISSING is not None:
        return _TRITON_MISSING
    if map is not None:
        if not has_triton_map(map.family):
            return f"there is no Triton code for {map.family} maps"
        if map.gpu_obstacle is not None:
            return map.gpu_obstacle
    if x.device.type == "cpu":
        return None if INTERPRETED else "Triton kernels run on GPUs; with TRITON_INTERPRET=1 set, slowly, on the CPU"
    if x.device.type != "cuda":
        return f"there is no Triton kernel for device {x.device.type!r}"
    return _architecture_obstacle(x.device.index or 0, row.capability)


@constant_while_compiling
def has_triton_map(family: str) -> bool:
    """Whether there is Triton code for a family of univariate maps."""
    return importlib.util.find_spec(f"flowkern.kernels.maps.{family}") is not None


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
def _architecture_obstacle(index: int, least: tuple[int, int]) -> str | None:
    if torch.version.hip is not None:
        return None
    found = torch.cuda.get_device_capability(index)
    needs = "the Triton kernels need compute capability {}.{}, this GPU has {}.{}"
    return None if found >= least else needs.format(*least, *found)


def kernels_for(x: Tensor, operator: str, map: UnivariateMap | None = None) -> Kernels:
    """What serves a call of an operator whose main argument is ``x``: the one place where this is decided.

    Plain PyTorch is the oracle where that was forced, else the fall-back.

    Raises:
        RuntimeError: where kernels were forced that cannot serve the call.
    """
    if _current == "reference":
        return ORACLE
    device, kernels = device_of(x), OPERATORS[operator].kernels
    native = device == "cpu" or "cuda" in kernels
    wanted = _current if _current != "auto" else "native" if native else "triton"
    reason = (native_obstacle if wanted == "native" else triton_obstacle)(x, operator, map)
    if _current != "auto":
        why = reason or _rule_obstacle()
        if why is not None:
            raise RuntimeError(f"backend {_current!r} was forced, but {why}")
    elif _transformed() or exporting():
        return FALL_BACK
    elif reason is not None:
        mendable = "triton" in kernels or ("cuda" in kernels and torch.version.hip is None)
        if device == "cpu" or (device == "cuda" and mendable):
            _warn_once(reason)  # something is missing here
        return FALL_BACK
    if wanted == "native" and device == "cpu":
        return _CPU
    return Kernels(wanted, "flowkern_triton" if wanted == "triton" else "flowkern_cuda", product_precision())


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
