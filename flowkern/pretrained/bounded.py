"""Building what a file describes, and never more than the file holds.

A config of a few bytes can ask for any number of tensors of any size. So the layers are built under two watches. A tensor of
a given size is made only if a tensor in the file is as large; a parameter is accepted only if the file holds one of its shape
that no parameter before it has taken. What else a layer makes, its plans above all, it makes of its parameters and of
whole numbers, which are bounded too. Every layer therefore makes its parameters, and by a function with a size, before
anything that grows faster than its arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from flowkern.pretrained.errors import PretrainedError

SMALL = 2**20  # what any file may ask for: whole numbers, and elements of a tensor
_SIZED = {
    torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint, torch.randn,
    torch.randperm, torch.zeros,
}  # fmt: skip


def largest_size(tensors: Mapping[str, Tensor]) -> int:
    """Elements of the largest tensor, and what may be asked for anyway."""
    return max(SMALL, *(t.numel() for t in tensors.values())) if tensors else SMALL


@contextmanager
def bounded(tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Inside, this thread builds on the CPU, no more than ``tensors``, and leaves torch's random numbers as they are."""
    left = Counter(tuple(t.shape) for t in tensors.values())
    thread = get_ident()

    def accept(module: torch.nn.Module, name: str, parameter: Any) -> None:
        if get_ident() != thread or not isinstance(parameter, Tensor):
            return
        shape = tuple(parameter.shape)
        if not left[shape]:
            raise PretrainedError(
                f"{source}: {type(module).__name__} asks for a parameter {name} of shape {shape}, which the weights do not hold"
            )
        left[shape] -= 1

    hook = register_module_parameter_registration_hook(accept)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), _NoLarger(largest_size(tensors), source):
            yield
    finally:
        hook.remove()


class _NoLarger(TorchFunctionMode):
    """Refuses tensors of a size, before they are made."""

    def __init__(self, most: int, source: str) -> None:
        super().__init__()
        self.most, self.source = most, source

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SIZED:
            rest = {name: value for name, value in (kwargs or {}).items() if name not in ("device", "generator")}
            size = tuple(func(*args, **rest, device="meta").shape)
            if torch.Size(size).numel() > self.most:
                raise PretrainedError(f"{self.source}: asks for a tensor of shape {size}, larger than any in the weights")
        return func(*args, **(kwargs or {}))
