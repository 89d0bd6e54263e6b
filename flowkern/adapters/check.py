"""The self-check: the operators against the peer's own code, once, on a copy of a layer with random weights."""

from __future__ import annotations

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowkern._tensors import outside_modes
from flowkern.adapters.network import weight_norm_of
from flowkern.adapters.state import State, peer_copy

_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def self_check(layer: Any, state: State) -> str | None:
    """Compares the operators with the peer's code in float64; returns what differs.

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
        return state.layer.read(twin).disagreement(functools.partial(state.layer.evaluate, twin), noise)


def _random_twin(layer: Any, state: State, noise: Callable[..., Tensor]) -> Any:
    """A copy as the peer's own object, in float64 and evaluation mode, with random parameters."""

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(noise(*shape) * (2 / max(math.prod(shape[1:]), 1)) ** 0.5 if len(shape) > 1 else noise(*shape))

    memo: dict[int, Any] = {}
    whole, layer = layer, state.network.abridged(layer)
    modules = [*layer.modules(), *(state.network.modules if layer is whole else ())]
    for p in (p for m in modules for p in m._parameters.values() if p is not None):
        memo[id(p)] = parameter(*p.shape)
    for p in (layer._parameters[name] for name in state.layer.constants):
        memo[id(p)] = nn.Parameter(p.detach().to("cpu", torch.float64, copy=True), requires_grad=False)
    attributes = [vars(m).copy() for m in modules]  # which other threads may write to
    for t in (t for a in attributes for t in _tensors(a)):
        memo.setdefault(id(t), t.detach().to("cpu", torch.float64 if t.is_floating_point() else t.dtype, copy=True))
    # Nothing here calls hooks, and theirs and FSDP's states hold what cannot be copied, such as process groups.
    for name, value in ((k, v) for a in attributes for k, v in a.items()):
        if name in _HOOKS or name.startswith("__composable_api_state"):
            memo[id(value)] = OrderedDict()
    for m in modules:
        if parametrize.is_parametrized(m) or weight_norm_of(m) is not None:
            memo[id(m)] = _without_parametrizations(m, memo, parameter)
    twin = peer_copy(layer, state, memo).eval()
    for m in list(twin.modules())[1:]:  # every call looks for replaced ones: here they would be those of the original
        vars(m).pop("forward", None)
    return twin


def _without_parametrizations(module: nn.Module, memo: dict[int, Any], parameter: Callable[..., nn.Parameter]) -> nn.Module:
    """A copy of a module with ordinary parameters in the place of parametrized ones, and of those under weight_norm.

    These are the user's code, and need not be compared. It may draw random numbers, and inside of parametrize.cached() its
    results are shared with the original.
    """
    twin: Any = object.__new__(parametrize.type_before_parametrizations(module))
    norm = weight_norm_of(module)
    normed = {} if norm is None else {"weight": None, "weight_g": None, "weight_v": None}
    state = {
        **{k: v for k, v in vars(module).items() if k not in normed},
        "_modules": {k: v for k, v in module._modules.items() if k != "parametrizations"},
        "_parameters": {k: v for k, v in module._parameters.items() if k not in normed},
    }
    twin.__dict__.update(copy.deepcopy(state, memo))
    sizes = [getattr(module, k) for k in ("out_features", "in_features", "num_features") if hasattr(module, k)]
    if isinstance(module, nn.Conv1d):
        sizes = [module.out_channels, module.in_channels // module.groups, *module.kernel_size]
    for name in (*getattr(module, "parametrizations", ()), *(() if norm is None else ("weight",))):
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
