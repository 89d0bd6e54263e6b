"""The operators: contracts, checks, gradients, choice of backend."""

from flowkern import bindings  # noqa: F401, registers operators and their shapes
from flowkern.ops._coupling import CouplingStep
from flowkern.ops.actnorm import actnorm
from flowkern.ops.affine import affine
from flowkern.ops.autoregressive import autoregressive
from flowkern.ops.autoregressive_chain import (
    ElementwiseStep,
    LULinearStep,
    NetworkStep,
    PermutationStep,
    Step,
    autoregressive_chain,
)
from flowkern.ops.autoregressive_inverse import autoregressive_inverse
from flowkern.ops.causal_conv1d import causal_conv1d
from flowkern.ops.causal_conv1d_update import causal_conv1d_update
from flowkern.ops.coupling import coupling
from flowkern.ops.diagonal_lstm import diagonal_lstm
from flowkern.ops.gaussian_mixture import gaussian_mixture
from flowkern.ops.iaf_step import iaf_step
from flowkern.ops.invertible_conv1x1 import invertible_conv1x1
from flowkern.ops.log_det import log_det
from flowkern.ops.logistic_mixture import logistic_mixture
from flowkern.ops.logistic_mixture_sample import logistic_mixture_sample
from flowkern.ops.masked_mlp import masked_mlp
from flowkern.ops.normal_log_prob import normal_log_prob
from flowkern.ops.pack import pack
from flowkern.ops.row_lstm import row_lstm
from flowkern.ops.spline import spline
from flowkern.ops.wavenet_generate import WaveNetState, wavenet_generate
from flowkern.ops.wavenet_layer import wavenet_layer

__all__ = [
    "CouplingStep",
    "ElementwiseStep",
    "LULinearStep",
    "NetworkStep",
    "PermutationStep",
    "Step",
    "WaveNetState",
    "actnorm",
    "affine",
    "autoregressive",
    "autoregressive_chain",
    "autoregressive_inverse",
    "causal_conv1d",
    "causal_conv1d_update",
    "coupling",
    "diagonal_lstm",
    "gaussian_mixture",
    "iaf_step",
    "invertible_conv1x1",
    "log_det",
    "logistic_mixture",
    "logistic_mixture_sample",
    "masked_mlp",
    "normal_log_prob",
    "pack",
    "row_lstm",
    "spline",
    "wavenet_generate",
    "wavenet_layer",
]
