"""The oracle of every operator: plain PyTorch, any float dtype, differentiable twice. It imports only torch."""

from flowkern.reference.actnorm import actnorm
from flowkern.reference.affine import affine, affine_map
from flowkern.reference.autoregressive import autoregressive
from flowkern.reference.autoregressive_chain import autoregressive_chain, elementwise, lu_linear, permutation
from flowkern.reference.autoregressive_inverse import autoregressive_inverse
from flowkern.reference.causal_conv1d import causal_conv1d
from flowkern.reference.causal_conv1d_update import causal_conv1d_update
from flowkern.reference.coupling import coupling
from flowkern.reference.diagonal_lstm import diagonal_lstm
from flowkern.reference.gaussian_mixture import gaussian_mixture
from flowkern.reference.iaf_step import iaf_step
from flowkern.reference.invertible_conv1x1 import invertible_conv1x1
from flowkern.reference.log_det import log_det
from flowkern.reference.logistic_mixture import logistic_mixture
from flowkern.reference.logistic_mixture_sample import logistic_mixture_sample
from flowkern.reference.masked_mlp import masked_mlp
from flowkern.reference.normal_log_prob import normal_log_prob
from flowkern.reference.row_lstm import row_lstm
from flowkern.reference.spline import rational_linear_map, rational_quadratic_map, spline
from flowkern.reference.wavenet_generate import WaveNetState, wavenet_generate, wavenet_outputs
from flowkern.reference.wavenet_layer import wavenet_layer

__all__ = [
    "WaveNetState",
    "actnorm",
    "affine",
    "affine_map",
    "autoregressive",
    "autoregressive_chain",
    "autoregressive_inverse",
    "causal_conv1d",
    "causal_conv1d_update",
    "coupling",
    "diagonal_lstm",
    "elementwise",
    "gaussian_mixture",
    "iaf_step",
    "invertible_conv1x1",
    "log_det",
    "logistic_mixture",
    "logistic_mixture_sample",
    "lu_linear",
    "masked_mlp",
    "normal_log_prob",
    "permutation",
    "rational_linear_map",
    "rational_quadratic_map",
    "row_lstm",
    "spline",
    "wavenet_generate",
    "wavenet_layer",
    "wavenet_outputs",
]
