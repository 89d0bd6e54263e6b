"""What is changed in a layer after accelerate: it is noticed, followed, or left to the library's code, and never wrong."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from peers import PEERS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import flowkern as fk
from flowkern.adapters import calls
from flowkern.adapters.structure import Structure

zuko = pytest.importorskip("zuko")
nflows_autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
pytest.importorskip("pyro")


def nflows_layer(**options: Any) -> Any:
    return nflows_autoregressive.MaskedAffineAutoregressiveTransform(5, 16, **options)


def zuko_layer(**options: Any) -> Any:
    return zuko.flows.MAF(5, transforms=1, hidden_features=[16], **options).transform.transforms[0]


def pyro_layer(**options: Any) -> Any:
    from pyro.distributions.transforms import AffineAutoregressive
    from pyro.nn import AutoRegressiveNN

    return AffineAutoregressive(AutoRegressiveNN(5, [16], nonlinearity=torch.tanh), **options)


def pyro_conditional() -> Any:
    from pyro.distributions.transforms import ConditionalAffineAutoregressive
    from pyro.nn import ConditionalAutoRegressiveNN

    return ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(5, 2, [16]))


def status(layer: Any) -> str:
    return fk.explain(layer).rows[0][2]


@torch.no_grad()  # Pyro keeps a result, and one with a graph cannot be copied
def values(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Both directions of a layer of any library."""
    if hasattr(layer, "hyper"):
        return [*layer().call_and_ladj(x), *layer().inv.call_and_ladj(x)]
    if hasattr(layer, "condition"):
        layer = layer.condition(torch.ones(2))
    if hasattr(layer, "log_abs_det_jacobian"):
        y = layer(x)
        return [y, layer.log_abs_det_jacobian(x, y), layer.inv(x.clone())]
    return [*layer(x), *layer.inverse(x)]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- structure --------------------------------------------------------------------------------------------------------


def other_block(layer: Any) -> Any:
    block = copy.deepcopy(layer.autoregressive_net.blocks[0])
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    return block


def other_network(layer: Any) -> Any:
    net = copy.deepcopy(layer.autoregressive_net)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def other_forward(layer: Any) -> None:
    original = layer.autoregressive_net.forward
    layer.autoregressive_net.forward = lambda *a: 1.5 * original(*a)


CHANGES: dict[str, tuple[Any, Any]] = {
    "a block more": (nflows_layer, lambda m: m.autoregressive_net.blocks.append(other_block(m))),
    "a layer more": (zuko_layer, lambda m: m.hyper.append(nn.Tanh())),
    "add_module": (nflows_layer, lambda m: m.add_module("autoregressive_net", other_network(m))),
    "_modules": (nflows_layer, lambda m: m._modules.update(autoregressive_net=other_network(m))),
    "an activation": (pyro_layer, lambda m: setattr(m.arn, "f", torch.relu)),
    "a keyword": (pyro_conditional, lambda m: m.kwargs.update(stable=True)),
    "residual blocks no more": (nflows_layer, lambda m: setattr(m.autoregressive_net, "use_residual_blocks", False)),
    "norms left out": (lambda: nflows_layer(use_batch_norm=True).eval(), lambda m: [
        setattr(b, "use_batch_norm", False) for b in m.autoregressive_net.blocks]),
    "a constant of an activation": (lambda: zuko_layer(activation=nn.ELU), lambda m: setattr(m.hyper[1], "alpha", 3.0)),
    "a keyword of a partial function": (
        lambda: zuko_layer(univariate=functools.partial(zuko.transforms.MonotonicAffineTransform, slope=0.1)),
        lambda m: m.univariate.keywords.update(slope=0.9),
    ),
    "an eps": (nflows_layer, lambda m: m.__dict__.update(_epsilon=0.7)),
    "no bias": (nflows_layer, lambda m: setattr(m.autoregressive_net.final_layer, "bias", None)),
    "no bias in zuko": (zuko_layer, lambda m: setattr(m.hyper[0], "bias", None)),
    "a replaced forward": (nflows_layer, other_forward),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_structure_are_noticed(name: str) -> None:
    make, change = CHANGES[name]
    layer = make()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.4)
    fk.accelerate(layer)
    x = torch.randn(4, 5)
    values(layer, x)
    assert status(layer) == "accelerated"
    torch.manual_seed(5)
    change(layer)
    explained = status(layer)
    expected, error = outcome(fk.restore(copy.deepcopy(layer)), x)
    found, our_error = outcome(layer, x)
    assert our_error == error
    if error is None:
        assert_same(found, expected)
    assert explained != "accelerated", "explain says so before the change was looked at"


