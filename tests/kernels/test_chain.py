"""Chains on the Triton kernels: how many launches, which go step by step, and the same bits as their steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accuracy import DEVICE, using
from networks import network
from torch import Tensor

import flowkern as fk
from flowkern.chain import ChainPlan, Network, Permute
from flowkern.ops import ElementwiseStep, NetworkStep, PermutationStep
from flowkern.univariate import Affine

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu
FEATURES, ROWS = 6, 70  # several tiles, and in the interpreter two programs share them where nothing is kept


def steps_of(*structures: dict[str, Any], inverse: bool = False) -> tuple[list[Any], list[Tensor]]:
    """Steps, and the tensors of theirs that have gradients."""
    steps, leaves = [], []
    for seed, structure in enumerate(structures):
        net = network(FEATURES, seed=seed, **{"hidden": (24, 24), "activation": "tanh", **structure})
        weights, biases = net.leaves(torch.float32, DEVICE)
        leaves += [*weights, *biases]
        steps.append(NetworkStep(inverse, {"weights": weights, "biases": biases, "plan": net.plan, **net.map}))
    return steps, leaves


def elementwise() -> ElementwiseStep:
    shift, scale = torch.randn(FEATURES), torch.rand(FEATURES) + 0.5
    return ElementwiseStep(False, *(t.to(DEVICE).requires_grad_() for t in (shift, scale)))


def one_by_one(x: Tensor, steps: list[NetworkStep]) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(len(x))
    for step in steps:
        x, log_det = fk.ops.autoregressive(x, **step.arguments)
        total = total + log_det
    return x, total


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels that are launched."""
    from triton.runtime import interpreter, jit

    found: list[str] = []

    def counting(kind: Any, method: str, name: Any) -> None:
        original = getattr(kind, method)

        def call(self: Any, *args: Any, **named: Any) -> Any:
            found.append(name(self))
            return original(self, *args, **named)

        monkeypatch.setattr(kind, method, call)

    counting(interpreter.GridExecutor, "__call__", lambda self: self.fn.__name__)
    counting(jit.JITFunction, "run", lambda self: self.fn.__name__)
    yield found


