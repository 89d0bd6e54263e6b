"""The self-check: the operators against the peer's own code, once, on a copy of a layer with random weights."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowkern import ops
from flowkern._tensors import outside_modes
from flowkern.adapters.state import State, peer_copy

_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def self_check(layer: Any, state: State) -> str | None:
    """Compares the operators with the peer's code on two rows in float64; returns what differs.

    The copy has random weights: those of the model may be zero, which would hide a difference, or not finite. Nothing here
    draws from the global generator, from which other threads may draw at the same time.
    """
    with (
        outside_modes(),
        torch.autocast("cpu", enabled=False),
        torch._C.DisableTorchFunction(),  # modes of the caller: a default device, what a user intercepts
    ):
        generator = torch.Generator("cpu").manual_seed(0)

        def noise(*shape: int) -> Tensor:  # uniform in [-1, 1); quicker to draw than a normal, which is half of the time
            return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").double() * 2 - 1

        twin = _random_twin(layer, state, noise)
        network = state.layer.read(twin)
        x, context = noise(2, network.features), noise(2, network.context) if network.context else None
        expected = state.layer.evaluate(twin, x, context)
        arguments = {**network.arguments(), "context": context}
        for name, ours, theirs in zip(("value", "log-determinant"), ops.autoregressive(x, **arguments), expected, strict=True):
            error = _error(ours, theirs)
            if not error < 1e-9:
                return f"its {name} differs from the operator's by {error:.1e}: another version of the formula?"
        back, _ = ops.autoregressive_inverse(expected[0], **arguments)
        error = _error(state.layer.evaluate(twin, back, context)[0], expected[0])
        return None if error < 1e-6 else f"the round trip through its own code is off by {error:.1e}"


def _random_twin(layer: Any, state: State, noise: Callable[..., Tensor]) -> Any:
    """A copy as the peer's own object, in float64 and evaluation mode, with random parameters."""

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(noise(*shape) * (2 / max(shape[-1], 1)) ** 0.5 if len(shape) > 1 else noise(*shape))

    memo: dict[int, Any] = {}
    modules = [*layer.modules(), *state.network.modules]
    for p in (p for m in modules for p in m._parameters.values() if p is not None):
        memo[id(p)] = parameter(*p.shape)
    attributes = [vars(m).copy() for m in modules]  # which other threads may write to
    for t in (t for a in attributes for t in _tensors(a)):
        memo.setdefault(id(t), t.detach().to("cpu", torch.float64 if t.is_floating_point() else t.dtype, copy=True))
    # Nothing here calls hooks, and theirs and FSDP's states hold what cannot be copied, such as process groups.
    for name, value in ((k, v) for a in attributes for k, v in a.items()):
        if name in _HOOKS or name.startswith("__composable_api_state"):
            memo[id(value)] = OrderedDict()
    for m in modules:
        if parametrize.is_parametrized(m):
            memo[id(m)] = _without_parametrizations(m, memo, parameter)
    return peer_copy(layer, state, memo).eval()


def _without_parametrizations(module: nn.Module, memo: dict[int, Any], parameter: Callable[..., nn.Parameter]) -> nn.Module:
    """A copy of a module with ordinary parameters in the place of parametrized ones.

    These are the user's code, and need not be compared. It may draw random numbers, and inside of parametrize.cached() its
    results are shared with the original.
    """
    twin: Any = object.__new__(parametrize.type_before_parametrizations(module))
    state = {**vars(module), "_modules": {k: v for k, v in module._modules.items() if k != "parametrizations"}}
    twin.__dict__.update(copy.deepcopy(state, memo))
    sizes = [getattr(module, k) for k in ("out_features", "in_features", "num_features") if hasattr(module, k)]
    for name in module.parametrizations:  # type: ignore[union-attr]
        twin.register_parameter(name, parameter(*sizes) if name == "weight" else parameter(sizes[0]))
    return twin


def _tensors(value: Any) -> Iterator[Tensor]:
    """Buffers, and tensors in attributes, such as caches and sampled weights: those with a graph cannot be copied."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, functools.partial):
        yield from _tensors(value.keywords)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / (1 + theirs.abs().max()))