def outcome(layer: Any, x: torch.Tensor) -> tuple[Any, str | None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return values(layer, x), None
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"


def test_a_layer_is_taken_up_again_when_the_reason_is_gone() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    values(layer, x)
    original = layer.autoregressive_net.final_layer

    class Other(type(original)):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            return 2 * super().forward(inputs)

    layer.autoregressive_net.final_layer = Other(torch.zeros(16), 10, 5, False, True)
    with pytest.warns(RuntimeWarning, match="its linear map is a .*Other: a subclass that overrides forward"):
        layer(x)
    assert status(layer).startswith("left alone")
    layer.autoregressive_net.final_layer = original
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))
    assert status(layer) == "accelerated"
    mask = layer.autoregressive_net.final_layer.mask
    mask.mul_(2)
    with pytest.warns(RuntimeWarning, match="masks have values other than 0 and 1"):
        layer(x)
    mask.div_(2)
    layer(x)
    assert status(layer) == "accelerated"


def test_a_coupling_is_followed_through_a_mask_that_is_none() -> None:
    nf = pytest.importorskip("normflows")
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)) for _ in range(2)]
    layer, x = nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0, 1, 0]), *nets), torch.randn(4, 4)
    fk.accelerate(layer)
    expected = layer.inverse(x)
    layer.b.mul_(0.5)
    with pytest.warns(RuntimeWarning, match="its mask is none of vectors, or has values other than 0 and 1"):
        layer.inverse(x)
    layer.b.mul_(2)
    assert_same(layer.inverse(x), expected)
    assert status(layer) == "accelerated"


def test_a_spline_coupling_is_checked_while_a_forward_is_replaced() -> None:
    couplings = pytest.importorskip("nflows.transforms.coupling")
    from nflows.nn.nets import ResidualNet

    net = functools.partial(ResidualNet, hidden_features=8)
    layer = couplings.PiecewiseRationalQuadraticCouplingTransform([1, 0, 1], net, num_bins=4, tails="linear")
    fk.accelerate(layer)
    block = layer.transform_net.blocks[0]
    original = block.forward
    block.forward = lambda inputs, context=None: original(inputs, context)
    layer(torch.randn(4, 3))
    del block.forward
    layer(torch.randn(4, 3))
    assert status(layer) == "accelerated"


def test_a_scale_activation_that_holds_a_parameter_is_left_alone() -> None:
    couplings = pytest.importorskip("glasflow.nflows.transforms.coupling")
    from glasflow.nflows.nn.nets import ResidualNet

    two = torch.tensor(2.0, requires_grad=True)
    net = functools.partial(ResidualNet, hidden_features=8)
    layer = couplings.AffineCouplingTransform([1, 0, 1], net, scale_activation=lambda a: torch.sigmoid(a + two) + 1e-3)
    with pytest.warns(RuntimeWarning, match="its scale_activation may hold parameters"):
        fk.accelerate(layer)
    layer(torch.randn(4, 3))[1].sum().backward()
    assert two.grad is not None


