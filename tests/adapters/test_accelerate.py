"""accelerate, explain and restore: what they find, what they keep, what they leave alone and why."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import PEERS, Peer
from torch import nn
from torch.nn.utils import parametrize

import flowkern as fk
from flowkern.adapters import engine, library, state
from flowkern.univariate import Affine

zuko = pytest.importorskip("zuko")
nflows_autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
pyro = pytest.importorskip("pyro")
nf = pytest.importorskip("normflows")

EACH = pytest.mark.parametrize(
    "name", ["zuko: context", "nflows: context", "normflows: residual", "pyro: stable", "pyro: context"]
)


def nflows_layer(**options: Any) -> Any:
    return nflows_autoregressive.MaskedAffineAutoregressiveTransform(5, 16, **options)


def nflows_spline(**options: Any) -> Any:
    return nflows_autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(5, 16, **options)


def status(model: Any) -> list[str]:
    return [row[2] for row in fk.explain(model).rows]


def both(peer: Peer, layer: Any, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, peer.features, generator=generator)
    c = torch.randn(5, peer.context, generator=generator) if peer.context else None
    return [*peer.forward(layer, x, c), *peer.inverse(layer, x, c)]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- in place ---------------------------------------------------------------------------------------------------------


@EACH
def test_what_a_layer_keeps(name: str) -> None:
    peer = PEERS[name]
    layer = peer.make()
    cls, parameters, keys, shown = type(layer), list(layer.parameters()), list(layer.state_dict()), repr(layer)
    expected = both(peer, layer)
    attributes = set(vars(layer))
    assert fk.accelerate(layer) is layer
    assert isinstance(layer, cls)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == keys
    assert repr(layer) == shown
    assert_same(both(peer, layer), expected)
    accelerated = type(layer)
    fk.accelerate(layer)
    assert type(layer) is accelerated, "twice is once"
    layer.double().float()
    assert_same(both(peer, layer), expected)
    assert status(layer) == ["accelerated"]
    assert fk.restore(layer) is layer
    assert type(layer) is cls
    assert set(vars(layer)) == attributes
    assert_same(both(peer, layer), expected)
    fk.restore(layer)
    assert status(layer) == ["can be accelerated"]


@EACH
def test_copies_are_accelerated_and_pickles_are_the_peers_own(name: str) -> None:
    peer = PEERS[name]
    layer = peer.make()
    fk.accelerate(layer)
    with torch.no_grad():
        expected = both(peer, layer)
        twin = copy.deepcopy(layer)
        assert status(twin) == ["accelerated"]
        assert_same(both(peer, twin), expected)
        next(twin.parameters()).zero_()
        assert_same(both(peer, layer), expected)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(layer, protocol)
            assert b"flowkern" not in data
            loaded = pickle.loads(data)
            assert status(loaded) == ["can be accelerated"]
            assert_same(both(peer, loaded), expected)
        assert status(layer) == ["accelerated"]
        file = io.BytesIO()
        torch.save(nn.ModuleList([layer]), file)
        assert b"flowkern" not in file.getvalue()
        file.seek(0)
        assert_same(both(peer, torch.load(file, weights_only=False)[0]), expected)


@EACH
def test_checkpoints_before_and_after(name: str) -> None:
    peer = PEERS[name]
    plain, other = peer.make(), fk.accelerate(peer.make())
    expected = both(peer, plain)
    other.load_state_dict(plain.state_dict())
    assert_same(both(peer, other), expected)
    again = peer.make()
    again.load_state_dict(other.state_dict())
    assert_same(both(peer, again), expected)


def test_a_checkpoint_brings_its_random_masks() -> None:
    peer = PEERS["nflows: plain, random masks"]
    plain, other = peer.make(), fk.accelerate(peer.make())
    both(peer, other)
    other.load_state_dict(plain.state_dict())
    assert_same(both(peer, other), both(peer, plain))


@EACH
def test_weights_may_change_in_any_way(name: str) -> None:
    peer = PEERS[name]
    layer = fk.accelerate(peer.make())
    both(peer, layer)
    for change in (
        lambda p: p.data.copy_(0.3 * torch.randn_like(p)),
        lambda p: p.detach().mul_(0.9),
        lambda p: setattr(p, "data", 0.2 * torch.randn_like(p)),
    ):
        for p in layer.parameters():
            change(p)
        twin = peer.make()
        twin.load_state_dict(layer.state_dict())
        assert_same(both(peer, layer), both(peer, twin))


def test_random_numbers_are_those_of_the_peer() -> None:
    flow = zuko.flows.MAF(5, 2, transforms=3, randperm=True)
    twin, context = copy.deepcopy(flow), torch.randn(4, 2)
    fk.accelerate(flow)
    found = []
    for model in (flow, twin):
        torch.manual_seed(3)
        sample = model(context).sample((2,))
        found.append((sample, torch.randn(3)))
    assert_same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1]), "the self-check drew from the global generator"


# -- the libraries' own objects ---------------------------------------------------------------------------------------


def test_zuko_batch_shapes_and_types() -> None:
    flow = zuko.flows.MAF(5, 2, transforms=2)
    twin = copy.deepcopy(flow)
    fk.accelerate(flow)
    for x, c in [((5,), (2,)), ((3, 5), (2,)), ((4, 5), (4, 2)), ((3, 4, 5), (4, 2))]:
        x, c = torch.randn(x), torch.randn(c)
        assert_same(flow(c).log_prob(x), twin(c).log_prob(x))
        t, expected = flow.transform.transforms[0](c), twin.transform.transforms[0](c)
        assert isinstance(t, zuko.transforms.AutoregressiveTransform)
        assert_same(pickle.loads(pickle.dumps(t))(x), expected(x))
        assert_same(t.inv(x), expected.inv(x))
        assert_same(t.log_abs_det_jacobian(x, t(x)), expected.log_abs_det_jacobian(x, x))
    assert flow(c).sample().shape == twin(c).sample().shape
    assert str(flow(c)) == str(twin(c))


def test_zuko_inverse_transforms_and_bayesian_models() -> None:
    layer = PEERS["zuko: default"].make()
    iaf = zuko.flows.Flow(layer.inv, zuko.flows.MAF(6).base)
    x = torch.randn(4, 6)
    expected = iaf().log_prob(x)
    fk.accelerate(iaf)
    assert_same(iaf().log_prob(x), expected)
    from zuko.bayesian import BayesianModel

    model = BayesianModel(zuko.flows.MAF(4, transforms=2))
    fk.accelerate(model)
    for trick in (False, True):
        with model.reparameterize(local_trick=trick) as sampled:
            sampled().log_prob(torch.randn(3, 4)).sum().backward()
    sampled = model.sample_model()
    twin = fk.restore(copy.deepcopy(sampled))
    assert_same(sampled().log_prob(x[:, :4]), twin().log_prob(x[:, :4]))


def test_nflows_flows() -> None:
    from nflows import distributions, flows, transforms

    def make() -> Any:
        layers = [transforms.CompositeTransform([transforms.ReversePermutation(5), nflows_layer()]), nflows_layer()]
        return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([5]))

    flow = make()
    twin = copy.deepcopy(flow)
    fk.accelerate(flow)
    x = torch.randn(7, 5)
    assert_same(flow.log_prob(x), twin.log_prob(x))
    torch.manual_seed(0)
    found = flow.sample(6)
    torch.manual_seed(0)
    assert_same(found, twin.sample(6))
    assert any(s.startswith("left alone: a permutation is one gather already") for s in status(flow))


def test_normflows_flows() -> None:
    layers = [nf.flows.MaskedAffineAutoregressive(4, 16, num_blocks=1), nf.flows.LULinearPermute(4)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    twin, x = copy.deepcopy(flow), torch.randn(9, 4)
    fk.accelerate(flow)
    for model in (flow, twin):
        model.zero_grad()
        model.forward_kld(x).backward()
    for a, b in zip(flow.parameters(), twin.parameters(), strict=True):
        assert_same(a.grad, b.grad)


def test_pyro_caches_distributions_and_conditions() -> None:
    import pyro.distributions as dist
    from pyro.distributions.transforms import AffineAutoregressive, ConditionalAffineAutoregressive
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN

    base = dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1)
    transform = AffineAutoregressive(AutoRegressiveNN(4, [8]))
    twin = copy.deepcopy(transform)
    flow = fk.accelerate(dist.TransformedDistribution(base, [transform]))
    assert state.is_accelerated(transform)
    sample = flow.rsample((3,))
    calls = []
    transform.arn.register_forward_hook(lambda *_: calls.append(1))
    cached = flow.log_prob(sample)
    assert not calls, "the density of the last sample comes from the cache"
    assert_same(cached, dist.TransformedDistribution(base, [twin]).log_prob(sample.detach().clone()))
    transform.arn._forward_hooks.clear()
    torch.manual_seed(0)
    found = dist.TransformedDistribution(base, [transform.inv]).sample((2,))
    torch.manual_seed(0)
    assert_same(found, dist.TransformedDistribution(base, [twin.inv]).sample((2,)))

    conditional = ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(4, 2, [8]), stable=True)
    plain, context = copy.deepcopy(conditional), torch.randn(3, 2, requires_grad=True)
    fk.accelerate(conditional)
    x = torch.randn(5, 3, 4)
    for c in (context, context[0]):
        assert_same(conditional.condition(c)(x), plain.condition(c)(x))
        assert_same(conditional.condition(c).inv(x), plain.condition(c).inv(x))
    assert state.is_accelerated(conditional.condition(context))
    flow = dist.ConditionalTransformedDistribution(base, [fk.accelerate(conditional)]).condition(context)
    assert flow.sample((3,)).shape == (3, 4)
    mixed = dist.ConditionalTransformedDistribution(base, [AffineAutoregressive(AutoRegressiveNN(4, [8])), conditional])
    assert [s.split(",")[0] for s in status(fk.accelerate(mixed))] == ["accelerated"] * 2


@pytest.mark.parametrize("model", ["maf", "zuko_maf"])
def test_sbi_posteriors(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    from sbi.inference import NPE

    prior = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    theta = prior.sample((200,))
    inference = NPE(prior=prior, density_estimator=model, show_progress_bars=False)
    inference.append_simulations(theta, theta + 0.3 * torch.randn_like(theta)).train(max_num_epochs=2)
    posterior = inference.build_posterior()
    twin, x = copy.deepcopy(posterior), torch.zeros(3)
    fk.accelerate(posterior)
    samples = []
    for p in (posterior, twin):
        torch.manual_seed(0)
        samples.append(p.sample((20,), x=x, show_progress_bars=False))
    assert_same(samples[0], samples[1])
    assert_same(posterior.log_prob(samples[0], x=x), twin.log_prob(samples[0], x=x))
    assert status(posterior).count("accelerated") == 5


@pytest.mark.parametrize("model", ["maf", "zuko_maf"])
def test_an_sbi_posterior_is_trained_to_the_same_losses(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five epochs of ten steps by sbi's own loop, from one seed."""
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn

    networks: list[torch.nn.Module] = []

    def course(change: Callable[[Any], Any]) -> torch.Tensor:
        def build(*data: Any) -> Any:
            networks.append(change(posterior_nn(model, hidden_features=20)(*data)))
            return networks[-1]

        torch.manual_seed(0)
        theta = torch.randn(560, 3)
        inference = NPE(density_estimator=build, show_progress_bars=False)
        inference.append_simulations(theta, torch.cat([theta.sin(), theta], 1) + 0.3 * torch.randn(560, 6))
        inference.train(training_batch_size=50, max_num_epochs=4, learning_rate=1e-3)
        return torch.tensor(inference.summary["validation_loss"])

    accelerated, own = course(fk.accelerate), course(lambda network: network)
    assert [status(network).count("accelerated") for network in networks] == [5, 0]
    assert len(own) == 5
    assert own[-1] < own[0]
    torch.testing.assert_close(accelerated, own, rtol=1e-6, atol=1e-6)


