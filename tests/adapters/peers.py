"""Layers of other libraries: every supported class with every option that changes what it computes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Peer:
    """A layer, how to make it, and how its library calls it; both directions give (y, log_det)."""

    make: Callable[[], Any]
    features: int
    context: int
    forward: Call
    inverse: Call


def settle(model: nn.Module) -> nn.Module:
    """Weights that are not at their initial zeros, statistics that are not those of a new batch norm; evaluation mode."""
    for p in model.parameters():
        if p.requires_grad:  # others are no weights
            p.data += 0.05 * torch.randn_like(p)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    return model.eval()


# -- zuko -------------------------------------------------------------------------------------------------------------


def zuko_forward(model: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model(c).call_and_ladj(x)


def zuko_inverse(model: Any, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model(c).inv.call_and_ladj(z)


def zuko_inverse_on_circles(model: Any, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return zuko_inverse(model, 3 * torch.tanh(z / 3), c)  # inside of its interval


def zuko_layer(features: int = 6, context: int = 0, **options: Any) -> Peer:
    def make() -> Any:
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform

        given = {"hidden_features": (24, 20), "activation": nn.Tanh, **options}
        if "slope" in given:
            from zuko.transforms import MonotonicAffineTransform

            given["univariate"] = functools.partial(MonotonicAffineTransform, slope=given.pop("slope"))
        return settle(MaskedAutoregressiveTransform(features, context, **given))

    return Peer(make, features, context, zuko_forward, zuko_inverse)


def zuko_spline(features: int = 6, context: int = 0, bins: int = 5, **options: Any) -> Peer:
    def make() -> Any:
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        from zuko.flows.spline import CircularRQSTransform
        from zuko.transforms import MonotonicRQSTransform

        given = {"hidden_features": (24, 20), "activation": nn.Tanh, **options}
        constants = {name: given.pop(name) for name in ("bound", "slope") if name in given}
        shapes = [(bins,), (bins,), (bins - 1,)]
        kind = CircularRQSTransform if given.pop("circular", False) else MonotonicRQSTransform
        univariate = functools.partial(kind, **constants)
        return settle(MaskedAutoregressiveTransform(features, context, univariate=univariate, shapes=shapes, **given))

    return Peer(make, features, context, zuko_forward, zuko_inverse_on_circles if options.get("circular") else zuko_inverse)


def zuko_coupling(features: int = 6, context: int = 0, bins: int = 0, **options: Any) -> Peer:
    """With splines of so many bins, or affine."""

    def make() -> Any:
        from zuko.flows.coupling import GeneralCouplingTransform
        from zuko.transforms import MonotonicRQSTransform

        if bins:
            options.update(univariate=MonotonicRQSTransform, shapes=[(bins,), (bins,), (bins - 1,)])
        given = {"hidden_features": (24, 20), "activation": nn.Tanh, **options}
        return settle(GeneralCouplingTransform(features, context, **given))

    return Peer(make, features, context, zuko_forward, zuko_inverse)


ADJACENCY = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
ZUKO = {
    "default": zuko_layer(),
    "relu": zuko_layer(activation=None),
    "context": zuko_layer(context=3),
    "reverse": zuko_layer(order=torch.arange(6).flip(0)),
    "random order": zuko_layer(order=torch.tensor([3, 0, 5, 1, 4, 2])),
    "coupling": zuko_layer(passes=2),
    "three passes": zuko_layer(passes=3, context=2),
    "adjacency": zuko_layer(4, adjacency=ADJACENCY),
    "adjacency with context": zuko_layer(4, 2, adjacency=torch.cat([ADJACENCY, torch.eye(4, 2, dtype=torch.bool)], 1)),
    "residual": zuko_layer(hidden_features=(24, 24, 24), residual=True),
    "residual, uneven": zuko_layer(hidden_features=(24, 30), residual=True, context=2),
    "elu": zuko_layer(activation=functools.partial(nn.ELU, alpha=0.7)),
    "slope": zuko_layer(slope=0.1),
    "two parts": zuko_coupling(),
    "two parts, context": zuko_coupling(5, 3, mask=torch.tensor([1, 1, 0, 1, 0])),
    "two parts, one layer": zuko_coupling(hidden_features=()),
    "two parts, normalised": zuko_coupling(context=2, normalize=True),
    "two parts, splines": zuko_coupling(5, 2, bins=4),
    "spline": zuko_spline(),
    "spline, context": zuko_spline(context=2, hidden_features=(24,)),
    "spline, bound and slope": zuko_spline(bins=3, bound=1.5, slope=1e-2),
    "spline, circular": zuko_spline(context=2, circular=True, slope=1e-2),
}

# -- nflows, glasflow, normflows --------------------------------------------------------------------------------------


def pair_forward(model: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model(x) if c is None else model(x, c)


def pair_inverse(model: Any, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model.inverse(z) if c is None else model.inverse(z, c)


def made_layer(module: str, name: str, features: int = 6, context: int = 0, **options: Any) -> Peer:
    def make() -> Any:
        cls = getattr(__import__(module, fromlist=[name]), name)
        given = {"activation": torch.tanh, "context_features": context or None, **options}
        return settle(cls(features=features, hidden_features=24, **given))

    return Peer(make, features, context, pair_forward, pair_inverse)


def made_layers(module: str, name: str) -> dict[str, Peer]:
    layer = functools.partial(made_layer, module, name)
    return {
        "residual": layer(),
        "relu": layer(activation=torch.relu),
        "plain": layer(use_residual_blocks=False),
        "plain, random masks": layer(use_residual_blocks=False, random_mask=True),
        "no blocks": layer(num_blocks=0),
        "plain, no blocks": layer(num_blocks=0, use_residual_blocks=False),
        "one feature": layer(1),
        "batch norm": layer(use_batch_norm=True),
        "plain, batch norm": layer(use_batch_norm=True, use_residual_blocks=False),
        "dropout": layer(dropout_probability=0.3),
    }


def contextual(module: str, name: str) -> dict[str, Peer]:
    layer = functools.partial(made_layer, module, name, context=3)
    return {
        "context": layer(),
        "plain, context": layer(use_residual_blocks=False),
        "batch norm, context": layer(use_batch_norm=True),
    }


def made_splines(module: str) -> dict[str, Peer]:
    layer = functools.partial(made_layer, module, "MaskedPiecewiseRationalQuadraticAutoregressiveTransform", tails="linear")
    return {
        "spline": layer(num_bins=4, tail_bound=3.0),
        "spline, plain": layer(use_residual_blocks=False, num_bins=5, tail_bound=2.0),
        "spline, context": layer(context=3, num_bins=3, tail_bound=3.0, min_bin_width=1e-2, min_derivative=1e-4),
    }


def nflows_coupling(root: str, context: int = 0, kind: str = "PiecewiseRationalQuadratic", **options: Any) -> Peer:
    def make() -> Any:
        coupling = getattr(importlib.import_module(root + ".transforms.coupling"), kind + "CouplingTransform")
        net = functools.partial(
            importlib.import_module(root + ".nn.nets").ResidualNet,
            hidden_features=20,
            context_features=context or None,
            activation=torch.tanh,
        )
        given = {"num_bins": 5, "tails": "linear", "tail_bound": 3.0, **options} if kind.startswith("Piece") else options
        return settle(coupling([1, 0, 1, 0, 1], net, **given))

    return Peer(make, 5, context, pair_forward, pair_inverse)


def normflows_spline(name: str, context: int = 0, **options: Any) -> Peer:
    def make() -> Any:
        given = {"num_context_channels": context or None, "activation": nn.Tanh, **options}
        return settle(getattr(importlib.import_module("normflows.flows"), name)(5, 2, 20, **given))

    return Peer(make, 5, context, pair_inverse, pair_forward)  # its forward is from noise to data


def normflows_coupling(features: int = 5, **options: Any) -> Peer:
    def make() -> Any:
        import normflows as nf

        passing = features // 2
        network = nf.nets.MLP([passing, 20, 16, 2 * (features - passing)], leaky=1.0)  # whose derivative does not jump
        return settle(nf.flows.AffineCouplingBlock(network, **options))

    return Peer(make, features, 0, pair_inverse, pair_forward)


def normflows_masked(mask: list[float]) -> Peer:
    def make() -> Any:
        import normflows as nf

        networks = [nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5)) for _ in range(2)]
        return settle(nf.flows.MaskedAffineFlow(torch.tensor(mask), *networks))

    return Peer(make, 5, 0, pair_inverse, pair_forward)


COUPLINGS = {
    "normflows: coupling": normflows_coupling(split_mode="channel_inv", scale_map="sigmoid"),
    "normflows: coupling, its inverse": normflows_coupling(6, split_mode="checkerboard", scale_map="sigmoid_inv"),
    "normflows: masked": normflows_masked([1, 0, 0, 1, 0]),
    "nflows: coupling": nflows_coupling("nflows", 3, "Affine"),
    "nflows: additive coupling": nflows_coupling("nflows", 0, "Additive"),
    "glasflow: coupling": nflows_coupling("glasflow.nflows", 0, "Affine"),
}
SPLINES = {
    "nflows: spline coupling": nflows_coupling("nflows", 3),
    "nflows: spline coupling, both halves": nflows_coupling("nflows", apply_unconditional_transform=True),
    "glasflow: spline coupling": nflows_coupling("glasflow.nflows"),
    "normflows: spline": normflows_spline("AutoregressiveRationalQuadraticSpline", 3, permute_mask=True),
    "normflows: spline coupling": normflows_spline("CoupledRationalQuadraticSpline", 3),
    "normflows: spline coupling, circular": normflows_spline("CoupledRationalQuadraticSpline", tails="circular"),
    "normflows: spline coupling, mixed": normflows_spline(
        "CircularCoupledRationalQuadraticSpline", ind_circ=[0, 3], tail_bound=torch.tensor([9.0, 8.0, 7.0, 9.0, 6.0])
    ),
}

NFLOWS = "nflows.transforms.autoregressive", "MaskedAffineAutoregressiveTransform"
GLASFLOW = "glasflow.nflows.transforms.autoregressive", "MaskedAffineAutoregressiveTransform"
NORMFLOWS = "normflows.flows.affine.autoregressive", "MaskedAffineAutoregressive"

# -- Pyro -------------------------------------------------------------------------------------------------------------


def pyro_forward(model: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    t = model if c is None else model.condition(c)
    y = t(x)
    return y, t.log_abs_det_jacobian(x, y)


def pyro_inverse(model: Any, y: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    t = model if c is None else model.condition(c)
    x = t.inv(y)
    return x, -t.log_abs_det_jacobian(x, y)


def pyro_spline(context: int = 0, skip: bool = False, order: str = "linear") -> Peer:
    def make() -> Any:
        from pyro.distributions.transforms import ConditionalSplineAutoregressive, SplineAutoregressive
        from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN

        sizes = [4, 4, 3, 4] if order == "linear" else [4, 4, 3]
        common: dict[str, Any] = {"skip_connections": skip, "nonlinearity": nn.Tanh(), "param_dims": sizes}
        options = {"count_bins": 4, "bound": 2.0, "order": order}
        if context:
            return settle(
                ConditionalSplineAutoregressive(6, ConditionalAutoRegressiveNN(6, context, [20, 24], **common), **options)
            )
        return settle(SplineAutoregressive(6, AutoRegressiveNN(6, [20, 24], **common), **options))

    return Peer(make, 6, context, pyro_forward, pyro_inverse)


def pyro_layer(context: int = 0, skip: bool = False, activation: Any = None, **options: Any) -> Peer:
    def make() -> Any:
        from pyro.distributions.transforms import AffineAutoregressive, ConditionalAffineAutoregressive
        from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN

        common = {"skip_connections": skip, "nonlinearity": activation or nn.Tanh()}
        if context:
            net = ConditionalAutoRegressiveNN(6, context, [20, 24], **common)
            return settle(ConditionalAffineAutoregressive(net, **options))
        return settle(AffineAutoregressive(AutoRegressiveNN(6, [20, 24], **common), **options))

    return Peer(make, 6, context, pyro_forward, pyro_inverse)


def pyro_coupling(context: int = 0, **options: Any) -> Peer:
    def make() -> Any:
        from pyro.distributions.transforms import AffineCoupling, ConditionalAffineCoupling
        from pyro.nn import ConditionalDenseNN, DenseNN

        if context:
            net = ConditionalDenseNN(2, context, [20, 24], [4, 4], nn.Tanh())
            return settle(ConditionalAffineCoupling(2, net, **options))
        return settle(AffineCoupling(4, DenseNN(4, [20], [2, 2], nn.Tanh()), **options))

    return Peer(make, 6, context, pyro_forward, pyro_inverse)


def pyro_spline_coupling(order: str = "linear", identity: bool = False) -> Peer:
    def make() -> Any:
        from pyro.distributions.transforms import SplineCoupling
        from pyro.nn import DenseNN

        sizes = [4 * n for n in (4, 4, 3, 4)[: 4 if order == "linear" else 3]]
        return settle(SplineCoupling(6, 2, DenseNN(2, [20], sizes, nn.Tanh()), 4, 2.0, order, identity))

    return Peer(make, 6, 0, pyro_forward, pyro_inverse)


def pyro_elementwise_spline(order: str = "linear") -> Peer:
    def make() -> Any:
        from pyro.distributions.transforms import Spline

        return settle(Spline(6, 4, 2.0, order))

    return Peer(make, 6, 0, pyro_forward, pyro_inverse)


PYRO = {
    "elementwise spline": pyro_elementwise_spline(),
    "spline coupling": pyro_spline_coupling(),
    "spline coupling, quadratic": pyro_spline_coupling("quadratic", identity=True),
    "two parts": pyro_coupling(log_scale_min_clip=-0.05, log_scale_max_clip=0.13),
    "two parts, context": pyro_coupling(3),
    "default": pyro_layer(),
    "relu": pyro_layer(activation=nn.ReLU()),
    "clamped": pyro_layer(log_scale_min_clip=-0.05, log_scale_max_clip=0.13),
    "stable": pyro_layer(stable=True, sigmoid_bias=1.5),
    "skip": pyro_layer(skip=True),
    "skip, stable": pyro_layer(skip=True, stable=True),
    "context": pyro_layer(3),
    "context, stable": pyro_layer(3, stable=True),
    "context, skip": pyro_layer(3, skip=True),
    "spline": pyro_spline(skip=True),
    "spline, context": pyro_spline(3),
    "spline, quadratic": pyro_spline(skip=True, order="quadratic"),
    "spline, quadratic, context": pyro_spline(3, order="quadratic"),
}

# -- FrEIA ------------------------------------------------------------------------------------------------------------


def freia_forward(model: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model(x, c=None if c is None else [c])


def freia_inverse(model: Any, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    return model(z, c=None if c is None else [c], rev=True)


def freia_subnet(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 20), nn.Tanh(), nn.Linear(20, outputs))


def freia_block(name: str, context: int = 0, **options: Any) -> Peer:
    """In a sequence, without which it is not called by the operators."""

    def make() -> Any:
        import FrEIA.framework
        import FrEIA.modules

        sequence = FrEIA.framework.SequenceINN(5)
        given = {"cond": 0, "cond_shape": (context,)} if context else {}
        sequence.append(getattr(FrEIA.modules, name), subnet_constructor=freia_subnet, **given, **options)
        return settle(sequence)

    return Peer(make, 5, context, freia_forward, freia_inverse)


FREIA = {
    "all in one, context": freia_block("AllInOneBlock", 3, global_affine_type="SIGMOID", affine_clamping=1.3),
    "RealNVP": freia_block("RNVPCouplingBlock", clamp_activation="SIGMOID", clamp=1.5),
}

PEERS = {
    **{f"zuko: {name}": peer for name, peer in ZUKO.items()},
    **{f"nflows: {name}": peer for name, peer in {**made_layers(*NFLOWS), **contextual(*NFLOWS)}.items()},
    **{f"nflows: {name}": peer for name, peer in made_splines(NFLOWS[0]).items()},
    "glasflow: spline": made_splines(GLASFLOW[0])["spline"],
    **{f"glasflow: {name}": (made_layers(*GLASFLOW) | contextual(*GLASFLOW))[name] for name in ("residual", "plain, context")},
    **{f"normflows: {name}": peer for name, peer in made_layers(*NORMFLOWS).items()},
    "normflows: context": contextual(*NORMFLOWS)["context"],
    "normflows: batch norm, context": contextual(*NORMFLOWS)["batch norm, context"],
    **{f"pyro: {name}": peer for name, peer in PYRO.items()},
    **{f"FrEIA: {name}": peer for name, peer in FREIA.items()},
    **COUPLINGS,
    **SPLINES,
}
