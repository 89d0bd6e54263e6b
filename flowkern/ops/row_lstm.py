"""An LSTM over the rows of images."""

from __future__ import annotations

from torch import Tensor

from flowkern import reference
from flowkern.ops._scans import scan


def row_lstm(x: Tensor, weight: Tensor) -> Tensor:
    r"""z_r = x_r + W * h_{r-1}, c_r = sigma(f) c_{r-1} + sigma(i) tanh(g), h_r = sigma(o) tanh(c_r) for every row r.

    W is a convolution along the row, so that a pixel sees a triangle of those above it. z holds the gates (o, f, i, g); x is
    what the input contributes to them, the input-to-state convolution, biases included. States and cells are zero above the
    image, states also beside it. For gradients it keeps x, the states, the cells and the gates. A GPU runs the oracle.

    Args:
        x: (..., height, width, 4 hidden) of at least one pixel.
        weight: W (4 hidden, hidden, k), k odd: the middle tap reads the pixel above.

    Returns:
        h (..., height, width, hidden).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> row_lstm(torch.randn(2, 5, 7, 4 * 3), torch.randn(4 * 3, 3, 3)).shape
        torch.Size([2, 5, 7, 3])

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.1, equation 3.
    """
    return scan("row_lstm", reference.row_lstm, x, weight, "an odd number of taps")
