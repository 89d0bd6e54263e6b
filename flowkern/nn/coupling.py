"""Coupling layers: affine (RealNVP, Glow) and additive (NICE)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import broadcast_batch, check_context, check_features, numbers, whole_number, widths
from flowkern._tensors import version
from flowkern.config import configured
from flowkern.nn.checks import blame
from flowkern.nn.log_det import show_context
from flowkern.nn.transform import Transform
from flowkern.univariate import UnivariateMap, affine_map, check_map

MASKS = ("halves", "alternating")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


class Coupling(Transform):
    r"""z_d = f(x_d; network of the features that pass) for the transformed features; the others pass as they are.

    Both directions cost one pass. Two layers in a row, the second with ``swap``, transform every feature.

    Args:
        features: number of features, at least 2.
        map: the univariate map f.
        hidden: widths of the hidden layers of the network.
        context: number of context features, which the network reads too.
        mask: which features are transformed: ``"halves"`` the second half, ``"alternating"`` every other one from the
            second on, or a boolean tensor or list (features,), true where transformed.
        swap: transform the others instead.
        activation: of the network, one of :data:`flowkern.plan.ACTIVATIONS`.
        network: any module in place of the network: from the features that pass (..., n), followed by those of the context,
            to the parameters (..., count m) of the transformed ones, all that are parameter 0 of the map first.

    Raises:
        ValueError: for impossible sizes, unknown names, or a mask that transforms no feature or all of them.

    Example:
        >>> import torch
        >>> from flowkern.univariate import Affine
        >>> t = Coupling(4, Affine("exp", "scale_shift"), hidden=(16,))
        >>> x = torch.randn(5, 4)
        >>> z, log_det = t(x)
        >>> torch.equal(z[:, :2], x[:, :2]), torch.allclose(t.inverse(z)[0], x, atol=1e-6)
        (True, True)

    References:
        Density estimation using Real NVP (Dinh et al., 2017), equations 4 to 8.
    """

    transformed: Tensor
    place: Tensor
    passing: Tensor

    @configured
    def __init__(
        self,
        features: int,
        map: UnivariateMap,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        mask: str | Sequence[bool] | Tensor = "halves",
        swap: bool = False,
        activation: str = "relu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        features, context = whole_number("features", features, 2), whole_number("context", context, 0)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        self.features, self.context = features, context
        self.map = check_map(map)
        chosen = _transformed(mask, features) ^ bool(swap)
        self.count = int(chosen.sum())
        if self.count in (0, features):
            raise ValueError(f"mask: expected some of the {features} features to be transformed, got {self.count}")
        device = torch.get_default_device()
        # A buffer, so that a state dict brings its mask along.
        self.register_buffer("transformed", chosen if device.type == "meta" else chosen.to(device))
        self._arrange()
        outputs = self.count * map.count
        inputs = features - self.count + context
        self.network = _mlp(inputs, hidden, outputs, activation) if network is None else network

    def _arrange(self) -> None:
        """Tables of the mask: the column of each feature's parameters, and the features that pass."""
        chosen, device = self.transformed.cpu(), self.transformed.device
        self._version = version(self.transformed)
        self.slice = _as_slice(chosen)
        self.register_buffer("place", torch.where(chosen, chosen.cumsum(0) - 1, -1).to(device), persistent=False)
        self.register_buffer("passing", (~chosen).nonzero().flatten().to(device), persistent=False)

    def _follow(self) -> None:
        """New tables where the mask was changed in place. Only eager code looks: the check would break a graph."""
        if not torch.compiler.is_compiling() and self._version != version(self.transformed):
            self._arrange()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "transformed")
        if given is not None and given.shape == self.transformed.shape and int(given.sum()) != self.count:
            args[-1].append(f"{prefix}transformed: this layer transforms {self.count} features, the state {int(given.sum())}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.transformed.is_meta:
            self._arrange()

    @property
    def conditional(self) -> bool:
        return self.context > 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._begin("x", x, context)
        return self._mapped(x, self._conditioned("x", x, context), context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._begin("z", z, context)
        return self._mapped(z, self._conditioned("z", z, context), context, inverse=True)

    def rebuild(self, output: Tensor, context: Tensor | None, inverse: bool, memo: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        # What passes is the same on both sides: the network runs once, on it, and then x is filled in.
        x = output.detach().clone().requires_grad_()
        parameters = self._conditioned("output", x, context)
        with torch.no_grad():
            x.copy_(self._mapped(output, parameters, None, not inverse)[0])
        return x, *self._mapped(x, parameters, context, inverse)

    def _begin(self, name: str, x: Tensor, context: Tensor | None) -> None:
        self._follow()
        self._check(name, x, self.passing)
        check_context("layer", context, self.context, x, name)

    def _conditioned(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        """What the network makes of the features that pass, which are copied: x itself may change before the backward pass."""
        seen = x.index_select(-1, self.passing)
        if context is not None:
            batch = broadcast_batch(x, [context], "context")
            seen = torch.cat([seen.expand(*batch, -1), context.to(x.dtype).expand(*batch, -1)], -1)
        try:
            parameters = self.network(seen).to(x.dtype)  # the map keeps its precision under autocast
        except RuntimeError:
            weight = next(self.network.parameters(), None)
            if weight is not None:
                blame(name, x, weight)
            raise
        check_features("network: its result", parameters, self.count * self.map.count)
        return parameters

    def _mapped(self, x: Tensor, parameters: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        z, log_det = ops.coupling(
            x,
            *parameters.split(self.count, -1),
            transformed=self.place if self.slice is None else self.slice,
            map=self.map,
            inverse=inverse,
        )
        return z, show_context(log_det, context)

    def extra_repr(self) -> str:
        return f"{self.features}, transformed={self.count}, map={self.map}"


class AffineCoupling(Coupling):
    r"""The coupling layer of RealNVP, with an affine map.

    Args:
        features, hidden, context, mask, swap, activation, network: see :class:`Coupling`; the network gives all shifts, then
            all raw scales.
        scale, placement, constants: the map, see :mod:`flowkern.univariate.affine`. The default is RealNVP's z = x s + t, with
            zuko's softly clipped log-scale, which cannot overflow.

    Example:
        >>> import torch
        >>> t = AffineCoupling(4, hidden=(16,))
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(t.inverse(t(x)[0])[0], x, atol=1e-6)
        True

    References:
        Density estimation using Real NVP (Dinh et al., 2017), equations 4 to 8.
    """

    @configured
    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        mask: str | Sequence[bool] | Tensor = "halves",
        swap: bool = False,
        activation: str = "relu",
        scale: str = "soft_clipped_exp",
        placement: str = "scale_shift",
        constants: Sequence[float] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        map = affine_map(scale, placement, constants)
        super().__init__(features, map, hidden, context, mask, swap, activation, network)


class AdditiveCoupling(AffineCoupling):
    r"""z_d = x_d + t_d, with t from the features that pass; the log-determinant is zero.

    Args:
        features, hidden, context, mask, swap, activation, network: see :class:`Coupling`; the network gives one
            parameter for each transformed feature.

    Example:
        >>> import torch
        >>> t = AdditiveCoupling(4, hidden=(16,), mask="alternating")
        >>> t(torch.randn(5, 4))[1]
        tensor([0., 0., 0., 0., 0.], grad_fn=<...>)

    References:
        NICE: Non-linear Independent Components Estimation (Dinh et al., 2015), equations 8 and 9.
    """

    @configured
    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        mask: str | Sequence[bool] | Tensor = "halves",
        swap: bool = False,
        activation: str = "relu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(features, hidden, context, mask, swap, activation, "none", "scale_shift", None, network)


def _transformed(mask: str | Sequence[bool] | Tensor, features: int) -> Tensor:
    """Which features are transformed, before a swap."""
    places = torch.arange(features, device="cpu")
    if not isinstance(mask, str):
        chosen = numbers("mask", mask, "cpu")
        if chosen.dtype is not torch.bool or chosen.shape != (features,):
            raise ValueError(f"mask: expected a boolean tensor ({features},), got {chosen.dtype} {tuple(chosen.shape)}")
        return chosen
    if mask == "halves":
        return places >= (features + 1) // 2
    if mask == "alternating":
        return places % 2 == 1
    raise ValueError(f"mask: expected a boolean tensor or one of {', '.join(MASKS)}, got {mask!r}")


def _as_slice(chosen: Tensor) -> slice | None:
    """The slice that chooses these features, if there is one: it needs no table."""
    places = chosen.nonzero().flatten().tolist()
    step = places[1] - places[0] if len(places) > 1 else 1
    found = slice(places[0], places[-1] + 1, step)
    return found if list(range(len(chosen)))[found] == places else None


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    sizes = [inputs, *widths("hidden", hidden), outputs]
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [*([_ACTIVATIONS[activation]()] if i else []), nn.Linear(a, b)]
    return nn.Sequential(*layers)
