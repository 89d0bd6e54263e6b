"""A multi-scale architecture: part of the event is noise early, the rest goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from flowkern.config import configured
from flowkern.nn.compose import all_transforms
from flowkern.nn.transform import Transform


class MultiScale(Transform):
    r"""Levels of transforms; after each but the last, half of the event is noise already and the other half goes on.

    A level's result is halved along its first dimension: channels, or features of a vector. The first half (the larger one,
    where the number is odd) leaves, the second is the next level's event. The noise is one vector, (features,): the parts
    that left, flattened, in the order of the levels. So the base is any base over vectors.

    A prior of the leaving part that depends on the part that goes on (Glow's split prior) is a conditional affine map of it:
    a coupling layer at the end of the level.

    Args:
        levels: transforms from data to noise, the first one next to the data, each such as a :class:`Compose`.

    Raises:
        TypeError, ValueError: if one is no transform, gives nothing to halve, or takes another event than the half before it.

    Example:
        >>> import torch, flowkern as fk
        >>> first, second = fk.nn.Squeeze((1, 8, 8)), fk.nn.Squeeze((2, 4, 4))
        >>> t = fk.nn.MultiScale([first, second])
        >>> t.event_shape, t.noise_shape
        (torch.Size([1, 8, 8]), torch.Size([64]))
        >>> z, log_det = t(torch.randn(5, 1, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([5, 64]), torch.Size([5]))

    References:
        Density estimation using Real NVP (Dinh et al., 2017), section 3.6, equations 13 to 16.
    """

    @configured
    def __init__(self, levels: Iterable[Transform]) -> None:
        super().__init__()
        transforms = all_transforms("levels", levels)
        self.features = transforms[0].features
        self._event_shape = transforms[0].event_shape
        self._parts: list[torch.Size] = []  # shapes of what leaves, level by level
        for i, (level, following) in enumerate(itertools.pairwise(transforms)):
            channels, *rest = level.noise_shape
            if channels < 2:
                raise ValueError(
                    f"levels[{i}]: expected noise of at least 2 channels or features to halve, got {tuple(level.noise_shape)}"
                )
            stays = (channels // 2, *rest)
            if following.event_shape != stays:
                raise ValueError(
                    f"levels[{i + 1}]: expected event shape {stays}, the half that the one before leaves, "
                    f"got {tuple(following.event_shape)}"
                )
            self._parts.append(torch.Size((channels - channels // 2, *rest)))
        self._parts.append(transforms[-1].noise_shape)
        self.levels = nn.ModuleList(transforms)

    @property
    def noise_shape(self) -> torch.Size:
        return torch.Size((self.features,))

    @property
    def conditional(self) -> bool:
        return any(level.conditional for level in self._all())

    def _all(self) -> list[Transform]:
        return cast("list[Transform]", list(self.levels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        terms: list[Tensor] = []

        def transformed(level: Transform, x: Tensor) -> Tensor:
            z, log_det = level(x, context)
            terms.append(log_det)
            return z

        return self._descend(x, transformed), reduce(add, terms)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        *rest, part = z.split([shape.numel() for shape in self._parts], -1)
        *levels, level = self._all()
        *shapes, shape = self._parts
        x, log_det = level.inverse(part.unflatten(-1, shape), context)
        for level, part, shape in zip(reversed(levels), reversed(rest), reversed(shapes), strict=True):
            x, term = level.inverse(_joined([part.unflatten(-1, shape), x], len(shape)), context)
            log_det = log_det + term
        return x, log_det

    def calibrate(self, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
        return self._descend(x, lambda level, x: level.calibrate(x, context, batch_size))

    def _descend(self, x: Tensor, transformed: Callable[[Transform, Tensor], Tensor]) -> Tensor:
        """The noise: what each level leaves."""
        left = []
        for level, part in zip(self._all(), self._parts, strict=True):
            dims = len(part)
            z = transformed(level, x)
            # The last level leaves all that it has, and an empty rest.
            z, x = z.split((part[0], z.shape[-dims] - part[0]), -dims)
            left.append(z.flatten(-dims))
        return _joined(left, 1)


def _joined(parts: list[Tensor], event_dims: int) -> Tensor:
    """Events joined along their first dimension; a context may have widened the batch of some."""
    batch = torch.broadcast_shapes(*(part.shape[:-event_dims] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[-event_dims:]) for part in parts], -event_dims)