def test_zukos_local_trick_leaves_nothing_behind() -> None:
    from zuko.bayesian import BayesianModel

    model = BayesianModel(zuko.flows.MAF(4, transforms=1, hidden_features=[8]))
    fk.accelerate(model.base)
    x = torch.randn(3, 4)
    model.base().log_prob(x)
    with model.reparameterize(local_trick=True) as sampled:
        sampled().log_prob(x).sum().backward()
        assert "the forward of its MaskedLinear was replaced" in status(model.base)
    assert_same(model.base().log_prob(x), fk.restore(copy.deepcopy(model.base))().log_prob(x))
    assert status(model.base) == "accelerated"


@pytest.mark.parametrize("make", [nflows_layer, zuko_layer, pyro_layer])
def test_calls_and_modes_are_no_changes_of_structure(make: Any) -> None:
    layer, x = make(), torch.randn(4, 5)
    fk.accelerate(layer)
    values(layer, x)
    structure = layer.__dict__["_flowkern"].structure
    values(layer, x)
    assert structure.same(layer)
    network = layer.__dict__["_flowkern"].network
    layer.train(not layer.training)
    assert not structure.same(layer)
    values(layer, x)
    layer.double()
    values(layer, x.double())
    assert layer.__dict__["_flowkern"].network is network, "it was read again"
    assert Structure(layer, ()).changed(Structure(layer, ())) == []


# -- parametrizations -------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A parametrization that draws, and counts how often it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return weight * torch.rand(weight.shape, dtype=weight.dtype).round()


def linears(layer: nn.Module) -> list[nn.Module]:
    return [m for m in layer.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("name", ["nflows: plain", "nflows: context", "zuko: context", "pyro: skip", "normflows: context"])
def test_parametrized_weights_are_evaluated_once_per_call(name: str) -> None:
    peer = PEERS[name]
    layer, twin = peer.make(), peer.make()
    counted = {model: [Counted() for _ in linears(model)] for model in (layer, twin)}
    for model, parts in counted.items():
        model.train()
        for linear, part in zip(linears(model), parts, strict=True):
            parametrize.register_parametrization(linear, "weight", part)
            part.calls = 0
    twin.load_state_dict(layer.state_dict())
    fk.accelerate(layer)
    assert not any(part.calls for part in counted[layer]), "reading a layer evaluates nothing"
    x, c = torch.randn(4, peer.features), torch.randn(4, peer.context) if peer.context else None
    for direction in (peer.forward, peer.inverse):
        for part in counted[layer]:
            part.calls = 0
        direction(layer, x, c)
        calls = 2 if name == "zuko: context" and direction is peer.inverse else 1  # zuko asks for the log-det by itself
        assert {part.calls for part in counted[layer]} == {calls}
    assert status(layer) == "accelerated"
    if name == "nflows: plain":  # no context, whose contribution comes last here: the draws are in the library's order
        found = []
        for model in (layer, twin):
            torch.manual_seed(1)
            found.append(peer.forward(model, x, c))
        assert_same(*found)


def test_spectral_norm_takes_one_step_per_call() -> None:
    layer, x = nflows_layer().train(), torch.randn(4, 5)
    for linear in linears(layer):
        parametrizations.spectral_norm(linear)
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    for _ in range(3):
        assert_same(layer(x), twin(x))
    assert status(layer) == "accelerated"
    assert_same(dict(layer.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_call_inside_of_a_cache_of_parametrizations(dtype: torch.dtype) -> None:
    layer, x = nflows_layer().to(dtype), torch.randn(4, 5, dtype=dtype)
    for linear in linears(layer):
        parametrizations.weight_norm(linear)
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    for model in (layer, twin):
        with parametrize.cached():
            y, log_det = model(x)
            (y.sum() + log_det.sum()).backward()
    for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None, name
        assert_same(p.grad, q.grad)
    assert status(layer) == "accelerated"


# -- what the check, which runs in evaluation mode, cannot see ----------------------------------------------------------


@pytest.mark.parametrize("name", ["nflows: batch norm", "nflows: plain, batch norm", "normflows: batch norm"])
@pytest.mark.parametrize("first", [True, False])
def test_kin_of_batch_norm_is_left_to_the_library(name: str, first: bool) -> None:
    peer = PEERS[name]
    layer, x = peer.make(), torch.randn(4, peer.features)
    if not first:
        fk.accelerate(layer)
        peer.forward(layer, x, None)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    if first:
        with pytest.warns(RuntimeWarning, match="its normalisation is a SyncBatchNorm"):
            fk.accelerate(layer)
    else:
        with pytest.warns(RuntimeWarning, match="its normalisation is a SyncBatchNorm"):
            peer.forward(layer, x, None)
    assert "its normalisation is a SyncBatchNorm" in status(layer)


@pytest.mark.parametrize("name", ["nflows: residual", "nflows: plain", "normflows: residual", "normflows: plain"])
def test_kin_of_dropout_is_left_to_the_library(name: str) -> None:
    layer = PEERS[name].make()
    for block in layer.autoregressive_net.blocks:
        block.dropout = nn.AlphaDropout(0.5)
    assert status(layer) == "left alone: its dropout is a AlphaDropout, expected Dropout"


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro_layer(stable=True, sigmoid_bias=nn.Parameter(torch.tensor([2.0]))),
        lambda: pyro_layer(log_scale_max_clip=torch.tensor(3.0)),
        lambda: zuko_layer(univariate=functools.partial(zuko.transforms.MonotonicAffineTransform, slope=torch.tensor(0.1))),
    ],
)
def test_constants_that_are_tensors_are_left_to_the_library(make: Any) -> None:
    assert status(make()) == "left alone: a constant of its univariate map is a tensor, which may change at any time"


def test_a_constant_that_becomes_a_tensor() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    layer(x)
    layer._epsilon = torch.tensor(0.5)
    twin = fk.restore(copy.deepcopy(layer))
    with pytest.warns(RuntimeWarning, match="a constant of its univariate map is a tensor"):
        assert_same(layer(x), twin(x))


def test_keys_of_dictionaries_count() -> None:
    layer, x = pyro_conditional(), torch.randn(4, 5)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.8)
    layer.kwargs = {"log_scale_min_clip": 0.5}
    fk.accelerate(layer)
    values(layer, x)
    layer.kwargs["log_scale_max_clip"] = layer.kwargs.pop("log_scale_min_clip")
    assert_same(values(layer, x), values(fk.restore(copy.deepcopy(layer)), x))


