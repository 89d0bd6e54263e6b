"""PixelRNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from flowkern._checks import one_of, whole_number
from flowkern.config import configured
from flowkern.models.pixels import PixelModel, check_hidden
from flowkern.nn.pixels import LSTMLayer, PixelNetwork

Scan = Literal["diagonal", "row"]
SCANS = get_args(Scan)


class PixelRNN(PixelModel):
    r"""Images number by number, with LSTMs that run over their pixels: p(x) = prod_i p(x_i | x_{<i}) in raster order.

    Diagonal BiLSTM layers, which see every pixel before, or Row LSTM layers, which are faster and see a triangle above.
    The numbers of a pixel are drawn in the order of its channels. Pixels are whole numbers: zeros and ones by default.

    Args:
        features: the image's shape (channels, height, width), or the number of features of a vector, an image of one row.
        levels: values of a channel, 256 for 8 bits: whole numbers from 0 to levels - 1. Two have one logit, more a softmax.
        hidden: units of an LSTM; the maps between layers have twice as many features. The channels divide it.
        layers: number of LSTM layers.
        scan: ``"diagonal"`` or ``"row"``.

    Raises:
        ValueError: for impossible sizes, or an unknown scan.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.models.PixelRNN((3, 4, 5), levels=8, hidden=6, layers=1)
        >>> x = torch.randint(8, (2, 3, 4, 5))
        >>> model.log_prob(x).shape, model.sample((2,)).shape
        (torch.Size([2]), torch.Size([2, 3, 4, 5]))
        >>> upper = torch.arange(4)[:, None] < 2
        >>> bool((model.complete(x, upper)[..., :2, :] == x[..., :2, :]).all())
        True

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016).
    """

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        levels: int = 2,
        *,
        hidden: int = 24,
        layers: int = 7,
        scan: Scan = "diagonal",
    ) -> None:
        super().__init__(features, levels)
        channels = self.image[0]
        hidden, layers = check_hidden(hidden, channels), whole_number("layers", layers, 0)
        one_of("scan", scan, SCANS)
        self.network = PixelNetwork(
            channels, self.head.outputs, 2 * hidden, layers, lambda: LSTMLayer(2 * hidden, channels, scan == "diagonal")
        )
