"""A model in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern._checks import check_tensor
from flowkern.config import configured
from flowkern.data.encodings import Encoding
from flowkern.model import Model, parts_of
from flowkern.nn.checks import check_event
from flowkern.nn.heads import holding


class Encoded(Model):
    r"""A model of encoded data as one of the data: log p(x) = log p(z) + log|det dz/dx| with z = encode(x).

    What ``flowkern train`` saves: rows go in, and samples come out, in the units of the table or the levels of the images.
    Of images, whose encoding adds noise, ``log_prob`` is a lower bound, and draws fresh noise in each call.

    Args:
        model: of the encoded rows.
        encoding: a :class:`flowkern.data.Encoding`.
        context_encoding: of what the rows are given; ``None`` leaves a context as it is.

    Shapes: x (..., *encoding.event_shape), context (..., numbers that a row is given), of any real dtype.

    Example:
        >>> import torch, flowkern as fk
        >>> x = 1e6 + 100 * torch.randn(500, 2, dtype=torch.float64)
        >>> scale = fk.data.Standardised.fit(fk.data.Rows(x))
        >>> model = Encoded(fk.flows.MAF(2, transforms=1, hidden=(8,)), scale)
        >>> model.log_prob(x).shape, bool((model.sample((5,)) > 9e5).all())
        (torch.Size([500]), True)
    """

    @configured
    def __init__(self, model: Model, encoding: Encoding, context_encoding: Encoding | None = None) -> None:
        super().__init__()
        if model.event_shape.numel() != encoding.event_shape.numel():
            raise ValueError(
                f"encoding: expected events of {model.event_shape.numel()} numbers like the model's, "
                f"got {tuple(encoding.event_shape)}"
            )
        if context_encoding is not None and not model.conditional:
            raise ValueError("context_encoding: the model takes no context")
        self.model, self.encoding, self.context_encoding = model, encoding, context_encoding
        self.event_shape, self.levels = encoding.event_shape, encoding.data_levels

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.model.conditional

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The model's view of rows x (..., *event_shape), and log|det dz/dx| (...), float64."""
        check_tensor("x", x)
        check_event("x", x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        z = self.encoding.encode(x.reshape(-1, *self.event_shape))
        log_det = self.encoding.log_det(z).reshape(batch)
        like = next(self.model.parameters(), z)
        dtype = like.dtype if self.model.levels is None else holding(self.model.levels, like.dtype)
        if self.model.takes_float32:
            dtype = torch.promote_types(dtype, torch.float32)
        return z.reshape(*batch, *self.model.event_shape).to(like.device, dtype), log_det

    def encode_context(self, context: Tensor | None) -> Tensor | None:
        """The model's view of what rows are given, (..., context features)."""
        if context is None or self.context_encoding is None:
            return context
        check_tensor("context", context)
        check_event("context", context, self.context_encoding.event_shape)
        encoded = self.context_encoding.encode(context.reshape(-1, *self.context_encoding.event_shape))
        return encoded.reshape(*context.shape[:-1], self.context_encoding.features).to(next(self.model.parameters(), encoded))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats per row in the data's units, float64, with the batch's shape."""
        z, log_det = self.encode(x)
        return self.model.log_prob(z, self.encode_context(context)).double() + log_det

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples in the data's units, see :meth:`flowkern.model.Model.sample`."""
        z = self.model.sample(shape, self.encode_context(context), generator=generator, chunk_size=chunk_size)
        batch = z.shape[: z.dim() - len(self.model.event_shape)]
        x = self.encoding.decode(z.reshape(-1, *self.event_shape))
        return x.reshape(*batch, *self.event_shape)

    def calibrate(self, x: Tensor, context: Tensor | None = None, batch_size: int = 4096) -> None:
        """Passes the encoded rows on, see :meth:`flowkern.model.Model.calibrate`."""
        self.model.calibrate(self.encode(x)[0], self.encode_context(context), batch_size)

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """The model's own terms of the encoded batch; ``"loss"`` is taken to the data's units, as ``log_prob`` is."""
        x, *context = parts_of(batch)
        z, log_det = self.encode(x)
        given = self.encode_context(context[0] if context else None)
        terms = self.model.loss(z if given is None else (z, given))
        return {**terms, "loss": terms["loss"].double() - log_det.mean()}