# -- left alone -------------------------------------------------------------------------------------------------------


class Louder(nflows_autoregressive.MaskedAffineAutoregressiveTransform):
    def forward(self, inputs: Any, context: Any = None) -> Any:
        y, log_det = super().forward(inputs, context)
        return 2 * y, log_det


class Renamed(nflows_autoregressive.MaskedAffineAutoregressiveTransform):
    pass


def replaced() -> Any:
    layer = nflows_layer()
    layer.forward = lambda *_: None
    return layer


def nflows_coupling() -> Any:
    from nflows.transforms import AffineCouplingTransform

    return AffineCouplingTransform([1, -1, 1], lambda inputs, outputs: nn.Linear(inputs, outputs))


def pyro_spline(order: str) -> Any:
    layer = pyro.distributions.transforms.spline_autoregressive(4)
    layer.spline.order = order
    return layer


def zuko_spline_coupling() -> Any:
    shapes = [(4,), (4,), (3,)]
    options = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": shapes, "activation": nn.Softsign}
    return zuko.flows.coupling.GeneralCouplingTransform(4, **options)


def freia_block(name: str, features: int) -> Any:
    from FrEIA import modules

    return getattr(modules, name)([(features,)], subnet_constructor=nn.Linear)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Louder(5, 16), "a subclass that overrides forward"),
        (replaced, "its forward was replaced"),
        (lambda: nflows_layer(activation=torch.sin), "the activation <built-in method sin"),
        (
            lambda: zuko.flows.SOSPF(4, transforms=1).transform,
            "its univariate map .*ShiftedSOSPTransform.* has no operator yet",
        ),
        (lambda: nflows_coupling(), "its network is a Linear: expected nflows.nn.nets.resnet.ResidualNet"),
        (lambda: zuko_spline_coupling(), "its map is a spline, and its network has no operator: the activation Softsign"),
        (lambda: pyro_spline("cubic"), "its splines are of the order 'cubic'"),
        (lambda: zuko.flows.MAF(1, 2, transforms=1).transform, "elementwise"),
        (lambda: nf.flows.MaskedAffineAutoregressive(4, 8).to("meta"), "on the meta device"),
        (lambda: freia_block("GINCouplingBlock", 6), "how its scales are made has no operator"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "no flow layer that flowkern knows"),
    ],
)
def test_reasons(make: Any, reason: str) -> None:
    model = make()
    with pytest.warns(RuntimeWarning, match="found nothing to accelerate. What it saw:\n.*left alone"):
        fk.accelerate(model)
    found = [s for s in status(model) if s.startswith("left alone")]
    assert any(__import__("re").search(reason, s) for s in found), found


