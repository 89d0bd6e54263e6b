"""memory="reversible": the gradients of plain autograd from what a few tensors keep."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kept import Kept
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flowkern as fk
from flowkern import nn as fnn
from flowkern.flows import IAF, MAF, Flow

CONTEXT = 2


def network(inputs: int, outputs: int, *middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs + CONTEXT, 16), nn.Tanh(), *middle, nn.Linear(16, outputs))


def coupling(*middle: nn.Module, swap: bool = False, **options: Any) -> fnn.AffineCoupling:
    """A coupling of 6 features with a context and these modules in its network."""
    return fnn.AffineCoupling(6, context=CONTEXT, network=network(3, 6, *middle), swap=swap, **options)


def flows() -> dict[str, Flow]:
    squeezed = [fnn.Squeeze((1, 4, 4)), fnn.Reshape((4, 2, 2))]
    level = [*squeezed, fnn.AffineCoupling(16, (8,), CONTEXT), fnn.Reshape((16,), (4, 2, 2))]
    rest = [fnn.Reshape((2, 2, 2)), fnn.MaskedAutoregressive(8, (8,), CONTEXT)]
    normalised = coupling(nn.BatchNorm1d(16))
    weights = network(3, 6)
    nn.utils.parametrizations.weight_norm(weights[0])
    stacks = {
        "couplings": [coupling(), fnn.Reverse(6), coupling(mask="alternating", swap=True)],
        "additive": [fnn.AdditiveCoupling(6, (8,), CONTEXT), fnn.AdditiveCoupling(6, (8,), CONTEXT, swap=True)],
        "dropout": [coupling(nn.Dropout(0.5)), coupling(nn.Dropout(0.5), swap=True)],
        "batch norm": [normalised, fnn.BatchNorm(6), copy.deepcopy(normalised)],
        "weight norm": [fnn.AffineCoupling(6, context=CONTEXT, network=weights), coupling(swap=True)],
        "scales": [fnn.MultiScale([fnn.Compose(level), fnn.Compose(rest)])],
        "standardised": [fnn.Standardize(torch.randn(6), torch.rand(6) + 0.5), coupling(), coupling(swap=True)],
    }
    return {
        "maf": MAF(6, 4, (16, 16), CONTEXT, "tanh", order="random", memory="reversible"),
        "maf, batch norm": MAF(6, 3, (16,), CONTEXT, "tanh", batch_norm=True, memory="reversible"),
        "iaf": IAF(6, 3, (16, 16), CONTEXT, "tanh", gated=True, memory="reversible"),
        **{name: Flow(stack, memory="reversible") for name, stack in stacks.items()},
    }


NAMES = pytest.mark.parametrize("name", flows())


def results(flow: Flow, given: Sequence[Tensor], memory: str, sampling: bool) -> list[Tensor]:
    """Values and all gradients, with the same random numbers."""
    flow.memory = memory  # type: ignore[assignment]
    torch.manual_seed(3)
    if sampling:
        values = flow.rsample_and_log_prob((), given[1])
        wanted = [given[1], *flow.parameters()]
    else:
        values = (flow.log_prob(*given),)
        wanted = [*given, *flow.parameters()]
    loss = sum(v.square().sum() for v in values)
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return [*values, *grads, torch.rand(())]  # the random numbers after it go on alike


@NAMES
@pytest.mark.parametrize("sampling", [False, True], ids=["density", "samples"])
def test_gradients_are_those_of_plain_autograd(name: str, sampling: bool) -> None:
    flow = flows()[name].double()
    if sampling and any(isinstance(m, (fnn.BatchNorm, nn.BatchNorm1d)) for m in flow.modules()):
        flow.eval()
    given = torch.randn(5, *flow.event_shape).double().requires_grad_(), torch.randn(5, CONTEXT).double().requires_grad_()
    state = copy.deepcopy(flow.state_dict())
    expected = results(flow, given, "full", sampling)
    after = copy.deepcopy(flow.state_dict())
    for _ in range(2):
        flow.load_state_dict(state)
        found = results(flow, given, "reversible", sampling)
        scale = max(float(t.detach().abs().max()) for t in expected)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * scale)
        torch.testing.assert_close(dict(flow.state_dict()), dict(after))  # running statistics count a batch once
    assert flow.checkpointed == []


def test_batch_shapes_and_missing_cotangents() -> None:
    flow = flows()["couplings"].double()
    x, context = torch.randn(6).double().requires_grad_(), torch.randn(3, 1, CONTEXT).double()
    expected = results(flow, (x, context.requires_grad_()), "full", False)
    torch.testing.assert_close(results(flow, (x, context), "reversible", False), expected)
    z, log_det = flow.transform(torch.randn(4, 6).double(), torch.randn(4, CONTEXT).double())
    first = flow.transform.transforms[0].network[0].weight
    for output in (z.sum(), log_det.sum(), z[:, 0].sum() + log_det[1]):  # and the graph serves more than once
        flow.zero_grad()
        output.backward(retain_graph=True)
        assert first.grad is not None
    assert flow.log_prob(torch.randn(0, 6).double(), torch.randn(0, CONTEXT).double()).sum().backward() is None


def deep(kind: str, depth: int) -> Flow:
    if kind == "maf":
        return MAF(6, depth, (64,), memory="reversible")
    layers = [fnn.AffineCoupling(6, (64,), swap=bool(i % 2), scale="tanh", constants=(0.1, 1)) for i in range(depth)]
    return Flow([fnn.Compose(layers)] if kind == "nested" else layers, memory="reversible")


@pytest.mark.parametrize("kind", ["maf", "couplings", "nested"])
def test_what_is_kept_does_not_grow_with_depth(kind: str) -> None:
    x = torch.randn(1000, 6)
    found = {}
    for depth in (4, 16):
        flow = deep(kind, depth)
        flow.log_prob(x).sum().backward()  # measures the round trips
        found[depth] = Kept(flow).of(lambda flow=flow: flow.log_prob(x))
    assert found[4] == found[16] < 8 * x.nbytes
    flow.memory = "full"
    assert Kept(flow).of(lambda: flow.log_prob(x)) > 10 * found[16]


def peak(call: Any) -> int:
    """The most bytes that tensors on the CPU take at once inside, beyond those at its beginning."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("kind", ["maf", "couplings"])
