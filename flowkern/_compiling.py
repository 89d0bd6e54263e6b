"""What torch.compile must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_while_compiling(function: _Function) -> _Function:
    """Lets torch.compile call a function and keep its result, instead of tracing it.

    torch.compiler.assume_constant_result says the same, but imports the whole of the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
