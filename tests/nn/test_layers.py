"""Layers: the protocol, batch normalisation, permutations, MADE and its heads."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution

import flowkern as fk
from flowkern import nn as fnn
from flowkern._plan_encoding import block_levels


def layers() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "masked": fnn.MaskedAutoregressive(4, hidden=(12, 12), activation="tanh"),
        "masked, residual": fnn.MaskedAutoregressive(4, hidden=(12, 12), residual=True, activation="silu"),
        "masked, skip": fnn.MaskedAutoregressive(4, hidden=(12,), skip=True, activation="tanh"),
        "masked, additive": fnn.MaskedAutoregressive(4, hidden=(12,), scale="none", placement="scale_shift"),
        "masked, random": fnn.MaskedAutoregressive(4, hidden=(12,), order="random", degrees="random", generator=generator),
        "inverse": fnn.InverseAutoregressive(4, hidden=(12, 12), order="reverse", activation="tanh"),
        "inverse, gated": fnn.InverseAutoregressive(4, hidden=(12, 12), gated=True, order=[2, 0, 3, 1]),
        "coupling": fnn.AffineCoupling(4, hidden=(12,), activation="tanh"),
        "coupling, alternating": fnn.AffineCoupling(4, hidden=(12,), mask="alternating", swap=True, scale="tanh"),
        "coupling, any mask": fnn.AffineCoupling(4, hidden=(), mask=torch.tensor([True, False, True, True]), placement="gate"),
        "coupling, additive": fnn.AdditiveCoupling(4, hidden=(12,)),
        "permutation": fnn.Permutation([2, 0, 3, 1]),
        "reverse": fnn.Reverse(4),
        "standardize": fnn.Standardize(torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 1, 2, 3])),
        "batch norm": trained_norm(),
        "compose": fnn.Compose([fnn.Reverse(4), fnn.MaskedAutoregressive(4, hidden=(12,)), trained_norm()]),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 1}, "features: expected a whole number of at least 2, got 1"),
        ({"context": -1}, "context: expected"),
        ({"mask": "thirds"}, "mask: expected a boolean tensor or one of halves, alternating, got 'thirds'"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask: expected a boolean tensor \(4,\), got torch.bool \(3,\)"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, "mask: expected some of the 4 features to be transformed, got 4"),
        ({"hidden": (0,)}, r"hidden: expected positive widths, got \(0,\)"),
        ({"activation": "sin"}, "activation: expected one of"),
        ({"scale": "cube"}, "scale: expected one of"),
    ],
)
def test_bad_couplings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fnn.AffineCoupling(**{"features": 4, **options})


def test_couplings_take_a_context_and_a_network() -> None:
    context = torch.randn(3, 1, 2)
    layer = fnn.AffineCoupling(5, hidden=(8,), context=2)
    z, log_det = layer(torch.randn(4, 5), context)
    assert z.shape == (3, 4, 5)
    assert log_det.shape == (3, 4)
    with pytest.raises(ValueError, match="context: this layer takes 2 context features, got None"):
        layer(torch.randn(4, 5))
    flow = fk.flows.Flow([fnn.AffineCoupling(5, context=2), fnn.AffineCoupling(5, context=2, swap=True)])
    x, log_prob = flow.rsample_and_log_prob((6,), torch.randn(2))
    torch.testing.assert_close(flow.log_prob(x, torch.zeros(2)).shape, log_prob.shape)
    given = fnn.AffineCoupling(5, network=torch.nn.Linear(3, 4))
    assert given(torch.randn(7, 5))[0].shape == (7, 5)
    with pytest.raises(ValueError, match=r"network: its result: expected shape \(\.\.\., 4\), got \(7, 5\)"):
        fnn.AffineCoupling(5, network=torch.nn.Linear(3, 5))(torch.randn(7, 5))


def test_a_state_dict_brings_its_mask_along() -> None:
    mask = torch.tensor([True, False, True, False, False])
    source, target = fnn.AffineCoupling(5, mask=mask), fnn.AffineCoupling(5, mask=mask.flip(0))
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(target(x), source(x))
    other = fnn.AffineCoupling(5, mask=~mask)
    with pytest.raises(RuntimeError, match="transformed: this layer transforms 3 features, the state 2"):
        other.load_state_dict(source.state_dict())
    assert torch.equal(other.transformed, ~mask)
    with torch.no_grad():
        for a, b in zip(other.buffers(), fnn.AffineCoupling(5, swap=False, mask=~mask.flip(0)).buffers(), strict=True):
            a.copy_(b)  # as DistributedDataParallel does
    z, _ = other(x)
    torch.testing.assert_close(other.inverse(z)[0], x)
    assert torch.equal(z[:, mask.flip(0)], x[:, mask.flip(0)])


def test_a_coupling_takes_the_context_of_an_embedding_under_autocast() -> None:
    flow = fk.flows.Flow([fnn.AffineCoupling(5, context=2)], embedding=torch.nn.Linear(3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert flow.log_prob(torch.randn(4, 5), torch.randn(4, 3)).dtype == torch.float32
    with pytest.raises(ValueError, match="context: expected batch shapes that broadcast"):
        fnn.AffineCoupling(5, context=2)(torch.randn(4, 5), torch.randn(3, 2))


def trained_norm() -> fnn.BatchNorm:
    norm = fnn.BatchNorm(4)
    for _ in range(5):
        norm(torch.randn(50, 4) * 2 + 1)
    with torch.no_grad():
        norm.log_gamma.normal_()
        norm.beta.normal_()
    return norm.eval()


@pytest.mark.parametrize("name", layers())
def test_protocol(name: str) -> None:
    layer = layers()[name].double().eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    z, log_det = layer(x)
    back, inverse_log_det = layer.inverse(z)
    assert z.shape == x.shape
    assert log_det.shape == (7,)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)
    assert layer(x.reshape(1, 7, 4))[1].shape == (1, 7)
    assert layer(x[0])[1].shape == ()
    assert layer(x[:0])[1].shape == (0,)


@pytest.mark.parametrize("name", layers())
def test_copies_pickles_and_state_dicts(name: str) -> None:
    layer, x = layers()[name], torch.randn(5, 4)
    expected = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
    other = layers()[name]
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("name", layers())
def test_a_row_that_is_not_finite_shows_it(name: str) -> None:
    layer, x = layers()[name], torch.randn(5, 4)
    for bad, function in itertools.product((math.nan, math.inf), (layer, layer.inverse)):
        dirty = x.clone()
        dirty[3, 1] = bad
        assert torch.isfinite(function(dirty)[1]).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("name", layers())
def test_bad_input_is_named(name: str) -> None:
    layer = layers()[name]
    with pytest.raises(ValueError, match=r"expected shape \(\.\.\., 4\), got \(2, 3\)"):
        layer(torch.randn(2, 3))
    with pytest.raises(TypeError, match="floating-point tensor"):
        layer.inverse(torch.ones(2, 4).long())


@pytest.mark.parametrize("name", layers())
def test_as_a_torch_distributions_transform(name: str) -> None:
    layer = layers()[name].double()
    base = Independent(Normal(torch.zeros(4).double(), torch.ones(4).double()), 1)
    for cache_size in (0, 1):
        transform = layer.as_distribution_transform().with_cache(cache_size)
        distribution = TransformedDistribution(base, [transform])
        x = distribution.rsample((6,))
        z, log_det = layer(x)
        torch.testing.assert_close(distribution.log_prob(x), base.log_prob(z) + log_det)
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), -log_det)
        torch.testing.assert_close(transform.inv(transform(z)), z)


def test_context_is_concatenated_and_broadcast() -> None:
    layer = fnn.MaskedAutoregressive(3, hidden=(9, 9), context=2, activation="tanh").double()
    x, context = torch.randn(4, 5, 3).double(), torch.randn(5, 2).double()
    z, log_det = layer(x, context)
    assert log_det.shape == (4, 5)
    torch.testing.assert_close(layer(x[2], context)[0], z[2])
    torch.testing.assert_close(layer.inverse(z, context)[0], x)
    with fk.backend("reference"):
        torch.testing.assert_close(layer(x, context), (z, log_det))
    wide, _ = layer(torch.randn(3).double(), context)
    assert wide.shape == (5, 3)
    # Every feature sees the context, the first one too.
    jacobian = torch.autograd.functional.jacobian(lambda c: layer(x[0, 0], c)[0], context[0])
    assert (jacobian.abs().sum(1) > 0).all()
    weights = layer.network.layers[0].weight
    context = context.requires_grad_()
    grads = torch.autograd.grad(layer(x, context)[0].square().sum(), (weights, context))
    with fk.backend("reference"):
        torch.testing.assert_close(torch.autograd.grad(layer(x, context)[0].square().sum(), (weights, context)), grads)


def test_a_context_that_is_missing_unexpected_or_not_finite() -> None:
    layer = fnn.MaskedAutoregressive(3, hidden=(9,), context=2)
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="context: this network takes 2 context features, got None"):
        layer(x)
    with pytest.raises(ValueError, match=r"context: expected shape \(\.\.\., 2\), got \(4, 3\)"):
        layer(x, x)
    with pytest.raises(ValueError, match=r"context: expected batch shapes that broadcast with \(4,\), got shapes \(5, 2\)"):
        layer(x, torch.randn(5, 2))
    with pytest.raises(ValueError, match="context: this network takes no context"):
        fnn.MaskedAutoregressive(3, hidden=(9,))(x, x)
    for bad in (math.nan, math.inf, -math.inf):
        context = torch.randn(4, 2)
        context[1, 0] = bad
        for function in (layer, layer.inverse):
            assert torch.isfinite(function(x, context)[1]).tolist() == [True, False, True, True]


@pytest.mark.parametrize("order", ["natural", "random"])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_a_number_that_is_not_finite_reaches(order: str, rows: int, bad: float) -> None:
    """In a sweep those that depend on it; in one pass those of its block besides; no others. An infinity may vanish."""
    features = 24
    layer = fnn.MaskedAutoregressive(features, hidden=(32, 32), order=order)
    plan, position = layer.network.plans[0], layer.network.order
    block = torch.bucketize(plan.feature_levels, torch.tensor(block_levels(plan)), right=True)
    assert len(block.unique()) > 3
    x, row = torch.randn(rows, features), rows // 2
    for feature in range(features):
        dirty = x.clone()
        dirty[row, feature] = bad
        after = position >= position[feature]
        with fk.backend("native"):
            swept, passed = (~torch.isfinite(f(dirty)[0]) for f in (layer.inverse, layer))
        assert (swept[row] <= after).all()
        assert (passed[row] <= after | (block == block[feature])).all()
        if math.isnan(bad):
            assert (swept[row] & passed[row] >= after).all()
        assert swept.sum() + passed.sum() == swept[row].sum() + passed[row].sum()


# -- batch normalisation --------------------------------------------------------------------------------------------


def test_batch_norm_in_training_is_the_formula_with_gradients_through_the_statistics() -> None:
    norm = fnn.BatchNorm(3).double()
    with torch.no_grad():
        norm.log_gamma.normal_()
        norm.beta.normal_()
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    z, log_det = norm(x)
    mean, var = x.mean(0), x.var(0, unbiased=False)
    expected = norm.log_gamma.exp() * (x - mean) / torch.sqrt(var + norm.eps) + norm.beta
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_det, (norm.log_gamma - 0.5 * torch.log(var + norm.eps)).sum().expand(20))
    cotangent = torch.randn_like(z)
    found = torch.autograd.grad((z * cotangent).sum() + log_det.sum(), x)
    wanted = torch.autograd.grad((expected * cotangent).sum() - 10 * torch.log(var + norm.eps).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_batch_norm_log_det_is_the_jacobian_with_the_statistics_held() -> None:
    norm = fnn.BatchNorm(3).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    z, log_det = norm(x)
    mean, var = x.mean(0), x.var(0, unbiased=False)
    jacobian = torch.autograd.functional.jacobian(lambda v: (v - mean) / torch.sqrt(var + norm.eps), x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(norm.inverse(z)[0], x)


def test_batch_norm_inverse_in_training_needs_a_forward() -> None:
    norm = fnn.BatchNorm(3)
    with pytest.raises(RuntimeError, match="there was none"):
        norm.inverse(torch.randn(5, 3))
    with pytest.raises(ValueError, match="empty batch"):
        norm(torch.randn(0, 3))


def test_batch_norm_running_statistics_and_momentum() -> None:
    norm, x = fnn.BatchNorm(2, momentum=0.25), torch.randn(100, 2) * 3 + 5
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.25 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * x.var(0, unbiased=False))
    frozen = fnn.BatchNorm(2, momentum=None)
    frozen(x)
    assert frozen.running_mean.tolist() == [0, 0]
    norm.set_statistics(x)
    z, _ = norm.eval()(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-4, rtol=0)


# -- MADE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["natural", "reverse", "random", [3, 1, 0, 4, 2]])
@pytest.mark.parametrize("degrees", ["sequential", "random"])
def test_made_is_autoregressive_in_its_order(order: Any, degrees: str) -> None:
    net = fnn.MADE(5, 2, (20, 20), order=order, degrees=degrees, activation="tanh").double()
    jacobian = torch.autograd.functional.jacobian(net, torch.randn(5).double()).abs().sum(1)  # (5, 5)
    position = net.order
    forbidden = position[None, :] >= position[:, None]
    assert (jacobian[forbidden] == 0).all()
    if degrees == "sequential":
        assert (jacobian[~forbidden] > 0).all()


def test_masks_of_a_set_differ_and_share_the_weights() -> None:
    net = fnn.MADE(6, 1, (30,), order="random", masks=3)
    x = torch.randn(4, 6)
    outputs = [net(x, mask=i) for i in range(3)]
    assert not torch.equal(outputs[0], outputs[1])
    assert len(list(net.parameters())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features: expected a whole number of at least 1, got 0"),
        ({"features": 3, "outputs": 0}, "outputs: expected"),
        ({"features": 3, "hidden": (4, 0)}, "hidden: expected positive widths"),
        ({"features": 3, "context": -1}, "context: expected"),
        ({"features": 3, "order": "sorted"}, "order: expected one of"),
        ({"features": 3, "order": [0, 0, 1]}, "order: expected a permutation of 0 to 2"),
        ({"features": 3, "degrees": "equal"}, "degrees: expected one of"),
        ({"features": 3, "residual": True, "hidden": (4, 5)}, "hidden: residual blocks need"),
        ({"features": 3, "activation": "swish"}, "activation: expected one of"),
        ({"features": 3, "masks": 0}, "masks: expected"),
    ],
)
def test_bad_made_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fnn.MADE(**options)


def test_masked_linear() -> None:
    mask = torch.tensor([[1, 0], [1, 1]])
    layer = fnn.MaskedLinear(mask)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))
        layer.bias.zero_()
    assert layer(torch.tensor([1.0, 10.0])).tolist() == [1.0, 32.0]
    assert "mask" in layer.state_dict()
    with pytest.raises(ValueError, match="mask: expected shape"):
        fnn.MaskedLinear(torch.ones(3))


@pytest.mark.parametrize("bad", [[0, 2], [0, 0], [[0, 1]]])
def test_bad_permutations(bad: Any) -> None:
    with pytest.raises(ValueError, match="order: expected a permutation"):
        fnn.Permutation(bad)


def test_bad_standardize() -> None:
    with pytest.raises(ValueError, match="std: expected positive"):
        fnn.Standardize(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="mean, std: expected the shape"):
        fnn.Standardize(torch.zeros(2), torch.ones(3))


# -- heads ----------------------------------------------------------------------------------------------------------


def test_heads_by_hand() -> None:
    one = torch.ones(1)
    assert fnn.Bernoulli().log_prob(one, torch.zeros(1, 1)).item() == pytest.approx(math.log(0.5))
    assert fnn.Categorical(4).log_prob(2 * one, torch.zeros(1, 4)).item() == pytest.approx(math.log(0.25))
    assert fnn.Categorical(4).log_prob(4 * one, torch.zeros(1, 4)).item() == -math.inf
    assert fnn.Categorical(4).log_prob(0.5 * one, torch.zeros(1, 4)).item() == -math.inf
    normal = Normal(0.5, math.exp(0.3)).log_prob(torch.tensor(1.0)).item()
    assert fnn.Gaussian().log_prob(one, torch.tensor([[0.5, 0.3]])).item() == pytest.approx(normal)
    two = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.3, 0.3]])
    assert fnn.MixtureOfGaussians(2).log_prob(one, two).item() == pytest.approx(normal)
    logistic = math.log(0.25) - 0.3
    assert fnn.MixtureOfLogistics(None, 2).log_prob(0.5 * one, two).item() == pytest.approx(logistic)
    # Three levels are -1, 0 and 1, half a level is 0.5: the middle one has sigmoid(0.5) - sigmoid(-0.5).
    middle = math.log(math.tanh(0.25))
    assert fnn.MixtureOfLogistics(3, 1).log_prob(one, torch.zeros(1, 3)).item() == pytest.approx(middle)
    for elsewhere in (0.5, -1.0, 3.0):
        assert fnn.MixtureOfLogistics(3, 1).log_prob(elsewhere * one, torch.zeros(1, 3)).item() == -math.inf
    with pytest.raises(ValueError, match="levels"):
        fnn.MixtureOfLogistics(1)
    with pytest.raises(ValueError, match="categories"):
        fnn.Categorical(1)
    with pytest.raises(ValueError, match="components"):
        fnn.MixtureOfGaussians(0)


@pytest.mark.parametrize(
    ("head", "levels"),
    [("bernoulli", 2), ("categorical", 3), ("gaussian", None), ("mixture", None), ("logistics", 5), ("logistics", None)],
)
def test_samples_of_a_made_follow_its_density(head: str, levels: int | None) -> None:
    torch.manual_seed(3)
    model = fk.models.MADE(2, head, (16,), order="reverse", categories=3, components=2, levels=levels).double()
    assert model.levels == levels
    x = model.sample((20_000,), generator=torch.Generator().manual_seed(0))
    if levels:
        n = levels
        grid = torch.cartesian_prod(torch.arange(n), torch.arange(n)).double()
        expected = model.log_prob(grid).exp()
        assert expected.sum().item() == pytest.approx(1)
        found = torch.stack([(x == row).all(1).double().mean() for row in grid])
        assert (found - expected).abs().max() < 0.015
    else:
        # E[-log p] over samples against the same by quadrature.
        axis = torch.linspace(-24, 24, 801, dtype=torch.float64)
        log_p = model.log_prob(torch.cartesian_prod(axis, axis))
        cell = (axis[1] - axis[0]) ** 2
        assert (log_p.exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
        entropy = -(log_p.exp() * log_p).sum() * cell
        assert (-model.log_prob(x).mean()).item() == pytest.approx(entropy.item(), abs=0.05)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_mixture_of_logistics_of_low_precision_keeps_its_levels(low: torch.dtype) -> None:
    head, p = fnn.MixtureOfLogistics(256, 2), torch.randn(1000, 6).to(low)
    x = head.sample(p)
    assert x.dtype == low
    assert torch.equal(x, x.round())
    log_prob = head.log_prob(torch.arange(256).to(low).expand(1000, 256).T, p)
    assert log_prob.dtype == low
    torch.testing.assert_close(log_prob.float().exp().sum(0), torch.ones(1000), rtol=0, atol=0.05)
    torch.testing.assert_close(head.log_prob(x.float(), p), head.log_prob(x.float(), p.float()))


# -- what a review found once ---------------------------------------------------------------------------------------


def test_a_copy_of_a_frozen_network_is_not_frozen() -> None:
    layer, x = fnn.MaskedAutoregressive(4, hidden=(12,)), torch.randn(5, 4)
    with fk.frozen(layer):
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in copies:
        before = other(x)[0].detach()
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1)
        assert not torch.allclose(other(x)[0], before)


def test_frozen_half_precision_still_works() -> None:
    layer, x = fnn.MaskedAutoregressive(4, hidden=(12,)).bfloat16(), torch.randn(5, 4).bfloat16()
    expected = layer(x)
    with fk.frozen(layer):
        torch.testing.assert_close(layer(x), expected)


def test_orders_follow_buffers_that_are_changed_in_place() -> None:
    """As DistributedDataParallel does with those of other ranks."""
    first, second = (fk.flows.MAF(6, 2, (16,), order="random") for _ in range(2))
    x = torch.randn(5, 6)
    for a, b in ((first.parameters(), second.parameters()), (first.buffers(), second.buffers())):
        with torch.no_grad():
            for source, target in zip(a, b, strict=True):
                target.copy_(source)
    torch.testing.assert_close(second.log_prob(x), first.log_prob(x))


def test_models_are_made_and_loaded_on_the_meta_device() -> None:
    source = fk.flows.MAF(6, 2, (16,), order="random").double()
    with torch.device("meta"):
        model = fk.flows.MAF(6, 2, (16,), order="random")
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), source.log_prob(x))
    assert model.sample((2,)).dtype == torch.float64


def test_autocast_with_a_context_goes_both_ways() -> None:
    layer, x, context = fnn.MaskedAutoregressive(4, hidden=(12,), context=3), torch.randn(5, 4), torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = layer(x, context)
        back, _ = layer.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match=r"context: expected dtype torch\.float32 like the weights"):
        layer(x, context.double())


def test_log_det_of_a_transform_called_without_gradient_has_its_graph() -> None:
    layer = fnn.MaskedAutoregressive(4, hidden=(12,))
    transform, z = layer.as_distribution_transform(), torch.randn(5, 4)
    with torch.no_grad():
        x = transform(z)
    assert transform.log_abs_det_jacobian(z, x).requires_grad


def test_a_parametrized_network_freezes() -> None:
    layer, x = fnn.MaskedAutoregressive(4, hidden=(12,)), torch.randn(5, 4)
    torch.nn.utils.parametrizations.weight_norm(layer.network.layers[0])
    expected = layer(x)
    with fk.frozen(layer):
        torch.testing.assert_close(layer(x), expected)
