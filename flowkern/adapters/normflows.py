"""normflows: forward is noise to data; the density, its inverse, costs a pass per feature."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowkern.adapters.library import Layer, Library
from flowkern.adapters.network import PeerNetwork, UnsupportedError, activation_of, affine, expect
from flowkern.adapters.nflows import (
    COUPLING,
    METHODS,
    NORM,
    PERMUTATION,
    SPLINE,
    add_residual_block,
    context_width,
    evaluate,
    expect_dropout,
    linear,
)

MADE = "normflows.nets.made."


def read(layer: Any) -> PeerNetwork:
    """MADE, its own: no activation after the initial layer, also before plain blocks; the context gates the blocks."""
    made = expect(layer.autoregressive_net, MADE + "MADE", "network")
    if type(made.preprocessing) is not nn.Identity:
        raise UnsupportedError(f"its network is preceded by {type(made.preprocessing).__name__}")
    map = affine("sigmoid", "scale_shift", 2.0, 1e-3)
    network = PeerNetwork(layer.features, context_width(made), map, parameter_order=(1, 0))
    stream = network.add(linear(MADE, made.initial_layer))
    if network.context:
        network.add_context(stream, made.context_layer)
    for block in made.blocks:
        if hasattr(block, "linear_layers"):
            stream = add_residual_block(network, MADE, block, stream)
            if network.context:
                network.add_context(stream, block.context_layer, "sigmoid", gate=True)
        else:
            expect_dropout(expect(block, MADE + "MaskedFeedforwardBlock", "block"))
            stream = network.add(linear(MADE, block.linear, before=block.batch_norm), activated=True)
    network.add(linear(MADE, made.final_layer))
    network.activation = activation_of(*(block.activation for block in made.blocks))
    return network.finish(made)


NORMFLOWS = Library(
    name="normflows",
    tested=("1.7", "1.8"),
    layers={"normflows.flows.affine.autoregressive.MaskedAffineAutoregressive": Layer(read, evaluate, METHODS)},
    left_alone={
        "normflows.flows.affine.autoregressive.Autoregressive": SPLINE,
        "normflows.flows.affine.coupling.AffineCoupling": COUPLING,
        "normflows.flows.affine.coupling.AffineCouplingBlock": COUPLING,
        "normflows.flows.affine.coupling.MaskedAffineFlow": COUPLING,
        "normflows.flows.neural_spline.wrapper.AutoregressiveRationalQuadraticSpline": SPLINE,
        "normflows.flows.neural_spline.wrapper.CoupledRationalQuadraticSpline": SPLINE,
        "normflows.flows.normalization.BatchNorm": NORM,
        "normflows.flows.normalization.ActNorm": NORM,
        "normflows.flows.mixing.Permute": PERMUTATION,
    },
)
