"""normflows: forward is noise to data; the density, its inverse, costs a pass per feature."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern.adapters.calls import fast
from flowkern.adapters.coupling import CouplingSteps, MaskedCoupling, MaskSplit, Split, linear_maps
from flowkern.adapters.library import Container, Layer, Library
from flowkern.adapters.network import (
    PeerNetwork,
    UnsupportedError,
    activation_of,
    affine,
    differs,
    expect,
    parameter_of,
    stored,
)
from flowkern.adapters.nflows import (
    METHODS,
    NORM,
    PERMUTATION,
    SPLINE,
    InverseWay,
    NetworkWay,
    TurnedWay,
    add_residual_block,
    context_width,
    kinds,
    linear,
    lu_linear,
    permuted,
    rows_joinable,
    spline_of,
    spread,
    spread_out,
)
from flowkern.adapters.nflows_couplings import evaluate, expect_dropout, spline_coupling
from flowkern.adapters.reversible import reversibly
from flowkern.adapters.run import Run, elementwise, permutation
from flowkern.adapters.splines import ELEMENTWISE_SPLINE
from flowkern.adapters.state import own
from flowkern.univariate import Affine, UnivariateMap

MADE = "normflows.nets.made."


def read(layer: Any) -> PeerNetwork:
    """The affine transform: of a feature's parameters the raw scale comes first."""
    return _read(layer, layer.features, affine("sigmoid", "scale_shift", 2.0, 1e-3), (1, 0))


