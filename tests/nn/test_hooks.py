"""Hooks: on a network they run where it is evaluated in one pass; on its layers they do not, which is said."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import flowkern as fk
from flowkern import nn as fnn


@pytest.mark.parametrize("kind", [fnn.MaskedAutoregressive, fnn.InverseAutoregressive])
@pytest.mark.parametrize("options", [{}, {"context": 2}, {"scale": "none", "placement": "scale_shift"}, {"residual": True}])
def test_hooks_of_a_network_run_in_one_pass(kind: Any, options: dict[str, Any]) -> None:
    layer = kind(3, (8, 8), **options).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    given = (torch.randn(5, 2).double(),) if "context" in options else ()
    function = layer.forward if kind is fnn.MaskedAutoregressive else layer.inverse
    chain = fnn.Compose([layer])
    chained = chain.forward if kind is fnn.MaskedAutoregressive else chain.inverse

    def gradients(out: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out[0].square().sum() + out[1].sum(), [x, *layer.parameters()])

    wanted = function(x, *given)
    g_wanted = gradients(wanted)
    seen: list[Any] = []
    handles = [
        layer.network.register_forward_hook(lambda *_: seen.append("forward")),
        layer.network.register_forward_pre_hook(lambda *_: seen.append("before")),
        layer.network.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    found = function(x, *given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found), g_wanted)
    assert seen == ["before", "forward", "backward"]
    with torch.no_grad():
        torch.testing.assert_close(chained(x, *given), wanted)
    assert seen[3:] == ["before", "forward"]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(function(x, *given), wanted)
    assert len(seen) == 5


def test_a_hook_of_a_network_may_change_its_output() -> None:
    layer, x = fnn.MaskedAutoregressive(3, (8,)), torch.randn(5, 3)
    layer.network.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    torch.testing.assert_close(layer(x), (x, torch.zeros(5)))


def test_global_hooks_run() -> None:
    flow, x, seen = fk.flows.MAF(3, 2, (8,)), torch.randn(5, 3), []
    wanted = flow.log_prob(x)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        for gradient in (True, False):
            with torch.set_grad_enabled(gradient):
                torch.testing.assert_close(flow.log_prob(x), wanted)
            assert seen.count(fnn.MADE) == 2
            seen.clear()
    finally:
        handle.remove()
    flow.log_prob(x)
    assert not seen


@pytest.mark.parametrize("call", ["log_prob", "sample", "network"])
def test_hooks_of_layers_are_warned_of(call: str) -> None:
    flow, x, seen = fk.flows.MAF(3, 2, (8,)), torch.randn(5, 3), []
    flow.log_prob(x)
    network = flow.transform.transforms[1].network
    network.layers[1].register_forward_hook(lambda *_: seen.append(1))
    calls = {"log_prob": lambda: flow.log_prob(x), "sample": lambda: flow.sample((2,)), "network": lambda: network(x)}
    with pytest.warns(RuntimeWarning, match=r"the hooks of layers\.1 of a MADE do not run"):
        calls[call]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls[call]()  # once is enough
    assert not seen


def test_weights_that_a_hook_computes() -> None:
    """torch.nn.utils.prune computes a weight before each call of its layer, and so did the first weight_norm."""
    layer, x = fnn.MaskedAutoregressive(3, (8,)), torch.randn(5, 3)
    plain = copy.deepcopy(layer)
    pruned = layer.network.layers[0]
    prune.random_unstructured(pruned, "weight", 0.5)
    layer(x)[0].sum().backward()
    assert pruned.weight_orig.grad is not None
    with torch.no_grad():
        pruned.weight_orig.add_(1)
        plain.network.layers[0].weight.copy_(pruned.weight_orig * pruned.weight_mask)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.inverse(x), plain.inverse(x))


def test_new_hooks_elsewhere_make_no_new_graph() -> None:
    flow, x = fk.flows.MAF(3, 2, (8,)), torch.randn(5, 3)
    graphs = torch._dynamo.utils.counters["stats"]
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the first call fills the plans' tables
        compiled(x)
    before = graphs["unique_graphs"]
    for _ in range(3):
        torch.zeros(1, requires_grad=True).register_hook(lambda g: g)
        flow(x)
        compiled(x)
    assert graphs["unique_graphs"] == before
