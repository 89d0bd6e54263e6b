"""A flow: transforms between data and the noise of a base distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from flowkern import ops
from flowkern.flows.base import Base, StandardNormal, call_base, sample_size, takes_context
from flowkern.nn import BatchNorm, Compose, Transform


class Flow(nn.Module):
    r"""log p(x | c) = log p_base(z) + log|det dz/dx| with z = transform(x, c).

    Args:
        transforms: from data to noise, the first one next to the data.
        base: any object with ``log_prob`` and ``rsample``, such as a torch distribution over (..., features) or another
            flow; the standard normal by default.
        embedding: module that is applied to every context first.

    Shapes: x (..., features), context (..., context features); their batch shapes broadcast.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = Flow([fk.nn.Standardize(torch.zeros(3), torch.ones(3)), fk.nn.MaskedAutoregressive(3, hidden=(8,))])
        >>> flow.log_prob(torch.randn(5, 3)).shape, flow.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 3]))
    """

    def __init__(self, transforms: Iterable[Transform], base: Base | None = None, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.transform = Compose(transforms)
        self.features = self.transform.features
        self.base = StandardNormal(self.features) if base is None else base
        self.embedding = embedding

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.transform.conditional or self.embedding is not None or takes_context(self.base, self.base.log_prob)

    # -- density ----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density, so that wrappers of modules (DistributedDataParallel, torch.compile) apply."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, with the batch's shape."""
        embedded = self._embed(context)
        z, log_det = self.transform(x, embedded)
        log_det = self._show_context(log_det, context, embedded)
        if type(self.base) is StandardNormal:
            return ops.normal_log_prob(z, log_det)  # one pass over z for both terms
        return self._base_log_prob(z, embedded) + log_det

    def _base_log_prob(self, z: Tensor, embedded: Tensor | None) -> Tensor:
        log_prob = call_base(self.base, self.base.log_prob, z, embedded)
        if log_prob.shape != z.shape[:-1]:
            raise ValueError(
                f"base: expected log_prob of shape {tuple(z.shape[:-1])}, got {tuple(log_prob.shape)}; "
                "a distribution of single numbers becomes one of vectors by torch.distributions.Independent"
            )
        return log_prob

    def _show_context(self, log_det: Tensor, context: Tensor | None, embedded: Tensor | None) -> Tensor:
        """A context that is not finite shows in its row, also where the embedding hides it."""
        if context is None or embedded is None or self.embedding is None:
            return log_det
        rows = context.reshape(*embedded.shape[:-1], -1)
        return log_det + (rows - rows).detach().sum(-1)

    # -- samples ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, features), or (*shape, *context batch, features), without a gradient.

        Args:
            shape: sample shape, as in torch.distributions.
            context: conditions (*batch, context features).
            generator: source of the noise.
            chunk_size: samples drawn at once; bounds the memory of the intermediate results.
        """
        size = sample_size(shape)
        if chunk_size is None:
            return self._draw(size, context, generator, "sample")[0]
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size: expected a whole number of at least 1, got {chunk_size!r}")
        n = size.numel()
        parts = [self._draw((min(chunk_size, n - i),), context, generator, "sample")[0] for i in range(0, n, chunk_size)]
        drawn = torch.cat(parts) if parts else self._draw((0,), context, generator, "sample")[0]
        return drawn.reshape(*size, *drawn.shape[1:])

    def rsample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples that carry gradients to every parameter and to the context."""
        return self._draw(shape, context, generator, "rsample")[0]

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one pass; what variational inference needs."""
        x, log_det, z, embedded = self._draw(shape, context, generator, "rsample")
        return x, self._base_log_prob(z, embedded) - log_det

    def _draw(
        self, shape: Sequence[int], context: Tensor | None, generator: torch.Generator | None, method: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        embedded = self._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        draw = getattr(self.base, method, None)
        if draw is None and method == "sample":
            draw = self.base.rsample
        if draw is None:
            raise NotImplementedError(f"the base {type(self.base).__name__} has no {method}: its samples carry no gradient")
        # A base that takes no context draws for every row of it.
        size = sample_size(shape)
        size = size if takes_context(self.base, draw) else size + batch
        z = call_base(self.base, draw, size, embedded, generator)
        x, log_det = self.transform.inverse(z, embedded)
        return x, self._show_context(log_det, context, embedded), z, embedded

    # -- the rest ---------------------------------------------------------------------------------------------------

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow, given a context, as a torch.distributions.Distribution."""
        return FlowDistribution(self, context)

    @torch.no_grad()
    def calibrate(self, x: Tensor, context: Tensor | None = None, batch_size: int = 4096) -> None:
        """Sets the statistics of every BatchNorm to those of a whole data set x (n, features), for evaluation.

        The layers see the data in order, each through the ones before it in evaluation mode.
        """
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            embedded = self._embed(context)
            if embedded is not None:
                embedded = embedded.expand(len(x), embedded.shape[-1])
            chunks = [None] * len(x) if embedded is None else embedded.split(batch_size)
            for transform in self.transform.leaves():
                if isinstance(transform, BatchNorm):
                    transform.set_statistics(x)
                x = torch.cat([transform(a, c)[0] for a, c in zip(x.split(batch_size), chunks, strict=False)])
            if isinstance(self.base, Flow):
                self.base.calibrate(x, embedded if self.base.conditional else None, batch_size)
        finally:
            for module, mode in modes:
                module.training = mode

    def _embed(self, context: Tensor | None) -> Tensor | None:
        if context is None:
            return None
        if not self.conditional:
            raise ValueError(f"context: this flow takes none, got shape {tuple(context.shape)}")
        return context if self.embedding is None else self.embedding(context)


class FlowDistribution(Distribution):
    """A flow for one context, with the interface of torch.distributions."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None) -> None:
        with torch.no_grad():
            embedded = flow._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        super().__init__(batch, torch.Size([flow.features]), validate_args=False)
        self.flow = flow
        self.context = context

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        batch = torch.Size(batch_shape)
        if self.context is not None:
            event = self.context.shape[len(self.batch_shape) :]
            return FlowDistribution(self.flow, self.context.expand(*batch, *event))
        new = FlowDistribution(self.flow)
        new._batch_shape = batch
        return new

    def _shape(self, sample_shape: Sequence[int]) -> torch.Size:
        # Without a context the flow knows no batch: an expanded distribution draws it as part of the sample.
        return torch.Size(sample_shape) + (self.batch_shape if self.context is None else torch.Size())

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one pass."""
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)
