"""What a training run has come to, epoch by epoch."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field


@dataclass
class History:
    """Losses of a run, one entry per epoch, in the model's units (nats for a model trained by maximum likelihood).

    Attributes:
        train: mean loss over the epoch, while the weights changed.
        validation: mean loss over the validation rows after it.
        learning_rate: of the epoch's last step.
        seconds: since the run began, the time of earlier parts of a continued run included.
        steps: taken by the end of the epoch.
        best: the epoch with the least validation loss, counted from 0, or -1 before the first.
        ended: why training ended: "epochs", "patience", or the name of a signal; empty while it runs.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    best: int = -1
    ended: str = ""

    def table(self) -> str:
        """The epochs as text with commas, a header first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("epoch", "step", "train_loss", "validation_loss", "learning_rate", "seconds"))
        columns = (self.steps, self.train, self.validation, self.learning_rate, [round(s, 3) for s in self.seconds])
        writer.writerows((i + 1, *row) for i, row in enumerate(zip(*columns, strict=True)))
        return text.getvalue()
