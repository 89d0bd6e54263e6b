"""Coupling layers: affine (RealNVP, Glow) and additive (NICE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import (
    HALF,
    autocasts,
    broadcast_batch,
    check_context,
    check_features,
    flag,
    numbers,
    whole_number,
    widths,
)
from flowkern._tensors import version
from flowkern.config import configured
from flowkern.nn import coupling_step
from flowkern.nn.activations import mlp
from flowkern.nn.checks import blame, event_of, flat
from flowkern.nn.convolutional import ConvNet
from flowkern.nn.log_det import show_context
from flowkern.nn.periodic import PeriodicMLP, circular_features, circular_map
from flowkern.nn.transform import Transform
from flowkern.univariate import RationalQuadratic, UnivariateMap, affine_map, check_map

MASKS = ("halves", "alternating", "checkerboard")


class Coupling(Transform):
    r"""z_d = f(x_d; network of the features that pass) for the transformed features; the others pass as they are.

    Both directions cost one pass. Two layers in a row, the second with ``swap``, transform every feature.

    In a stack on the CPU, a network of linear layers and one activation is part of one call for the layer and its neighbours.

    Of an image (channels, height, width) whole channels are transformed, and the network sees the others; or any of its
    numbers, and the network sees the image with zeros in their places, and the mask. A context is added as channels, the same
    at every pixel.

    Args:
        features: number of features, at least 2, or an image's shape (channels, height, width).
        map: the univariate map f.
        hidden: widths of the hidden layers of the network: linear ones, or for images those of a :class:`ConvNet`.
        context: number of context features, which the network reads too.
        mask: which features are transformed: ``"halves"`` the second half, ``"alternating"`` every other one from the
            second on, both of an image's channels; ``"checkerboard"`` of an image every other pixel; or a boolean tensor or
            list, true where transformed: (features,), of images (channels,) or the whole shape.
        swap: transform the others instead.
        activation: of the network, one of :data:`flowkern.plan.ACTIVATIONS`.
        network: any module in place of the network: from the features that pass (..., n), followed by those of the context,
            to the parameters (..., count m) of the transformed ones, all that are parameter 0 of the map first. Of images:
            from (batch, channels seen, height, width) to (batch, channels transformed m, height, width), where all
            channels are seen, twice with the mask's, and transformed if the mask is not one of channels.
        circular: which features of vectors are circular, as in :class:`MaskedAutoregressive`; the network, which is made here,
            sees their cosine and sine.

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
    columns: Tensor

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        map: UnivariateMap,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        mask: str | Sequence[bool] | Tensor = "halves",
        swap: bool = False,
        activation: str = "relu",
        network: nn.Module | None = None,
        circular: bool | Sequence[int] = (),
    ) -> None:
        super().__init__()
        event, context = event_of(features, 2), whole_number("context", context, 0)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        self._event_shape, self.features, self.context = event, event.numel(), context
        self.map, places = check_map(map), circular_features(circular, self.features)
        if places:
            if len(event) > 1 or network is not None:
                raise ValueError("circular: expected features of vectors, and no network, which would not know of them")
            self.map = tied = circular_map(self.map)
        chosen = _transformed(mask, event) ^ flag("swap", swap)
        self.count = int(chosen.sum())
        if self.count in (0, self.features):
            raise ValueError(f"mask: expected some of the {self.features} features to be transformed, got {self.count}")
        device = torch.get_default_device()
        # A buffer, so that a state dict brings its mask along.
        self.register_buffer("transformed", chosen if device.type == "meta" else chosen.to(device))
        self._arrange()
        inputs, outputs = self._channels()
        if network is None and len(event) > 1:
            network = ConvNet(inputs + context, outputs, hidden, activation)
        if places:
            network = _periodic(places, chosen, hidden, context, activation, tied)
        if network is None:
            network = mlp([inputs + context, *widths("hidden", hidden), outputs], activation)
        self.network = network

    def _channels(self) -> tuple[int, int]:
        """Channels, or features, that the network sees without the context, and those of its result."""
        channels = self._event_shape[0]
        if not self.whole:
            return 2 * channels, channels * self.map.count
        transformed = self.count // self._event_shape[1:].numel()
        return channels - transformed, transformed * self.map.count

    def _arrange(self) -> None:
        """Tables of the mask: the column of each feature's parameters, and the channels or features that pass.

        ``whole`` says that the mask is one of channels, or features; of any other, ``columns`` are the places that are
        transformed.
        """
        mask, device = self.transformed.cpu(), self.transformed.device
        self._version = version(self.transformed)
        channels = mask.reshape(len(mask), -1)
        of_channel, chosen = channels.all(1), mask.flatten()
        self.whole = bool((of_channel == channels.any(1)).all())
        self.slice = _as_slice(chosen)
        self.register_buffer("place", torch.where(chosen, chosen.cumsum(0) - 1, -1).to(device), persistent=False)
        self.register_buffer("passing", (~of_channel).nonzero().flatten().to(device), persistent=False)
        columns = chosen[:0] if self.whole else chosen
        self.register_buffer("columns", columns.nonzero().flatten().to(device), persistent=False)
        passing, transformed = (tuple(part.nonzero().flatten().tolist()) for part in (~chosen, chosen))
        self._parts = (passing, transformed) if len(self._event_shape) == 1 else None  # of vectors

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

    def start_at_zero(self) -> None:
        """Sets the last linear layer of the network to zero, as Glow has it: an affine map is the identity then, or nearly."""
        last = [module for module in self.network.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._begin("x", x, context)
        return self._mapped(x, self._conditioned("x", x, context), context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._begin("z", z, context)
        return self._mapped(z, self._conditioned("z", z, context), context, inverse=True)

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        if type(self) not in (Coupling, AffineCoupling, AdditiveCoupling) or self._parts is None or not x.is_cpu:
            return None  # a subclass may do more than these, and convolutions are no such network
        if x.dtype in HALF or autocasts(x) or torch._C._are_functorch_transforms_active():
            return None
        found = coupling_step.linear_layers(self._modules["network"])  # type: ignore[arg-type]
        if found is None or not coupling_step.worthwhile(x, (layer.weight.numel() for layer in found[0])):
            return None
        linears, activation = found
        self._follow()
        return coupling_step.coupling_step(linears, activation, self.map, *self._parts, self.context, inverse)

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
        seen = self._seen(x)
        if context is not None:
            pixels = self._event_shape[1:]
            batch = broadcast_batch(x, [context], "context", len(self._event_shape))
            added = context.to(x.dtype).reshape(*context.shape, *(1 for _ in pixels)).expand(*batch, -1, *pixels)
            seen = torch.cat(
                [seen.expand(*batch, *seen.shape[x.dim() - len(self._event_shape) :]), added], -len(self._event_shape)
            )
        try:
            if len(self._event_shape) == 1:
                parameters = self.network(seen)
                check_features("network: its result", parameters, self.count * self.map.count)
            else:
                parameters = self._of_image(seen)
        except RuntimeError:
            weight = next(self.network.parameters(), None)
            if weight is not None:
                blame(name, x, weight)
            raise
        return parameters.to(x.dtype)  # the map keeps its precision under autocast

    def _seen(self, x: Tensor) -> Tensor:
        if self.whole:
            return x.index_select(-len(self._event_shape), self.passing)
        passes = (~self.transformed).to(x.dtype)
        return torch.cat([x * passes, passes.expand_as(x)], -3)

    def _of_image(self, seen: Tensor) -> Tensor:
        """The parameters as those of a vector: of each transformed number parameter 0, then parameter 1 and so on."""
        batch, pixels = seen.shape[:-3], self._event_shape[1:]
        found = self.network(seen.reshape(batch.numel(), *seen.shape[-3:]))
        expected = (batch.numel(), self._channels()[1], *pixels)
        if found.shape != expected:
            raise ValueError(f"network: its result: expected shape {expected}, got {tuple(found.shape)}")
        if self.whole:
            return found.reshape(*batch, self.count * self.map.count)
        every = found.reshape(*batch, self.map.count, self.features)
        return every.index_select(-1, self.columns).flatten(-2)

    def _mapped(self, x: Tensor, parameters: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        z, log_det = ops.coupling(
            flat(x, self._event_shape),
            *parameters.split(self.count, -1),
            transformed=self.place if self.slice is None else self.slice,
            map=self.map,
            inverse=inverse,
        )
        return z.reshape(*z.shape[:-1], *self._event_shape), show_context(log_det, context)

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self._event_shape))}, transformed={self.count}, map={self.map}"


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
        features: int | Sequence[int],
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
        features: int | Sequence[int],
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        mask: str | Sequence[bool] | Tensor = "halves",
        swap: bool = False,
        activation: str = "relu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(features, hidden, context, mask, swap, activation, "none", "scale_shift", None, network)


