"""Maximum-likelihood training with early stopping, for the demo."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowkern.cli.errors import CommandError
from flowkern.data import Dataset, Encoding, Rows, encoding
from flowkern.flows import Flow

PATIENCE = 20  # epochs without a better validation score


class Encoded:
    """A data set in memory with its encoding, as a flow of features sees it."""

    def __init__(self, data: Dataset) -> None:
        self.name, self.features = data.name, data.event_shape.numel()
        self.train, self.validation, self.test = (_all(part) for part in (data.train, data.validation, data.test))
        self.encoding: Encoding = encoding(data)

    def encode(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, *event_shape) with noise of the generator, as (n, features)."""
        return self.encoding.encode(rows, self.encoding.noise(len(rows), generator)).flatten(1)

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / dx| of z (n, features) per row."""
        return self.encoding.log_det(z.unflatten(1, self.encoding.event_shape))

    def decode(self, z: Tensor) -> Tensor:
        """Rows of z (n, features) in the units of the data."""
        return self.encoding.decode(z.unflatten(1, self.encoding.event_shape))


def _all(part: Rows) -> Tensor:
    return part[torch.arange(len(part))]


@dataclass
class History:
    """Mean negative log-likelihood in nats per row, of what the flow sees; one entry per epoch."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = -1
    interrupted: bool = False


def train(
    flow: Flow,
    data: Encoded,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    keep: Callable[[], None],
    report: Callable[[int, History], None],
) -> History:
    """Trains in place and leaves the parameters of the best epoch; ``keep`` is called whenever there is a better one.

    Ctrl-C ends the training like early stopping does. A loss that is not finite ends the run with an error.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = History()
    state = copy.deepcopy(flow.state_dict())
    validation = data.encode(data.validation, generator)
    try:
        for epoch in range(epochs):
            history.train.append(_epoch(flow, data, optimizer, batch_size, generator, history))
            schedule.step()
            with torch.no_grad():
                loss = -float(flow.log_prob(validation).mean())
            _check_finite(loss, f"validation loss is {loss} after epoch {epoch + 1}", history)
            history.validation.append(loss)
            if history.best < 0 or loss < history.validation[history.best]:
                state = copy.deepcopy(flow.state_dict())
                keep()
                history.best = epoch
            report(epoch, history)
            if epoch - history.best >= PATIENCE:
                break
    except KeyboardInterrupt:
        history.interrupted = True
        del history.train[len(history.validation) :]
    flow.load_state_dict(state)
    return history


def _epoch(
    flow: Flow,
    data: Encoded,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    generator: torch.Generator,
    history: History,
) -> float:
    total, epoch = 0.0, len(history.train)
    rows = data.encode(data.train, generator)[torch.randperm(len(data.train), generator=generator)]
    batches = rows.split(batch_size)
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = -flow.log_prob(batch).mean()
        value = loss.item()
        step = f"step {epoch * len(batches) + i + 1} (epoch {epoch + 1}, batch {i + 1} of {len(batches)})"
        _check_finite(value, f"loss is {value} at {step}", history)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        total += value * len(batch)
    return total / len(rows)


def _check_finite(loss: float, found: str, history: History) -> None:
    if not math.isfinite(loss):
        kept = "" if history.best < 0 else f"; the checkpoint is of the best epoch before, {history.best + 1}"
        raise CommandError(f"the {found}{kept}", status=1)
