"""The approximate posterior of a VAE: a diagonal Gaussian, and inverse autoregressive steps after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from flowkern import ops
from flowkern._checks import (
    broadcast_batch,
    check_features,
    check_float,
    check_generator,
    check_like,
    flag,
    sizes,
    whole_number,
    widths,
)
from flowkern.nn import InverseAutoregressive, MaskedAutoregressive
from flowkern.nn.distribution_transform import real
from flowkern.nn.heads import normal_terms, randn
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import Affine


class Posterior(nn.Module):
    r"""q(z | x) = the law of z_T: z_0 = mean + std eps with eps ~ N(0, I), then T gated steps z_t = s z_{t-1} + (1 - s) m.

    m and s = sigmoid(a + 2) come from a MADE each, which sees z_{t-1} and h; the order is reversed from step to step. An
    encoder gives the numbers (mean, raw log std, h) of each x.

    Args:
        latent: dimensions of z.
        transforms: T; with 0 it is the diagonal Gaussian.
        hidden: widths of each MADE, at least ``latent``.
        context: numbers of h.
        gated: else steps are affine, z_t = s z_{t-1} + m with zuko's softly clipped log-scale.
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), algorithm 1.
    """

    def __init__(
        self, latent: int, transforms: int, hidden: Sequence[int], context: int, gated: bool = True, activation: str = "elu"
    ) -> None:
        super().__init__()
        self.latent, transforms = whole_number("latent", latent, 1), whole_number("transforms", transforms, 0)
        self.context = whole_number("flow_context", context, 0) if transforms else 0
        hidden, gated = widths("flow_hidden", hidden), flag("gated", gated)
        if transforms and min(hidden, default=latent) < latent:
            raise ValueError(
                f"flow_hidden: expected widths of at least {latent}, the dimensions of z, so that a unit stands behind each, "
                f"got {hidden}"
            )
        self.layers = nn.ModuleList(
            InverseAutoregressive(latent, hidden, self.context, activation, ("natural", "reverse")[t % 2], gated)
            for t in range(transforms)
        )
        self.start_map = Affine("soft_clipped_exp", "scale_shift")  # z_0 = mean + std eps; a deviation that cannot overflow
        # The first step as a network that sees nothing: a hidden unit between, so that its weights stay small. What the
        # encoder gives is added to its outputs.
        masks = [
            torch.zeros(1, latent, dtype=torch.bool, device="cpu"),
            torch.ones(2 * latent, 1, dtype=torch.bool, device="cpu"),
        ]
        self.start_plan = AutoregressivePlan(masks, layout="parameter_major", addends=(1,), biases=(False, False))

    @property
    def outputs(self) -> int:
        """Numbers that an encoder gives for each x."""
        return 2 * self.latent + self.context

    def draw(self, eps: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """z_T (..., latent) of noise, and log q(z_T | x), in one call over all steps.

        Args:
            eps: (..., latent); encoded: (rows, outputs), whose rows broadcast with it.
        """
        first, h = self._split(encoded)
        steps = [self._start(first, False), *(ops.NetworkStep(False, layer.arguments()) for layer in self._layers())]
        return ops.autoregressive_chain(eps, steps, h, "input")

    def log_prob(self, z: Tensor, encoded: Tensor, frozen: bool = False) -> Tensor:
        """log q(z | x) of any z (..., latent), by one sweep for each step.

        With ``frozen`` the gradient is that of z alone: neither the parameters nor ``encoded`` take part.
        """
        first, h = self._split(encoded.detach() if frozen else encoded)
        given = [layer.arguments() for layer in self._layers()]
        if frozen:
            given = [a | {name: [t.detach() for t in a[name]] for name in ("weights", "biases")} for a in given]
        steps = [*(ops.NetworkStep(True, a) for a in given[::-1]), self._start(first, True)]
        return ops.autoregressive_chain(z, steps, h, "output")[1]

    def terms(self, eps: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """z_T as :meth:`draw` gives it, and for each dimension its share of log q(z_T | x), (..., latent)."""
        first, h = self._split(encoded)
        z, log_slope = self.start_map.oracle(eps, *first.chunk(2, -1))
        z, others = through(self._layers(), z, h)
        return z, normal_terms(eps) - log_slope - others

    def gaussian(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation (..., latent) of z_0."""
        mean, raw = self._split(encoded)[0].chunk(2, -1)
        return mean, self.start_map.oracle(torch.zeros_like(mean), mean, raw)[1]

    def _layers(self) -> list[InverseAutoregressive]:
        return list(self.layers)  # type: ignore[arg-type]

    def _split(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.context:
            return encoded, None
        first, h = encoded.split((2 * self.latent, self.context), -1)
        return first, h

    def _start(self, first: Tensor, inverse: bool) -> ops.NetworkStep:
        weights = [first.new_zeros(shape) for shape in self.start_plan.weight_shapes]
        return ops.NetworkStep(
            inverse, {"weights": weights, "biases": [], "plan": self.start_plan, "addends": [first], "map": self.start_map}
        )


def through(
    layers: Iterable[InverseAutoregressive | MaskedAutoregressive], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The result of steps in the direction of one pass, and the sum of their log-slopes for each dimension."""
    total = torch.zeros_like(x)
    for layer in layers:
        x, log_slope = layer.map.oracle(x, *layer.network(x, context).unbind(-1))
        total = total + log_slope
    return x, total


class PosteriorDistribution(Distribution):
    """q(z | x) for the rows of a batch, with the interface of torch.distributions; what :meth:`VAE.posterior` gives.

    Args:
        posterior: the steps.
        encoded: what the encoder gave, (*batch shape, outputs).
        validate_args: whether ``log_prob`` checks its argument as torch.distributions does; off by default, since it reads
            the values, for which a GPU must wait.

    Example:
        >>> import torch, flowkern as fk
        >>> q = fk.models.VAE(4, 2, hidden=(8,), flow_hidden=(8,)).posterior(torch.ones(5, 4))
        >>> z, log_q = q.rsample_and_log_prob((3,))
        >>> z.shape, torch.allclose(q.log_prob(z), log_q, atol=1e-4)
        (torch.Size([3, 5, 2]), True)
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(self, posterior: Posterior, encoded: Tensor, validate_args: bool = False) -> None:
        check_features("encoded", encoded, posterior.outputs)
        self.parameters, self.encoded = posterior, encoded
        super().__init__(encoded.shape[:-1], torch.Size((posterior.latent,)), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All real vectors."""
        return real(1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PosteriorDistribution:
        batch = sizes("batch_shape", batch_shape)
        new = self._get_checked_instance(PosteriorDistribution, _instance)
        new.parameters, new.encoded = self.parameters, self.encoded.expand(*batch, self.encoded.shape[-1])
        super(PosteriorDistribution, new).__init__(batch, self.event_shape, validate_args=self._validate_args)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        check_float("value", value)
        check_features("value", value, self.event_shape[0])
        check_like("value", value, self.encoded, "what the encoder gave")
        broadcast_batch(self.encoded, [value], "value")
        if self._validate_args:
            self._validate_sample(value)
        return self.parameters.log_prob(value, self.encoded)

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample_and_log_prob(sample_shape, generator=generator)[0]

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one call."""
        check_generator(generator)
        shape = self._extended_shape(sizes("sample_shape", sample_shape))
        return self.parameters.draw(randn(tuple(shape), self.encoded, generator), self.encoded)