@pytest.mark.parametrize("transforms", [1, 5])
@pytest.mark.parametrize("between", ["", "elementwise"])
def test_launches_do_not_depend_on_the_number_of_transforms(
    transforms: int, between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, _ = steps_of(*[{}] * transforms)
    if between:
        steps = [part for step in steps for part in (elementwise(), step, PermutationStep((1, 2, 3, 4, 5, 0)))]
    x = torch.randn(ROWS, FEATURES, device=DEVICE)
    with using("triton"), counted(monkeypatch) as launches:
        density = fk.ops.autoregressive_chain(x, steps, normal="output")[1]
        assert launches == ["pack_kernel", "autoregressive_chain_forward"]
        launches.clear()
        density.sum().backward()
        assert launches == ["autoregressive_chain_backward", "weight_gradient_kernel", "unpack_kernel"]


def test_a_chain_gives_the_bits_of_its_steps() -> None:
    steps, leaves = steps_of({}, {"order": (5, 4, 3, 2, 1, 0)}, {"hidden": (40,)})
    x = torch.randn(ROWS, FEATURES, device=DEVICE, requires_grad=True)
    found = []
    with using("triton"):
        for call in (fk.ops.autoregressive_chain, one_by_one):
            z, log_det = call(x, steps)
            total = z.sin().sum() + log_det.sin().sum()
            found.append([z, log_det, *torch.autograd.grad(total, [x, *leaves])])
    for i, (chain, single) in enumerate(zip(*found, strict=True)):
        # Gradients of weights are sums over other parts of the rows; on a GPU two kernels may contract other products and sums.
        exact: dict[str, Any] = {"rtol": 0, "atol": 0} if i < 3 and DEVICE.type == "cpu" else {}
        torch.testing.assert_close(chain, single, **exact)


def test_scratch_that_programs_use_again_changes_nothing() -> None:
    """Without gradients, and without those of parameters, a program has one scratch tile for all of its tiles."""
    steps, leaves = steps_of({"residual": True, "hidden": (16, 16, 16)}, {"residual": True, "hidden": (24, 24, 24)})
    steps[1:1] = [elementwise(), PermutationStep((2, 0, 1, 5, 3, 4))]
    x = torch.randn(ROWS, FEATURES, device=DEVICE, requires_grad=True)

    def gradients() -> tuple[Tensor, Tensor]:
        density = fk.ops.autoregressive_chain(x, steps, normal="output")[1]
        return density, torch.autograd.grad(density.sum(), x)[0]

    with using("triton"):
        kept = gradients()
        with torch.no_grad():
            assert torch.equal(fk.ops.autoregressive_chain(x, steps, normal="output")[1], kept[0])
        for t in (*leaves, steps[1].shift, steps[1].scale):
            t.requires_grad_(False)
        again = gradients()
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize("normal", [None, "output", "input"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_cotangent_that_is_missing_is_zero(normal: str | None, which: int) -> None:
    steps, leaves = steps_of({}, {})
    x = torch.randn(9, FEATURES, device=DEVICE, requires_grad=True)
    with using("triton"):
        outputs = fk.ops.autoregressive_chain(x, steps, normal=normal)
        alone = torch.autograd.grad(outputs[which].sin().sum(), [x, *leaves], retain_graph=True)
        whole = torch.autograd.grad(outputs[which].sin().sum() + 0 * outputs[1 - which].sum(), [x, *leaves])
    assert all(torch.equal(a, b) for a, b in zip(alone, whole, strict=True))


STEP_BY_STEP = {
    "maps of two kinds": ({"scale": "tanh"}, {}),
    "activations of two kinds": ({"activation": "silu"}, {}),
    "a wide layer": ({"hidden": (256,)}, {}),
    "more linear maps than a launch takes": ({},) * 22,
}


@pytest.mark.parametrize("structures", STEP_BY_STEP.values(), ids=STEP_BY_STEP)
def test_other_chains_go_step_by_step(structures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = steps_of(*structures)
    x = torch.randn(3, FEATURES, device=DEVICE)
    with using("triton"), torch.no_grad(), counted(monkeypatch) as launches:
        found = fk.ops.autoregressive_chain(x, steps)
        assert launches == ["pack_kernel", "autoregressive_forward"] * len(steps)
        for a, b in zip(found, one_by_one(x, steps), strict=True):
            assert torch.equal(a, b)


def test_inverse_steps_have_no_kernel_here() -> None:
    steps, _ = steps_of({}, inverse=True)
    with using("triton"), torch.no_grad(), pytest.raises(RuntimeError, match="autoregressive_inverse has no Triton kernel"):
        fk.ops.autoregressive_chain(torch.randn(3, FEATURES, device=DEVICE), steps)


def test_low_precision_with_elementwise_steps_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = steps_of({}, {})
    x = torch.randn(3, FEATURES, device=DEVICE)
    with using("triton"), torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16), counted(monkeypatch) as launches:
        fk.ops.autoregressive_chain(x, steps)
        assert launches == ["pack_kernel", "autoregressive_chain_forward"]
        launches.clear()
        fk.ops.autoregressive_chain(x, [elementwise(), *steps])
        assert launches == ["pack_kernel", "autoregressive_forward"] * 2


def test_the_last_chain_with_a_key_serves_it() -> None:
    """Operators find a chain by its key; the one that was there first may be gone."""
    plan = network(FEATURES).plan
    first, second = (ChainPlan([Permute((1, 0, 2, 3, 4, 5)), Network(False, plan, Affine())]) for _ in range(2))
    assert first.key == second.key
    del first
    gc.collect()
    assert ChainPlan.find(second.key) is second


@pytest.mark.parametrize("context", [0, 2])
def test_a_flow_is_one_chain(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = fk.flows.MAF(FEATURES, transforms=3, hidden=(24, 24), context=context, batch_norm=True).to(DEVICE).eval()
    x = torch.randn(ROWS, FEATURES, device=DEVICE)
    given = (torch.randn(ROWS, context, device=DEVICE),) if context else ()
    with fk.backend("reference"):
        expected = flow.log_prob(x, *given)
        wanted = torch.autograd.grad(expected.mean(), list(flow.parameters()))
    with using("triton"), counted(monkeypatch) as launches:
        found = flow.log_prob(x, *given)
        gradients = torch.autograd.grad(found.mean(), list(flow.parameters()))
    assert len(launches) == 5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-4)
