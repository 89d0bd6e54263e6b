"""Building what a file describes, and never more than the file holds.

A config of a few bytes can ask for any number of tensors of any size. So the layers are built under watch:

- a tensor of a given size is made only if one in the file is as large;
- a parameter is accepted only if the file holds one of its shape that no parameter before it has taken;
- a buffer is accepted only if the file holds one of its shape, or it is a vector no longer than what the file holds.

What else a layer makes, its plans above all, it makes of these, and of whole numbers, which are bounded too. So a layer
registers its parameters and buffers before it makes anything that grows faster than its arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from flowkern.pretrained.errors import PretrainedError

SMALL = 2**20  # what any file may ask for: whole numbers, and elements of a tensor
_SIZED = {
    torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint, torch.randn,
    torch.randperm, torch.zeros,
}  # fmt: skip


def largest_size(tensors: Mapping[str, Tensor]) -> int:
    """Elements of the largest tensor, and what may be asked for anyway."""
    return max([SMALL, *(t.numel() for t in tensors.values())])


@contextmanager
def bounded(tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Inside, this thread builds on the CPU, no more than ``tensors``, and leaves torch's random numbers as they are."""
    held = Counter(t.shape for t in tensors.values())
    left, longest = held.copy(), max((t.numel() for t in tensors.values()), default=0)
    thread = get_ident()

    def check(fits: bool, module: nn.Module, name: str, t: Tensor) -> None:
        if not fits:
            raise PretrainedError(f"{source}: {type(module).__name__}: {name} of shape {tuple(t.shape)} is not in the weights")

    def take_parameter(module: nn.Module, name: str, t: Any) -> None:
        if isinstance(t, Tensor) and get_ident() == thread:
            check(left[t.shape] > 0, module, name, t)
            left[t.shape] -= 1

    def take_buffer(module: nn.Module, name: str, t: Any) -> None:
        if isinstance(t, Tensor) and get_ident() == thread:
            check(t.shape in held or (t.dim() < 2 and t.numel() <= longest), module, name, t)

    hooks = [
        register_module_parameter_registration_hook(take_parameter),
        register_module_buffer_registration_hook(take_buffer),
    ]
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), _NoLarger(largest_size(tensors), source):
            yield
    finally:
        for hook in hooks:
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
