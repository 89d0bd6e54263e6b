"""Couplings of nflows, of the copy of it that glasflow carries, and spline couplings of normflows.

Where a network is the libraries' ResidualNet, the whole layer is one call, and a part of that of its neighbours. After any
other network, or one with hooks or dropout, splines alone are the operator's, and affine maps the library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowkern import ops
from flowkern.adapters.calls import fast, serving
from flowkern.adapters.coupling import CouplingSteps, MaskedCoupling, MaskSplit, Split
from flowkern.adapters.library import Layer
from flowkern.adapters.network import (
    Linear,
    Network,
    Reading,
    UnsupportedError,
    activation_of,
    affine,
    expect,
    steps_disagree,
)
from flowkern.adapters.splines import Pair, Splines, held, read_elementwise, read_splines
from flowkern.adapters.state import own
from flowkern.univariate import UnivariateMap

# -- networks ---------------------------------------------------------------------------------------------------------


def residual_coupling(layer: Any, root: str, map: UnivariateMap, layout: str = "feature_major") -> MaskedCoupling:
    """A coupling of vectors whose network is a ResidualNet: it reads what passes, then the context, which gates its blocks.

    Args:
        root: the module of the network, for this library or the copy of it.
        layout: of what it gives.
    """
    net = expect(layer.transform_net, root + "ResidualNet", "network")
    if getattr(net, "preprocessing", None) is not None:
        raise UnsupportedError(f"its network is preceded by {type(net.preprocessing).__name__}")
    split = MaskSplit(layer, ("identity_features", "transform_features"), lambda passing, order: (passing, order))
    network = MaskedCoupling(split, map, net.context_features or 0, layout=layout)
    stream = network.part(_plain(net.initial_layer))
    for block in net.blocks:
        expect_dropout(expect(block, root + "ResidualBlock", "block"))
        if block.use_batch_norm:
            raise UnsupportedError("its network has batch normalisation")
        network.activated[stream] = True
        network.part(_plain(block.linear_layers[0]), activated=True)
        stream = network.part(_plain(block.linear_layers[1]), residual=stream)
        if network.context:
            network.add_context(stream, block.context_layer, "sigmoid", gate=True)
    network.part(_plain(net.final_layer), last=True)
    network.activation = activation_of(*(block.activation for block in net.blocks))
    network.finish(net)
    return network


def _plain(module: nn.Module) -> nn.Module:
    if parametrize.type_before_parametrizations(module) is not nn.Linear:
        raise UnsupportedError(f"its network has a {type(module).__qualname__}, expected Linear")
    return module


def expect_dropout(block: Any) -> None:
    """Something else in its place may do what evaluation mode, in which layers are checked, does not show."""
    if type(block.dropout) not in (nn.Dropout, nn.Identity):
        raise UnsupportedError(f"its dropout is a {type(block.dropout).__qualname__}, expected Dropout")


def expect_stateless(scale_activation: Any) -> None:
    """What is probed once must be the same function in all calls."""
    held = [cell.cell_contents for cell in getattr(scale_activation, "__closure__", None) or ()]
    # glasflow's default holds the layer that made it, or of which this one is a copy.
    other = [h for h in (scale_activation, *held) if getattr(h, "scale_activation", None) is not scale_activation]
    if any(isinstance(h, (Tensor, nn.Module)) for h in other):
        raise UnsupportedError("its scale_activation may hold parameters")


class _Held(Linear):
    """The parameters of an elementwise layer, as the bias of a linear map that reads nothing.

    Args:
        layer: the elementwise layer.
        count: how many numbers they are.
        width: of what there is to read.
    """

    def __init__(self, layer: nn.Module, count: int, width: int) -> None:
        self.module, self.biased, self._shape = layer, True, (count, width)
        self._weights: dict[Any, Tensor] = {}

    def mask(self) -> Tensor:
        return torch.zeros(self._shape, dtype=torch.bool, device="cpu")

    def masks(self) -> list[Tensor | None]:
        return []

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor]:
        bias = torch.cat(held(self.module), -1).flatten()
        key = bias.device, bias.dtype
        if key not in self._weights:
            self._weights[key] = torch.zeros(self._shape, device=bias.device, dtype=bias.dtype)
        return self._weights[key], bias


class _Turned(Split):
    """What a coupling lets pass is transformed, and the other way."""

    def __init__(self, split: Split) -> None:
        self._split = split

    @property
    def passing(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._split.order

    @property
    def order(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._split.passing


class _Elementwise(MaskedCoupling):
    """Splines of the features that pass a coupling, with parameters that their layer holds."""

    def __init__(self, layer: Any, split: Split) -> None:
        splines = read_elementwise(layer)
        _expect_linear_tails(splines)
        super().__init__(_Turned(split), splines.map, 0)
        size = len(split.passing)
        if splines.shape != (size,):
            raise UnsupportedError(f"what passes goes through splines of shape {splines.shape}, expected ({size},)")
        self.weights = [0]
        self.add(_Held(layer, size * self.map.count, len(split.order)))
        self.finish(layer)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """Whatever the other networks read of a context."""
        dtype, device = self.modules[0].unnormalized_widths.dtype, self.modules[0].unnormalized_widths.device
        return dtype is x.dtype and device == x.device and self.features == x.shape[-1]


def _expect_linear_tails(splines: Splines) -> None:
    if splines.map.tails != "linear" or splines.scaled or splines.tails is not None:
        raise UnsupportedError("what lies outside of the interval is not left as it is")


# -- affine couplings -------------------------------------------------------------------------------------------------


def read_affine(root: str, layer: Any) -> MaskedCoupling:
    """All shifts, then all raw scales, by which the library multiplies with sigmoid(a + 2) + 1e-3."""
    probe = torch.linspace(-30, 30, 7, dtype=torch.float64, device="cpu")
    scale = getattr(layer, "scale_activation", None)  # glasflow takes any function
    if scale is not None:
        expect_stateless(scale)
        if not torch.allclose(scale(probe), torch.sigmoid(probe + 2) + 1e-3, rtol=0, atol=1e-12):
            raise UnsupportedError("its scale_activation is none of the operators' scale maps")
    return _alone(layer, root, affine("sigmoid", "scale_shift", 2.0, 1e-3))


def read_additive(root: str, layer: Any) -> MaskedCoupling:
    """Shifts."""
    return _alone(layer, root, affine("none", "scale_shift"))


def _alone(layer: Any, root: str, map: UnivariateMap) -> MaskedCoupling:
    if layer.unconditional_transform is not None:
        raise UnsupportedError("what passes has a transform of its own")
    return residual_coupling(layer, root, map, "parameter_major")


# -- spline couplings -------------------------------------------------------------------------------------------------


class WholeSplines(Network):
    """A coupling as one call, and its splines alone for the calls in which the library's network must run.

    Args:
        splines: after the network.
        whole: with the network.
    """

    def __init__(self, splines: Splines, whole: CouplingSteps) -> None:
        self.splines, self.whole = splines, whole
        self.features, self.context, self.modules = whole.features, whole.context, whole.modules
        self._closed: str | None = None

    @property
    def plan(self) -> tuple[Any, ...]:
        """Of the whole."""
        return self.whole.plan

    def same_as(self, other: Any) -> bool:
        """Whether both are."""
        return type(other) is type(self) and self.splines.same_as(other.splines) and self.whole.same_as(other.whole)

    def touched(self) -> bool:
        """Whether what passes may be another."""
        return self.whole.touched()

    def follow(self) -> bool:
        """Of the whole."""
        return self.whole.follow()

    def obstacle(self, inverse: bool) -> str | None:
        """None for the splines; what there is for the whole is kept for :meth:`fits`."""
        self._closed = self.whole.obstacle(inverse)
        return None

    def fits(self, x: Any, context: Any) -> bool:
        """Whether the whole takes it."""
        return self._open() and x.dim() == 2 and self.whole.fits(x, context)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same beside other networks."""
        return self._open() and self.whole.fits_like(x, width)

    def _open(self) -> bool:
        return self._closed is None and self.whole.busy() is None

    def steps(self, inverse: bool, packed: Any = None) -> list[ops.Step]:
        """Of the whole."""
        return self.whole.steps(inverse, packed)

    def packed(self) -> list[Tensor] | None:
        """Of the whole."""
        return self.whole.packed()

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Of either. ``evaluate``: as for the splines, and (whole, x, context, inverse) -> what the library gives."""
        lower, upper = self.splines.map.interval
        x = (lower + upper + 1.3 * (upper - lower) * noise(2, self.features)) / 2

        def library(x: Tensor, context: Tensor | None) -> Any:
            return evaluate(self.whole, x, context, False)

        context = noise(2, self.context) if self.context else None
        return self.splines.disagreement(evaluate, noise) or steps_disagree(self.whole, library, x, context)


def read_coupling(root: str, layer: Any) -> Splines | WholeSplines:
    """A coupling whose network gives all numbers of a feature together; raw sizes are divided as the width of it says."""
    width = next((getattr(layer.transform_net, n) for n in _WIDTHS if hasattr(layer.transform_net, n)), 1)
    splines = read_splines(layer, layer.num_bins, width**-0.5, (len(layer.transform_features),))
    try:
        return WholeSplines(splines, _whole(root, layer, splines))
    except UnsupportedError:
        return splines


_WIDTHS = ("hidden_features", "hidden_channels")


def _whole(root: str, layer: Any, splines: Splines) -> CouplingSteps:
    _expect_linear_tails(splines)
    network, alone = residual_coupling(layer, root, splines.map), layer.unconditional_transform
    return CouplingSteps([network] if alone is None else [network, _Elementwise(alone, network.split)])


# -- calls ------------------------------------------------------------------------------------------------------------


def are_rows(x: Any, context: Any) -> bool:
    """Whether the library takes these as they are: any other is an error, or special to it."""
    if not isinstance(x, Tensor) or x.dim() != 2:
        return False
    return context is None or (isinstance(context, Tensor) and context.shape[:-1] == x.shape[:-1])


def served(layer: Any, x: Any, context: Any, inverse: bool) -> Pair | None:
    """By one call, of rows of vectors."""
    return fast(layer, x, context, inverse) if are_rows(x, context) else None


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> Pair:
    """The direction of one pass, by the library's own code."""
    found: Pair = type(layer).forward(layer, x, context)
    return found


