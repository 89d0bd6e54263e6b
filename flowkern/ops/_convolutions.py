"""What the operators on sequences share: their checks."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._checks import autocasts, check_float, check_like, check_tensor, whole_number


def lowers(x: Tensor, weight: Tensor) -> bool:
    """Whether autocast rounds the weight."""
    check_float("x", x)
    check_float("weight", weight)
    return autocasts(x) and weight.dtype is not torch.float64


def check_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int, channels: int, expected: str
) -> None:
    """All arguments of a convolution; ``channels`` is the dimension of x that holds them, ``expected`` its shape in words."""
    check_float("x", x)
    check_float("weight", weight)
    check_like("weight", weight, x)
    whole_number("dilation", dilation, 1)
    whole_number("groups", groups, 1)
    if weight.dim() != 3 or 0 in weight.shape:
        raise ValueError(f"weight: expected shape (out, in / groups, kernel size), none of them 0, got {tuple(weight.shape)}")
    if x.dim() < -channels or x.shape[channels] != weight.shape[1] * groups:
        raise ValueError(
            f"x: expected shape {expected} with {weight.shape[1] * groups} channels, since weight has shape "
            f"{tuple(weight.shape)} and there are {groups} groups, got {tuple(x.shape)}"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {weight.shape[0]} output channels of weight, got {groups}")
    if bias is not None:
        check_tensor("bias", bias)
        check_like("bias", bias, x)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected shape ({weight.shape[0]},) like the first of weight, got {tuple(bias.shape)}")
