"""The calls of accelerated layers: by the operators, or, where those are not the same, by the peer's own code."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from flowkern import ops
from flowkern._compiling import constant_while_compiling
from flowkern.adapters.check import self_check
from flowkern.adapters.network import ChangedError, run_steps
from flowkern.adapters.state import UNCHECKED, State, renewed, spare_suspects, state_of


def serving(layer: Any, inverse: bool) -> State | None:
    """The state of a layer, if the operators may serve a call of it now."""
    state: State | None = state_of(layer)
    if state is None or state.network.busy() is not None:
        return None
    if torch.compiler.is_compiling():
        able = state.network.obstacle(inverse) is None and _checked_while_tracing(layer)
    else:
        able = _ready(layer, state, inverse)
    return state if able else None


def steps_in_chain(layer: Any, x: Tensor, context: Tensor | None, inverse: bool, beside: bool) -> list[ops.Step] | None:
    """What a layer is in a chain; ``None`` where the peer's own code must serve the call.

    It is known already that the call is eager, and what else may keep every layer busy.

    Args:
        beside: whether x and the context fit another network of the chain.
    """
    state = state_of(layer)
    if state is None or not _ready(layer, state, inverse):
        return None
    network = state.network
    fits = network.fits_like(x, 0 if context is None else context.shape[-1]) if beside else network.fits(x, context)
    return _steps(state, inverse) if fits else None


def _steps(state: State, inverse: bool) -> list[ops.Step] | None:
    frozen = None if torch.compiler.is_compiling() else state.frozen
    try:
        packed = None if frozen is None else frozen.packed(state.network)
        steps: list[ops.Step] = state.network.steps(inverse, packed)
    except ChangedError:
        state.structure = None  # the layer is read again before its next call
        return None
    return steps


_transformed = torch._C._are_functorch_transforms_active


def _ready(layer: Any, state: State, inverse: bool) -> bool:
    """Whether a layer, as it is now, is one that the operators serve."""
    if _transformed() and not _settled(layer, state):
        return False  # what is read and checked under a transform would be a part of it: that is put off
    if renewed(layer, state) is not None:
        _tell(layer, state)
        return False
    return _obstacle(state, inverse) is None and _checked(layer, state)


def _settled(layer: Any, state: State) -> bool:
    """Whether there is nothing to read, to follow or to check before a call."""
    known = state.verdict != UNCHECKED and state.structure is not None and state.structure.same(layer)
    return known and (state.unread is not None or not state.network.touched())


def _obstacle(state: State, inverse: bool) -> str | None:
    """The same as the network's, which looks at every module, only where something changed since it last did."""
    if state.structure is None or state.structure.hooked():
        return state.network.obstacle(inverse)
    if inverse not in state.standing:
        state.standing[inverse] = state.network.obstacle(inverse)
    return state.standing[inverse]


def _tell(layer: Any, state: State) -> None:
    """Warns once that a layer is left alone."""
    if state.told != state.verdict:
        state.told = state.verdict
        name = type(layer).__qualname__
        warnings.warn(f"flowkern leaves a {name} as it was: {state.verdict}", RuntimeWarning, stacklevel=4)


def fast(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """(y, log_det) by the operators, or ``None`` where the peer's own code must serve the call.

    Args:
        inverse: the direction that costs the peer a pass per feature.
    """
    state = serving(layer, inverse)
    return None if state is None else by_operators(state, x, context, inverse)


def by_operators(state: State, x: Any, context: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The same of a layer that the operators may serve now, unless they do not take these arguments."""
    steps = _steps(state, inverse) if state.network.fits(x, context) else None
    return None if steps is None else run_steps(x, context, steps)


def checked(layer: Any) -> bool:
    """Whether the operators agree with the peer's code; found out at the first use."""
    state = state_of(layer)
    return state is not None and renewed(layer, state) is None and _checked(layer, state)


def _checked(layer: Any, state: State) -> bool:
    """The same, of a layer that was read. Under a mode that traces, the check may not be possible: it is put off then."""
    if state.verdict == UNCHECKED:
        traced = _get_current_dispatch_mode() is not None
        try:
            reason = self_check(layer, state)
        except Exception as error:
            if traced:
                return False
            reason = f"the self-check failed: {type(error).__name__}: {error}"
        state.verdict = reason
        if reason is not None:
            _tell(layer, state)
        else:
            spare_suspects(layer, state)
    return state.verdict is None


@constant_while_compiling
def _checked_while_tracing(layer: Any) -> bool:
    return checked(layer)