def spline_coupling(**options: Any) -> Any:
    coupling = pytest.importorskip("nflows.transforms.coupling").PiecewiseRationalQuadraticCouplingTransform
    network = pytest.importorskip("nflows.nn.nets").ResidualNet
    return coupling([1, 0, 1, 0, 1], lambda i, o: network(i, o, hidden_features=8), num_bins=4, **options)


@pytest.mark.parametrize("make", [nflows_spline, spline_coupling])
def test_a_number_outside_of_a_box_is_the_librarys_error(make: Any) -> None:
    error = pytest.importorskip("nflows.transforms.base").InputOutsideDomain
    layer = make(tails=None)
    x = torch.rand(20, 5)
    expected = [*layer(x), *layer.inverse(x)]
    fk.accelerate(layer)
    assert_same([*layer(x), *layer.inverse(x)], expected)
    assert status(layer) == ["accelerated"]
    x[3, 2] = 1.5
    for call in (layer, layer.inverse):
        with pytest.raises(error):
            call(x)


def test_splines_inside_of_a_coupling() -> None:
    """Both are accelerated and restored; hooks of the network run, which the library calls."""
    layer = spline_coupling(tails="linear", tail_bound=3.0, apply_unconditional_transform=True)
    classes = [type(m) for m in layer.modules()]
    x, seen = 2 * torch.randn(20, 5), []
    expected = layer(x)
    fk.accelerate(layer)
    layer.transform_net.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    assert_same(layer(x), expected)
    assert seen == [1]
    assert status(layer) == ["accelerated"] * 2
    assert_same(copy.deepcopy(layer)(x), expected)
    fk.restore(layer)
    assert [type(m) for m in layer.modules()] == classes


