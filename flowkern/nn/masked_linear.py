"""A linear layer with a mask."""

from __future__ import annotations

from torch import Tensor, nn

from flowkern._checks import check_features, check_float, flag, numbers
from flowkern.config import configured
from flowkern.reference.masked_mlp import masked_linear


class MaskedLinear(nn.Linear):
    r"""y = x (W * M)^T + b.

    One layer alone is a matrix product, which torch does best; whole networks of such layers belong in :class:`MADE`,
    whose kernels skip the masked half.

    Args:
        mask: boolean matrix (out, in), a buffer of the state dict.
        bias: whether there is a bias.

    Shapes: x (..., in), y (..., out).

    Example:
        >>> import torch
        >>> layer = MaskedLinear(torch.ones(3, 2).tril() > 0)
        >>> layer(torch.randn(5, 2)).shape
        torch.Size([5, 3])

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), equation 5.
    """

    mask: Tensor

    @configured
    def __init__(self, mask: Tensor, bias: bool = True) -> None:
        mask = numbers("mask", mask) != 0
        if mask.dim() != 2:
            raise ValueError(f"mask: expected shape (out, in), got {tuple(mask.shape)}")
        super().__init__(mask.shape[1], mask.shape[0], bias=flag("bias", bias))
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        check_float("input", input)
        check_features("input", input, self.in_features)
        return masked_linear(input, self.weight, self.bias, self.mask)