def coupling_forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Pair:
    """Data to noise."""
    return served(self, inputs, context, False) or own(self, "forward")(self, inputs, context)


def coupling_inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> Pair:
    """Noise to data."""
    return served(self, inputs, context, True) or own(self, "inverse")(self, inputs, context)


def piecewise_cdf(self: Any, inputs: Tensor, transform_params: Tensor, inverse: bool = False) -> Pair:
    """The splines of the transformed features."""
    state = serving(self, inverse)
    if state is not None:
        network = state.network
        splines: Splines = network.splines if isinstance(network, WholeSplines) else network
        raw = splines.parts(transform_params)
        if splines.take(self, inputs, raw):
            return splines(self, inputs, raw, inverse)
    theirs: Pair = own(self, "_piecewise_cdf")(self, inputs, transform_params, inverse)
    return theirs


def _compare(layer: Any, network: Splines | CouplingSteps, u: Tensor, given: Any, inverse: bool) -> Any:
    if isinstance(network, CouplingSteps):
        return evaluate(layer, u, given)
    x = network.unscaled(layer, u)
    raw = 2 * given(*x.shape, network.map.count)
    ours = network(layer, x, network.parts(raw), inverse)
    return ours, type(layer)._piecewise_cdf(layer, x, raw, inverse)  # which changes the raw numbers


_METHODS: dict[str, Callable[..., Any]] = {"forward": coupling_forward, "inverse": coupling_inverse}


def spline_coupling(root: str) -> Layer:
    """How the spline couplings of a library are accelerated; ``root``: the module of its ResidualNet."""
    methods = {"_piecewise_cdf": piecewise_cdf, **_METHODS}
    return Layer(functools.partial(read_coupling, root), _compare, methods, inner=("unconditional_transform",))


def affine_couplings(root: str) -> dict[str, Layer]:
    """The same of affine and additive ones, by the names of their classes."""
    reads = {"AffineCouplingTransform": read_affine, "AdditiveCouplingTransform": read_additive}
    return {name: Layer(functools.partial(read, root), evaluate, _METHODS) for name, read in reads.items()}