def test_a_subclass_that_overrides_nothing_is_its_base() -> None:
    layer = Renamed(5, 16)
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    assert status(layer) == ["accelerated, to be checked at the first call"]
    assert type(layer).__name__ == "Renamed"
    x = torch.randn(3, 5)
    assert_same(layer(x), twin(x))
    assert status(layer) == ["accelerated"]


def test_another_formula_is_noticed_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = nflows_autoregressive.MaskedAffineAutoregressiveTransform
    original = cls._elementwise_forward
    monkeypatch.setattr(cls, "_elementwise_forward", lambda self, x, p: original(self, 1.001 * x, p))
    layer = nflows_layer()
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    x = torch.randn(3, 5)
    with pytest.warns(RuntimeWarning, match="leaves a .* as it was: its value differs from the operator's by .*e-0"):
        found = layer(x)
    assert torch.equal(found[0], twin(x)[0])
    assert torch.equal(layer.inverse(x)[0], twin.inverse(x)[0])
    assert "another version of the formula?" in status(layer)[0]


def other_masks(layer: Any) -> None:
    layer.load_state_dict(nflows_layer(use_residual_blocks=False, random_mask=True).state_dict())


def other_last_layer(layer: Any) -> None:
    other = copy.deepcopy(layer.autoregressive_net.final_layer)
    other.weight.data.normal_()
    layer.autoregressive_net.final_layer = other