def test_the_peak_of_a_step_does_not_grow_with_depth(kind: str) -> None:
    x = torch.randn(1000, 6)
    found = {}
    for depth in (4, 16):
        flow = deep(kind, depth)

        def step(flow: Flow = flow) -> None:
            flow.log_prob(x).sum().backward()

        step()
        found[depth] = peak(step)
    assert found[16] < 1.2 * found[4]
    flow.memory = "full"
    assert peak(step) > 2 * found[16]


def test_autocast_is_replayed() -> None:
    flow = flows()["couplings"]
    x, context = torch.randn(64, 6), torch.randn(64, CONTEXT)
    found = {}
    for memory in ("full", "reversible"):
        flow.memory = memory  # type: ignore[assignment]
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow.log_prob(x, context).sum() + flow.log_prob(x, context).sum()  # weights that were cast before, too
        loss.backward()
        found[memory] = torch.cat([p.grad.flatten() for p in flow.parameters()])
    error = (found["reversible"] - found["full"]).norm() / found["full"].norm()
    assert error < 0.02  # of bfloat16: 0.008
    with torch.autocast("cpu", torch.bfloat16):  # around the backward pass alone it means nothing
        flow.zero_grad()
        flow.log_prob(x.float(), context).sum()
    assert flow.checkpointed == []


