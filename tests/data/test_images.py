"""Dequantised images: levels there and back, and the density that goes with it."""

from __future__ import annotations

import pytest
import torch

from flowkern.data import Dequantised, digits


def test_digits_are_levels() -> None:
    pytest.importorskip("sklearn")
    data = digits(seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (1439, 179, 179)
    assert data.features == 64
    assert data.train.unique().tolist() == list(range(17))


def test_every_sample_is_an_image() -> None:
    images = Dequantised(levels=17, side=8)
    decoded = images.decode(torch.linspace(-1e4, 1e4, 6400).reshape(100, 64))
    assert decoded.min() == 0
    assert decoded.max() == 16
    assert torch.equal(decoded, decoded.round())


def test_noise_is_fresh_and_is_cut_off_again() -> None:
    images, generator = Dequantised(levels=5, side=2), torch.Generator().manual_seed(0)
    k = torch.randint(5, (500, 4), generator=generator)
    first, second = images.encode(k, generator), images.encode(k, generator)
    assert not torch.equal(first, second)
    assert torch.equal(images.decode(first), k.float())
    assert torch.equal(images.decode(second), k.float())


def test_log_det_is_that_of_the_encoding() -> None:
    images = Dequantised(levels=17, side=2)
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()

        def encode(k: torch.Tensor) -> torch.Tensor:
            torch.set_rng_state(state)  # the same noise
            return images.encode(k)

        k = torch.randint(17, (5, 4)).double()
        slopes = torch.autograd.functional.jacobian(lambda k: encode(k).sum(0), k).diagonal(dim1=0, dim2=2)  # (5, 4)
        z = encode(k)
    torch.testing.assert_close(images.log_det(z), slopes.log().sum(-1), rtol=1e-5, atol=1e-5)
