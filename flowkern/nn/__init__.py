"""Layers: drop-in parts of models. Every transform maps data to noise by ``forward`` and back by ``inverse``."""

from flowkern.nn.act_norm import ActNorm
from flowkern.nn.autoregressive import InverseAutoregressive, MaskedAutoregressive
from flowkern.nn.batch_norm import BatchNorm
from flowkern.nn.compose import Compose
from flowkern.nn.convolutional import ConvNet, ResNet, WeightNormConv2d, ZeroConv2d
from flowkern.nn.coupling import AdditiveCoupling, AffineCoupling, Coupling
from flowkern.nn.heads import (
    Bernoulli,
    Categorical,
    Gaussian,
    Head,
    IsotropicGaussian,
    Logistic,
    MixtureOfGaussians,
    MixtureOfLogistics,
)
from flowkern.nn.invertible_conv import InvertibleConv1x1
from flowkern.nn.made import MADE, frozen
from flowkern.nn.masked_conv import MaskedConv2d
from flowkern.nn.masked_linear import MaskedLinear
from flowkern.nn.multi_scale import MultiScale
from flowkern.nn.periodic import Wrap
from flowkern.nn.permutation import Permutation, Reverse
from flowkern.nn.reshape import Reshape, Squeeze
from flowkern.nn.scaling import Scaling
from flowkern.nn.standardize import Standardize
from flowkern.nn.transform import Transform
from flowkern.nn.wavenet import Upsample, WaveNet

__all__ = [
    "MADE",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchNorm",
    "Bernoulli",
    "Categorical",
    "Compose",
    "ConvNet",
    "Coupling",
    "Gaussian",
    "Head",
    "InverseAutoregressive",
    "InvertibleConv1x1",
    "IsotropicGaussian",
    "Logistic",
    "MaskedAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MixtureOfGaussians",
    "MixtureOfLogistics",
    "MultiScale",
    "Permutation",
    "ResNet",
    "Reshape",
    "Reverse",
    "Scaling",
    "Squeeze",
    "Standardize",
    "Transform",
    "Upsample",
    "WaveNet",
    "WeightNormConv2d",
    "Wrap",
    "ZeroConv2d",
    "frozen",
]
