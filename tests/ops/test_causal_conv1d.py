"""causal_conv1d against torch's own convolution, its causality, and its one-step update."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accuracy import using
from cases.causal_conv1d import CASE
from contract import check

import flowkern as fk

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
KINDS = pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "dilation", "groups"),
    [(5, 7, 3, 1, 1), (4, 4, 2, 16, 1), (6, 6, 4, 3, 6), (6, 4, 2, 5, 2), (3, 2, 1, 7, 1)],
)


def drawn(inputs: int, outputs: int, kernel: int, groups: int, rows: int = 2, time: int = 75) -> list[torch.Tensor]:
    shapes = (rows, inputs, time), (outputs, inputs // groups, kernel), (outputs,)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@BACKENDS
@KINDS
def test_it_is_a_convolution_with_padding_on_the_left(
    backend: str, inputs: int, outputs: int, kernel: int, dilation: int, groups: int
) -> None:
    x, weight, bias = drawn(inputs, outputs, kernel, groups)
    padded = F.pad(x, ((kernel - 1) * dilation, 0))
    expected = F.conv1d(padded, weight, bias, dilation=dilation, groups=groups)
    with using(backend):
        torch.testing.assert_close(fk.ops.causal_conv1d(x, weight, bias, dilation=dilation, groups=groups), expected)


@KINDS
def test_an_output_sees_its_taps_and_nothing_else(inputs: int, outputs: int, kernel: int, dilation: int, groups: int) -> None:
    x, weight, bias = drawn(inputs, outputs, kernel, groups)
    x.requires_grad_()
    y = fk.ops.causal_conv1d(x, weight, bias, dilation=dilation, groups=groups)
    (g,) = torch.autograd.grad(y[..., 60].sum(), x)
    seen = {60 - j * dilation for j in range(kernel)} & set(range(75))
    assert set(g.abs().sum((0, 1)).nonzero().flatten().tolist()) == seen


@pytest.mark.parametrize(
    ("kernel", "groups", "dilation", "time"), [(2, 1, 4, 611), (2, 2, 32, 590), (3, 1, 32, 590), (3, 2, 4, 611)]
)
def test_pairs_of_times_are_accurate(kernel: int, groups: int, dilation: int, time: int) -> None:
    sizes = {"inputs": 33 * groups, "outputs": 35 * groups, "groups": groups, "time": time}
    check(CASE, "native", rows=3, variation={**sizes, "kernel": kernel, "dilation": dilation})


def test_many_terms_are_accurate() -> None:
    """140 of them, at a dilation that makes no pairs: more than are summed one after another."""
    check(CASE, "native", variation={"inputs": 70, "outputs": 9, "kernel": 2, "dilation": 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dilation", [1, 2, 4, 8, 16, 48])
@pytest.mark.parametrize("kernel", [2, 3])
def test_pairs_of_times_share_products(kernel: int, dilation: int, dtype: torch.dtype) -> None:
    # Whole numbers, so that every order of a sum gives the same.
    leaves = [torch.randint(-3, 4, s).to(dtype).requires_grad_() for s in ((2, 33, 555), (35, 33, kernel), (35,))]
    y = fk.ops.causal_conv1d(*leaves, dilation=dilation)
    expected = F.conv1d(F.pad(leaves[0], ((kernel - 1) * dilation, 0)), *leaves[1:], dilation=dilation)
    assert torch.equal(y, expected)
    cotangent = torch.randint(-3, 4, y.shape).to(dtype)
    for g, g_expected in zip(*(torch.autograd.grad(z, leaves, cotangent) for z in (y, expected)), strict=True):
        assert torch.equal(g, g_expected)
    y = fk.ops.causal_conv1d(*leaves, dilation=dilation)
    for time in 100, 100 + dilation:
        (g,) = torch.autograd.grad(y[..., time].pow(2).sum(), leaves[0], retain_graph=True)
        taps = {time - j * dilation for j in range(kernel)}
        assert set(g.abs().sum((0, 1)).nonzero().flatten().tolist()) <= taps


# Plain PyTorch rounds every product of bfloat16, so that two orders of a sum differ.
@KINDS
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("native", torch.float32),
        ("native", torch.float64),
        ("native", torch.bfloat16),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ],
)
def test_the_update_is_the_sequence_step_by_step(
    backend: str, inputs: int, outputs: int, kernel: int, dilation: int, groups: int, dtype: torch.dtype
) -> None:
    x, weight, bias = (t.to(dtype) for t in drawn(inputs, outputs, kernel, groups))
    state = torch.zeros(2, inputs, (kernel - 1) * dilation, dtype=dtype)
    options = {"dilation": dilation, "groups": groups}
    with using(backend):
        steps = [fk.ops.causal_conv1d_update(x[..., t], state, t, weight, bias, **options) for t in range(75)]
    expected = fk.ops.causal_conv1d(x, weight, bias, **options)
    torch.testing.assert_close(torch.stack(steps, -1), expected)
    for t in range(75 - state.shape[-1], 75):
        assert torch.equal(state[..., t % state.shape[-1]], x[..., t])


def test_the_update_changes_a_state_with_strides_and_leaves_no_gradient() -> None:
    x, weight, bias = drawn(4, 6, 3, 1)
    weight.requires_grad_()
    wide = torch.full((2, 6, 4), torch.nan, dtype=torch.float64)
    state = wide.transpose(1, 2)[..., 1:5]  # (2, 4, 4)
    state.zero_()
    alone = state[0].clone()
    for t in range(9):
        y = fk.ops.causal_conv1d_update(x[..., t], state, t, weight, bias, dilation=2)
        one = fk.ops.causal_conv1d_update(x[0, :, t], alone, t, weight, bias, dilation=2)
        torch.testing.assert_close(y[0], one)
        assert not y.requires_grad
    torch.testing.assert_close(state[0], alone)
    assert wide[:, [0, 5]].isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": torch.zeros(2, 4, 3)}, ValueError, r"state: expected shape \(2, 4, 4\), got \(2, 4, 3\)"),
        ({"state": torch.zeros(2, 4, 4).double()}, TypeError, r"state: expected dtype torch\.float32 like x"),
        ({"step": -1}, ValueError, "step: expected a whole number of at least 0, got -1"),
        ({"x": torch.zeros(2, 5)}, ValueError, r"x: expected shape \(\.\.\., in\) with 4 channels"),
    ],
)
def test_bad_arguments_of_the_update_are_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 4),
        "state": torch.zeros(2, 4, 4),
        "step": 0,
        "weight": torch.zeros(6, 4, 3),
        "dilation": 2,
    }
    fk.ops.causal_conv1d_update(**arguments)
    with pytest.raises(error, match=message):
        fk.ops.causal_conv1d_update(**{**arguments, **change})


def test_the_update_is_registered() -> None:
    arguments = torch.zeros(2, 4), torch.zeros(2, 4, 4), 3, torch.zeros(6, 4, 3), torch.zeros(6), 2, 1
    torch.library.opcheck(torch.ops.flowkern.causal_conv1d_update, arguments, test_utils=("test_schema", "test_faketensor"))
