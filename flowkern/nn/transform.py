"""The protocol of invertible layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transforms as td

from flowkern import ops
from flowkern._checks import check_device, check_float
from flowkern.nn.checks import check_event
from flowkern.nn.distribution_transform import DistributionTransform


class Transform(nn.Module):
    r"""An invertible map between data x (*batch, *event_shape) and noise z (*batch, *noise_shape).

    ``z, log_det = t(x, context)`` with log_det = log|det dz/dx|, and ``x, log_det = t.inverse(z, context)`` with
    log_det = log|det dx/dz|. ``log_det`` has the batch's shape. ``context`` is (..., context features), its batch shape
    broadcast with that of x.

    ``features`` is the number of elements of an event, the same on both sides. A transform of vectors sets it and no more:
    its event and its noise are (features,). One of other events sets ``_event_shape``; one that changes
    their shape overrides ``noise_shape``.
    """

    features: int
    _event_shape = torch.Size()  # of events that are no vectors
    retains_graph = False  # whether a gradient passes through parts of the graph of a rebuilt call twice

    @property
    def event_shape(self) -> torch.Size:
        """Shape of the data without its batch: (features,), or any other such as (channels, height, width)."""
        return self._event_shape or torch.Size((self.features,))

    @property
    def noise_shape(self) -> torch.Size:
        """Shape of the noise without its batch; that of the data where a transform says nothing else."""
        return self.event_shape

    @property
    def conditional(self) -> bool:
        """Whether the transform may depend on a context; a subclass that does not says so."""
        return True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        raise NotImplementedError

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        """This transform as a step of :func:`flowkern.ops.autoregressive_chain` on x, or ``None`` where it is no such step."""
        return None

    def memo(self) -> Any:
        """What :meth:`rebuild` must know of the last call besides its output and context, nothing that grows with the batch."""
        return None

    def rebuild(self, output: Tensor, context: Tensor | None, inverse: bool, memo: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """The input of a call of this layer, from its output, and the call again.

        What a reversible backward pass asks of a layer (``memory="reversible"``). A layer whose network needs to run only
        once for both says so here.

        Args:
            output: what ``forward``, or with ``inverse`` the inverse, gave; the batch shape is that of the input.
            context: as the call was given it.
            inverse: which of the two was called.
            memo: what :meth:`memo` gave right after the call.

        Returns:
            The input, a leaf that requires a gradient, and the call's two results as functions of it.
        """
        call, back = (self.inverse, self.forward) if inverse else (self.forward, self.inverse)
        # What both draw is the same.
        with torch.no_grad(), torch.random.fork_rng([output.device] if output.is_cuda else []):
            found, _ = back(output, context)
        x = found.detach().requires_grad_()
        return x, *call(x, context)

    def calibrate(self, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
        """Sets what the layer knows of a whole data set x (n, *event_shape), and returns the noise, which the next one sees.

        Most layers know nothing of it; see :meth:`flowkern.flows.Flow.calibrate`. The context has a row for each of x.
        """
        contexts = [None] * len(x) if context is None else context.split(batch_size)
        return torch.cat([self(rows, c)[0] for rows, c in zip(x.split(batch_size), contexts, strict=False)])

    def as_distribution_transform(self, context: Tensor | None = None) -> td.Transform:
        """This transform as torch.distributions sees it: from the base distribution to the data.

        Example:
            >>> import torch, flowkern as fk
            >>> base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
            >>> t = fk.nn.MaskedAutoregressive(3, hidden=(8,)).as_distribution_transform()
            >>> torch.distributions.TransformedDistribution(base, [t]).sample((5,)).shape
            torch.Size([5, 3])
        """
        return DistributionTransform(self, context)

    def _check(self, name: str, x: Tensor, own: Tensor | None = None) -> None:
        """Of the input; ``own`` is a tensor of the layer, where the operators do not look at its device."""
        check_float(name, x)
        check_event(name, x, self.event_shape if name == "x" else self.noise_shape)
        if own is not None:
            check_device(name, x, own, "the layer")


class Unconditional(Transform):
    """A transform that takes a context, as the protocol has it, and ignores it."""

    @property
    def conditional(self) -> bool:
        return False