def test_a_layer_that_loses_too_much_is_checkpointed() -> None:
    torch.manual_seed(0)
    flow = Flow([coupling(), coupling(scale="exp", swap=True), coupling()], memory="reversible")
    bad = flow.transform.transforms[1].network[-1]
    with torch.no_grad():
        bad.bias[3:] = -25.0  # the scale: what is left of x is lost in the shift
    given = torch.randn(50, 6).requires_grad_(), torch.randn(50, CONTEXT).requires_grad_()
    expected = results(flow, given, "full", False)
    with pytest.warns(RuntimeWarning, match=r"layer 1 keeps its input from now on: its round trip has an error of"):
        found = results(flow, given, "reversible", False)
    assert flow.checkpointed == ["transform.transforms.1"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(flow, given, "reversible", False)


def test_the_whole_way_back_is_watched() -> None:
    """Weights become bad after the layers were measured: the next pass says so, measures again, and is right."""
    flow = Flow([coupling(scale="exp", swap=bool(i % 2)) for i in range(4)], memory="reversible")
    given = torch.randn(50, 6).requires_grad_(), torch.randn(50, CONTEXT).requires_grad_()
    results(flow, given, "reversible", False)
    with torch.no_grad():
        flow.transform.transforms[2].network[-1].bias[3:] = -25.0
    results(flow, given, "reversible", False)
    with pytest.warns(RuntimeWarning, match=r"keeps its input from now on"):
        found = results(flow, given, "reversible", False)
    assert "transform.transforms.2" in flow.checkpointed
    for a, b in zip(found, results(flow, given, "full", False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))


class NoInverse(fnn.Transform):
    """A layer that cannot go back."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 6
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.scale, self.scale.abs().log().sum().expand(x.shape[:-1])


def test_what_has_no_inverse_and_what_has_hooks_keeps_what_it_needs() -> None:
    flow = Flow([coupling(), NoInverse(), coupling(swap=True)])
    seen: list[int] = []
    flow.transform.transforms[2].register_forward_hook(lambda *_: seen.append(1))
    given = torch.randn(5, 6).requires_grad_(), torch.randn(5, CONTEXT).requires_grad_()
    expected = results(flow, given, "full", False)
    seen.clear()
    with pytest.warns(RuntimeWarning, match="layer 1 keeps its input"):
        found = results(flow, given, "reversible", False)
    torch.testing.assert_close(found, expected)
    assert seen == [1]


def test_second_derivatives_and_changed_parameters_are_refused() -> None:
    flow = flows()["couplings"]
    x, context = torch.randn(5, 6, requires_grad=True), torch.randn(5, CONTEXT)
    with pytest.raises(RuntimeError, match=r"memory='reversible' has no graph for second derivatives; set memory='full'"):
        torch.autograd.grad(flow.log_prob(x, context).sum(), x, create_graph=True)
    loss = flow.log_prob(x, context).sum()
    with torch.no_grad():
        next(flow.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    others = {name: p.detach().clone().requires_grad_() for name, p in flow.named_parameters()}
    loss = torch.func.functional_call(flow, others, (x, context)).sum()
    with pytest.raises(RuntimeError, match="AffineCoupling has other parameters than in the forward pass"):
        loss.backward()
    grads = torch.func.grad(lambda x: flow.log_prob(x, context).sum())(x)  # takes the full path
    torch.testing.assert_close(grads, torch.autograd.grad(flow.log_prob(x, context).sum(), x)[0])
    with pytest.raises(ValueError, match=r"^memory: expected one of full, reversible, got 'small'$"):
        MAF(3, memory="small")  # type: ignore[arg-type]


def test_compiled_conditioners_and_compiled_flows() -> None:
    flow = flows()["couplings"].double()
    given = torch.randn(5, 6).double().requires_grad_(), torch.randn(5, CONTEXT).double().requires_grad_()
    expected = results(flow, given, "full", False)
    for i in (0, 2):
        layer = flow.transform.transforms[i]
        layer.network = torch.compile(layer.network, backend="aot_eager")
    torch.testing.assert_close(results(flow, given, "reversible", False), expected)
    whole = torch.compile(flows()["couplings"].double(), backend="aot_eager", fullgraph=True)
    whole(*given).sum().backward()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_data_parallel(group: None) -> None:
    flow = flows()["dropout"].eval()
    x, context = torch.randn(5, 6), torch.randn(5, CONTEXT)
    flow(x, context).sum().backward()
    expected = [p.grad for p in flow.parameters()]
    flow.zero_grad()
    parallel = DistributedDataParallel(flow)
    for once in (parallel.no_sync(), nullcontext()):
        with once:
            parallel(x, context).sum().backward()
    torch.testing.assert_close([p.grad for p in flow.parameters()], [2 * g for g in expected])


def test_the_switch_is_part_of_the_configuration() -> None:
    flow = fk.flows.MAF(3, 2, (8,))
    flow.memory = "reversible"
    assert flow.config["memory"] == "reversible"
    flow.standardize(torch.randn(50, 3))
    assert flow.transform.memory == "reversible"
    twin = copy.deepcopy(flow)
    assert (twin.memory, twin.transform.memory) == ("reversible", "reversible")
