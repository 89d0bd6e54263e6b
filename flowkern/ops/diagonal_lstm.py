"""An LSTM over the diagonals of images."""

from __future__ import annotations

from torch import Tensor

from flowkern import reference
from flowkern.ops._scans import scan


def diagonal_lstm(x: Tensor, weight: Tensor, *, mirrored: bool = False) -> Tensor:
    r"""z = x + W_0 h(above) + W_1 h(left), c = sigma(f) c(left) + sigma(i) tanh(g), h = sigma(o) tanh(c) at every pixel.

    A pixel sees all that are neither below nor to the right of it. The paper skews the image, row r by r pixels, and scans its
    columns with a convolution of two taps; here the kernel goes along the diagonals. z holds the gates (o, f, i, g); x is what
    the input contributes to them, biases included. States and cells are zero outside of the image. For gradients it keeps x,
    the states, the cells and the gates. A GPU runs the oracle.

    Args:
        x: (..., height, width, 4 hidden) of at least one pixel.
        weight: W_0 and W_1, (4 hidden, hidden, 2).
        mirrored: scans from the right: "left" is then the right neighbour.

    Returns:
        h (..., height, width, hidden).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 5, 7, 4 * 3), torch.randn(4 * 3, 3, 2)
        >>> h = diagonal_lstm(x, weight)
        >>> torch.allclose(diagonal_lstm(x.flip(-2), weight, mirrored=True), h.flip(-2), atol=1e-6)
        True

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.2.
    """
    return scan("diagonal_lstm", reference.diagonal_lstm, x, weight, "2", mirrored=bool(mirrored))
