"""A flow as a torch.distributions.Distribution: Monte Carlo estimates and divergences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from flowkern._checks import check_float, check_tensor, sizes, whole_number
from flowkern.nn.checks import check_event
from flowkern.nn.distribution_transform import real

if TYPE_CHECKING:
    from flowkern.flows.flow import Flow


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
        FlowDistribution(flow: MAF, event_shape: (3,), batch_shape: (5,))
        >>> d.sample((7,)).shape, d.log_prob(torch.zeros(3)).shape, d.mean.shape, d.entropy().shape
        (torch.Size([7, 5, 3]), torch.Size([5]), torch.Size([5, 3]), torch.Size([5]))
    """

    arg_constraints: ClassVar[dict] = {}
    monte_carlo_samples: int = 1_024  # of each estimate

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool = False) -> None:
        with torch.no_grad():
            embedded = flow._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        super().__init__(batch, flow.event_shape, validate_args=validate_args)
        self.flow = flow
        self.context = context

    def __repr__(self) -> str:
        flow, event, batch = type(self.flow).__name__, tuple(self.event_shape), tuple(self.batch_shape)
        return f"{type(self).__name__}(flow: {flow}, event_shape: {event}, batch_shape: {batch})"

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All real numbers, of the event's shape."""
        return real(len(self.event_shape))

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
        check_event("value", value, self.event_shape)
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
            function: from samples (samples, *batch shape, *event shape), all at once, to values (samples, ...): numbers, or
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
