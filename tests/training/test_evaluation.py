"""Scores: what they are of, and that the number of processes does not change them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import flowkern as fk
from flowkern.data import Dequantised, Rows
from flowkern.models import Encoded
from flowkern.training import Processes, evaluate


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
