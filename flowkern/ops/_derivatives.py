"""Backward passes that must themselves be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


class Function(torch.autograd.Function):
    """Kernels of an operator and their gradients."""

    @classmethod
    def record(cls, *args: Any) -> Any:
        """``apply`` without what it does for torch.func, whose transforms never come here: a microsecond for each argument."""
        if torch.compiler.is_compiling():
            return cls.apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def wants_plain() -> bool:
    """Whether a backward pass must run in plain PyTorch.

    Under create_graph it will be differentiated; under vmap, torch.func's or that of ``is_grads_batched``, its cotangents
    are batched. While compiling neither can be: AOTAutograd has no second derivatives.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._dispatch_tls_is_dispatch_key_included(_VMAP)
    )


def plain_backward(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], needs: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Cotangents of the inputs that need one, as a differentiable function of the inputs and of ``grads``.

    An input that is no tensor is handed on; an output without a cotangent counts for nothing.
    """
    first = next(t for t in inputs if t is not None)
    # Autocast did its part before the operator was recorded.
    with torch.enable_grad(), torch.autocast(first.device.type, enabled=False):
        # Aliases, so that an input that is itself a function of another gets its partial derivative only.
        alias = [t.view_as(t) if need and t is not None else t for t, need in zip(inputs, needs, strict=True)]
        outputs = function(*alias)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # The log-det of an additive map is a constant.
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [t for t, need in zip(alias, needs, strict=True) if need and t is not None]
        kept = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], **kept))
    return [next(found) if need else None for need in needs]
