"""Scores, whatever the number of processes is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flowkern as fk
from flowkern.data import Dequantised, Rows
from flowkern.models import Encoded
from flowkern.training import Processes, batches, evaluate, evaluation

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
