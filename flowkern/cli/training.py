"""Maximum-likelihood training with early stopping, for the demo."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from flowkern.cli.errors import CommandError
from flowkern.data import Dataset
from flowkern.flows import Flow

PATIENCE = 20  # epochs without a better validation score


@dataclass
class History:
    """Mean negative log-likelihood in nats per row, of what the flow sees; one entry per epoch."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = -1
    interrupted: bool = False


def train(
    flow: Flow,
    data: Dataset,
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
    validation = data.encoding.encode(data.validation, generator)
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
    data: Dataset,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    generator: torch.Generator,
    history: History,
) -> float:
    total, epoch = 0.0, len(history.train)
    rows = data.encoding.encode(data.train, generator)[torch.randperm(len(data.train), generator=generator)]
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
