"""The Triton kernels of a layer of a WaveNet, held to the oracle as operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import DEVICE, Pool
from torch import Tensor

from flowkern import reference

pytestmark = pytest.mark.gpu
OPERATORS = torch.ops.flowkern_triton
NAMES = (
    "x", "skips", "gate_weight", "gate_bias", "residual_weight", "residual_bias", "skip_weight", "skip_bias", "condition",
    "condition_weight",
)  # fmt: skip
LAYERS: dict[str, dict[str, Any]] = {
    "typical": {},
    "the first, three taps": {"skips": False, "taps": 3},
    "a condition, a bias for each row": {"channels": 5, "own_bias": True},
    "one tap": {"taps": 1, "channels": 1},
    "dilation beyond the sequence": {"dilation": 500},
    "several blocks": {"residual": 37, "gate": 35, "skip": 66, "time": 70, "dilation": 33},
    "one of each": {"batch": 1, "residual": 1, "gate": 1, "skip": 1, "time": 1},
}
EACH_LAYER = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def drawn(
    seed: int = 0,
    *,
    batch: int = 3,
    residual: int = 6,
    gate: int = 5,
    skip: int = 7,
    taps: int = 2,
    dilation: int = 3,
    time: int = 40,
    channels: int = 0,
    skips: bool = True,
    own_bias: bool = False,
) -> tuple[dict[str, Tensor], int]:
    """The tensors that there are, and the dilation."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, residual, time), "skips": (batch, skip, time), "gate_weight": (2 * gate, residual, taps),
        "gate_bias": (batch, 2 * gate) if own_bias else (2 * gate,), "residual_weight": (residual, gate),
        "residual_bias": (residual,), "skip_weight": (skip, gate), "skip_bias": (skip,), "condition": (batch, channels, time),
        "condition_weight": (2 * gate, channels),
    }  # fmt: skip
    left_out = [*([] if skips else ["skips"]), *([] if channels else ["condition", "condition_weight"])]
    made = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items() if k not in left_out}
    made["gate_weight"] /= residual**0.5
    return made, dilation


def oracle(tensors: dict[str, Tensor], dilation: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients, on the CPU."""
    leaves = {k: t.to(dtype).requires_grad_() for k, t in tensors.items()}
    outputs = reference.wavenet_layer(*(leaves.get(k) for k in NAMES), dilation=dilation)  # type: ignore[arg-type]
    total = sum((o * cotangent(o)).sum() for o in outputs)
    assert isinstance(total, Tensor)
    wanted = {k: t for k, t in leaves.items() if k != "skips"}
    grads = torch.autograd.grad(total, list(wanted.values()))
    return {"y": outputs[0], "sum of skips": outputs[1], **{f"of {k}": g for k, g in zip(wanted, grads, strict=True)}}


def cotangent(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(output.shape[1])
    return torch.randn(output.shape, generator=generator).bfloat16().to(output)


def kernels(tensors: dict[str, Tensor], dilation: int, dtype: torch.dtype, precision: str = "ieee") -> dict[str, Tensor]:
    """The same of the operators."""
    t = {k: tensors[k].to(DEVICE, dtype) if k in tensors else None for k in NAMES}
    outputs = OPERATORS.wavenet_layer(*t.values(), dilation, precision)
    cotangents = (cotangent(o.cpu()).to(o) for o in outputs)
    needed = [
        t[k] for k in ("x", "gate_weight", "gate_bias", "residual_weight", "skip_weight", "condition", "condition_weight")
    ]
    has = t["condition"] is not None
    grads = OPERATORS.wavenet_layer_backward(*cotangents, *needed, dilation, precision, True, True, has)
    names = [*NAMES[2:8], *["condition_weight"] * has, "x", *["condition"] * has]
    found = {"y": outputs[0], "sum of skips": outputs[1], **{f"of {k}": g for k, g in zip(names, grads, strict=True)}}
    return {k: v.cpu() for k, v in found.items()}


@EACH_LAYER
def test_outputs_and_gradients(layer: dict[str, Any], dtype: torch.dtype) -> None:
    tensors, dilation = drawn(**layer)
    found, own = kernels(tensors, dilation, dtype), oracle(tensors, dilation, torch.float32)
    exact = oracle(tensors, dilation, torch.float64)
    assert found.keys() == exact.keys()
    scale = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    for name, value in exact.items():
        pool = Pool()
        pool.add(found[name], own[name].detach(), value.detach())
        # Few elements for the rule itself: twice as much.
        assert pool.kernel <= 4 * pool.oracle * scale + 8 * torch.finfo(dtype).eps * max(pool.largest, 1), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_between_launches_only(dtype: torch.dtype) -> None:
    tensors, dilation = drawn(channels=3, time=70)
    tensors = {k: t.to(dtype).double() for k, t in tensors.items()}
    found, exact = kernels(tensors, dilation, dtype), oracle(tensors, dilation, torch.float64)
    for name, value in exact.items():
        error = (found[name].double() - value).norm() / value.norm()
        assert error < 2 * torch.finfo(dtype).eps, name


def test_no_rows() -> None:
    tensors, dilation = drawn(batch=2)
    found = kernels(
        {k: t[:0] if t.dim() == 3 and k != "gate_weight" else t for k, t in tensors.items()}, dilation, torch.float32
    )
    assert (found["y"].shape, found["sum of skips"].shape) == ((0, 6, 40), (0, 7, 40))
    assert all((v == 0).all() for v in found.values())


def test_times_do_not_see_later_ones() -> None:
    tensors, dilation = drawn()
    whole = kernels(tensors, dilation, torch.float64)
    tensors["x"][..., 25:] = torch.nan
    found = kernels(tensors, dilation, torch.float64)
    for name in ("y", "sum of skips"):
        assert torch.equal(found[name][..., :25], whole[name][..., :25])


def test_opcheck() -> None:
    tensors, dilation = drawn(channels=2)
    t = [tensors[k].to(DEVICE, torch.float32) for k in NAMES]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPERATORS.wavenet_layer, (*t, dilation, "ieee"), test_utils=checks)
    y, skips = OPERATORS.wavenet_layer(*t, dilation, "ieee")
    needed = [t[NAMES.index(k)] for k in NAMES if k not in ("skips", "residual_bias", "skip_bias")]
    for wanted in ((True, True, True), (False, True, False)):
        arguments = (y, skips, *needed, dilation, "ieee", *wanted)
        torch.library.opcheck(OPERATORS.wavenet_layer_backward, arguments, test_utils=checks)
