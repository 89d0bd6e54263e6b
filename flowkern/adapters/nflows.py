"""nflows, and the copy of it that glasflow carries: (inputs, context) -> (outputs, logabsdet), data to noise."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern.adapters.calls import fast
from flowkern.adapters.library import Layer, Library
from flowkern.adapters.network import (
    Linear,
    LinearThenNorm,
    Norm,
    NormThenLinear,
    PeerNetwork,
    UnsupportedError,
    activation_of,
    affine,
    expect,
)
from flowkern.adapters.state import own


def read(root: str, layer: Any) -> PeerNetwork:
    """MADE: initial layer, plus the activated context; residual blocks before which, or plain ones after which, it acts.

    Args:
        root: the module of the MADE, for this library or the copy of it.
    """
    made = expect(layer.autoregressive_net, root + "MADE", "network")
    map = affine("softplus", "scale_shift", _epsilon(layer))
    network = PeerNetwork(layer.features, context_width(made), map, parameter_order=(1, 0))
    residual = made.use_residual_blocks
    stream = network.add(linear(root, made.initial_layer), activated=not residual)
    if network.context:
        network.add_context(stream, made.context_layer, activation_of(made.activation)[0])
    for block in made.blocks:
        if residual:
            stream = add_residual_block(network, root, block, stream)
            if network.context:
                norm = block.batch_norm_layers[1] if block.use_batch_norm else None
                network.add_context(stream - 1, block.context_layer, norm=norm)
        else:
            expect_dropout(expect(block, root + "MaskedFeedforwardBlock", "block"))
            stream = network.add(linear(root, block.linear, before=block.batch_norm), activated=True)
    network.add(linear(root, made.final_layer))
    network.activation = activation_of(made.activation, *(block.activation for block in made.blocks))
    return network.finish(made)


def add_residual_block(network: PeerNetwork, root: str, block: Any, stream: int) -> int:
    """[norm] act linear [norm] act linear, added to the layer ``stream``; returns the index of the sum."""
    expect_dropout(expect(block, root + "MaskedResidualBlock", "block"))
    norms = list(block.batch_norm_layers) if block.use_batch_norm else [None, None]
    if norms[0] is None:
        network.activated[stream] = True
    else:
        network.add(Norm(norms[0]), activated=True)
    network.add(linear(root, block.linear_layers[0], after=norms[1]), activated=True)
    return network.add(linear(root, block.linear_layers[1]), residual=stream)


def expect_dropout(block: Any) -> None:
    """Something else in its place may do what evaluation mode, in which layers are checked, does not show."""
    if type(block.dropout) not in (nn.Dropout, nn.Identity):
        raise UnsupportedError(f"its dropout is a {type(block.dropout).__qualname__}, expected Dropout")


def linear(root: str, module: Any, before: Any = None, after: Any = None) -> Linear:
    """A masked linear map, with the batch normalisation next to it."""
    expect(module, root + "MaskedLinear", "linear map")
    if before is not None:
        return NormThenLinear(module, before)
    return Linear(module) if after is None else LinearThenNorm(module, after)


def context_width(made: Any) -> int:
    """Number of context features."""
    return made.context_layer.in_features if hasattr(made, "context_layer") else 0


def _epsilon(layer: Any) -> float:
    """scale = softplus(a) + eps; glasflow takes any function, which is probed."""
    function = getattr(layer, "scale_activation", None)
    if function is None:
        return layer._epsilon
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    # The default holds the layer that made it, or of which this one is a copy.
    other = [h for h in (function, *held) if getattr(h, "scale_activation", None) is not function]
    if any(isinstance(h, (Tensor, nn.Module)) for h in other):
        raise UnsupportedError("its scale_activation may hold parameters")
    probe = torch.linspace(-30, 30, 7, dtype=torch.float64, device="cpu")
    epsilon = (function(probe) - F.softplus(probe)).double()
    if not torch.allclose(epsilon, epsilon[0], rtol=0, atol=1e-12) or epsilon[0] < 0:
        raise UnsupportedError("its scale_activation is not softplus plus a constant")
    return float(epsilon[0])


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The direction of one pass."""
    return type(layer).forward(layer, x, context)


def _serve(self: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    # Rows of another number than the context's, and inputs that are no matrix, are errors or special to the peer.
    if not isinstance(inputs, Tensor) or inputs.dim() != 2:
        return None
    if context is not None and (not isinstance(context, Tensor) or context.shape[:-1] != inputs.shape[:-1]):
        return None
    return fast(self, inputs, context, inverse)


def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One pass."""
    return _serve(self, inputs, context, inverse=False) or own(self, "forward")(inputs, context)


def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One sweep."""
    return _serve(self, inputs, context, inverse=True) or own(self, "inverse")(inputs, context)


METHODS = {"forward": forward, "inverse": inverse}
PERMUTATION = "a permutation is one gather already"
SPLINE = "splines have no operator yet; they will go here"
COUPLING = "coupling layers cost one pass both ways already; flowkern.ops.coupling will go here"
NORM = "one elementwise pass already"


def _library(name: str, root: str, tested: tuple[str, str]) -> Library:
    transforms = root + ".transforms"
    autoregressive = transforms + ".autoregressive."
    return Library(
        name=name,
        tested=tested,
        layers={
            autoregressive + "MaskedAffineAutoregressiveTransform": Layer(
                functools.partial(read, transforms + ".made."), evaluate, METHODS
            )
        },
        left_alone={
            autoregressive + "AutoregressiveTransform": SPLINE,
            transforms + ".coupling.CouplingTransform": COUPLING,
            transforms + ".normalization.BatchNorm": NORM,
            transforms + ".normalization.ActNorm": NORM,
            transforms + ".permutations.Permutation": PERMUTATION,
            transforms + ".made.MADE": "a network without its transform",
        },
    )


NFLOWS = _library("nflows", "nflows", ("0.14", "0.15"))
GLASFLOW = _library("glasflow", "glasflow.nflows", ("0.4", "0.5"))
