"""Encodings: there and back, and the density that goes with it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from flowkern.data import (
    Binarised,
    DataError,
    Dataset,
    Dequantised,
    Encoding,
    Identity,
    Rows,
    Standardised,
    bits_per_dimension,
    encoding,
)

SHAPE = (3, 2, 2)
MEAN, STD = torch.linspace(-1e6, 1e6, 12).reshape(SHAPE), torch.logspace(-3, 3, 12).reshape(SHAPE)


def levels(n: int, rows: int = 50) -> Tensor:
    return torch.randint(n, (rows, *SHAPE), generator=torch.Generator().manual_seed(1))


ENCODINGS: dict[str, tuple[Encoding, Tensor]] = {
    "identity": (Identity(SHAPE), levels(9) / 2),
    "levels": (Identity(SHAPE, levels=9), levels(9)),
    "standardised": (Standardised(MEAN, STD), MEAN + STD * torch.randn(50, *SHAPE, dtype=torch.float64)),
    "17 levels": (Dequantised(17, SHAPE), levels(17)),
    "256 levels": (Dequantised(256, SHAPE, margin=1e-6), levels(256)),
    "binarised": (Binarised(SHAPE, levels=256), 255 * levels(2)),
}
NOISY = ["17 levels", "256 levels", "binarised"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_there_and_back(name: str) -> None:
    code, rows = ENCODINGS[name]
    z = code.encode(rows)
    assert z.shape == rows.shape
    assert z.dtype is torch.float32
    torch.testing.assert_close(code.decode(z).double(), rows.double(), rtol=1e-7, atol=0)
    assert code.encode(rows[:0]).shape == code.decode(z[:0]).shape == (0, *SHAPE)
    assert code.log_det(z[:0]).shape == (0,)
    if code.levels is not None:
        assert z.unique().tolist() == list(range(code.levels))


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_config_builds_it_again(name: str) -> None:
    code, rows = ENCODINGS[name]
    twin = type(code)(**json.loads(json.dumps(code.config)))
    noise = code.noise(len(rows))
    z = code.encode(rows, noise)
    assert torch.equal(twin.encode(rows, noise), z)
    assert torch.equal(twin.decode(z), code.decode(z))
    assert torch.equal(twin.log_det(z), code.log_det(z))
    assert (twin.levels, twin.data_levels, twin.event_shape) == (code.levels, code.data_levels, code.event_shape)
    assert list(twin.state_dict()) == list(code.state_dict())


@pytest.mark.parametrize("name", ENCODINGS)
def test_noise_is_what_encode_draws(name: str) -> None:
    code, rows = ENCODINGS[name]
    rows = rows.clamp(0, 7) if name in NOISY else rows  # binarised, pixels of no certain value
    torch.manual_seed(5)
    drawn = code.encode(rows)
    noise = code.noise(len(rows), torch.Generator().manual_seed(5))
    assert (noise is not None) == (name in NOISY)
    assert torch.equal(code.encode(rows, noise), drawn)
    assert torch.equal(code.encode(rows), drawn) == (name not in NOISY)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "binarised"])
def test_log_det_is_that_of_the_jacobian(name: str) -> None:
    """Also where a pixel is the first or the last level, whose slope is steepest."""
    code, rows = ENCODINGS[name]
    rows = rows[:5].double()
    noise = code.noise(5)
    jacobian = torch.autograd.functional.jacobian(lambda x: code.encode(x, noise).double(), rows)
    expected = [jacobian[i, ..., i, :, :, :].reshape(12, 12).slogdet().logabsdet for i in range(5)]
    found = code.log_det(code.encode(rows, noise))
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_every_sample_is_an_image() -> None:
    images = Dequantised(17, (1, 8, 8))
    decoded = images.decode(torch.linspace(-1e4, 1e4, 6400).reshape(100, 1, 8, 8))
    assert decoded.min() == 0
    assert decoded.max() == 16
    assert torch.equal(decoded, decoded.round())


def test_noise_fills_the_level_up() -> None:
    """255 + u is 256 in float32, and the logit there is another one."""
    images = Dequantised(256, (1, 1, 256), margin=1e-6)
    rows = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256)
    for u in (0.0, 1 - 2**-24):
        z = images.encode(rows, torch.full(rows.shape, u))
        expected = torch.logit(1e-6 + (1 - 2e-6) * (rows.double() + u) / 256)
        torch.testing.assert_close(z.double(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("margin", "n"), [(1e-6, 256), (0.05, 17)])
def test_bits_per_dimension_are_those_of_the_equation(margin: float, n: int) -> None:
    """-log p / (D ln 2) - log2(1 - 2 margin) + log2 n + mean of log2 s + log2(1 - s)."""
    images = Dequantised(n, SHAPE, margin)
    z = torch.randn(40, *SHAPE, dtype=torch.float64) * 3
    log_p = torch.randn(40, dtype=torch.float64) * 100
    s = torch.sigmoid(z)
    each = -log_p / (12 * math.log(2)) - math.log2(1 - 2 * margin) + math.log2(n)
    expected = float((each + (s.log2() + (1 - s).log2()).flatten(1).mean(1)).mean())
    assert bits_per_dimension(float((log_p + images.log_det(z)).mean()), 12) == pytest.approx(expected, rel=1e-12)


def test_density_of_dequantised_levels_sums_to_one() -> None:
    """A logistic density in logit space is uniform over (k + u), but for the margin; its integral over all pixels is 1."""
    images = Dequantised(4, (1, 1, 1), margin=0.1)
    rows = torch.arange(4).repeat_interleave(1000).reshape(-1, 1, 1, 1)
    noise = ((torch.arange(1000) + 0.5) / 1000).repeat(4).reshape(-1, 1, 1, 1)
    z = images.encode(rows, noise).double()
    log_p = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)  # the logistic density
    mass = (log_p.flatten() + images.log_det(z)).exp().sum() / 1000
    assert float(mass) == pytest.approx(1 - 2 * 0.1, rel=1e-6)


def test_binarised_pixels_have_their_probability() -> None:
    images = Binarised((1, 1, 3), levels=17)
    rows = torch.tensor([0, 4, 16]).expand(40_000, 1, 1, 3)
    torch.manual_seed(0)
    frequency = images.encode(rows).mean(0).flatten()
    assert frequency[[0, 2]].tolist() == [0.0, 1.0]
    assert abs(float(frequency[1]) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 40_000)
    assert torch.equal(images.log_det(torch.zeros(2, 1, 1, 3)), torch.zeros(2, dtype=torch.float64))


def dataset(shape: tuple[int, ...], n: int | None) -> Dataset:
    rows = Rows(torch.randint(n or 1000, (40, *shape)))
    return Dataset("some", rows, rows, rows, n)


@pytest.mark.parametrize(
    ("shape", "has", "wanted", "kind"),
    [
        ((4,), None, None, Standardised),
        ((4,), 5, None, Standardised),
        ((4,), 5, 5, Identity),
        ((4,), 2, 2, Identity),
        ((1, 3, 3), 256, None, Dequantised),
        ((1, 3, 3), 256, 256, Identity),
        ((1, 3, 3), 256, 2, Binarised),
        ((1, 3, 3), 2, 2, Identity),
    ],
)
def test_the_encoding_fits_data_and_model(shape: tuple[int, ...], has: int | None, wanted: int | None, kind: type) -> None:
    found = encoding(dataset(shape, has), wanted)
    assert type(found) is kind
    assert found.event_shape == shape
    assert found.levels == wanted
    assert found.data_levels == (None if kind is Standardised else has)


@pytest.mark.parametrize(
    ("shape", "has", "wanted", "message"),
    [
        ((4,), None, 2, "some: has real numbers, the model takes whole numbers of 2 levels"),
        ((4,), 5, 2, "some: has whole numbers of 5 levels, the model takes whole numbers of 2 levels"),
        ((1, 3, 3), 17, 256, "some: has whole numbers of 17 levels, the model takes whole numbers of 256 levels"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], has: int | None, wanted: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoding(dataset(shape, has), wanted)


def test_the_margin_is_that_of_dequantised_images() -> None:
    assert encoding(dataset((1, 3, 3), 17), margin=1e-6).config["margin"] == 1e-6
    assert encoding(dataset((1, 3, 3), 17)).config["margin"] == 0.05
    for other in (lambda: encoding(dataset((4,), None), margin=0.1), lambda: encoding(dataset((1, 3, 3), 17), 17, margin=0.1)):
        with pytest.raises(DataError, match="margin: only images under a model of real numbers"):
            other()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"levels: expected a whole number of at least 2, got 1"):
        Dequantised(1, SHAPE)
    for margin in (0, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"margin: expected a number above 0 and below 0.5, got"):
            Dequantised(17, SHAPE, margin)
    with pytest.raises(ValueError, match=r"got 1 and 0 for feature 1$"):
        Standardised([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"got nan and 1 for feature 0$"):
        Standardised([math.nan, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"expected one shape for both, got \(2,\) and \(1,\)"):
        Standardised([0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match=r"noise: expected shape \(50, 3, 2, 2\) like rows, got \(49, 3, 2, 2\)"):
        Dequantised(17, SHAPE).encode(levels(17), torch.rand(49, *SHAPE))
    with pytest.raises(TypeError, match=r"generator: expected a torch.Generator"):
        Dequantised(17, SHAPE).noise(3, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENCODINGS)
def test_other_shapes_are_refused(name: str) -> None:
    code, rows = ENCODINGS[name]
    for argument, call in (("rows", code.encode), ("z", code.decode), ("z", code.log_det)):
        with pytest.raises(ValueError, match=rf"{argument}: expected shape \(n, 3, 2, 2\), got \(50, 12\)"):
            call(rows.flatten(1))