def test_touching_masks_revives_no_layer_that_could_not_be_read() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    layer(x)
    layer.inverse = layer.inverse
    with pytest.warns(RuntimeWarning, match="its inverse was replaced"):
        layer(x)
    layer._epsilon = 0.9
    layer.autoregressive_net.final_layer.mask.mul_(1)
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))
    assert status(layer).startswith("left alone: its inverse was replaced")
    del layer.inverse
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))
    assert status(layer) == "accelerated"


def test_a_mask_that_is_no_buffer_any_more() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    expected, final = layer(x), layer.autoregressive_net.final_layer
    mask = final.mask
    del final.mask
    final.mask = mask
    assert_same(torch.func.vmap(lambda row: layer(row[None])[0][0])(x), expected[0])
    with pytest.warns(RuntimeWarning, match="a mask of it is no buffer any more"):
        assert_same(layer(x), expected)


def test_masks_that_are_written_again_make_no_new_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel broadcasts all buffers before every forward pass."""
    layer, x = nflows_layer(use_residual_blocks=False, random_mask=True), torch.randn(4, 5)
    fk.accelerate(layer)
    layer(x)
    network = layer.__dict__["_flowkern"].network
    plans: list[int] = []
    original = type(network)._plan
    monkeypatch.setattr(type(network), "_plan", lambda self: (plans.append(1), original(self))[1])
    for _ in range(3):
        for buffer in layer.buffers():
            buffer.copy_(buffer.clone())
        layer(x)
    assert plans == []
    assert status(layer) == "accelerated"


def test_numbers_that_parameters_hold() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    layer.temperature = nn.Parameter(torch.tensor(1.0))
    layer.kept = {"a": [layer.temperature * 2]}
    fk.accelerate(layer)
    layer(x)
    assert status(layer) == "accelerated"


def test_a_number_that_changes_at_every_call_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    layer.calls = 0
    layer.register_forward_hook(lambda m, *_: setattr(m, "calls", m.calls + 1))
    fk.accelerate(layer)
    layer(x)
    checks: list[int] = []
    original = calls.self_check
    monkeypatch.setattr(calls, "self_check", lambda *a: (checks.append(1), original(*a))[1])
    for _ in range(5):
        layer(x)
    assert len(checks) == 1
    layer._epsilon = 0.5
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))
    layer._epsilon = 0.7
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))


@pytest.mark.parametrize(
    "name", ["nflows: context", "nflows: plain, context", "normflows: context", "nflows: batch norm, context"]
)
def test_context_layers_with_hooks_parametrizations_and_others_in_their_place(name: str) -> None:
    peer = PEERS[name]
    layer = peer.make()
    twin, seen = copy.deepcopy(layer), []
    fk.accelerate(layer)
    x, c = torch.randn(7, peer.features), torch.randn(7, peer.context)

    def check(status: str) -> None:
        for direction in (peer.forward, peer.inverse):
            torch.testing.assert_close(direction(layer, x, c), direction(twin, x, c), rtol=1e-4, atol=1e-5)
        assert status in fk.explain(layer).rows[0][2]

    check("accelerated")
    for model in (layer, twin):
        handle = model.autoregressive_net.context_layer.register_forward_hook(lambda *args: seen.append(args) or args[2] + 1)
        model.handle = handle
    check("a hook is registered on its Linear")
    assert seen
    for model in (layer, twin):
        model.handle.remove()
        torch.nn.utils.parametrizations.weight_norm(model.autoregressive_net.context_layer)
    check("accelerated")
    for model in (layer, twin):
        torch.manual_seed(0)
        model.autoregressive_net.context_layer = nn.Sequential(nn.Linear(peer.context, 24), nn.Tanh())
        model.autoregressive_net.context_layer.in_features = peer.context
    with pytest.warns(RuntimeWarning, match="its context layer is a Sequential"):
        check("left alone: its context layer is a Sequential")


@pytest.mark.parametrize("normalize", [False, True], ids=["whole", "after its network"])
def test_the_split_of_a_coupling_is_followed(normalize: bool) -> None:
    layer = zuko.flows.coupling.GeneralCouplingTransform(4, hidden_features=(8,), normalize=normalize)
    twin, x = copy.deepcopy(layer), torch.randn(5, 4)
    fk.accelerate(layer)
    for _ in range(2):
        torch.testing.assert_close(layer().call_and_ladj(x), twin().call_and_ladj(x))
        torch.testing.assert_close(layer().inv(x), twin().inv(x))
        assert fk.explain(layer).rows[0][2] == "accelerated"
        for each in (layer, twin):
            each.mask.logical_not_()


@pytest.mark.parametrize("name", ["normflows: masked", "FrEIA: all in one, context", "pyro: two parts"])
def test_splits_permutations_and_clips_are_followed(name: str) -> None:
    """A checkpoint brings its own mask, or its own permutation; a clip is a number on the layer."""
    pytest.importorskip(name.split(":")[0])
    peer = PEERS[name]
    layer, other = peer.make(), peer.make()
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    x, c = torch.randn(4, peer.features), torch.randn(4, peer.context) if peer.context else None
    peer.forward(layer, x.clone(), c)  # Pyro remembers what it gave for x
    with torch.no_grad():
        if "masked" in name:
            other.b.copy_(1 - other.b)
        for model in (layer, twin):
            model.load_state_dict(other.state_dict())
            if "pyro" in name:
                model.log_scale_max_clip = 0.02
        for direction in (peer.forward, peer.inverse):
            torch.testing.assert_close(direction(layer, x, c), direction(twin, x, c), rtol=1e-4, atol=1e-5)
    assert status(layer).startswith("accelerated")
    assert "to be checked" not in status(layer)
