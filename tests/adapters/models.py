"""Whole models of other libraries, and what people call on them: each call gives tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peers import freia_subnet, settle
from torch import Tensor, nn

Use = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Model:
    """A model, and its uses by name; ``joined`` says how many native calls one takes, 1 where it is not said."""

    make: Callable[[], Any]
    features: int
    context: int
    uses: dict[str, Use]
    joined: int = 1

    def arguments(self, rows: int = 7) -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(rows, self.features, generator=generator, dtype=torch.float64)
        return x, torch.randn(rows, self.context, generator=generator, dtype=torch.float64) if self.context else None


def tuple_of(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def seeded(use: Use) -> Use:
    """For samples: with the same noise, which the libraries draw in the default dtype."""

    def drawn(model: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
        default = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)
        try:
            torch.manual_seed(5)
            return tuple_of(use(model, x, c))
        finally:
            torch.set_default_dtype(default)

    return drawn


# -- zuko -------------------------------------------------------------------------------------------------------------

ZUKO: dict[str, Use] = {
    "log_prob": lambda m, x, c: (m(c).log_prob(x),),
    "rsample": seeded(lambda m, x, c: m(c).rsample((3,))),
    "rsample_and_log_prob": seeded(lambda m, x, c: m(c).rsample_and_log_prob((3,))),
    "call_and_ladj": lambda m, x, c: m.transform(c).call_and_ladj(x),
    "call": lambda m, x, c: (m(c).transform(x),),
    "log_abs_det_jacobian": lambda m, x, c: (m.transform(c).log_abs_det_jacobian(x, None),),
    "inv": lambda m, x, c: m.transform(c).inv.call_and_ladj(x),
    "inverse": lambda m, x, c: (m(c).transform.inv(x), m(c).transform._inverse(x)),
}


def zuko_flow(kind: str, context: int = 0, joined: int = 1, **options: Any) -> Model:
    def make() -> Any:
        import zuko

        options_of = {"transforms": 3, "hidden_features": [16, 16], "activation": nn.Tanh, **options}
        return settle(getattr(zuko.flows, kind)(5, context, **options_of)).double()

    return Model(make, 5, context, ZUKO, joined)


def zuko_mixed(first: str) -> Model:
    """A standardisation and a permutation, an inverted flow inside, a base with a location; ``first`` may be another layer."""

    def make() -> Any:
        import zuko
        from zuko.transforms import PermutationTransform, SoftclipTransform

        made = [zuko.flows.MaskedAutoregressiveTransform(5, 2, hidden_features=[16], activation=nn.Tanh) for _ in range(3)]
        shift, scale = torch.randn(5), torch.rand(5) + 0.5
        layers = [
            zuko.flows.UnconditionalTransform(torch.distributions.AffineTransform, loc=shift, scale=scale, buffer=True),
            made[0],
            zuko.flows.UnconditionalTransform(PermutationTransform, torch.tensor([3, 0, 4, 1, 2]), buffer=True),
            zuko.lazy.LazyComposedTransform(made[1], zuko.lazy.LazyInverse(made[2])),
        ]
        if first == "softclip":
            layers.insert(2, zuko.flows.UnconditionalTransform(SoftclipTransform, bound=50.0))
        base = zuko.flows.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.randn(5), torch.rand(5) + 0.5)
        return settle(zuko.flows.Flow(layers, base)).double()

    return Model(make, 5, 2, ZUKO, 1 if first == "none" else 2)


# -- nflows, glasflow -------------------------------------------------------------------------------------------------


def flow_forward(m: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    return m._transform(x, None if c is None else m._embedding_net(c))


def flow_inverse(m: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    return m._transform.inverse(x, None if c is None else m._embedding_net(c))


NFLOWS: dict[str, Use] = {
    "log_prob": lambda m, x, c: (m.log_prob(x, c),),
    "sample": seeded(lambda m, x, c: m.sample(3, c)),
    "sample_and_log_prob": seeded(lambda m, x, c: m.sample_and_log_prob(3, c)),
    "forward": flow_forward,
    "inverse of the transform": flow_inverse,
}


def nflows_flow(root: str, context: int = 0, made: str = "maf", base: str = "standard", joined: int = 1) -> Model:
    """As sbi builds it: standardisation, layers and permutations, an embedding of the context; and with other neighbours."""

    def make() -> Any:
        import importlib

        transforms, flows = importlib.import_module(root + ".transforms"), importlib.import_module(root + ".flows")
        normal = importlib.import_module(root + ".distributions.normal")

        def layer(**options: Any) -> Any:
            given = {"activation": torch.tanh, "context_features": context or None, **options}
            return transforms.MaskedAffineAutoregressiveTransform(5, 24, num_blocks=2, **given)

        def coupling(parity: int, **network: Any) -> Any:
            resnet = importlib.import_module(root + ".nn.nets").ResidualNet

            def net(inputs: int, outputs: int) -> Any:
                return resnet(inputs, outputs, 16, context or None, activation=torch.tanh, **network)

            mask = [(i + parity) % 2 for i in range(5)]
            options = {"num_bins": 4, "tails": "linear", "tail_bound": 2.0}
            return transforms.PiecewiseRationalQuadraticCouplingTransform(mask, net, **options)

        standardize = transforms.PointwiseAffineTransform(shift=torch.randn(5), scale=torch.rand(5) + 0.5)
        plain = {"use_residual_blocks": False}
        layers = [
            standardize,
            layer(**plain),
            transforms.RandomPermutation(5),
            layer(),
            transforms.ReversePermutation(5),
            layer(),
        ]
        if made in ("norms", "with SVDLinear"):
            norm = transforms.ActNorm(5)
            norm.initialized.fill_(True)
            inner = transforms.CompositeTransform([layer(use_batch_norm=True), norm])
            layers += [
                transforms.InverseTransform(inner),
                transforms.BatchNorm(5),
                transforms.PointwiseAffineTransform(0.3, 1.7),
            ]
        if made == "with SVDLinear":
            layers.insert(2, transforms.SVDLinear(5, num_householder=2))
        if made.startswith("splines"):  # as sbi's nsf, with layers of other kinds around
            layers = [standardize, coupling(0), transforms.LULinear(5), layer(), coupling(1), transforms.LULinear(5)]
        if made == "splines, one after a norm":
            layers.append(coupling(0, use_batch_norm=True))
        embedding = nn.Sequential(nn.Linear(3, context), nn.Tanh()) if context else None
        noise = normal.StandardNormal((5,)) if base == "standard" else normal.DiagonalNormal((5,))
        flow = settle(flows.Flow(transforms.CompositeTransform(layers), noise, embedding)).double()
        for m in flow.modules():
            if type(m).__name__ == "BatchNorm":
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
        return flow

    uses = {k: use for k, use in NFLOWS.items() if base == "standard" or not k.startswith("sample")}  # which others cannot
    return Model(make, 5, 3 if context else 0, uses, joined)


GLASFLOW: dict[str, Use] = {
    "log_prob": lambda m, x, c: (m.log_prob(x, c),),
    "sample": seeded(lambda m, x, c: (m.sample(7, c),)),
    "forward": lambda m, x, c: m(x, c),
    "backward": lambda m, x, c: m.inverse(x, c),
}


def glasflow_flow() -> Model:
    def make() -> Any:
        from glasflow.flows import MaskedAffineAutoregressiveFlow

        options = {"n_conditional_inputs": 3, "activation": torch.tanh, "batch_norm_between_transforms": False}
        return settle(MaskedAffineAutoregressiveFlow(5, 2, n_neurons=16, **options)).double()

    return Model(make, 5, 3, GLASFLOW)


# -- normflows --------------------------------------------------------------------------------------------------------


def extra(c: Tensor | None) -> dict[str, Any]:
    return {} if c is None else {"context": c}


NORMFLOWS: dict[str, Use] = {
    "log_prob": lambda m, x, c: (m.log_prob(x, **extra(c)),),
    "forward_kld": seeded(lambda m, x, c: (m.forward_kld(x, **extra(c)),)),
    "sample": seeded(lambda m, x, c: m.sample(7, **extra(c))),
    "reverse_kld": seeded(lambda m, x, c: (m.reverse_kld(7, **extra(c)),)),
    "forward": lambda m, x, c: (m(x, **extra(c)),),
    "backward": lambda m, x, c: (m.inverse(x, **extra(c)),),
    "forward_and_log_det": seeded(lambda m, x, c: m.forward_and_log_det(x, **extra(c))),
    "inverse_and_log_det": seeded(lambda m, x, c: m.inverse_and_log_det(x, **extra(c))),
}


class Target(nn.Module):
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return -z.square().sum(-1)


def normflows_flow(context: int = 0, made: str = "maf", joined: int = 1) -> Model:
    def make() -> Any:
        import normflows as nf

        options = {"context_features": context or None, "num_blocks": 2, "activation": torch.tanh}
        flows: list[Any] = []
        for mode in ("shuffle", "swap", "shuffle"):
            flows += [nf.flows.MaskedAffineAutoregressive(5, 24, **options), nf.flows.Permute(5, mode)]
        if made == "couplings":
            mask = torch.tensor([1.0, 0, 0, 1, 0])
            networks = [
                nn.Sequential(nn.Linear(i, 16), nn.Tanh(), nn.Linear(16, o)) for i, o in ((3, 4), (5, 5), (5, 5), (2, 6))
            ]
            flows = [
                nf.flows.AffineCouplingBlock(networks[0]),
                nf.flows.Permute(5, "swap"),
                nf.flows.MaskedAffineFlow(mask, *networks[1:3]),
                nf.flows.AffineCouplingBlock(networks[3], scale_map="sigmoid", split_mode="channel_inv"),
            ]
        if made in ("norms", "couplings"):
            norm = nf.flows.ActNorm(5)
            norm.data_dep_init_done.fill_(1)
            flows += [norm, nf.flows.affine.coupling.AffineConstFlow(5, scale=False)]
        if made == "with InvertibleAffine":
            flows.insert(2, nf.flows.InvertibleAffine(5))
        if made == "splines":
            given = {"num_context_channels": context or None, "tail_bound": 2.0, "activation": nn.Tanh}
            couplings = [nf.flows.CoupledRationalQuadraticSpline(5, 2, 16, reverse_mask=r, **given) for r in (False, True)]
            flows = [couplings[0], nf.flows.LULinearPermute(5), couplings[1], nf.flows.LULinearPermute(5)]
        q0 = nf.distributions.DiagGaussian(5)
        if made == "another base":
            q0 = nf.distributions.GaussianMixture(3, 5)
        if made == "temperature":
            q0.temperature = 0.7
        flow = nf.ConditionalNormalizingFlow if context else nf.NormalizingFlow
        return settle(flow(q0, flows, Target())).double()

    # The samples of a mixture cannot be differentiated in the library, which writes into what its graph needs.
    drawn = ("sample", "reverse_kld") if made == "another base" else ()
    return Model(make, 5, context, {k: use for k, use in NORMFLOWS.items() if k not in drawn}, joined)


# -- Pyro -------------------------------------------------------------------------------------------------------------


def conditioned(m: Any, c: Tensor | None) -> Any:
    return m if c is None else m.condition(c)


def drawn_and_scored(m: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    d = conditioned(m, c)
    y = d.rsample(x.shape[: 1 if c is None else 0])
    return y, d.log_prob(y)


PYRO: dict[str, Use] = {
    "log_prob": seeded(lambda m, x, c: (conditioned(m, c).log_prob(x + 0),)),
    "rsample": seeded(lambda m, x, c: (conditioned(m, c).rsample(x.shape[: 1 if c is None else 0]),)),
    "rsample and log_prob": seeded(drawn_and_scored),
}


def pyro_flow(context: int = 0, made: str = "iaf") -> Model:
    def make() -> Any:
        import pyro.distributions as dist
        from pyro.distributions import transforms as t

        def layer(inverse: bool = False, **options: Any) -> Any:
            if context:
                return settle(t.conditional_affine_autoregressive(5, context, [16, 16], **options)).double()
            found = settle(t.affine_autoregressive(5, [16, 16], **options)).double()
            return found.inv if inverse else found

        def coupling() -> Any:
            if context:
                return settle(t.conditional_affine_coupling(5, context, [16])).double()
            return settle(t.affine_coupling(5, [16])).double()

        layers = [layer(), layer(stable=True), t.Permute(torch.tensor([3, 0, 4, 1, 2])), layer()]
        if made == "couplings":
            layers[1:2] = [coupling(), coupling()]
        if made == "norms":
            norm = settle(t.BatchNorm(5)).double()
            norm.moving_mean.normal_(0, 0.3)
            norm.moving_variance.uniform_(0.5, 2)
            affine = [t.AffineTransform(torch.randn(5).double(), torch.rand(5).double() + 0.5), t.AffineTransform(0.3, 1.7)]
            layers = [layer(True), affine[0], norm.eval(), t.ComposeTransform([layer(), layer(True)]).inv, *affine]
        loc, scale = torch.randn(5).double(), torch.rand(5).double() + 0.5
        if made == "another base":
            base = dist.Normal(loc.expand(7, 5) if context else loc, scale).to_event(1).mask(True)
        else:
            base = dist.Normal(loc.expand(7, 5), scale.expand(7, 5)) if context else dist.Normal(loc, scale)
        if context:
            return dist.ConditionalTransformedDistribution(base, layers)
        return dist.TransformedDistribution(base, layers)

    return Model(make, 5, context, PYRO)


# -- FrEIA ------------------------------------------------------------------------------------------------------------

FREIA: dict[str, Use] = {
    "forward": lambda m, x, c: m(x, c=c if c is None else [c]),
    "backward": lambda m, x, c: m(x, c=c if c is None else [c], rev=True),
}


def freia_sequence() -> Model:
    def make() -> Any:
        import FrEIA.modules as modules
        from FrEIA.framework import SequenceINN

        sequence = SequenceINN(5)
        for name in (
            "NICECouplingBlock",
            "PermuteRandom",
            "GLOWCouplingBlock",
            "ActNorm",
            "AllInOneBlock",
            "AffineCouplingOneSided",
            "RNVPCouplingBlock",
        ):
            clamp = {"clamp_activation": "TANH"} if name == "AffineCouplingOneSided" else {}
            options = {} if name in ("PermuteRandom", "ActNorm") else {"subnet_constructor": freia_subnet, **clamp}
            sequence.append(getattr(modules, name), **options)
        sequence.module_list[3].init_on_next_batch = False
        return settle(sequence).double()

    return Model(make, 5, 0, FREIA)


def freia_graph() -> Model:
    """With conditions."""

    def make() -> Any:
        import FrEIA.modules as modules
        from FrEIA.framework import ConditionNode, GraphINN, InputNode, Node, OutputNode

        condition = ConditionNode(3)
        nodes = [InputNode(5)]
        for name in (
            "NICECouplingBlock",
            "AllInOneBlock",
            "ConditionalAffineTransform",
            "GLOWCouplingBlock",
            "RNVPCouplingBlock",
        ):
            options = {"subnet_constructor": freia_subnet}
            nodes.append(Node(nodes[-1], getattr(modules, name), options, conditions=condition))
        return settle(GraphINN([*nodes, condition, OutputNode(nodes[-1])])).double()

    return Model(make, 5, 3, FREIA)


MODELS = {
    "FrEIA: sequence": freia_sequence(),
    "FrEIA: graph": freia_graph(),
    "pyro: couplings": pyro_flow(3, made="couplings"),
    "normflows: couplings": normflows_flow(made="couplings"),
    "pyro: IAF": pyro_flow(),
    "pyro: norms": pyro_flow(made="norms"),
    "pyro: another base": pyro_flow(made="another base"),
    "pyro: context": pyro_flow(3),
    "normflows: MAF": normflows_flow(),
    "normflows: context": normflows_flow(3),
    "normflows: norms": normflows_flow(made="norms"),
    "normflows: with a layer between": normflows_flow(made="with InvertibleAffine", joined=2),
    "normflows: splines": normflows_flow(3, made="splines"),
    "normflows: another base": normflows_flow(made="another base"),
    "normflows: temperature": normflows_flow(made="temperature"),
    "nflows: MAF": nflows_flow("nflows"),
    "nflows: context": nflows_flow("nflows", 4),
    "nflows: norms": nflows_flow("nflows", 4, "norms"),
    "nflows: with a layer between": nflows_flow("nflows", 0, "with SVDLinear", joined=2),
    "nflows: splines": nflows_flow("nflows", 4, "splines"),
    "nflows: another base": nflows_flow("nflows", 4, base="diagonal"),
    "glasflow: its own flow": glasflow_flow(),
    "glasflow: context": nflows_flow("glasflow.nflows", 4, "norms"),
    "glasflow: splines": nflows_flow("glasflow.nflows", 4, "splines, one after a norm"),
    "zuko: MAF": zuko_flow("MAF"),
    "zuko: context": zuko_flow("MAF", 3),
    "zuko: random orders": zuko_flow("MAF", 3, randperm=True),
    "zuko: circular": zuko_flow("NCSF", 2),
    "zuko: couplings": zuko_flow("NICE", 3),
    "zuko: couplings with conditioners of their own": zuko_flow("NICE", 3, joined=0, activation=nn.Softsign),
    "zuko: mixed": zuko_mixed("none"),
    "zuko: with a layer between": zuko_mixed("softclip"),
}