def _transformed(mask: str | Sequence[bool] | Tensor, event: torch.Size) -> Tensor:
    """Which features of an event are transformed, before a swap."""
    channels, *pixels = event
    places = torch.arange(channels, device="cpu").reshape(-1, *(1 for _ in pixels))
    if not isinstance(mask, str):
        chosen = numbers("mask", mask, "cpu")
        if chosen.dtype is not torch.bool or chosen.shape not in ((channels,), event):
            shapes = " or ".join(str(tuple(shape)) for shape in dict.fromkeys([event[:1], event]))
            raise ValueError(f"mask: expected a boolean tensor {shapes}, got {chosen.dtype} {tuple(chosen.shape)}")
        return (chosen if chosen.shape == event else chosen.reshape(places.shape)).expand(event).clone()
    if mask == "checkerboard" and pixels:
        rows, columns = (torch.arange(n, device="cpu") for n in pixels)
        return ((rows[:, None] + columns) % 2 == 1).expand(event).clone()
    if mask == "halves":
        return (places >= (channels + 1) // 2).expand(event).clone()
    if mask == "alternating":
        return (places % 2 == 1).expand(event).clone()
    known = MASKS if pixels else MASKS[:2]
    raise ValueError(f"mask: expected a boolean tensor or one of {', '.join(known)}, got {mask!r}")


def _as_slice(chosen: Tensor) -> slice | None:
    """The slice that chooses these features, if there is one: it needs no table."""
    places = chosen.nonzero().flatten().tolist()
    step = places[1] - places[0] if len(places) > 1 else 1
    found = slice(places[0], places[-1] + 1, step)
    return found if list(range(len(chosen)))[found] == places else None


def _periodic(
    circular: Sequence[int], chosen: Tensor, hidden: Sequence[int], context: int, activation: str, map: RationalQuadratic
) -> PeriodicMLP:
    """The network of a coupling some of whose features are circular."""
    passing, transformed = (~chosen).nonzero().flatten().tolist(), chosen.nonzero().flatten().tolist()
    seen = [i for i, feature in enumerate(passing) if feature in circular]
    sizes = [len(passing) + context + len(seen), *widths("hidden", hidden), len(transformed) * map.count]
    return PeriodicMLP(mlp(sizes, activation).children(), seen, map, [feature in circular for feature in transformed])
