"""PixelCNN and Gated PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

from flowkern._checks import flag, whole_number
from flowkern.config import configured
from flowkern.models.pixels import PixelModel, check_hidden
from flowkern.nn.pixels import ConvLayer, GatedPixelNetwork, PixelNetwork


class PixelCNN(PixelModel):
    r"""Images number by number, with masked convolutions: p(x) = prod_i p(x_i | x_{<i}) in raster order.

    The plain network does not see what lies far to the right in the rows above, its blind spot. The gated one has two stacks of
    convolutions, one for the rows above and one for a pixel's own row, and none.

    Args:
        features: the image's shape (channels, height, width), or the number of features of a vector, an image of one row.
        levels: values of a channel, 256 for 8 bits: whole numbers from 0 to levels - 1. Two have one logit, more a softmax.
        hidden: features inside of a layer; the channels divide it. The maps between plain layers have twice as many.
        layers: number of layers after the first.
        kernel: rows and columns of their convolutions, odd; those of the first layer are 7 by 7.
        gated: the gated network.

    Raises:
        ValueError: for impossible sizes.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.models.PixelCNN((1, 8, 8), levels=17, hidden=8, layers=2, gated=True)
        >>> model.log_prob(torch.randint(17, (5, 1, 8, 8))).shape
        torch.Size([5])
        >>> model.sample((2,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 8, 8])

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.3; Conditional Image Generation with PixelCNN
        Decoders (van den Oord et al., 2016), section 2.
    """

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        levels: int = 2,
        *,
        hidden: int = 48,
        layers: int = 7,
        kernel: int = 3,
        gated: bool = False,
    ) -> None:
        super().__init__(features, levels)
        channels = self.image[0]
        hidden, layers = check_hidden(hidden, channels), whole_number("layers", layers, 0)
        if flag("gated", gated):
            self.network = GatedPixelNetwork(channels, self.head.outputs, hidden, layers, kernel)
        else:
            self.network = PixelNetwork(
                channels, self.head.outputs, 2 * hidden, layers, lambda: ConvLayer(2 * hidden, channels, kernel)
            )