CHANGES: dict[str, Any] = {
    "network": lambda m: setattr(m, "autoregressive_net", nflows_layer().autoregressive_net),
    "last layer": other_last_layer,
    "constant": lambda m: setattr(m, "_epsilon", 0.5),
    "activation": lambda m: [setattr(b, "activation", torch.tanh) for b in m.autoregressive_net.modules()],
    "masks": other_masks,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_inside_a_layer_are_noticed(name: str) -> None:
    layer = nflows_layer(use_residual_blocks=False, random_mask=True)
    fk.accelerate(layer)
    x = torch.randn(4, 5)
    layer(x)
    torch.manual_seed(5)
    CHANGES[name](layer)
    twin = fk.restore(copy.deepcopy(layer))
    assert_same(layer(x), twin(x))
    assert_same(layer.inverse(x), twin.inverse(x))
    assert status(layer) == ["accelerated"]


def test_changes_that_no_kernel_follows() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    layer(x)
    layer.autoregressive_net.final_layer.mask.mul_(2)
    twin = fk.restore(copy.deepcopy(layer))
    with pytest.warns(RuntimeWarning, match="its masks have values other than 0 and 1"):
        assert_same(layer(x), twin(x))
    assert status(layer) == ["left alone: its masks have values other than 0 and 1"]
    assert status(copy.deepcopy(layer)) == status(layer)
    pyro_shadowed = PEERS["pyro: stable"].make()
    pyro_shadowed._call = lambda _: None
    assert status(pyro_shadowed) == ["left alone: its _call was replaced"]
    shadowed = nflows_layer()
    shadowed._elementwise_inverse = lambda *_: None
    assert status(shadowed) == ["left alone: its _elementwise_inverse was replaced"]


def test_threads_share_a_layer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = torch.randn(4, 5)
    for _ in range(5):
        layer = nflows_layer()
        expected = layer(x)[0]
        fk.accelerate(layer)
        changes = [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))] * 4
        with ThreadPoolExecutor(6) as pool:
            for found in pool.map(lambda change, m=layer: change(m)(x)[0], changes):
                assert_same(found, expected)


def test_modes_and_hooks_are_followed_from_call_to_call() -> None:
    layer = nflows_layer(use_batch_norm=True, dropout_probability=0.5).eval()
    twin, x = copy.deepcopy(layer), torch.randn(6, 5)
    fk.accelerate(layer)
    for training in (False, True, False):
        layer.train(training)
        twin.train(training)
        found = []
        for model in (layer, twin):
            torch.manual_seed(0)
            found.append((model(x), model.inverse(x)))
        assert_same(found[0], found[1])
        assert ("train mode" in status(layer)[0]) == training
    seen: list[str] = []
    handle = layer.autoregressive_net.final_layer.register_forward_hook(lambda *_: seen.append("inner"))
    outer = layer.register_forward_hook(lambda *_: seen.append("outer"))
    layer(x)
    assert seen == ["inner", "outer"]
    assert "a hook is registered on its MaskedLinear" in status(layer)[0]
    handle.remove()
    layer(x)
    assert seen == ["inner", "outer", "outer"]
    outer.remove()
    assert status(layer) == ["accelerated"]


def test_arguments_that_do_not_fit_meet_the_peers_own_errors() -> None:
    layer, flow = nflows_layer(), zuko.flows.MAF(5, 2, transforms=1)
    for model, call in (
        (layer, lambda: layer(torch.randn(3, 4))),
        (layer, lambda: layer(torch.randn(3, 5).double())),
        (flow, lambda: flow(None).log_prob(torch.randn(3, 5))),
        (flow, lambda: flow(torch.randn(7)).log_prob(torch.randn(3, 5))),
    ):
        with pytest.raises(Exception) as expected:  # noqa: PT011, whatever it is
            call()
        fk.accelerate(model)
        with pytest.raises(type(expected.value)) as found:
            call()
        assert str(found.value) == str(expected.value)
        fk.restore(model)


