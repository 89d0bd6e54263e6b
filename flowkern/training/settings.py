"""How a model is trained: the numbers that a run is repeated from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flowkern._checks import choices_of, number, one_of, whole_number


@dataclass(frozen=True)
class Settings:
    """How a model is trained. Every number is checked when it is set.

    Args:
        epochs: passes over the training rows, at most.
        batch_size: rows of a step, in each process.
        learning_rate: Adam's, the largest of the schedule.
        weight_decay: Adam's; "adam" adds it to the gradient, "adamw" takes it from the weights.
        optimizer: adam or adamw, fused where torch has that.
        schedule: constant, or cosine, which falls to zero at the last of all epochs.
        warmup: steps in which the learning rate rises from zero.
        gradient_clip: largest norm of the gradient; 0 leaves it as it is.
        accumulate: parts that a batch goes through the model in, one after another. It spares memory; the gradient is that of
            the whole batch (but batch norm takes the statistics of each part).
        patience: epochs without a better validation loss after which training ends; 0 for never.
        average: decay of an exponential average of the weights, such as 0.999, which is then what is validated and kept; 0
            for none.
        precision: float32, or bfloat16 for torch's autocast.
        strategy: how several processes share the work: ddp copies the model, fsdp shards it (torch's fully_shard).
        checkpoint_minutes: time between checkpoints.
        seed: of the split, the weights, the order of the rows and the noise.

    Raises:
        ValueError: for a value out of range; the message names it.

    Example:
        >>> Settings(epochs=3).learning_rate
        0.001
        >>> Settings(average=1.5)
        Traceback (most recent call last):
        ...
        ValueError: average: expected a number of at least 0 and below 1, got 1.5
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    gradient_clip: float = 10.0
    accumulate: int = 1
    patience: int = 20
    average: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("accumulate", 1), ("patience", 0), ("seed", 0)):
            whole_number(name, getattr(self, name), least)
        for name in ("learning_rate", "weight_decay", "gradient_clip", "checkpoint_minutes"):
            number(name, getattr(self, name), least=0)
        number("average", self.average, least=0, below=1)
        for name, choices in CHOICES.items():
            one_of(name, getattr(self, name), choices)
        for name, power in (("seed", 64), ("epochs", 31), ("batch_size", 31), ("accumulate", 31)):
            if getattr(self, name) >= 2**power:
                raise ValueError(f"{name}: expected a whole number below 2^{power}, got {getattr(self, name)}")
        if self.average and self.strategy == "fsdp":
            raise ValueError("average: an average of the weights needs strategy ddp, got fsdp")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many."""
        rate = self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))
        return rate * 0.5 * (1 + math.cos(math.pi * step / steps)) if self.schedule == "cosine" else rate


CHOICES = choices_of(Settings)
