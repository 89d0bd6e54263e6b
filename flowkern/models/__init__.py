"""Models that are no stack of transforms, and what every model is."""

from flowkern.model import Model
from flowkern.models.distillation import Distillation
from flowkern.models.encoded import Encoded
from flowkern.models.made import MADE
from flowkern.models.parallel_wavenet import ParallelWaveNet
from flowkern.models.pixel_cnn import PixelCNN
from flowkern.models.pixel_rnn import PixelRNN
from flowkern.models.posterior import PosteriorDistribution
from flowkern.models.vae import VAE
from flowkern.models.wavenet import WaveNet

__all__ = [
    "MADE",
    "VAE",
    "Distillation",
    "Encoded",
    "Model",
    "ParallelWaveNet",
    "PixelCNN",
    "PixelRNN",
    "PosteriorDistribution",
    "WaveNet",
]