def test_an_unknown_version_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.metadata, "version", lambda _: "9.1")
    monkeypatch.setattr(engine, "_warned", set())
    with pytest.warns(RuntimeWarning, match="compared with nflows 0.14 to below 0.15, this is 9.1"):
        layer = fk.accelerate(nflows_layer())
    layer(torch.randn(2, 5))
    assert status(layer) == ["accelerated"]
    fk.accelerate(nflows_layer())


# -- torch ------------------------------------------------------------------------------------------------------------


def test_compiled_even_if_never_called_before() -> None:
    for options in ({}, {"use_batch_norm": True}):
        layer = nflows_layer(**options).eval()
        twin, x = copy.deepcopy(layer), torch.randn(4, 5)
        fk.accelerate(layer)
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x), twin(x))
        assert status(layer) == ["accelerated"]
        for model in (layer, twin):
            model.train()
        assert_same(compiled(x), twin(x))
        torch._dynamo.reset()


def test_function_transforms_autocast_half_and_parametrizations() -> None:
    layer = nflows_layer()
    twin, x = copy.deepcopy(layer), torch.randn(4, 5)
    fk.accelerate(layer)
    parameters = {k: v.detach() + 0.1 for k, v in layer.named_parameters()}
    found, expected = (
        (
            torch.func.functional_call(model, parameters, (x,)),
            torch.func.vmap(lambda row, m=model: m(row[None])[1][0])(x),
            torch.func.grad(lambda p, m=model: torch.func.functional_call(m, p, (x,))[1].sum())(parameters),
        )
        for model in (layer, twin)
    )
    assert_same(found, expected)
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16())[0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)[0]
        torch.testing.assert_close(layer.inverse(z.float())[0].float(), x, rtol=0.05, atol=0.05)

    class Doubled(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    for model in (layer, twin):
        parametrize.register_parametrization(model.autoregressive_net.final_layer, "weight", Doubled())
    assert_same(layer(x), twin(x))
    assert status(layer) == ["accelerated"]


def test_ensembles_may_have_masks_of_their_own() -> None:
    layers = [nflows_layer(use_residual_blocks=False, random_mask=True) for _ in range(3)]
    x = torch.randn(4, 5)
    expected = torch.stack([layer(x)[0] for layer in layers])
    parameters, buffers = torch.func.stack_module_state(layers)
    base = fk.accelerate(copy.deepcopy(layers[0]))

    def call(p: Any, b: Any) -> torch.Tensor:
        return torch.func.functional_call(base, (p, b), (x,))[0]

    assert_same(torch.func.vmap(call)(parameters, buffers), expected)
    for i, layer in enumerate(layers):
        state = dict(layer.named_parameters()), dict(layer.named_buffers())
        assert_same(call(*state), expected[i])
    assert_same(base(x)[0], expected[0])


def test_a_layer_of_ones_own_library() -> None:
    from flowkern.adapters import nflows

    class Mine(nflows_autoregressive.MaskedAffineAutoregressiveTransform):
        def _elementwise_forward(self, x: Any, p: Any) -> Any:
            u, shift = p.view(-1, self.features, 2).unbind(-1)
            return u.exp() * x + shift, u.sum(-1)

    def read(layer: Any) -> Any:
        root, made = "nflows.transforms.made.", layer.autoregressive_net
        network = fk.adapters.PeerNetwork(5, 0, Affine("exp", "scale_shift"), parameter_order=(1, 0))
        stream = network.add(nflows.linear(root, made.initial_layer))
        for block in made.blocks:
            stream = nflows.add_residual_block(network, root, block, stream)
        network.add(nflows.linear(root, made.final_layer))
        network.activation = ("relu", None)
        return network.finish(made)

    path = f"{Mine.__module__}.{Mine.__qualname__}"
    layer = Mine(5, 16)
    expected = layer(x := torch.randn(3, 5))
    fk.adapters.register(
        fk.adapters.Library("mine", ("0", "1"), {path: fk.adapters.Layer(read, nflows.evaluate, nflows.METHODS)})
    )
    try:
        fk.accelerate(layer)
        assert_same(layer(x), expected)
        assert_same(layer.inverse(expected[0])[0], x)
        assert status(layer) == ["accelerated"]
    finally:
        library._libraries.pop("mine")


def test_autocast_leaves_folded_batch_norms_alone() -> None:
    layer = nflows_layer(use_residual_blocks=False, use_batch_norm=True).eval()
    x = torch.randn(4, 5)
    expected = fk.accelerate(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x)[0].float(), expected[0], rtol=0.05, atol=0.05)
