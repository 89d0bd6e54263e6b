"""Variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowkern import nn as fnn
from flowkern._checks import (
    check_context,
    check_generator,
    check_like,
    check_tensor,
    choices_of,
    chunks,
    number,
    numbers,
    one_of,
    sizes,
    whole_number,
    widths,
)
from flowkern.config import configured
from flowkern.flows import MAF, StandardNormal
from flowkern.flows.flow import Flow
from flowkern.model import Model, parts_of
from flowkern.models import vae_networks
from flowkern.models.posterior import Posterior, PosteriorDistribution, through
from flowkern.nn.checks import check_event, check_held, check_support, event_of
from flowkern.nn.heads import normal_terms, randn

LIKELIHOODS = ("bernoulli", "gaussian", "logistic")
AT_ONCE = 8192  # rows that go through the decoder at once, where many samples of z are drawn for each x


class VAE(Model):
    r"""p(x) = E_{p(z)} p(x | z) with a network p(x | z), learned together with an approximate posterior q(z | x).

    The posterior is a diagonal Gaussian, or an inverse autoregressive flow of ``transforms`` steps. Its draw and its density
    are one call over all steps, forward and back. ``docs/vae.md`` derives all of it.

    - In training ``loss`` is minus the bound log p(x | z) + beta (log p(z) - log q(z | x)), for several ``samples`` minus the
      mean of their weights under the logarithm (IWAE). Its other terms are the means of -log p(x | z), "reconstruction", and
      of log q(z | x) - log p(z), "kl".
    - In evaluation it is minus the bound itself, without free bits or warm-up.
    - ``log_prob`` is that bound with ``importance`` samples, an estimate of log p(x) from below, in memory that does not grow
      with them where there is no gradient.

    Noise is drawn by torch's own generator in training; in evaluation it is the same in every call, but for programs that are
    exported or traced, which know no other generator. Values beyond the
    likelihood's are refused; on a GPU they are not looked for, since it would have to wait.

    Args:
        features: number of features, or the shape of an image (channels, height, width).
        latent: dimensions of z.
        posterior: iaf, or diag for the diagonal Gaussian.
        likelihood: bernoulli (of pixels that are 0 or 1, or probabilities), gaussian, logistic (of ``levels`` whole numbers),
            or a :class:`flowkern.nn.Head`.
        network: mlp, or resnet for images: convolutions with residual blocks, and the mlp at their end.
        hidden: widths of the mlp of the encoder; the decoder has them in turn.
        channels: of the stages of a resnet, each of which halves the picture.
        activation: of encoder and decoder.
        transforms: steps of the posterior, and of a MAF as prior.
        flow_hidden: widths of the networks of these, at least ``latent``.
        flow_context: numbers h of each x that the steps of the posterior see.
        gated: steps of the posterior are the gated ones of the paper; else affine, which learn faster in few epochs.
        prior: normal, or maf for a masked autoregressive flow that is learned.
        variance: of the gaussian likelihood: learned (one for all pixels), fixed, pixel (the decoder gives one for each).
        std: the fixed deviation, or the one that a learned one begins with.
        levels: whole numbers of the logistic likelihood, from 0 to levels - 1.
        kl: analytic where there is a closed form, for a diagonal posterior and a normal prior; or sampled.
        free_bits: least KL divergence of each dimension of z, a mean over the batch, below which it costs nothing more: nats,
            or such a number for each dimension.
        kl_warmup: steps in which beta rises from 0 to 1.
        samples: of z in the bound that is trained; 1 for the evidence lower bound.
        gradient: pathwise, or dreg for the doubly reparameterised one.
        importance: samples of z for the log-density.
        encoder: a module from (rows, *event) to (rows, 2 latent + flow_context) in the place of the one that is built: means,
            raw log-deviations and h; of a diagonal posterior there is no h.
        decoder: one from (rows, latent) to the likelihood's numbers, (rows, channels x outputs, height, width) or
            (rows, features x outputs).

    Raises:
        TypeError, ValueError: for sizes, names or modules that do not fit.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.models.VAE((1, 8, 8), latent=4, hidden=(32,), flow_hidden=(16,))
        >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
        >>> terms = model.loss(x)
        >>> terms["loss"].backward()
        >>> model.eval().log_prob(x).shape, model.reconstruct(x).shape, model.sample((2,)).shape
        (torch.Size([5]), torch.Size([5, 1, 8, 8]), torch.Size([2, 1, 8, 8]))

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014); Improving Variational Inference with Inverse Autoregressive
        Flow (Kingma et al., 2016), algorithm 1, section 5 and appendix C; Importance Weighted Autoencoders (Burda et al.,
        2016), equation 8; Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019).
    """

    draws_noise = True
    takes_shapes = True
    default_data = "digits"

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        latent: int = 32,
        posterior: Literal["iaf", "diag"] = "iaf",
        likelihood: str | fnn.Head = "bernoulli",
        network: Literal["mlp", "resnet"] = "mlp",
        hidden: Sequence[int] = (256, 256),
        *,
        channels: Sequence[int] = (16, 32, 32),
        activation: str = "elu",
        transforms: int = 4,
        flow_hidden: Sequence[int] = (320,),
        flow_context: int = 32,
        gated: bool = False,
        prior: Literal["normal", "maf"] = "normal",
        variance: Literal["learned", "fixed", "pixel"] = "learned",
        std: float = 1.0,
        levels: int = 256,
        kl: Literal["analytic", "sampled"] = "analytic",
        free_bits: float | Sequence[float] | None = None,
        kl_warmup: int = 0,
        samples: int = 1,
        gradient: Literal["pathwise", "dreg"] = "pathwise",
        importance: int = 128,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        given = {
            "posterior": posterior,
            "network": network,
            "prior": prior,
            "variance": variance,
            "kl": kl,
            "gradient": gradient,
        }
        for name, choices in CHOICES.items():
            one_of(name, given[name], choices)
        self.event_shape = event_of(features)
        self.features, self.latent = self.event_shape.numel(), whole_number("latent", latent, 1)
        self.head = _head(likelihood, variance, std, levels)
        self.levels = self.head.levels
        self.samples, self.importance = whole_number("samples", samples, 1), whole_number("importance", importance, 1)
        self.kl_warmup, self.beta = whole_number("kl_warmup", kl_warmup, 0), 1.0
        self._dreg = gradient == "dreg"
        self._free_bits = _free_bits(free_bits, self.latent)
        if self._free_bits is not None and (self.samples > 1 or self._dreg):
            raise ValueError("free_bits: only the bound of one sample, with the pathwise gradient, has a divergence to bound")
        steps = whole_number("transforms", transforms, 1)
        flow: dict[str, Any] = {"hidden": flow_hidden, "activation": "elu"}
        self._posterior = Posterior(self.latent, steps if posterior == "iaf" else 0, context=flow_context, gated=gated, **flow)
        self.prior: Flow | StandardNormal = MAF(self.latent, steps, **flow) if prior == "maf" else StandardNormal(self.latent)
        self._analytic = kl == "analytic" and posterior == "diag" and prior == "normal"
        channels = widths("channels", channels)
        sizes_of: dict[str, Any] = {"hidden": hidden, "channels": channels, "activation": activation}
        self.encoder, self.decoder = _module("encoder", encoder), _module("decoder", decoder)
        if encoder is None:
            self.encoder = vae_networks.encoder(network, self.event_shape, self._posterior.outputs, **sizes_of)
        if decoder is None:
            self.decoder = vae_networks.decoder(network, self.latent, self.event_shape, self.head.outputs, **sizes_of)

    @property
    def _like(self) -> Tensor:
        """A tensor of the model's device and dtype."""
        return next(self.parameters(), torch.empty(0))

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context: it does not."""
        return False

    def at_step(self, step: int) -> None:
        """Sets beta, the weight of the divergence in training: it rises over the first ``kl_warmup`` steps.

        The commands and ``fit`` call it; a loop of your own does so before each step, or leaves beta at 1.
        """
        self.beta = min(1.0, (step + 1) / (self.kl_warmup + 1))

    def train(self, mode: bool = True) -> VAE:
        """As of any module; what is evaluated has a beta of 1 from then on, also where training ended while it rose."""
        if not mode:
            self.beta = 1.0
        return super().train(mode)

    # -- bounds -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Means over the batch in nats: ``"loss"``, and the two parts of the evidence lower bound, see the class.

        Args:
            batch: x (rows, *event_shape), or (x,).
        """
        x = self._rows(*parts_of(batch))[0]
        encoded = self._encode(x)
        beta, doubly = (self.beta, self._dreg) if self.training else (1.0, False)
        if self.samples == 1 and not doubly:
            return self._bound(x, encoded, beta)
        log_likelihood, ratio = self._weigh(x, encoded, self._noise()((self.samples, len(x), self.latent)), doubly)
        log_weights = log_likelihood - beta * ratio
        terms = {"reconstruction": -log_likelihood.mean().detach(), "kl": ratio.mean().detach()}
        if not doubly:
            return {"loss": -_log_mean_exp(log_weights).mean(), **terms}
        # The gradient of the bound is that of this sum; what goes through z has the square of the weights, see _weigh.
        bound = (_shares(log_weights) * log_weights).sum(0)
        value = _log_mean_exp(log_weights).detach()
        return {"loss": -(value + bound - bound.detach()).mean(), **terms}

    def _bound(self, x: Tensor, encoded: Tensor, beta: float) -> dict[str, Tensor]:
        """The evidence lower bound by one sample of z."""
        eps = self._noise()((len(x), self.latent))
        z, kl = self._divergence(eps, encoded)
        reconstruction = -self._log_likelihood(x, z).mean()
        divergence = kl.mean(0).sum()
        cost = divergence
        if self._free_bits is not None and self.training:
            cost = torch.maximum(kl.mean(0), kl.new_tensor(self._free_bits)).sum()
        return {"loss": reconstruction + beta * cost, "reconstruction": reconstruction.detach(), "kl": divergence.detach()}

    def _divergence(self, eps: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """z, and KL(q(z | x) || p(z)) or its estimate log q - log p: (rows, latent) by dimension, or (rows, 1)."""
        if self._analytic:
            mean, log_std = self._posterior.gaussian(encoded)
            kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
            return mean + log_std.exp() * eps, kl
        if self._free_bits is not None and self.training:
            z, log_q = self._posterior.terms(eps, encoded)
            return z, log_q - self._prior_terms(z)
        z, log_q = self._posterior.draw(eps, encoded)
        return z, (log_q - self.prior.log_prob(z)).unsqueeze(-1)

    def _prior_terms(self, z: Tensor) -> Tensor:
        """For each dimension its share of log p(z)."""
        if isinstance(self.prior, StandardNormal):
            return normal_terms(z)
        layers: Any = self.prior.transform.transforms
        noise, log_slope = through(layers, z, None)
        return normal_terms(noise) + log_slope

    def _weigh(self, x: Tensor, encoded: Tensor, eps: Tensor, doubly: bool = False) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log q(z | x) - log p(z) of samples of z, (samples, rows) each.

        ``doubly``: the density log q is a function of z alone, and a gradient that reaches z is multiplied by the share of
        the sample once more.
        """
        z, log_q = self._posterior.draw(eps, encoded)
        shares: list[Tensor] = []
        doubly = doubly and z.requires_grad
        if doubly:
            z.register_hook(lambda g: g * shares[0].unsqueeze(-1))
            log_q = self._posterior.log_prob(z, encoded, frozen=True)
        log_likelihood, ratio = self._log_likelihood(x, z), log_q - self.prior.log_prob(z)
        if doubly:
            shares.append(_shares(log_likelihood - self.beta * ratio))
        return log_likelihood, ratio

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, samples: int | None = None) -> Tensor:
        r"""log p(x) from below in nats, with the batch's shape: log (1/S) sum_s p(x | z_s) p(z_s) / q(z_s | x).

        Its expectation rises with S to log p(x). Samples are drawn and weighed a few at a time.

        Args:
            x: (..., *event_shape).
            context: none.
            samples: S; by default ``importance``.
        """
        rows, batch = self._rows(x, context)
        n = self.importance if samples is None else whole_number("samples", samples, 1)
        total = rows.new_full((len(rows),), -math.inf)
        for log_weights in self._log_weights(rows, n):
            total = torch.logaddexp(total, torch.logsumexp(log_weights, 0))
        return (total - math.log(n)).reshape(batch)

    def elbo(self, x: Tensor, *, samples: int | None = None) -> Tensor:
        """The evidence lower bound of each x in nats, with the batch's shape: the mean of the logarithms of those weights."""
        rows, batch = self._rows(x)
        n = self.importance if samples is None else whole_number("samples", samples, 1)
        total = rows.new_zeros(len(rows))
        for log_weights in self._log_weights(rows, n):
            total = total + log_weights.sum(0)
        return (total / n).reshape(batch)

    def _log_weights(self, rows: Tensor, n: int) -> Iterator[Tensor]:
        """Those of n samples for each row, (some, rows) at a time."""
        encoded, noise = self._encode(rows), self._noise()
        at_once = max(1, AT_ONCE // max(1, len(rows)))
        for first in range(0, n, at_once):
            log_likelihood, ratio = self._weigh(rows, encoded, noise((min(at_once, n - first), len(rows), self.latent)))
            yield log_likelihood - ratio

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
        """Samples (*shape, *event_shape) of p(x | z) with z of the prior, see :meth:`flowkern.model.Model.sample`."""
        size = sizes("shape", shape)
        check_generator(generator)
        check_context("model", context, 0, self._like, "the weights")
        drawn = [self._sample(rows, generator) for rows in chunks(size.numel(), chunk_size)]
        return torch.cat(drawn).reshape(*size, *self.event_shape)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = self.prior.rsample(torch.Size((n,)), generator=generator)
        return self.head.sample(self._parameters_of(z), generator)

    def posterior(self, x: Tensor) -> PosteriorDistribution:
        """q(z | x) of x (..., *event_shape) as a torch.distributions.Distribution."""
        rows, batch = self._rows(x)
        return PosteriorDistribution(self._posterior, self._encode(rows).reshape(*batch, self._posterior.outputs))

    def encode(self, x: Tensor) -> Tensor:
        """A centre of q(z | x), (..., latent): where the posterior takes the noise 0, the mean of a diagonal one."""
        return self._centre(*self._rows(x))

    def _centre(self, rows: Tensor, batch: torch.Size) -> Tensor:
        encoded = self._encode(rows)
        return self._posterior.draw(encoded.new_zeros(len(rows), self.latent), encoded)[0].reshape(*batch, self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """Means (..., *event_shape) of p(x | z) of z (..., latent)."""
        check_tensor("z", z)
        check_event("z", z, (self.latent,))
        check_like("z", z, self._like, "the weights")
        return self.head.mean(self._parameters_of(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of x (..., *event_shape): the mean of p(x | z) with z at the centre of q(z | x)."""
        return self.decode(self.encode(x))

    def interpolate(self, x: Tensor, y: Tensor, steps: int = 8) -> Tensor:
        """Means (steps, ..., *event_shape) on the line in z from x to y, both included; their batch shapes broadcast."""
        steps, (x, of_x), (y, of_y) = whole_number("steps", steps, 2), self._rows(x), self._rows(y, name="y")
        try:
            batch = torch.broadcast_shapes(of_x, of_y)
        except RuntimeError:
            raise ValueError(f"y: expected a batch shape that broadcasts with {tuple(of_x)}, got {tuple(of_y)}") from None
        weight = torch.linspace(0, 1, steps, dtype=self._like.dtype, device=x.device)
        return self.decode(torch.lerp(self._centre(x, of_x), self._centre(y, of_y), weight.reshape(-1, *(1 for _ in batch), 1)))

    def traverse(self, x: Tensor, dimension: int, values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3)) -> Tensor:
        """Means (values, ..., *event_shape) where one dimension of the centre of x takes other values."""
        if whole_number("dimension", dimension, 0) >= self.latent:
            raise ValueError(f"dimension: expected a whole number from 0 to {self.latent - 1}, got {dimension}")
        others = numbers("values", values)
        if others.dim() != 1:
            raise ValueError(f"values: expected a list of numbers, got shape {tuple(others.shape)}")
        z = self.encode(x)
        z = z.expand(len(others), *z.shape).clone()
        z[..., dimension] = others.to(z).reshape(-1, *(1 for _ in z.shape[1:-1]))
        return self.decode(z)

    # -- networks ---------------------------------------------------------------------------------------------------

    def _noise(self) -> Callable[[tuple[int, ...]], Tensor]:
        """Draws standard-normal numbers; in evaluation mode the same in every call."""
        generator = None if self.training else torch.Generator(self._like.device).manual_seed(0)
        return lambda shape: randn(shape, self._like, generator)

    def _rows(self, x: Tensor, context: Tensor | None = None, *, name: str = "x") -> tuple[Tensor, torch.Size]:
        """x as (rows, *event_shape), and the shape of its batch."""
        check_tensor(name, x)
        check_context("model", context, 0, self._like, "the weights")
        check_event(name, x, self.event_shape)
        check_held(name, x, self.head, self._like)
        check_support(name, x, self.head, between=isinstance(self.head, fnn.Bernoulli))  # of which probabilities will do, too
        batch = x.shape[: x.dim() - len(self.event_shape)]
        return x.reshape(-1, *self.event_shape), batch

    def _encode(self, rows: Tensor) -> Tensor:
        encoded = self.encoder(self.head.seen(rows, self._like.dtype))
        if encoded.shape != (len(rows), self._posterior.outputs):
            raise ValueError(
                f"encoder: expected numbers of shape {(len(rows), self._posterior.outputs)}, twice the dimensions of z and "
                f"flow_context, got {tuple(encoded.shape)}"
            )
        return encoded.to(self._like.dtype)  # under autocast it is of low precision, which sums are not made for

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) of rows x and z (..., rows, latent)."""
        parameters = self._parameters_of(z)
        terms = self.head.log_prob(x.expand(parameters.shape[:-1]), parameters)
        return terms.flatten(-len(self.event_shape)).sum(-1)

    def _parameters_of(self, z: Tensor) -> Tensor:
        """The likelihood's numbers (..., *event_shape, outputs)."""
        batch, (channels, *size) = z.shape[:-1], self.event_shape
        rows = z.reshape(-1, self.latent)
        found = self.decoder(rows)
        if len(found) != len(rows) or found.numel() != len(rows) * self.features * self.head.outputs:
            raise ValueError(
                f"decoder: expected {self.head.outputs} numbers for each of {self.features} features of {len(rows)} rows, "
                f"got shape {tuple(found.shape)}"
            )
        found = found.to(self._like.dtype).reshape(*batch, channels, self.head.outputs, *size)
        return found.movedim(len(batch) + 1, -1)


def _log_mean_exp(log_weights: Tensor) -> Tensor:
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def _shares(log_weights: Tensor) -> Tensor:
    """Of each sample its part of the sum of the weights."""
    return torch.softmax(log_weights.detach(), 0)


def _head(likelihood: str | fnn.Head, variance: str, std: float, levels: int) -> fnn.Head:
    std, levels = number("std", std, above=0), whole_number("levels", levels, 2)
    if isinstance(likelihood, fnn.Head):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood: expected one of {', '.join(LIKELIHOODS)} or a Head, got {likelihood!r}")
    if likelihood == "bernoulli":
        return fnn.Bernoulli()
    if likelihood == "logistic":
        return fnn.Logistic(levels)
    return fnn.Gaussian() if variance == "pixel" else fnn.IsotropicGaussian(std, variance == "learned")


def _free_bits(given: float | Sequence[float] | None, latent: int) -> list[float] | None:
    if given is None:
        return None
    bits = numbers("free_bits", given, "cpu")
    if bits.shape not in ((), (latent,)):
        raise ValueError(f"free_bits: expected a number, or one for each of {latent} dimensions, got shape {tuple(bits.shape)}")
    if bits.dtype is torch.bool or not (bits.isfinite() & (bits >= 0)).all() or not bits.any():
        raise ValueError(f"free_bits: expected nats of at least 0, not all of them 0 (None is for no free bits), got {given}")
    return bits.float().expand(latent).tolist()


def _module(name: str, given: nn.Module | None) -> Any:
    if given is not None and not isinstance(given, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(given).__name__}")
    return given


CHOICES = choices_of(VAE.__init__)
