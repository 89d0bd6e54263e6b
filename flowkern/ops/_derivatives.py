"""Backward passes that must themselves be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def wants_graph() -> bool:
    """Whether a backward pass runs under create_graph. While compiling it cannot: AOTAutograd has no second derivatives."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def plain_backward(
    function: Callable[..., Any], inputs: Sequence[Tensor], needs: Sequence[bool], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Cotangents of the inputs that need one, as a differentiable function of the inputs and of ``grads``."""
    # Aliases, so that an input that is itself a function of another gets its partial derivative only.
    alias = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
    outputs = function(*alias)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # The log-det of an additive map is a constant.
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    wanted = [t for t, need in zip(alias, needs, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return [next(found) if need else None for need in needs]