def read_spline(layer: Any) -> PeerNetwork:
    """The rational-quadratic spline, with linear tails or in a box."""
    map = spline_of(layer)
    return _read(layer, layer.autoregressive_net.final_layer.out_features // map.count, map, None)


def _read(layer: Any, features: int, map: UnivariateMap, order: Sequence[int] | None) -> PeerNetwork:
    """MADE, its own: no activation after the initial layer, also before plain blocks; the context gates the blocks."""
    made = expect(layer.autoregressive_net, MADE + "MADE", "network")
    if type(made.preprocessing) is not nn.Identity:
        raise UnsupportedError(f"its network is preceded by {type(made.preprocessing).__name__}")
    network = PeerNetwork(features, context_width(made), map, parameter_order=order)
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


# -- couplings --------------------------------------------------------------------------------------------------------

# Data to noise is forward here, as training takes it.


def read_block(layer: Any) -> MaskedCoupling:
    """Split, conditioner and map, merge."""
    split, coupling, merge = layer.flows
    expect(coupling, _AFFINE + "AffineCoupling", "coupling")
    for part, name in ((split, "Split"), (merge, "Merge")):
        expect(part, f"normflows.flows.reshape.{name}", name.lower())
    if merge.mode != split.mode:
        raise UnsupportedError(f"it splits by {split.mode!r} and merges by {merge.mode!r}")
    linears, activation = _conditioner(coupling.param_map)
    map, factors = _map(coupling)
    first, last = (stored(linear, "weight") for linear in (linears[0], linears[-1]))
    if first is None or last is None:
        raise UnsupportedError("its network has no weights")
    passing, transformed = first.shape[1], last.shape[0] // map.count
    network = MaskedCoupling(_split(split.mode, passing, transformed), map, 0, linears, factors=factors)
    network.activation = activation
    network.finish(layer.flows)
    return network


def _map(coupling: Any) -> tuple[Affine, tuple[float, ...] | None]:
    """From data to noise, and by what its parameters are multiplied."""
    if not coupling.scale:
        return Affine("none", "standardize"), None
    if coupling.scale_map == "exp":
        return Affine("exp", "standardize"), None
    if coupling.scale_map == "sigmoid_inv":
        return Affine("sigmoid", "standardize", (2.0, 0.0)), None
    if coupling.scale_map == "sigmoid":
        return Affine("sigmoid", "shift_scale", (2.0, 0.0)), (-1.0, 1.0)  # z = (x - t) s
    raise UnsupportedError(f"its scale map is {coupling.scale_map!r}")


def _split(mode: str, passing: int, transformed: int) -> Split:
    """Which features of vectors pass, by the sizes of the conditioner: of odd numbers the first half has one more."""
    features = passing + transformed
    half = features - features // 2
    first, second = range(half), range(half, features)
    if mode == "channel":
        found = first, second
    elif mode == "channel_inv":
        found = second, first
    elif mode in ("checkerboard", "checkerboard_inv") and features % 2 == 0:
        odd, even = range(1, features, 2), range(0, features, 2)
        found = (even, odd) if mode.endswith("inv") else (odd, even)
    else:
        raise UnsupportedError(f"it splits {features} features by {mode!r}")
    if (len(found[0]), len(found[1])) != (passing, transformed):
        raise UnsupportedError(f"its network takes {passing} features and gives parameters of {transformed}, not halves")
    return Split(*found)


def _conditioner(module: Any) -> tuple[list[nn.Module], tuple[str, float | None]]:
    """The linear maps of an MLP and the activation between each two."""
    if differs(type(module), "normflows.nets.mlp.MLP") is None:
        module = module.net
    return linear_maps(module)


def read_masked(layer: Any) -> CouplingSteps:
    """Two networks, of the shift and of the scale, read the features of the mask and give parameters of all."""
    networks = []
    for name, map, given in (("t", Affine("none", "standardize"), (0,)), ("s", Affine("exp", "standardize"), (1,))):
        module = getattr(layer, name)
        if module is torch.zeros_like:
            continue
        linears, activation = _conditioner(module)
        split = MaskSplit(layer, ("b",), _halves)
        network = MaskedCoupling(split, map, 0, linears, layout="parameter_major", given=given, wide=True)
        network.activation = activation
        network.finish(module)
        networks.append(network)
    if not networks:
        raise UnsupportedError("it has no network")
    return CouplingSteps(networks)


def _halves(mask: Tensor) -> tuple[Tensor, Tensor]:
    if mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise UnsupportedError("its mask is none of vectors, or has values other than 0 and 1")
    return mask[0].nonzero().flatten(), (mask[0] == 0).nonzero().flatten()


def evaluate_coupling(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Data to noise."""
    found: tuple[Tensor, Tensor] = type(layer).inverse(layer, x)
    return found


def coupling_forward(self: Any, z: Tensor) -> Any:
    """Noise to data."""
    return _rows(self, z, True) or own(self, "forward")(self, z)


def coupling_inverse(self: Any, z: Tensor) -> Any:
    """Data to noise."""
    return _rows(self, z, False) or own(self, "inverse")(self, z)


def _rows(layer: Any, z: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    return fast(layer, z, None, inverse) if isinstance(z, Tensor) and z.dim() == 2 else None


_COUPLING = {"forward": coupling_forward, "inverse": coupling_inverse}

# -- flows ------------------------------------------------------------------------------------------------------------


def _permute(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    features = x.shape[1]
    if layer.mode == "shuffle":
        return permutation(layer._buffers["inv_perm" if back else "perm"], False, features)
    if layer.mode != "swap" or layer.num_channels != features:
        return None
    first = (features + back) // 2
    return ops.PermutationStep((*range(first, features), *range(first)))


def _constant(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    s = parameter_of(layer, "s")
    return None if s is None else elementwise(x, back, parameter_of(layer, "t"), s.exp())


def _act_norm(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    """Which takes its numbers from the first batch that it sees."""
    return _constant(layer, x, back) if layer.data_dep_init_done else None


_FLOWS = "normflows.flows."
_AFFINE = _FLOWS + "affine.coupling."
_SPLINES = _FLOWS + "neural_spline."
_PERMUTE = {
    _FLOWS + "mixing.Permute": _permute,
    _FLOWS + "mixing.LULinearPermute": TurnedWay(("permutation", "linear")),
    _FLOWS + "mixing._RandomPermutation": permuted,
    _FLOWS + "mixing._LULinear": lu_linear,
    _SPLINES + "wrapper.AutoregressiveRationalQuadraticSpline": InverseWay("mprqat"),
    _SPLINES + "wrapper.CoupledRationalQuadraticSpline": InverseWay("prqct"),
}
_CONSTANT = {_FLOWS + "normalization.ActNorm": _act_norm, _AFFINE + "AffineConstFlow": _constant}
# With a context, which constant layers and couplings do not take.
_KINDS = {False: kinds(_PERMUTE | _CONSTANT, {coupling_inverse: NetworkWay(turned=True)}), True: kinds(_PERMUTE)}


class _Flow:
    """The methods of NormalizingFlow, and of its conditional twin, which hands every layer a context."""

    def __init__(self, conditional: bool) -> None:
        self.conditional = conditional

    def extra(self, context: Any) -> dict[str, Any]:
        return {"context": context} if self.conditional else {}

    def run(self, flow: Any, z: Tensor, context: Any, back: bool, normal: bool = False) -> tuple[Tensor, Tensor]:
        """Through all layers; ``normal``: with the density of the base."""
        extra, kind_of, base = self.extra(context), _KINDS[self.conditional], flow._modules["q0"]

        def alone(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            layer, back = part
            return layer.inverse(x, **extra) if back else layer(x, **extra)

        end = _base_step(base, z) if normal else None
        run = Run(z, context, alone, "output" if end is not None else None)
        inner = list(flow._modules["flows"]._modules.values())
        for layer in reversed(inner) if back else inner:
            spread(run, kind_of, layer, back)
        if end is not None:
            run.add(end)
        z, log_det = run.end()
        log_det = log_det.expand(len(z)) if log_det.dim() == 0 else log_det  # all layers gave one number for all rows
        return z, log_det + base.log_prob(z, **extra).to(log_det.dtype) if normal and end is None else log_det

    def methods(self) -> dict[str, Any]:
        """The methods that take a context; those of the unconditional class do not."""
        run, extra, conditional = self.run, self.extra, self.conditional

        def forward(self: Any, z: Tensor, context: Any = None) -> Any:
            return run(self, z, context, False)[0] if _joinable(z, context) else own(self, "forward")(self, z, **extra(context))

        def inverse(self: Any, x: Tensor, context: Any = None) -> Any:
            return run(self, x, context, True)[0] if _joinable(x, context) else own(self, "inverse")(self, x, **extra(context))

        def forward_and_log_det(self: Any, z: Tensor, context: Any = None) -> Any:
            if not _joinable(z, context):
                return own(self, "forward_and_log_det")(self, z, **extra(context))
            z, log_det = run(self, z, context, False)
            return z, _as_default(log_det)

        def inverse_and_log_det(self: Any, x: Tensor, context: Any = None) -> Any:
            if not _joinable(x, context):
                return own(self, "inverse_and_log_det")(self, x, **extra(context))
            z, log_det = run(self, x, context, True)
            return z, _as_default(log_det)

        def log_prob(self: Any, x: Tensor, context: Any = None) -> Any:
            if not _joinable(x, context):
                return own(self, "log_prob")(self, x, **extra(context))
            return run(self, x, context, True, normal=True)[1]

        def forward_kld(self: Any, x: Tensor, context: Any = None) -> Any:
            if not _joinable(x, context):
                return own(self, "forward_kld")(self, x, **extra(context))
            return -torch.mean(_as_default(run(self, x, context, True, normal=True)[1]))

        def sample(self: Any, num_samples: int = 1, context: Any = None) -> Any:
            z, log_q = self.q0(num_samples, **extra(context))
            if _joinable(z, context):
                z, log_det = run(self, z, context, False)
                return z, log_q - log_det.to(log_q.dtype)
            for flow in self.flows:
                z, log_det = flow(z, **extra(context))
                log_q = log_q - log_det
            return z, log_q

        def reverse_kld(self: Any, num_samples: int = 1, context: Any = None, beta: float = 1.0, score_fn: bool = True) -> Any:
            if not score_fn:
                return own(self, "reverse_kld")(self, num_samples, **extra(context), beta=beta, score_fn=score_fn)
            z, log_q = self.sample(num_samples, **extra(context))
            return torch.mean(log_q) - beta * torch.mean(self.p.log_prob(z, **extra(context)))

        made = (forward, inverse, forward_and_log_det, inverse_and_log_det, log_prob, forward_kld, sample, reverse_kld)
        return {f.__name__: f if conditional else _without_context(f) for f in made}


def _without_context(method: Any) -> Any:
    """With the signature of the unconditional class."""
    if method.__name__ == "reverse_kld":

        def reverse_kld(self: Any, num_samples: int = 1, beta: float = 1.0, score_fn: bool = True) -> Any:
            return method(self, num_samples, None, beta, score_fn)

        return reverse_kld
    if method.__name__ == "sample":

        def sample(self: Any, num_samples: int = 1) -> Any:
            return method(self, num_samples)

        return sample
    names = "z" if method.__name__.startswith("forward") and method.__name__ != "forward_kld" else "x"
    return {"z": lambda self, z: method(self, z), "x": lambda self, x: method(self, x)}[names]


def _joinable(z: Any, context: Any) -> bool:
    return rows_joinable(z, context) and len(z) > 0


def _as_default(log_det: Tensor) -> Tensor:
    """normflows sums log-determinants in the default dtype."""
    return log_det.to(torch.get_default_dtype())


def _base_step(base: Any, z: Tensor) -> ops.Step | None:
    """What takes samples of a diagonal Gaussian to those of the standard normal."""
    held = vars(base)
    if _GAUSSIAN(type(base)) is None or "log_prob" in held or held["n_dim"] != 1 or held["shape"][0] != z.shape[1]:
        return None
    loc, log_scale, temperature = parameter_of(base, "loc"), parameter_of(base, "log_scale"), held["temperature"]
    if log_scale is None:
        return None
    return elementwise(z, True, loc, (log_scale if temperature is None else log_scale + math.log(temperature)).exp())


_GAUSSIAN = kinds({"normflows.distributions.base.DiagGaussian": True})


def _container(names: Sequence[str], joined: Mapping[str, Any] | None = None) -> Container:
    """A model with layers, or lists of layers, in ``flows``; ``names``: methods that loop over them beside those that join."""
    methods = reversibly(names, "flows", functools.partial(spread_out, _KINDS[False]), joined)
    return Container(methods, joins=joined is not None, stacks=True)


NORMFLOWS = Library(
    name="normflows",
    tested=("1.7", "1.8"),
    layers={
        "normflows.flows.affine.autoregressive.MaskedAffineAutoregressive": Layer(read, evaluate, METHODS),
        _SPLINES + "autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": Layer(read_spline, evaluate, METHODS),
        _AFFINE + "AffineCouplingBlock": Layer(read_block, evaluate_coupling, _COUPLING),
        _AFFINE + "MaskedAffineFlow": Layer(read_masked, evaluate_coupling, _COUPLING),
        _SPLINES + "coupling.PiecewiseRationalQuadraticCoupling": spline_coupling("normflows.nets.resnet."),
        _SPLINES + "coupling.PiecewiseRationalQuadraticCDF": ELEMENTWISE_SPLINE,
    },
    left_alone={
        "normflows.flows.affine.autoregressive.Autoregressive": SPLINE,
        _AFFINE + "AffineCoupling": "outside of an AffineCouplingBlock it takes a list of two parts, which no operator does",
        "normflows.flows.normalization.BatchNorm": NORM,
        "normflows.flows.normalization.ActNorm": NORM,
        "normflows.flows.mixing.Permute": PERMUTATION,
    },
    containers={
        "normflows.core.NormalizingFlow": _container(("reverse_alpha_div",), _Flow(conditional=False).methods()),
        "normflows.core.ConditionalNormalizingFlow": _container((), _Flow(conditional=True).methods()),
        "normflows.core.ClassCondFlow": _container(("forward_kld", "sample", "log_prob")),
        "normflows.core.MultiscaleFlow": _container(("forward_and_log_det", "inverse_and_log_det", "sample", "log_prob")),
    },
)
