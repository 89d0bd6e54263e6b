"""Autoregressive transforms: the masked one (MAF) and its inverse (IAF)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern import ops
from flowkern._checks import flag
from flowkern.config import configured
from flowkern.nn.checks import blame
from flowkern.nn.log_det import show_context
from flowkern.nn.made import MADE
from flowkern.nn.periodic import PeriodicMADE, circular_features, circular_map
from flowkern.nn.transform import Transform
from flowkern.ops._rebuilt import rebuilt
from flowkern.univariate import UnivariateMap, chosen_map

Operator = Callable[..., tuple[Tensor, Tensor]]


class _Autoregressive(Transform):
    """A masked network and a univariate map."""

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        context: int,
        activation: str,
        order: str | Sequence[int] | Tensor,
        scale: str,
        placement: str,
        constants: Sequence[float] | None,
        degrees: str,
        residual: bool,
        skip: bool,
        generator: torch.Generator | None,
        map: UnivariateMap | None,
        circular: bool | Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.map = chosen_map(map, scale, placement, constants)
        self.features, self.context = features, context
        places = circular_features(circular, features)
        if places:
            if flag("residual", residual) or flag("skip", skip):
                raise ValueError("circular: masked networks of circular features are plain, got residual or skip")
            self.map = circular_map(self.map)
            self.network: MADE = PeriodicMADE(
                features, self.map, hidden, context, activation, order, degrees, generator, places
            )
            return
        self.network = MADE(
            features, self.map.count, hidden, context, activation, order, degrees, residual, skip,
            generator=generator,
        )  # fmt: skip

    @property
    def conditional(self) -> bool:
        return self.context > 0

    @property
    def _network(self) -> Any:
        """The network, past nn.Module's slow look-up of attributes."""
        return self._modules["network"]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the operators :func:`autoregressive` and :func:`autoregressive_inverse`."""
        arguments = self._network.arguments()
        arguments["map"] = self.map
        return arguments

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        if type(self) not in (MaskedAutoregressive, InverseAutoregressive):
            return None  # a subclass may do more than these two
        arguments = self.arguments()
        if self._network.hooked():
            return None
        return ops.NetworkStep(inverse is isinstance(self, MaskedAutoregressive), arguments)

    def rebuild(self, output: Tensor, context: Tensor | None, inverse: bool, memo: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        step = self.step(output, inverse)
        found = rebuilt(step, output, context) if isinstance(step, ops.NetworkStep) else None
        return super().rebuild(output, context, inverse) if found is None else found

    def _apply_map(self, operator: Operator, name: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(name, x)
        arguments = self.arguments()
        if self._network.hooked() and operator is ops.autoregressive:
            return self._through_the_module(x, context)
        try:
            return operator(x, **arguments, context=context)
        except (TypeError, ValueError):
            blame(name, x, arguments["weights"][0], context, self.context)
            raise

    def _through_the_module(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The direction in which the network sees the input, in two calls: one of the network, so that its hooks run."""
        parameters = self.network(x, context)
        x = x.to(parameters.dtype)
        z, log_det = ops.coupling(x, *parameters.unbind(-1), transformed=slice(None), map=self.map)
        return z, show_context(log_det, context)

    def extra_repr(self) -> str:
        return f"map={self.map}"


class MaskedAutoregressive(_Autoregressive):
    r"""z_d = f(x_d; network of x_{<d}): one pass from data to noise, one degree-ordered sweep back.

    A NaN or an infinity in a feature reaches the log-determinant of its row, and no other row. In the sweep it reaches only
    features that depend on it. In one pass it may reach more, since the kernels multiply by the zero weights inside a
    block of neighbouring levels (about four to eight on the CPU): all features of its block, those before it included,
    but none of an earlier block; in plain PyTorch, every feature of the row.

    Args:
        features: number of features.
        hidden, context, activation, order, degrees, residual, skip, generator: the network, see :class:`MADE`.
        scale, placement, constants: the univariate map, see :mod:`flowkern.univariate`. The default is the map of MAF,
            z = (x - t) / s, with zuko's softly clipped log-scale, which cannot overflow.
        map: any other univariate map, in the place of these three.
        circular: which features are circular: ``True`` for all, or their numbers. The interval of the map, a rational-quadratic
            spline with linear tails, is their circle, whose ends are one point to the spline and to the network, which has
            relu and no ``residual`` or ``skip``. Their numbers must lie in it, see :class:`Wrap`.

    Example:
        >>> import torch
        >>> t = MaskedAutoregressive(3, hidden=(16,))
        >>> x = torch.randn(5, 3)
        >>> z, log_det = t(x)
        >>> torch.allclose(t.inverse(z)[0], x, atol=1e-5)
        True

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), section 3.
    """

    @configured
    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        scale: str = "soft_clipped_exp",
        placement: str = "standardize",
        constants: Sequence[float] | None = None,
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        generator: torch.Generator | None = None,
        map: UnivariateMap | None = None,
        circular: bool | Sequence[int] = (),
    ) -> None:
        super().__init__(
            features, hidden, context, activation, order, scale, placement, constants, degrees, residual, skip, generator, map,
            circular,
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_map(ops.autoregressive, "x", x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_map(ops.autoregressive_inverse, "z", z, context)


class InverseAutoregressive(_Autoregressive):
    r"""x_d = f(z_d; network of z_{<d}): one pass from noise to data, one degree-ordered sweep back.

    Args:
        features: number of features.
        gated: x = s z + (1 - s) m with s = sigmoid(a + 2), the numerically stable step of the paper; otherwise
            x = z s + t with zuko's softly clipped log-scale. ``scale``, ``placement`` and ``constants``, or ``map``,
            override it.
        hidden, context, activation, order, degrees, residual, skip, generator: the network, see :class:`MADE`.

    Example:
        >>> import torch
        >>> t = InverseAutoregressive(3, hidden=(16,), gated=True)
        >>> x, log_det = t.inverse(torch.randn(5, 3))
        >>> x.shape
        torch.Size([5, 3])

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), equations 10 to 14.
    """

    @configured
    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        gated: bool = False,
        scale: str | None = None,
        placement: str | None = None,
        constants: Sequence[float] | None = None,
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        generator: torch.Generator | None = None,
        map: UnivariateMap | None = None,
    ) -> None:
        names = ("sigmoid", "gate") if flag("gated", gated) else ("soft_clipped_exp", "scale_shift")
        scale, placement = (own if given is None else given for own, given in zip(names, (scale, placement), strict=True))
        super().__init__(
            features, hidden, context, activation, order, scale, placement, constants, degrees, residual, skip, generator, map
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_map(ops.autoregressive_inverse, "x", x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_map(ops.autoregressive, "z", z, context)
