"""What layers check of their input, in their own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern._checks import broadcast_batch, check_context, check_device, check_like, sizes, whole_number
from flowkern.nn.heads import Head, holding


def event_size(name: str, given: Any) -> torch.Size:
    """The shape of an event: at least one dimension, each of at least one element."""
    size = sizes(name, given)
    if len(size) == 0 or 0 in size:
        raise ValueError(f"{name}: expected a shape of positive sizes such as (3, 8, 8), got {tuple(size)}")
    return size


def event_of(features: Any, least: int = 1) -> torch.Size:
    """The event of a layer that takes ``features``: their number, or the shape of an image (channels, height, width)."""
    if not isinstance(features, (Sequence, torch.Tensor)) or isinstance(features, str):
        return torch.Size((whole_number("features", features, least),))
    size = event_size("features", features)
    if len(size) not in (1, 3):
        raise ValueError(f"features: expected a number or a shape (channels, height, width), got {tuple(size)}")
    return size


def check_event(name: str, x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Events of a shape, in a batch of any shape."""
    if x.shape[-len(event_shape) :] != event_shape:
        raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")


def check_held(name: str, x: Tensor, head: Head, weight: Tensor) -> None:
    """The dtype and device of the weights; of whole numbers also the dtype that holds them all, where theirs does not."""
    check_device(name, x, weight, "the weights")
    if head.levels is None or x.dtype is not holding(head.levels, weight.dtype):
        check_like(name, x, weight, "the weights")


def check_support(name: str, x: Tensor, head: Head, between: bool = False) -> None:
    """Values that a conditional of whole numbers gives, or also what lies between them; any value for one of others.

    Not on a GPU, which would have to be waited for, nor where a graph is made or a transform of torch.func is at work.
    """
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if head.levels is None or x.numel() == 0 or x.device.type != "cpu" or traced:
        return
    values = x if x.is_floating_point() else x.float()
    low, high = values.aminmax()
    if not (low >= 0 and high <= head.levels - 1 and (between or bool((values == values.round()).all()))):
        what = "numbers" if between else "whole numbers"
        support = f"from 0 to {head.levels - 1}, the support of {type(head).__name__}"
        raise ValueError(f"{name}: expected {what} {support}, got {low:g} to {high:g}")


def flat(z: Tensor, event_shape: torch.Size) -> Tensor:
    """Every event as a vector."""
    return z if len(event_shape) == 1 else z.flatten(-len(event_shape))


def wide(t: Tensor, event_shape: torch.Size) -> Tensor:
    """A number for each channel, as it broadcasts with events."""
    return t.reshape(-1, *(1 for _ in event_shape[1:]))


def channel_rows(x: Tensor, event_shape: torch.Size) -> Tensor:
    """Of every pixel its channels (rows, channels)."""
    return x.movedim(-len(event_shape), -1).reshape(-1, event_shape[0])


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of this module would run hooks of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def blame(name: str, x: Tensor, weight: Tensor, context: Tensor | None = None, takes: int = 0) -> None:
    """Raises in the words of a layer what an operator refused in its own; looking before each call would cost too much.

    ``takes``: features of the context.
    """
    check_context("network", context, takes, weight, "the weights")
    if context is not None:
        broadcast_batch(x, [context], "context")
    check_like(name, x, weight, "the weights")
