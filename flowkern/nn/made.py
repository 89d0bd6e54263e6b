"""MADE: a masked network whose outputs for feature d see only the features before d."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle

from flowkern import ops
from flowkern._checks import check_generator, check_tensor, flag, one_of, permutation, whole_number, widths
from flowkern._tensors import version
from flowkern.config import configured
from flowkern.nn.checks import blame, has_hooks
from flowkern.ops.pack import PackedFrom, can_pack
from flowkern.plan import AutoregressivePlan

ORDERS = ("natural", "reverse", "random")
DEGREES = ("sequential", "random")


def order_of(order: str | Sequence[int] | Tensor, features: int, generator: torch.Generator | None = None) -> Tensor:
    """Position of every feature in the order, 0 first.

    >>> order_of("reverse", 3)
    tensor([2, 1, 0])
    """
    if isinstance(order, str):
        if order == "natural":
            return torch.arange(features, device="cpu")
        if order == "reverse":
            return torch.arange(features, device="cpu").flip(0)
        if order == "random":
            return torch.randperm(features, generator=generator, device="cpu")
        raise ValueError(f"order: expected one of {', '.join(ORDERS)} or a permutation, got {order!r}")
    return permutation("order", order, features)


class MADE(nn.Module):
    r"""A masked network: ``outputs`` numbers per feature, those of feature d from the features before it.

    Hidden unit j has a degree m(j) and sees the inputs of position < m(j); outputs of the feature at position i see
    the units of degree <= i. With a context, units of degree 0 exist too, so that every feature sees the context.

    The whole network is one operator, which calls no layer of it: hooks on ``layers`` do not run, and are warned of; only
    those by which torch.nn.utils.prune and older weight norms compute a weight do. Hooks on the network itself run, in a
    transform too, where it is evaluated in one pass; in a sweep over the levels nothing calls it.

    Args:
        features: number of features D.
        outputs: numbers per feature.
        hidden: widths of the hidden layers; may be empty.
        context: number of context features, concatenated to the input of the first layer.
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.
        order: ``"natural"``, ``"reverse"``, ``"random"``, or the position of every feature.
        degrees: ``"sequential"`` (cyclic) or ``"random"`` hidden degrees.
        residual: pre-activation residual blocks of two layers after the first layer, in place of plain layers; all
            widths equal.
        skip: a direct connection from the inputs to the outputs.
        masks: number of mask sets over the same weights. Those after the first have random degrees and, where
            ``order`` is ``"random"``, an order of their own. See :class:`flowkern.models.MADE` for the averaging.
        generator: source of the random orders and degrees.

    Raises:
        TypeError, ValueError: for impossible sizes, unknown names, or an order that is no permutation.

    Example:
        >>> import torch
        >>> net = MADE(3, outputs=2, hidden=(16, 16), context=4)
        >>> net(torch.randn(5, 3), torch.randn(5, 4)).shape
        torch.Size([5, 3, 2])

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), sections 4 and 4.2.
    """

    degrees: Tensor
    _packed: list[Tensor | None]

    @configured
    def __init__(
        self,
        features: int,
        outputs: int = 2,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        masks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        features, outputs = whole_number("features", features, 1), whole_number("outputs", outputs, 1)
        context, masks = whole_number("context", context, 0), whole_number("masks", masks, 1)
        hidden = widths("hidden", hidden)
        check_generator(generator)
        residual, skip = flag("residual", residual), flag("skip", skip)
        if residual and (not hidden or len(set(hidden)) > 1):
            raise ValueError(f"hidden: residual blocks need one or more equal widths, got {hidden}")
        one_of("degrees", degrees, DEGREES)
        self.features, self.outputs, self.context = features, outputs, context
        self.activation, self.residual, self.skip, self.masks = activation, residual, skip, masks
        # A residual block is two layers of the block's width.
        units = hidden[:1] + tuple(h for h in hidden[1:] for _ in range(2)) if residual else hidden
        sizes = [self._columns() + context, *units, features * outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        if skip:
            self.layers.append(nn.Linear(features, features * outputs, bias=False))
        self._split = [features, *units]
        # Positions of the features, then degrees of the units, one row per mask set. A buffer, so that a state dict
        # brings its orders along. Made before it is drawn, so that who builds from a file sees its size in time.
        self.register_buffer("degrees", torch.empty(masks, sum(self._split), dtype=torch.int64, device="cpu"))
        for i, row in enumerate(self.degrees):
            row.copy_(torch.cat(self._draw(units, order, degrees if i == 0 else "random", generator)))
        self._newest_hook, self._hooked = -1, False
        self.replan()

    def _draw(self, units: Sequence[int], order: Any, degrees: str, generator: torch.Generator | None) -> list[Tensor]:
        """Positions of the features and degrees of the units of one mask set."""
        low, high = min(0 if self.context else 1, self.features - 1), self.features - 1
        drawn = [order_of(order, self.features, generator)]
        for layer, width in enumerate(units):
            if layer and self.residual:
                drawn.append(drawn[-1])
            elif degrees == "sequential":
                drawn.append(torch.arange(width, device="cpu") % (high - low + 1) + low)
            else:
                least = low if layer == 0 else min(int(drawn[-1].min()), high)
                drawn.append(torch.randint(least, high + 1, (width,), generator=generator, device="cpu"))
        return drawn

    def replan(self) -> None:
        """Takes new plans from the buffer ``degrees``.

        Loading a state dict and in-place changes, such as those of DistributedDataParallel, are followed without it; a
        change that PyTorch does not record (``.data``) is not.
        """
        self._planned = self.degrees.detach().cpu().clone()
        self._version = version(self.degrees)
        self.thaw()
        self.plans = [self._plan(list(row.split(self._split))) for row in self._planned]

    def _plan(self, degrees: list[Tensor]) -> AutoregressivePlan:
        position, *units = degrees
        masks = [b[:, None] >= a[None, :] + int(i == 0) for i, (a, b) in enumerate(zip(degrees, units, strict=False))]
        rows = position.repeat_interleave(self.outputs)[:, None]
        masks.append(rows >= units[-1] if units else rows > position)
        if self.skip:
            masks.append(rows > position)
        return self._of_masks(masks)

    def _columns(self) -> int:
        """Columns of the first layer that read the features."""
        return self.features

    def _of_masks(self, masks: list[Tensor]) -> AutoregressivePlan:
        """The plan, given who may read which features."""
        sees_context = torch.ones(len(masks[0]), self.context, dtype=torch.bool, device="cpu")
        masks[0] = torch.cat([masks[0], sees_context], 1)
        hidden = range(len(masks) - 1 - int(self.skip))
        residuals = [i - 2 if self.residual and i and i % 2 == 0 else None for i in hidden]
        return AutoregressivePlan(
            masks,
            parameters=self.outputs,
            activation=self.activation,
            residuals=residuals,
            skip=self.skip,
            context=self.context,
            context_columns=range(self.features, self.features + self.context),
        )

    def _follow(self) -> None:
        """New plans where the degrees were changed in place; a look at hooks where there are new ones.

        Only eager code looks: the checks would break a graph.
        """
        if torch.compiler.is_compiling():
            return
        if self._version != version(self._buffers["degrees"]):  # type: ignore[arg-type]
            self._version = version(self.degrees)
            if not self.degrees.is_meta and not torch.equal(self.degrees.cpu(), self._planned):
                self.replan()
        newest = RemovableHandle.next_id  # of all hooks anywhere
        if self._newest_hook != newest:
            self._newest_hook, self._hooked = newest, True
            self._warn_of_hooks()

    def _warn_of_hooks(self) -> None:
        for name, layer in self.layers.named_children():
            if has_hooks(layer) and {"weight", "bias"} <= layer._parameters.keys():
                warnings.warn(
                    f"flowkern: the hooks of layers.{name} of a MADE do not run: a network is one operator, "
                    "which calls no layer; those of the network run where it is evaluated in one pass",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def hooked(self) -> bool:
        """Whether a call of this network would run a hook, as of the last :meth:`arguments`."""
        if not torch.compiler.is_compiling() and not self._hooked:
            return False
        return has_hooks(self) or bool(_has_any_global_hook())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._version = -1
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a frozen network is not frozen, and has its hooks looked at anew.
        return {**self.__dict__, "_packed": [None] * self.masks, "_packed_from": PackedFrom(), "_newest_hook": -1}

    @property
    def order(self) -> Tensor:
        """Position of every feature in the order of the first mask set."""
        return self._planned[0, : self.features]

    def arguments(self, mask: int = 0) -> dict[str, Any]:
        """Keyword arguments of the masked-network operators for these weights: all but the input and the context."""
        self._follow()
        weights, biases = self._parameter_lists()
        try:
            plan, packed = self.plans[mask], self._packed[mask]
        except (IndexError, TypeError):
            raise ValueError(f"mask: expected a whole number below {self.masks}, got {mask!r}") from None
        if packed is not None and not torch.compiler.is_compiling() and self._packed_from.changed():
            packed = None
        return {"weights": weights, "biases": biases, "plan": plan, "packed": packed}

    def _parameter_lists(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the layers, as a parametrization gives them where there is one."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        layers: Any = self._modules["layers"]
        for layer in layers._modules.values():
            # The dictionary of parameters first: attribute look-ups of nn.Module are slow, and small flows live by them.
            own = layer._parameters
            if "weight" in own and "bias" in own:
                weight, bias = own["weight"], own["bias"]
            else:
                for hook in layer._forward_pre_hooks.values():  # by which torch.nn.utils.prune computes them, from no input
                    hook(layer, ())
                weight, bias = layer.weight, layer.bias
            weights.append(weight)
            if bias is not None:
                biases.append(bias)
        return weights, biases

    def forward(self, x: Tensor, context: Tensor | None = None, mask: int = 0) -> Tensor:
        """Parameters (..., features, outputs) of x (..., features), by mask set ``mask``."""
        check_tensor("x", x)
        arguments = self.arguments(mask)
        try:
            parameters = ops.masked_mlp(x, **arguments, context=context)
        except (TypeError, ValueError):
            blame("x", x, arguments["weights"][0], context, self.context)
            raise
        return parameters.unflatten(-1, (self.features, self.outputs))

    def freeze(self, name: str = "") -> None:
        """Packs the weights once; until :meth:`thaw` calls use them, for as long as no parameter changes.

        Half precision packs on every call all the same, since its kernels work in float32.

        Args:
            name: of this network in its model, for the warning that a parameter has changed.
        """
        weight = self._parameter_lists()[0][0]
        if can_pack(weight):
            with torch.no_grad():
                sets = [self.arguments(i) for i in range(self.masks)]
                self._packed = [ops.pack(a["plan"], a["weights"], a["biases"]) for a in sets]
            self._packed_from = PackedFrom((path, module._parameters) for path, module in self.named_modules(prefix=name))

    def thaw(self) -> None:
        """Packs on every call again."""
        self._packed = [None] * self.masks
        self._packed_from = PackedFrom()

    def extra_repr(self) -> str:
        return f"features={self.features}, outputs={self.outputs}, context={self.context}, activation={self.activation!r}"


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Packs the weights of every masked network of a model once, for serving.

    Inside, the weights should not change. A network of which a parameter changes, by a step of an optimiser or by
    ``load_state_dict``, warns at its next call and computes with what it has then, packing its weights on every call. A
    change that PyTorch does not record (``.data``) has no effect until the block ends.

    Args:
        model: any module that contains layers of flowkern, or of other libraries after :func:`flowkern.accelerate`.

    Raises:
        TypeError: if it is no module.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.MAF(3, transforms=2, hidden=(8,))
        >>> with fk.frozen(flow), torch.no_grad():
        ...     flow.sample((2,)).shape
        torch.Size([2, 3])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    # Layers of other libraries that flowkern.accelerate made fast know how themselves; this package does not know them.
    networks = {name: m for name, m in model.named_modules() if isinstance(m, MADE) or hasattr(type(m), "_flowkern_peer")}
    try:
        for name, network in networks.items():
            _way(network, "freeze")(name)
        yield model
    finally:
        for network in networks.values():
            _way(network, "thaw")()


def _way(network: nn.Module, what: str) -> Callable[..., None]:
    """How a network is packed once, or on every call again."""
    name = what if isinstance(network, MADE) else "_flowkern_" + what
    return getattr(network, name, lambda *_: None)
