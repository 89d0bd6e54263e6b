"""Scores, whatever the number of processes is."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import flowkern as fk
from flowkern.data import Dequantised, Identity, Rows, Waveform
from flowkern.models import Encoded
from flowkern.training import Processes, batches, evaluate, evaluation, mean_terms

IMAGES = (1, 2, 3)


class Alone(Processes):
    """One of several processes, without the others: of what they gather there is its own part."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


def images() -> Encoded:
    torch.manual_seed(0)
    return Encoded(fk.flows.MAF(6, 1, (8,)), Dequantised(17, IMAGES)).eval()


@pytest.mark.parametrize("count", [2, 3])
def test_a_row_has_the_noise_of_its_place(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where blocks of noise end, and batches of fewer rows than processes."""
    monkeypatch.setattr(evaluation, "ROWS", 10)
    monkeypatch.setattr(batches, "BLOCK", 3 * 10 * 6)
    rows = Rows(torch.randint(17, (101, *IMAGES), generator=torch.Generator().manual_seed(1)))
    score, nats = evaluate(images(), rows, Processes())
    assert len(nats) == score.rows == 101
    parts = [evaluate(images(), rows, Alone(rank, count))[1] for rank in range(count)]
    assert len(torch.cat(parts)) == 101
    torch.testing.assert_close(torch.cat(parts).sort().values, nats.sort().values)


def test_a_score_is_that_of_its_rows() -> None:
    rows = Rows(torch.randint(17, (50, *IMAGES), generator=torch.Generator().manual_seed(1)))
    model = images()
    score, nats = evaluate(model, rows, Processes())
    assert score.nats == pytest.approx(float(nats.mean()))
    assert score.error == pytest.approx(float(nats.std()) / 50**0.5)
    with torch.no_grad():
        means = torch.stack([model.log_prob(rows.source).mean() for _ in range(200)])  # each with noise of its own
    assert score.nats == pytest.approx(float(means.mean()), abs=6 * float(means.std()))


def log_probs(model: Encoded, rows: Rows, count: int) -> Tensor:
    """The log-densities as so many processes find them; here threads, which give each other what they gather."""
    found: list[Any] = [None] * count
    barrier = Barrier(count)

    class Thread(Processes):
        def gather(self, value: Any) -> list[Any]:
            found[self.rank] = value
            barrier.wait()
            return list(found)

    with ThreadPoolExecutor(count) as threads:
        first, *_ = threads.map(lambda rank: evaluate(model, rows, Thread(rank, count))[1], range(count))
        return first


@pytest.mark.parametrize("count", [2, 3])
def test_the_noise_of_large_images_does_not_depend_on_the_processes(count: int) -> None:
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8).expand(3500, 1, 28, 28)
    model = Encoded(fk.flows.MAF(784, 1, (4,)), Dequantised(256, (1, 28, 28)))
    expected = log_probs(model, Rows(images), 1)
    torch.testing.assert_close(log_probs(model, Rows(images), count), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["pixels", "vae"])
def test_images_are_evaluated_a_few_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for models that draw, whose numbers would be others."""
    rows, seen = torch.randint(2, (25, *IMAGES)).float(), []
    model: Any = fk.models.PixelCNN(IMAGES, hidden=2, layers=0)
    if kind == "vae":
        model = fk.models.VAE(IMAGES, 2, hidden=(4,), transforms=1, flow_hidden=(4,), importance=3)
    expected = model.eval().log_prob(rows).detach()
    monkeypatch.setattr(evaluation, "IMAGES", 10 * 6)
    monkeypatch.setattr(model, "log_prob", lambda x: (seen.append(len(x)), type(model).log_prob(model, x))[1])
    found = evaluate(Encoded(model, Identity(IMAGES, 2)), Rows(rows), Processes())[1]
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)
    assert seen == ([10, 10, 5] if kind == "pixels" else [25])


def test_the_terms_of_a_loss_are_means_over_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the last batch holds, and however many processes share it."""
    monkeypatch.setattr(evaluation, "AUDIO", 3 * 7)  # batches of 7 rows, the last of 3
    torch.manual_seed(0)
    model, rows = fk.flows.MAF(3, 1, (8,)), Rows(torch.randn(38, 3))
    expected = -float(model.log_prob(rows.source).detach().mean())
    assert mean_terms(model, rows, None, Processes()) == {"loss": pytest.approx(expected)}
    parts = [mean_terms(model, rows, None, Alone(rank, 4))["loss"] for rank in range(4)]
    assert sum(parts) / 4 == pytest.approx(expected)


def test_bits_per_sample_of_audio() -> None:
    model = Encoded(fk.flows.MAF(4, 1, (8,)), Waveform((4,), rate=16000))
    score, nats = evaluate(model, Rows(torch.rand(5, 4)), Processes())
    assert score.bits_per_dimension == pytest.approx(-float(nats.mean()) / 4 / math.log(2))
