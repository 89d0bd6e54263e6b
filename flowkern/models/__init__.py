"""Models that are no stack of transforms, and what every model is."""

from flowkern.model import Model
from flowkern.models.encoded import Encoded
from flowkern.models.made import MADE

__all__ = ["MADE", "Encoded", "Model"]
