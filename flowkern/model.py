"""What every model is, a flow or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from flowkern.training import History


class Model(nn.Module):
    """A density that can be evaluated, sampled, trained, and built again: what every command and every loop asks for.

    A subclass sets ``event_shape``, gives ``log_prob`` and ``sample``, and decorates its ``__init__`` with
    :func:`flowkern.config.configured`. One that is trained by anything but maximum likelihood gives ``loss`` too.

    Shapes: x (..., *event_shape), context (..., context features); their batch shapes broadcast.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.flows.MAF(3, transforms=2, hidden=(8,), context=2)
        >>> x, context = torch.randn(5, 3), torch.randn(5, 2)
        >>> model.loss((x, context))["loss"].backward()
        >>> twin = fk.flows.MAF(**model.config)
        >>> twin.load_state_dict(model.state_dict())
        <All keys matched successfully>
    """

    event_shape: torch.Size
    levels: int | None = None  # a model of whole numbers gives the number of values that each can take
    config: dict[str, Any]  # the constructor's arguments; see flowkern.config.configured

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density (or log-probability) in nats, with the batch's shape."""
        raise NotImplementedError

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, *context batch, *event_shape), without a gradient.

        Args:
            shape: sample shape, as in torch.distributions.
            context: conditions (*batch, context features).
            generator: source of the random numbers.
            chunk_size: samples drawn at once, for each row of the context; bounds the memory of the intermediate results.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density, so that wrappers of modules (DistributedDataParallel, torch.compile) apply."""
        return self.log_prob(x, context)

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Named terms, each a mean over the batch: ``"loss"`` is what training minimises, others are for the eye.

        For a model trained by maximum likelihood it is the mean negative log-density, in nats.

        Args:
            batch: x, or (x,) or (x, context), as a data loader gives them.

        Raises:
            ValueError: for a batch of more than two.
        """
        parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(parts) not in (1, 2):
            raise ValueError(f"batch: expected x, (x,) or (x, context), got {len(parts)} parts")
        return {"loss": -self(*parts).mean()}  # called as a module, so that hooks run, such as those of fully_shard

    def fit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        validation: float | Tensor | Sequence[Tensor] = 0.1,
        *,
        standardize: bool = True,
        progress: bool = True,
        **settings: Any,
    ) -> History:
        """Trains in place on rows that are at hand, with early stopping; the weights of the best epoch stay.

        Ctrl-C ends the training, not the program. Nothing is written: for checkpoints, large data and several processes there
        is ``flowkern train``.

        Args:
            x: (n, *event_shape), of the parameters' dtype; on any device, the model is trained where it is.
            context: (n, context features).
            validation: the fraction of the rows that is set aside, or other rows: x, or (x, context).
            standardize: gives a flow a :class:`flowkern.nn.Standardize` layer for x first, unless it has one.
            progress: shows a bar, or lines where no bar can be shown.
            settings: see :class:`flowkern.training.Settings`.

        Returns:
            The losses of each epoch, see :class:`flowkern.training.History`.

        Raises:
            TypeError, ValueError: for an argument that does not fit.
            TrainingError: for a loss that is not finite; the weights are then the best so far, or those of before.

        Example:
            >>> import torch, flowkern as fk
            >>> flow = fk.flows.MAF(2, transforms=2, hidden=(16,))
            >>> history = flow.fit(50 + 10 * torch.randn(500, 2), epochs=3, progress=False)
            >>> len(history.train), history.ended
            (3, 'epochs')
        """
        from flowkern.training.fit import fit

        return fit(self, x, context, validation, standardize=standardize, progress=progress, **settings)
