"""A flow: transforms between data and the noise of a base distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, register_kl

from flowkern import ops
from flowkern._checks import check_features, check_float, check_generator, check_tensor, sizes, whole_number
from flowkern.flows.base import Base, StandardNormal, call_base, check_base, has_rsample, takes_context
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
        check_base(self.base, self.features)
        if embedding is not None and not callable(embedding):
            raise TypeError(f"embedding: expected a torch.nn.Module, got {type(embedding).__name__}")
        self.embedding = embedding

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.transform.conditional or self.embedding is not None or takes_context(self.base, self.base.log_prob)

    @property
    def has_rsample(self) -> bool:
        """Whether samples can carry gradients: where those of the base do."""
        return has_rsample(self.base)

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
            generator: source of the noise. torch.compile(fullgraph=True) takes none.
            chunk_size: samples taken through the transforms at once, for each row of the context; bounds the memory of the
                intermediate results. The noise is drawn before, whole, so that the samples are the same for every chunk
                size, up to rounding; only a base that draws feature by feature (:class:`flowkern.flows.MADE`) is itself
                sampled in chunks, and gives other samples.
        """
        size = sizes("shape", shape)
        if chunk_size is None:
            return self.transform.inverse(*self._noise(size, context, generator, "sample"))[0]
        chunk_size = whole_number("chunk_size", chunk_size, 1)
        noise, embedded = self._noise(size, context, generator, "sample", chunk_size)
        rows = noise.reshape(size.numel(), *noise.shape[len(size) :])
        x = torch.empty_like(rows)
        for part, place in zip(rows.split(chunk_size), x.split(chunk_size), strict=True):
            place.copy_(self.transform.inverse(part, embedded)[0])
        return x.reshape(noise.shape)

    def rsample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples that carry gradients to every parameter and to the context."""
        return self.transform.inverse(*self._noise(sizes("shape", shape), context, generator, "rsample"))[0]

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one pass; what variational inference needs."""
        z, embedded = self._noise(sizes("shape", shape), context, generator, "rsample")
        x, log_det = self.transform.inverse(z, embedded)
        return x, self._base_log_prob(z, embedded) - self._show_context(log_det, context, embedded)

    def _noise(
        self,
        size: torch.Size,
        context: Tensor | None,
        generator: torch.Generator | None,
        method: str,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Samples of the base, and the context after the embedding."""
        check_generator(generator)
        if method == "rsample" and not self.has_rsample:
            raise NotImplementedError(f"the base {type(self.base).__name__} has no rsample: its samples carry no gradient")
        embedded = self._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        draw = getattr(self.base, method, None) or self.base.rsample
        # A base that takes no context draws for every row of it.
        asked = size if takes_context(self.base, draw) else size + batch
        z = call_base(self.base, draw, asked, embedded, generator, chunk_size)
        if z.shape != (*size, *batch, self.features):
            raise ValueError(f"base: expected samples of shape {(*size, *batch, self.features)}, got {tuple(z.shape)}")
        return z, embedded

    # -- the rest ---------------------------------------------------------------------------------------------------

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow, given a context, as a torch.distributions.Distribution."""
        return FlowDistribution(self, context)

    @torch.no_grad()
    def calibrate(self, x: Tensor, context: Tensor | None = None, batch_size: int = 4096) -> None:
        """Sets the statistics of every BatchNorm to those of a whole data set x (n, features), for evaluation.

        The layers see the data in order, each through the ones before it in evaluation mode. The context has one row, or
        one for each of x.
        """
        check_float("x", x)
        if x.dim() != 2 or x.shape[1] != self.features or len(x) == 0:
            raise ValueError(f"x: expected shape (n, {self.features}) with at least one row, got {tuple(x.shape)}")
        batch_size = whole_number("batch_size", batch_size, 1)
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            embedded = self._embed(context)
            if embedded is not None:
                if embedded.shape[:-1] not in ((), (1,), (len(x),)):
                    raise ValueError(f"context: expected one row, or {len(x)} like x, got shape {tuple(embedded.shape)}")
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
        check_tensor("context", context)
        if not self.conditional:
            raise ValueError(f"context: this flow takes none, got shape {tuple(context.shape)}")
        return context if self.embedding is None else self.embedding(context)


class FlowDistribution(Distribution):
    """A flow for one context, with the interface of torch.distributions; what :meth:`Flow.distribution` gives.

    ``mean``, ``variance``, ``stddev``, ``entropy()`` and ``torch.distributions.kl_divergence(this, other)`` are Monte Carlo
    estimates from ``monte_carlo_samples`` samples, drawn anew at each use, and carry gradients to the parameters and the
    context where ``has_rsample`` is true. The standard error of the mean is ``stddev / monte_carlo_samples ** 0.5``, a
    32nd of the deviation where that number is left as it is; :meth:`expectation` gives the error of any estimate.

    Args:
        flow: the flow.
        context: conditions (*batch shape, context features).
        validate_args: whether ``log_prob`` checks its argument as torch.distributions does; off by default, since it reads
            the values, for which a GPU must wait.

    Example:
        >>> import torch, flowkern as fk
        >>> d = fk.flows.MAF(3, transforms=2, hidden=(8,), context=2).distribution(torch.zeros(5, 2))
        >>> d
        FlowDistribution(flow: MAF, features: 3, batch_shape: (5,))
        >>> d.sample((7,)).shape, d.log_prob(torch.zeros(3)).shape, d.mean.shape, d.entropy().shape
        (torch.Size([7, 5, 3]), torch.Size([5]), torch.Size([5, 3]), torch.Size([5]))
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    monte_carlo_samples: int = 1_024  # of each estimate

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool = False) -> None:
        with torch.no_grad():
            embedded = flow._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        super().__init__(batch, torch.Size([flow.features]), validate_args=validate_args)
        self.flow = flow
        self.context = context

    def __repr__(self) -> str:
        flow, batch = type(self.flow).__name__, tuple(self.batch_shape)
        return f"{type(self).__name__}(flow: {flow}, features: {self.flow.features}, batch_shape: {batch})"

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples can carry gradients."""
        return self.flow.has_rsample

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        batch = sizes("batch_shape", batch_shape)
        kept = batch[len(batch) - len(self.batch_shape) :]
        if len(kept) != len(self.batch_shape) or any(n not in (1, m) for n, m in zip(self.batch_shape, kept, strict=True)):
            raise ValueError(f"batch_shape: expected a shape that {tuple(self.batch_shape)} expands to, got {tuple(batch)}")
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.flow, new.context, new.monte_carlo_samples = self.flow, self.context, self.monte_carlo_samples
        if self.context is not None:
            event = self.context.shape[len(self.batch_shape) :]
            new.context = self.context.expand(*batch, *event)
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=self._validate_args)
        return new

    def _shape(self, sample_shape: Sequence[int]) -> torch.Size:
        # Without a context the flow knows no batch: an expanded distribution draws it as part of the sample.
        return sizes("sample_shape", sample_shape) + (self.batch_shape if self.context is None else torch.Size())

    def log_prob(self, value: Tensor) -> Tensor:
        check_float("value", value)
        check_features("value", value, self.flow.features)
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        return self.flow.rsample(self._shape(sample_shape), self.context, generator=generator)

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        return self.flow.sample(self._shape(sample_shape), self.context, generator=generator, chunk_size=chunk_size)

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one pass."""
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context, generator=generator)

    # -- Monte Carlo estimates ----------------------------------------------------------------------------------------

    def expectation(
        self,
        function: Callable[[Tensor], Tensor],
        samples: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The mean of a function over samples, which estimates its expectation, and the standard error of that mean.

        Args:
            function: from samples (samples, *batch shape, features), all at once, to values (samples, ...): numbers, or
                truth values for a probability.
            samples: how many, at least 2; by default ``monte_carlo_samples``.
            generator: source of the noise.

        Returns:
            The estimate, and its standard error without a gradient, both of the shape of one value.

        Raises:
            ValueError: for fewer than two samples, or a function that does not give one value for each.

        Example:
            >>> import torch, flowkern as fk
            >>> d = fk.flows.MAF(3, transforms=2, hidden=(8,)).distribution()
            >>> norm, error = d.expectation(lambda x: x.norm(dim=-1), 10_000)
            >>> log_p, error = d.expectation(d.log_prob, 10_000)  # minus the entropy
        """
        n = whole_number("samples", self.monte_carlo_samples if samples is None else samples, 2)
        x = self._samples(n, generator)
        values = function(x)
        check_tensor("function: its result", values)
        if values.dim() == 0 or len(values) != n:
            raise ValueError(f"function: expected values of shape ({n}, ...), got {tuple(values.shape)}")
        values = values if values.is_floating_point() else values.to(x.dtype)
        return values.mean(0), values.detach().std(0) / math.sqrt(n)

    @property
    def mean(self) -> Tensor:
        return self.expectation(lambda x: x)[0]

    @property
    def variance(self) -> Tensor:
        return self._samples(self.monte_carlo_samples).var(0)

    def entropy(self) -> Tensor:
        """Estimate of the differential entropy in nats, of the batch's shape."""
        return -self._samples_and_log_prob()[1].mean(0)

    def _samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples that carry gradients where they can."""
        return (self.rsample if self.has_rsample else self.sample)((n,), generator=generator)

    def _samples_and_log_prob(self) -> tuple[Tensor, Tensor]:
        if self.has_rsample:
            return self.rsample_and_log_prob((self.monte_carlo_samples,))
        x = self._samples(self.monte_carlo_samples)
        with torch.no_grad():  # a gradient of this alone would be that of another quantity
            return x, self.log_prob(x)


@register_kl(FlowDistribution, FlowDistribution)
@register_kl(FlowDistribution, Distribution)
def _kl_divergence(p: FlowDistribution, q: Distribution) -> Tensor:
    """Monte Carlo estimate from ``p.monte_carlo_samples`` samples of p."""
    if p.event_shape != q.event_shape:
        raise ValueError(f"q: expected event shape {tuple(p.event_shape)} like p, got {tuple(q.event_shape)}")
    p = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
    x, log_p = p._samples_and_log_prob()
    return (log_p - q.log_prob(x)).mean(0)
