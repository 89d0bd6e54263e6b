"""Operators of GPU kernels: registered from Python, opaque to torch.compile, importing what serves them at the first call.

A plan travels as its key, since an operator takes tensors and numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAP = "int scale, int placement, float c0, float c1"
NETWORK = "Tensor[] weights, Tensor[] biases, Tensor[] addends"
# How float32 products are multiplied is an argument: forward and backward must agree on what it leads to.
PLAN = "str plan, str precision"

_Function = Callable[..., Any]


def constant_while_compiling(function: _Function) -> _Function:
    """Lets torch.compile call a function and keep its result, instead of tracing it.

    torch.compiler.assume_constant_result says the same, but imports the whole of the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Namespace:
    """A library of operators with one implementation for every device: the kernels' stand-ins run on the CPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = torch.library.Library(name, "DEF")

    def define(self, schema: str) -> Callable[[_Function], _Function]:
        """Registers a function as the operator of a schema."""

        def register(function: _Function) -> _Function:
            name = schema[: schema.index("(")]
            self.library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
            self.library.impl(name, function, "CompositeExplicitAutograd")
            return function

        return register

    def fake(self, name: str) -> Any:
        """Registers a function as the shapes of an operator."""
        return torch.library.register_fake(f"{self.name}::{name}", lib=self.library)


def gradients_like(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addends: Sequence[Tensor], parameters: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Shapes of a masked network's gradients: of x, of all weights and all biases as vectors, of the addends."""
    sizes = [sum(t.numel() for t in part) if parameters else 0 for part in (weights, biases)]
    flat = weights[0].new_empty(sizes[0]), (biases[0] if biases else weights[0]).new_empty(sizes[1])
    return x.new_empty(x.shape), *flat, [a.new_empty(a.shape) for a in addends]
