"""MADE: a masked network whose outputs for feature d see only the features before d."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import check_context
from flowkern.backends import obstacle
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
    positions = torch.as_tensor(order, dtype=torch.int64).cpu()
    if positions.shape != (features,) or sorted(positions.tolist()) != list(range(features)):
        raise ValueError(f"order: expected a permutation of 0 to {features - 1}, got {positions.tolist()}")
    return positions


def version(t: Tensor) -> int:
    """Counts the changes in place; inference tensors do not count theirs."""
    return 0 if t.is_inference() else t._version


class MADE(nn.Module):
    r"""A masked network: ``outputs`` numbers per feature, those of feature d from the features before it.

    Hidden unit j has a degree m(j) and sees the inputs of position < m(j); outputs of the feature at position i see
    the units of degree <= i. With a context, units of degree 0 exist too, so that every feature sees the context.

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
            ``order`` is ``"random"``, an order of their own. See :class:`flowkern.flows.MADE` for the averaging.
        generator: source of the random orders and degrees.

    Raises:
        ValueError: for impossible sizes, unknown names, or an order that is no permutation.

    Example:
        >>> import torch
        >>> net = MADE(3, outputs=2, hidden=(16, 16), context=4)
        >>> net(torch.randn(5, 3), torch.randn(5, 4)).shape
        torch.Size([5, 3, 2])

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), sections 4 and 4.2.
    """

    degrees: Tensor

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
        hidden = tuple(hidden)
        for name, value, least in (
            ("features", features, 1),
            ("outputs", outputs, 1),
            ("context", context, 0),
            ("masks", masks, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if any(not isinstance(h, int) or h < 1 for h in hidden):
            raise ValueError(f"hidden: expected positive widths, got {hidden}")
        if residual and (not hidden or len(set(hidden)) > 1):
            raise ValueError(f"hidden: residual blocks need one or more equal widths, got {hidden}")
        if degrees not in DEGREES:
            raise ValueError(f"degrees: expected one of {', '.join(DEGREES)}, got {degrees!r}")
        self.features, self.outputs, self.context = features, outputs, context
        self.activation, self.residual, self.skip, self.masks = activation, residual, skip, masks
        # A residual block is two layers of the block's width.
        widths = hidden[:1] + tuple(h for h in hidden[1:] for _ in range(2)) if residual else hidden
        sizes = [features + context, *widths, features * outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        if skip:
            self.layers.append(nn.Linear(features, features * outputs, bias=False))
        sets = [self._draw(widths, order, degrees if i == 0 else "random", generator) for i in range(masks)]
        self._split = [len(part) for part in sets[0]]
        # Positions of the features, then degrees of the units, one row per mask set. A buffer, so that a state dict
        # brings its orders along.
        self.register_buffer("degrees", torch.stack([torch.cat(parts) for parts in sets]))
        self.replan()

    def _draw(self, widths: Sequence[int], order: Any, degrees: str, generator: torch.Generator | None) -> list[Tensor]:
        """Positions of the features and degrees of the units of one mask set."""
        low, high = min(0 if self.context else 1, self.features - 1), self.features - 1
        drawn = [order_of(order, self.features, generator)]
        for layer, width in enumerate(widths):
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
        self._packed: list[Tensor | None] = [None] * self.masks
        self.plans = [self._plan(list(row.split(self._split))) for row in self._planned]

    def _plan(self, degrees: list[Tensor]) -> AutoregressivePlan:
        position, *units = degrees
        masks = [b[:, None] >= a[None, :] + int(i == 0) for i, (a, b) in enumerate(zip(degrees, units, strict=False))]
        rows = position.repeat_interleave(self.outputs)[:, None]
        masks.append(rows >= units[-1] if units else rows > position)
        if self.skip:
            masks.append(rows > position)
        residuals = [i - 2 if self.residual and i and i % 2 == 0 else None for i in range(len(units))]
        return AutoregressivePlan(
            masks,
            parameters=self.outputs,
            activation=self.activation,
            residuals=residuals,
            skip=self.skip,
            addends=(0,) if self.context else (),
        )

    def _follow(self) -> None:
        """New plans where the degrees were changed in place. Only eager code looks: the check would break a graph."""
        if not torch.compiler.is_compiling() and self._version != version(self.degrees):
            self._version = version(self.degrees)
            if not self.degrees.is_meta and not torch.equal(self.degrees.cpu(), self._planned):
                self.replan()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._version = -1
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": [None] * self.masks}  # a copy of a frozen network is not frozen

    @property
    def order(self) -> Tensor:
        """Position of every feature in the order of the first mask set."""
        return self._planned[0, : self.features]

    def arguments(self, context: Tensor | None = None, mask: int = 0) -> dict[str, Any]:
        """Keyword arguments of the masked-network operators for these weights: what :meth:`forward` passes on."""
        self._follow()
        weights, biases = self._parameter_lists()
        check_context("network", context, self.context, weights[0], "the weights")
        addends = []
        if context is not None:
            addends.append(F.linear(context, weights[0][:, self.features :]))
            weights[0] = weights[0][:, : self.features]
        return {
            "weights": weights,
            "biases": biases,
            "plan": self.plans[mask],
            "addends": addends,
            "packed": self._packed[mask],
        }

    def _parameter_lists(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the layers, as a parametrization gives them where there is one."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        layers: Any = self._modules["layers"]
        for layer in layers._modules.values():
            # The dictionary of parameters first: attribute look-ups of nn.Module are slow, and small flows live by them.
            own = layer._parameters
            weight = own["weight"] if "weight" in own else layer.weight  # noqa: SIM401, the default is the slow one
            bias = own["bias"] if "bias" in own else layer.bias  # noqa: SIM401
            weights.append(weight)
            if bias is not None:
                biases.append(bias)
        return weights, biases

    def forward(self, x: Tensor, context: Tensor | None = None, mask: int = 0) -> Tensor:
        """Parameters (..., features, outputs) of x (..., features), by mask set ``mask``."""
        return ops.masked_mlp(x, **self.arguments(context, mask)).unflatten(-1, (self.features, self.outputs))

    def freeze(self) -> None:
        """Packs the weights once; until :meth:`thaw` calls use them as they are now.

        Half precision packs on every call all the same, since its kernels work in float32.
        """
        weight = self._parameter_lists()[0][0]
        context = weight.new_zeros(self.context) if self.context else None
        if obstacle(weight) is None and weight.dtype in (torch.float32, torch.float64):
            with torch.no_grad():
                sets = [self.arguments(context, i) for i in range(self.masks)]
                self._packed = [ops.pack(a["plan"], a["weights"], a["biases"]) for a in sets]

    def thaw(self) -> None:
        """Packs on every call again."""
        self._packed = [None] * self.masks

    def extra_repr(self) -> str:
        return f"features={self.features}, outputs={self.outputs}, context={self.context}, activation={self.activation!r}"


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Packs the weights of every masked network of a model once, for serving.

    Inside, the weights must not change: a change has no effect on what the kernels compute until the block ends.

    Args:
        model: any module that contains layers of flowkern.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.MAF(3, transforms=2, hidden=(8,))
        >>> with fk.frozen(flow), torch.no_grad():
        ...     flow.sample((2,)).shape
        torch.Size([2, 3])
    """
    networks = [m for m in model.modules() if isinstance(m, MADE)]
    try:
        for network in networks:
            network.freeze()
        yield model
    finally:
        for network in networks:
            network.thaw()
