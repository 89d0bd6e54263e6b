"""Transforms of events of any shape: squeezed, reshaped, split off in part."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from typing import Any

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution

import flowkern as fk
from flowkern import nn as fnn

CHANNELS, HEIGHT, WIDTH = IMAGE = (2, 4, 6)


def masked(event_shape: tuple[int, ...], **options: Any) -> fnn.Compose:
    """An autoregressive layer on the flattened event, which keeps its shape."""
    features = math.prod(event_shape)
    layer = fnn.MaskedAutoregressive(features, hidden=(16,), activation="tanh", order="random", **options)
    return fnn.Compose([fnn.Reshape(event_shape), layer, fnn.Reshape((features,), event_shape)])


def standardize(event_shape: tuple[int, ...]) -> fnn.Standardize:
    return fnn.Standardize(torch.randn(event_shape), torch.rand(event_shape) + 0.5)


def image_scales(**options: Any) -> fnn.MultiScale:
    """Two levels of a squeeze and a layer, and a last one of vectors."""
    first = fnn.Compose([fnn.Squeeze(IMAGE), standardize((8, 2, 3)), masked((8, 2, 3), **options)])
    second = fnn.Compose([fnn.Reshape((4, 2, 3), (3, 4, 2)), masked((3, 4, 2), **options)])
    last = fnn.Compose([fnn.Reshape((1, 4, 2)), fnn.Reverse(8)])
    return fnn.MultiScale([first, second, last])


def layers() -> dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """Layers with the shapes of their data and of their noise."""
    return {
        "flat": (fnn.Reshape(IMAGE), IMAGE, (48,)),
        "reshape": (fnn.Reshape(IMAGE, (12, 4)), IMAGE, (12, 4)),
        "squeeze": (fnn.Squeeze(IMAGE), IMAGE, (8, 2, 3)),
        "squeeze by 3": (fnn.Squeeze((1, 3, 6), factor=3), (1, 3, 6), (9, 1, 2)),
        "standardize": (standardize(IMAGE), IMAGE, IMAGE),
        "compose": (fnn.Compose([fnn.Squeeze(IMAGE), standardize((8, 2, 3)), masked((8, 2, 3))]), IMAGE, (8, 2, 3)),
        "multi-scale": (image_scales(), IMAGE, (48,)),
        "multi-scale, odd": (fnn.MultiScale([standardize((5,)), fnn.AffineCoupling(2, (8,))]), (5,), (5,)),
        "multi-scale, one level": (fnn.MultiScale([standardize(IMAGE)]), IMAGE, (48,)),
    }


@pytest.mark.parametrize("name", layers())
def test_protocol(name: str) -> None:
    layer, event, noise = layers()[name]
    layer = layer.double()
    assert (layer.event_shape, layer.noise_shape, layer.features) == (event, noise, math.prod(event))
    x = torch.randn(3, *event, dtype=torch.float64)
    z, log_det = layer(x)
    back, inverse_log_det = layer.inverse(z)
    assert (z.shape, log_det.shape, inverse_log_det.shape) == ((3, *noise), (3,), (3,))
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    for function, event_shape, value, found in ((layer, event, x[0], log_det), (layer.inverse, noise, z[0], inverse_log_det)):
        vector = value.flatten()
        jacobian = torch.autograd.functional.jacobian(lambda v, f=function, e=event_shape: f(v.view(e))[0].flatten(), vector)
        torch.testing.assert_close(found[0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("name", layers())
def test_every_batch_shape(name: str) -> None:
    layer, event, noise = layers()[name]
    for batch in ((), (0,), (4,), (2, 3), (0, 2)):
        for function, given, other in ((layer, event, noise), (layer.inverse, noise, event)):
            rows = torch.randn(*batch, *given)
            result, log_det = function(rows)
            assert (result.shape, log_det.shape) == ((*batch, *other), batch)
            transposed = rows.transpose(0, -1).contiguous().transpose(0, -1)
            torch.testing.assert_close(function(transposed), (result, log_det))


@pytest.mark.parametrize("name", layers())
def test_a_row_that_is_not_finite_shows_it(name: str) -> None:
    layer, event, noise = layers()[name]
    for bad, (function, shape) in itertools.product((math.nan, math.inf), ((layer, event), (layer.inverse, noise))):
        for place in (0, -1):  # the part that leaves first, and the one that leaves last
            rows = torch.randn(5, *shape)
            rows[3].flatten()[place] = bad
            assert torch.isfinite(function(rows)[1]).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("name", layers())
def test_copies_pickles_state_dicts_and_configurations(name: str) -> None:
    layer, event, _ = layers()[name]
    x = torch.randn(5, *event)
    expected = layer(x)
    again = type(layer)(**layer.config)
    again.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again):
        torch.testing.assert_close(other(x), expected)
        assert (other.event_shape, other.noise_shape) == (layer.event_shape, layer.noise_shape)


@pytest.mark.parametrize("name", ["reshape", "squeeze", "standardize", "multi-scale, odd"])
def test_compiled(name: str) -> None:
    """What else is compiled in tests/flows/test_image_flows.py."""
    layer, event, noise = layers()[name]
    torch._dynamo.reset()
    both = torch.compile(lambda x, z: (*layer(x), *layer.inverse(z)), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        x, z = torch.randn(rows, *event), torch.randn(rows, *noise)
        torch.testing.assert_close(both(x, z), (*layer(x), *layer.inverse(z)))


@pytest.mark.parametrize("name", layers())
def test_mapped(name: str) -> None:
    layer, event, noise = layers()[name]
    for function, shape in ((layer, event), (layer.inverse, noise)):
        rows = torch.randn(5, *shape)
        torch.testing.assert_close(torch.func.vmap(function)(rows), function(rows))


@pytest.mark.parametrize("name", layers())
def test_as_a_torch_distributions_transform(name: str) -> None:
    layer, event, noise = layers()[name]
    layer = layer.double()
    base = Independent(Normal(torch.zeros(noise).double(), 1.0), len(noise))
    transform = layer.as_distribution_transform()
    assert (transform.domain.event_dim, transform.codomain.event_dim) == (len(noise), len(event))
    assert (transform.forward_shape((7, *noise)), transform.inverse_shape((7, *event))) == ((7, *event), (7, *noise))
    assert (transform.inv.forward_shape(event), transform.inv.inverse_shape(noise)) == (noise, event)
    distribution = TransformedDistribution(base, [transform])
    assert (distribution.batch_shape, distribution.event_shape) == ((), event)
    x = distribution.rsample((6,))
    z, log_det = layer(x)
    expected = base.log_prob(z) + log_det
    assert expected.shape == (6,)
    torch.testing.assert_close(distribution.log_prob(x), expected)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), -log_det)
    with pytest.raises(ValueError, match=rf"^shape: expected \(\.\.\., {re.escape(', '.join(map(str, noise)))}\), got \(7,\)"):
        transform.forward_shape(torch.Size((7,)))


def test_a_squeeze_by_its_definition() -> None:
    squeeze, x = fnn.Squeeze(IMAGE), torch.randn(3, *IMAGE)
    z, _ = squeeze(x)
    for c, i, j, h, w in itertools.product(range(CHANNELS), range(2), range(2), range(2), range(3)):
        assert torch.equal(z[:, 4 * c + 2 * i + j, h, w], x[:, c, 2 * h + i, 2 * w + j])
    assert torch.equal(squeeze.inverse(z)[0], x)


def test_the_levels_of_a_multi_scale_by_hand() -> None:
    """Real NVP, equations 13 to 16: the first half of each level is noise, the second the next level's data."""
    layer = image_scales()
    first, second, last = layer.levels
    x = torch.randn(5, *IMAGE)
    h, log_det = first(x)
    left, h = h[:, :4], h[:, 4:]
    h, term = second(h)
    middle, h = h[:, :2], h[:, 2:]  # of three channels
    right, end = last(h)
    z, found = layer(x)
    torch.testing.assert_close(z, torch.cat([left.flatten(1), middle.flatten(1), right], 1))
    torch.testing.assert_close(found, log_det + term + end)


