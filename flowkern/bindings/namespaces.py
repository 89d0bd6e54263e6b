"""Operators of GPU kernels: registered from Python, opaque to torch.compile, importing what serves them at the first call.

A plan travels as its key, since an operator takes tensors and numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MAP = "str family, int[] options, float[] constants"  # a univariate map: its family and its numbers
NETWORK = "Tensor[] weights, Tensor[] biases, Tensor[] addends"
# How float32 products are multiplied is an argument: forward and backward must agree on what it leads to.
PLAN = "str plan, str precision"

_Function = Callable[..., Any]


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


TRITON, CUDA = Namespace("flowkern_triton"), Namespace("flowkern_cuda")
