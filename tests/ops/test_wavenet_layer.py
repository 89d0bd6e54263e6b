"""wavenet_layer: what an output sees, layers one after another, what is kept, and gradients of some arguments alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import using
from calls import Example
from cases.wavenet_layer import CASE, draw
from contract import check
from torch import Tensor

import flowkern as fk

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


def call(example: Example, **changed: Any) -> tuple[Tensor, Tensor]:
    return fk.ops.wavenet_layer(**{**example.arguments(example.tensors), **changed})


WIDE: dict[str, Any] = {"residual": 33, "gate": 17}  # enough for pairs of times


@BACKENDS
@pytest.mark.parametrize(
    ("kernel", "dilation", "sizes"),
    [(1, 1, {}), (2, 1, {}), (2, 16, {}), (3, 7, {}), (2, 16, WIDE), (2, 4, WIDE), (3, 16, WIDE), (3, 4, WIDE)],
)
def test_an_output_sees_its_taps_and_its_condition_and_nothing_else(
    backend: str, kernel: int, dilation: int, sizes: dict[str, Any]
) -> None:
    example = draw(2, 0, kernel=kernel, dilation=dilation, channels=3, time=150 if sizes else 75, **sizes)
    x, condition, skips = (example.rows[name].requires_grad_() for name in ("x", "condition", "skips"))
    with using(backend):
        outputs = call(example)
    for output in outputs:
        leaves = x, condition, skips
        found = torch.autograd.grad(output[..., 60].sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        times = [set(g.abs().sum((0, 1)).nonzero().flatten().tolist()) for g in found]
        taps = {60 - j * dilation for j in range(kernel)}
        assert times == [taps, {60}, set() if output is outputs[0] else {60}]


@pytest.mark.parametrize(
    "variation",
    [
        {"kernel": 2, "dilation": 4, "time": 611, "channels": 3, "row_bias": True, **WIDE},
        {"kernel": 2, "dilation": 32, "time": 590, "skips": False, **WIDE},
        {"kernel": 3, "dilation": 64, "time": 700, "channels": 3, **WIDE},
        {"kernel": 3, "dilation": 1, "time": 300, **WIDE},
        {"residual": 130, "gate": 30, "dilation": 3, "time": 200},  # no pairs, but more terms than are summed one after another
    ],
    ids=str,
)
def test_pairs_of_times_and_many_terms_are_accurate(variation: dict[str, Any]) -> None:
    check(CASE, "native", rows=3, variation=variation)


@BACKENDS
def test_layers_one_after_another_are_the_network_of_modules(backend: str) -> None:
    """As people write it: convolutions with padding on the left, a gate, maps of channels."""
    torch.manual_seed(0)
    residual, gate, skip, time = 6, 7, 5, 90
    x = h = torch.randn(2, residual, time, dtype=torch.float64)
    sums: Tensor | None = None
    expected = torch.zeros(2, skip, time, dtype=torch.float64)
    for dilation, kernel in itertools.product((1, 4, 32), (2, 3)):
        convolution = torch.nn.Conv1d(residual, 2 * gate, kernel, dilation=dilation).double()
        maps = [torch.nn.Conv1d(gate, channels, 1).double() for channels in (residual, skip)]
        a, b = convolution(F.pad(h, ((kernel - 1) * dilation, 0))).chunk(2, 1)
        u = a.tanh() * b.sigmoid()
        h, expected = h + maps[0](u), expected + maps[1](u)
        parameters: list[Any] = [convolution.weight, convolution.bias]
        parameters += [t for m in maps for t in (m.weight[..., 0], m.bias)]
        with using(backend):
            x, sums = fk.ops.wavenet_layer(x, sums, *parameters, dilation=dilation)
    torch.testing.assert_close(x, h)
    torch.testing.assert_close(sums, expected)


def test_only_what_is_read_is_kept_for_the_gradients() -> None:
    """Of its inputs: no activation, and not the skips."""
    example = draw(2, 0, channels=3)
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    leaves = {name: t.clone().requires_grad_() for name, t in example.tensors.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), using("native"):
        fk.ops.wavenet_layer(**example.arguments(leaves))
    allowed = {t.data_ptr() for name, t in leaves.items() if name != "skips"}
    assert {t.data_ptr() for t in kept} <= allowed


@pytest.mark.parametrize(
    "names", [("x",), ("condition",), ("skips",), ("gate_bias",), ("skip_weight", "x"), ("condition_weight",)]
)
def test_gradients_of_some_arguments_alone_are_those_of_all(names: tuple[str, ...]) -> None:
    """As through a teacher, whose weights have none."""
    example = draw(3, 0, channels=2, row_bias=True, time=70)
    leaves = {name: t.clone().requires_grad_() for name, t in example.tensors.items()}

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        y, sums = fk.ops.wavenet_layer(**example.arguments(tensors))
        return y.sin().sum() + sums.cos().sum()

    expected = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    some = {name: t if name in names else t.detach() for name, t in leaves.items()}
    found = torch.autograd.grad(loss(some), [some[name] for name in names])
    assert all(torch.equal(f, expected[name]) for f, name in zip(found, names, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_far_out_is_what_it_tends_to(dtype: torch.dtype) -> None:
    """Beyond every bound, and not a number; u is read off the skip."""
    most, nan = torch.finfo(dtype).max, float("nan")
    values = torch.tensor([-most, -200.0, -90.0, -1e-6, 0.0, 1e-30, 3.0, 90.0, 200.0, most, nan], dtype=dtype)
    a, b = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    x, eye, zeros = torch.stack([a, b]), torch.eye(2, dtype=dtype), torch.zeros(2, dtype=dtype)
    with using("native"):
        _, (u,) = fk.ops.wavenet_layer(x, None, eye[..., None], zeros, eye[:, :1], zeros, eye[:1, :1], zeros[:1])
    known = ~(a.isnan() | b.isnan())
    expected = (a.double().tanh() * b.double().sigmoid())[known]
    torch.testing.assert_close(u[known].double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 4)
    assert u[~known].isnan().all()