def test_a_context_widens_the_batch_of_every_level() -> None:
    """Also where the part that leaves first does not see it."""
    free, seeing = standardize(IMAGE), masked((1, 4, 6), context=3)
    for layer in (fnn.MultiScale([free, seeing]), fnn.MultiScale([masked(IMAGE, context=3), standardize((1, 4, 6))])):
        layer.double()
        x, context = torch.randn(IMAGE).double(), torch.randn(5, 3).double()
        z, log_det = layer(x, context)
        assert (z.shape, log_det.shape, layer.conditional) == ((5, 48), (5,), True)
        for row in range(5):
            torch.testing.assert_close((z[row], log_det[row]), layer(x, context[row]))
        back, inverse_log_det = layer.inverse(z, context)
        torch.testing.assert_close(back, x.expand(5, *IMAGE))
        torch.testing.assert_close(inverse_log_det, -log_det)
        assert layer.inverse(torch.randn(48).double(), context)[0].shape == (5, *IMAGE)
    assert not fnn.MultiScale([free, standardize((1, 4, 6))]).conditional


def test_neighbours_on_one_event_still_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two reshapes, as in a flow of vectors."""
    calls = []
    chain = fk.ops.autoregressive_chain
    monkeypatch.setattr(
        fk.ops, "autoregressive_chain", lambda x, steps, *rest: calls.append(len(steps)) or chain(x, steps, *rest)
    )
    inner = [fnn.MaskedAutoregressive(48, (16,)) for _ in range(3)]
    layer, x = fnn.Compose([fnn.Reshape(IMAGE), *inner, fnn.Reshape((48,), IMAGE)]), torch.randn(5, *IMAGE)
    with torch.no_grad():
        z = layer(x)
    assert calls == [3]
    torch.testing.assert_close(layer(x), z)


def test_standardize_fits_images() -> None:
    data = torch.randn(200, *IMAGE) * 3 + 5
    layer = fnn.Standardize.fit(data)
    z, _ = layer(data)
    torch.testing.assert_close(z.mean(0), torch.zeros(IMAGE), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(IMAGE))


@pytest.mark.parametrize("name", layers())
def test_bad_input_is_named(name: str) -> None:
    layer, event, noise = layers()[name]
    for function, argument, shape in ((layer, "x", event), (layer.inverse, "z", noise)):
        expected = ", ".join(map(str, shape))
        for wrong in ((3, *shape[:-1], shape[-1] + 1), shape[1:], ()):
            with pytest.raises(
                ValueError, match=f"^{re.escape(f'{argument}: expected shape (..., {expected}), got {wrong}')}$"
            ):
                function(torch.zeros(wrong))
        with pytest.raises(TypeError, match=f"^{argument}: expected a torch.Tensor, got list$"):
            function([0.0])
        with pytest.raises(TypeError, match=f"^{argument}: expected a floating-point tensor, got dtype torch.int64$"):
            function(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fnn.Reshape(4), TypeError, "event_shape: expected a tuple of sizes such as (4,), got 4"),
        (lambda: fnn.Reshape(()), ValueError, "event_shape: expected a shape of positive sizes such as (3, 8, 8), got ()"),
        (
            lambda: fnn.Reshape((2, 0)),
            ValueError,
            "event_shape: expected a shape of positive sizes such as (3, 8, 8), got (2, 0)",
        ),
        (lambda: fnn.Reshape((2, -1)), ValueError, "event_shape: expected sizes of at least 0, got (2, -1)"),
        (lambda: fnn.Reshape((2, 3), (4,)), ValueError, "noise_shape: expected 6 elements like event_shape (2, 3), got (4,)"),
        (lambda: fnn.Reshape((2, 3), 6), TypeError, "noise_shape: expected a tuple of sizes such as (6,), got 6"),
        (
            lambda: fnn.Squeeze((4, 4)),
            ValueError,
            "event_shape: expected (channels, height, width) with height and width multiples of 2, got (4, 4)",
        ),
        (
            lambda: fnn.Squeeze((1, 6, 4), factor=3),
            ValueError,
            "event_shape: expected (channels, height, width) with height and width multiples of 3, got (1, 6, 4)",
        ),
        (lambda: fnn.Squeeze((1, 4, 4), factor=1), ValueError, "factor: expected a whole number of at least 2, got 1"),
        (
            lambda: fnn.Compose([fnn.Squeeze(IMAGE), fnn.Reshape(IMAGE)]),
            ValueError,
            "transforms[1]: expected event shape (8, 2, 3) like the noise of the one before, got (2, 4, 6)",
        ),
        (lambda: fnn.MultiScale(fnn.Reverse(4)), TypeError, "levels: expected a sequence of transforms, got Reverse"),
        (lambda: fnn.MultiScale([]), ValueError, "levels: expected at least one"),
        (lambda: fnn.MultiScale([fnn.Reverse(4), 3]), TypeError, "levels[1]: expected a flowkern.nn.Transform, got int"),
        (
            lambda: fnn.MultiScale([fnn.Reverse(4), fnn.Reverse(4)]),
            ValueError,
            "levels[1]: expected event shape (2,), the half that the one before leaves, got (4,)",
        ),
        (
            lambda: fnn.MultiScale([fnn.Reshape((1, 4, 4), (1, 16)), fnn.Reverse(8)]),
            ValueError,
            "levels[0]: expected noise of at least 2 channels or features to halve, got (1, 16)",
        ),
        (
            lambda: fnn.Standardize(torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [1, 0, 1]])),
            ValueError,
            "std: expected positive deviations; a constant feature has no density; got 0.0 for feature 1, 1",
        ),
    ],
)
def test_what_does_not_fit(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        make()
