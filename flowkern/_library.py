"""Loads the extension and gives its operators shapes for torch.compile. Without the extension this is a no-op."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_HERE = Path(__file__).parent
_IN_SOURCES = (_HERE.parent / "csrc" / "module.cpp").exists()
REBUILD = f"`pip install --no-build-isolation {'-e .`' if _IN_SOURCES else '.` in the sources of flowkern'}"


class BuildError(NamedTuple):
    """Why there is no extension, what mends it, and the last lines of the build that failed."""

    reason: str
    cure: str
    log: str = ""

    def __str__(self) -> str:
        return f"the extension is missing ({self.reason}); {self.cure}"


def _build_error(error: ImportError) -> BuildError:
    """What the file says that setup.py leaves in the place of an extension; else what can be seen from here."""
    built = sorted(_HERE.glob("_C.*"))
    if any(file.name == f"_C{suffix}" for file in built for suffix in EXTENSION_SUFFIXES):
        return BuildError(f"it does not load: {error}", f"build it again, for this torch: {REBUILD}")
    record = _HERE / "_build_error.txt"
    if record.exists():
        reason, _, rest = record.read_text("utf-8").partition("\n")
        cure, _, log = rest.partition("\n")
        return BuildError(reason, f"{cure}, then run {REBUILD}", log)
    if built:
        return BuildError(f"it was built for another Python: {built[0].name}", f"run {REBUILD}")
    return BuildError("it was never built", f"run {REBUILD}, which needs a C++20 compiler")


BUILD_ERROR: BuildError | None = None
_C: Any = None
try:
    _C = importlib.import_module("flowkern._C")
except ImportError as error:
    BUILD_ERROR = _build_error(error)


def tile_rows(dtype: torch.dtype) -> int:
    """Rows of the batch that one bulk tile of the CPU kernels holds."""
    return _TILE_ROWS[dtype]


def _register_fakes() -> None:
    fake = torch.library.register_fake

    def kept(x: Tensor, packed: Tensor | None, packed_size: int, saved_rows: int, save: bool) -> tuple[Tensor, Tensor]:
        """The packed weights and the saved pre-activations, for the backward pass."""
        rows = tile_rows(x.dtype)
        saved = x.new_empty((x.shape[0] + rows - 1) // rows if save else 0, saved_rows * rows)
        return x.new_empty(packed_size if save and packed is None else 0), saved

    def gradients(x: Tensor, *lists: list[Tensor], parameters: bool) -> tuple[Any, ...]:
        weights, biases, addends = lists
        like = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in weights + biases] if parameters else []
        return (
            x.new_empty(x.shape),
            like[: len(weights)],
            like[len(weights) :],
            [t.new_empty(t.shape) for t in addends],
        )

    @fake("flowkern::pack")
    def _(weights: list[Tensor], biases: list[Tensor], plan: Tensor, mask: Tensor, packed_size: int) -> Tensor:
        return weights[0].new_empty(packed_size)

    @fake("flowkern::masked_mlp")
    def _(x, weights, biases, addends, packed, plan, mask, outputs, packed_size, saved_rows, save):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape[0], outputs), *kept(x, packed, packed_size, saved_rows, save)

    def transform(  # type: ignore[no-untyped-def]
        x, weights, biases, addends, packed, plan, mask, packed_size, saved_rows, scale, placement, c0, c1, save
    ):
        return x.new_empty(x.shape), x.new_empty(x.shape[0]), *kept(x, packed, packed_size, saved_rows, save)

    def masked_mlp_backward(g, x, packed, saved, plan, mask, weights, biases, addends, parameters):  # type: ignore[no-untyped-def]
        return gradients(x, weights, biases, addends, parameters=parameters)

    def transform_backward(  # type: ignore[no-untyped-def]
        g, g_log_det, x, packed, saved, plan, mask, weights, biases, addends, scale, placement, c0, c1, parameters
    ):
        return gradients(x, weights, biases, addends, parameters=parameters)

    fake("flowkern::masked_mlp_backward")(masked_mlp_backward)
    for name in ("autoregressive", "autoregressive_inverse"):
        fake(f"flowkern::{name}")(transform)
        fake(f"flowkern::{name}_backward")(transform_backward)

    @fake("flowkern::autoregressive_chain")
    def _(x, weights, biases, addends, packed, plans, masks, maps, constants):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape), x.new_empty(x.shape[0])

    @fake("flowkern::coupling")
    def _(x, shift, raw, place, begin, step, count, inverse, scale, placement, c0, c1):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape), x.new_empty(x.shape[0])

    @fake("flowkern::coupling_backward")
    def _(g_z, g_log_det, x, shift, raw, place, begin, step, count, rebuild, inverse, scale, placement, c0, c1):  # type: ignore[no-untyped-def]
        parameters = x.shape[0], count if step else x.shape[1]
        return x.new_empty(x.shape), x.new_empty(parameters), x.new_empty(parameters)

    @fake("flowkern::log_det")
    def _(log_scale):  # type: ignore[no-untyped-def]
        return log_scale.new_empty(log_scale.shape[0])

    @fake("flowkern::normal_log_prob")
    def _(z, log_det):  # type: ignore[no-untyped-def]
        return z.new_empty(z.shape[0])


if _C is not None:
    _TILE_ROWS = {torch.float32: _C.tile_rows(4), torch.float64: _C.tile_rows(8)}
    _register_fakes()
