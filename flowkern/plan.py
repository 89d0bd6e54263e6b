"""The autoregressive plan: from masks to levels, sorted units and packed panels.

A masked network is a partial order. A feature can be computed once the features that its parameters depend on are
known, a hidden unit once those that it reads are known; the number of such rounds before it is its *level*. With the
units of every layer sorted by level, each weight matrix is a block staircase. The same packed staircase serves the
density pass (which skips the zero blocks), the inverse (one sweep over the levels) and the gradients of both.

The plan is built from masks, not from a rule for degrees, so it holds for the masks of every library and for any
directed acyclic graph; a coupling layer is the case of two levels.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from flowkern._checks import one_of, whole_number
from flowkern._compiling import constant_while_compiling
from flowkern._plan_encoding import Encoder
from flowkern._tensors import content, outside_modes

__all__ = ["ACTIVATIONS", "AutoregressivePlan", "Conditioner"]

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus")
LAYOUTS = ("feature_major", "parameter_major")
_DEFAULT_CONSTANT = {"leaky_relu": 0.01, "elu": 1.0}

_MAX_HIDDEN = _MAX_CONDITIONERS = 64
_Made = TypeVar("_Made")
_known: dict[str, weakref.WeakSet[AutoregressivePlan]] = {}


class Conditioner(NamedTuple):
    """A linear map of the context, with an activation, whose result a layer is given: added to it, or as its factor.

    ``layer`` is a hidden layer, or ``len(hidden)`` for the output; ``gate``: a factor, of a hidden layer.
    """

    layer: int
    activation: str = "identity"
    gate: bool = False


class MadeOnce:
    """What kernels of a GPU make of a plan, or of a chain, at the first call, and keep with it."""

    tables: dict[Any, Any]

    def at_first_call(self, key: Any, device: torch.device, make: Callable[[], _Made]) -> _Made:
        """What GPU kernels need of it, made once: not inside a CUDA graph, whose memory would be used again."""
        if key not in self.tables:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "flowkern: the first call of a network on a GPU cannot be captured in a CUDA graph; make one before"
                )
            with outside_modes():
                self.tables[key] = make()
        return self.tables[key]


class AutoregressivePlan(MadeOnce):
    r"""What the kernels need to know of one masked network.

    The network is :math:`p_l = W_l h_{l-1} + b_l` with :math:`h_{-1} = x`, plus an addend given per row where
    ``addends`` names layer :math:`l`, times a factor given per row where ``gates`` does, plus :math:`p_r` where
    ``residuals[l] = r``; then :math:`h_l = a(p_l)` where
    ``activated[l]``, else :math:`h_l = p_l`. The last layer gives ``parameters`` numbers for every feature.

    A context is read by columns of the first layer, by linear maps of its own, or by both. What it contributes is computed
    by the kernels.

    Args:
        masks: one boolean matrix (out, in) per layer; the first has one column per feature (and per feature of the
            context), the last ``parameters`` rows per feature. With ``skip``, one more from the features to the outputs.
        parameters: parameters per feature, 1 or more.
        layout: rows of the last layer, ``"feature_major"`` (row d P + p) or ``"parameter_major"`` (row p D + d).
        parameter_order: which of a feature's outputs is parameter 0, 1, ... of its univariate map; in order by default.
        activation: one of :data:`ACTIVATIONS`.
        constant: negative slope of leaky_relu (0.01) or alpha of elu (1).
        activated: for each hidden layer, whether the next layer reads :math:`a(p_l)` rather than :math:`p_l`.
        residuals: for each hidden layer, the earlier hidden layer of the same width that is added, or ``None``.
        skip: whether the last mask is a direct connection from the features to the outputs, without bias.
        addends: hidden layers, and ``len(hidden)`` for the output, that receive an addend per row, in the order in
            which the operators receive the addends.
        gates: hidden layers that are multiplied by a factor per row, in the order in which the operators receive them,
            after the addends.
        biases: for each layer, then for each conditioner, whether it has a bias; by default all but the skip connection
            have one.
        context: number of context features.
        context_columns: the columns of the first mask that read the context, in its order; so do those of the skip
            connection if it has as many columns.
        conditioners: the linear maps of the context, see :class:`Conditioner`. Their weights (units, context) come after
            those of the layers.
        conditioner_context: how many features of the context, the first ones, conditioners read; all by default.
        features: of a network that reads the context alone, as that of a coupling (:class:`flowkern.ops.CouplingStep`): how
            many features it gives parameters for.

    Raises:
        ValueError: if shapes do not fit, or the masks let a feature depend on itself.

    Example:
        >>> degrees = torch.tensor([1, 2])
        >>> masks = [degrees[:, None] >= torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3])[:, None] > degrees]
        >>> plan = AutoregressivePlan(masks, parameters=1)
        >>> plan.levels, plan.feature_levels.tolist()
        (3, [0, 1, 2])

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), section 4.
    """

    @outside_modes()
    def __init__(
        self,
        masks: Sequence[Tensor],
        *,
        parameters: int = 2,
        layout: str = "feature_major",
        parameter_order: Sequence[int] | None = None,
        activation: str = "relu",
        constant: float | None = None,
        activated: Sequence[bool] | None = None,
        residuals: Sequence[int | None] | None = None,
        skip: bool = False,
        addends: Sequence[int] = (),
        gates: Sequence[int] = (),
        biases: Sequence[bool] | None = None,
        context: int = 0,
        context_columns: Sequence[int] = (),
        conditioners: Sequence[Conditioner | tuple[Any, ...]] = (),
        conditioner_context: int | None = None,
        features: int | None = None,
    ) -> None:
        masks = [(m.detach().cpu() if isinstance(m, Tensor) else torch.tensor(m, device="cpu")) != 0 for m in masks]
        depth = len(masks) - 1 - int(skip)
        self.masks = masks
        self.context, self.context_columns = context, tuple(context_columns)
        self.conditioners = tuple(Conditioner(*c) for c in conditioners)
        self.conditioner_context = context if conditioner_context is None else conditioner_context
        read = masks[0].shape[1] - len(self.context_columns) if masks and masks[0].dim() == 2 else 0
        self.reads_features = features is None
        self.features = read if features is None else features
        self.parameters = parameters
        self.layout = layout
        self.parameter_order = None if parameter_order is None else tuple(parameter_order)
        one_of("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.constant = _DEFAULT_CONSTANT.get(activation, 0.0) if constant is None else float(constant)
        self.activated = tuple([True] * depth if activated is None else map(bool, activated))
        self.residuals = tuple([None] * depth if residuals is None else residuals)
        self.skip = skip
        self.addends, self.gates = tuple(addends), tuple(gates)
        has_bias = [True] * (depth + 1) + [False] * skip + [True] * len(self.conditioners)
        self.biases = tuple(has_bias if biases is None else map(bool, biases))
        self.calls: dict[Any, Any] = {}
        self.tables: dict[Any, Any] = {}  # what GPU kernels made of it; apart, since torch.compile guards the keys of calls
        self.chains: dict[Any, Any] = {}  # the chains that begin with this plan's network, likewise
        self._check()
        self.activation_index = self.activation_number(activation)
        self.feature_columns = [i for i in range(masks[0].shape[1]) if i not in set(self.context_columns)]
        # Which masks hide nothing of the context: read once, since a traced call must not read tensors.
        own = list(self.context_columns)
        reading = [i for i in (0, depth + 1) if own and i < len(masks) and masks[i].shape[1] > max(own)]
        self.whole_contexts = [i for i in reading if bool(masks[i][:, own].all())]
        self.feature_masks = [self._of_features(i, m) for i, m in enumerate(masks)]
        self._outside: AutoregressivePlan | None = None
        self._sort()
        self.meta, self.mask_bytes, self.packed_size = Encoder(self).encode()
        self.key = hashlib.sha1(content(self.meta) + content(self.mask_bytes), usedforsecurity=False).hexdigest()
        self._register()
        widths = [m.shape[0] for m in self.masks] + [self.masks[c.layer].shape[0] for c in self.conditioners]
        self.weight_shapes = [tuple(m.shape) for m in self.masks]
        self.weight_shapes += [(w, self.conditioner_context) for w in widths[len(masks) :]]
        self.bias_shapes = [(w,) for w, has in zip(widths, self.biases, strict=True) if has]
        self.addend_widths = [widths[a] for a in (*self.addends, *self.gates)]
        self.counts = len(self.weight_shapes), len(self.bias_shapes), len(self.addend_widths)  # of the tensors of a call
        # What a forward pass keeps for its gradient: first row of every layer, the parameters, every gated layer, every
        # conditioner, and the end.
        kept = [*self.units, self.features * self.parameters, *(self.units[g] for g in self.gated)]
        kept += [len(self.rows_of(c.layer)) for c in self.conditioners]
        self.saved_starts = list(itertools.accumulate(kept, initial=0))
        self.saved_rows = self.saved_starts[-1]

    # -- construction -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if len(self.masks) < 1 + int(self.skip) or any(m.dim() != 2 for m in self.masks):
            raise ValueError("masks: expected at least one matrix (out, in) per layer")
        hidden = self.masks[: len(self.masks) - 1 - int(self.skip)]
        shapes = [tuple(m.shape) for m in self.masks]
        for before, after in zip(self.masks, self.masks[1 : len(hidden) + 1], strict=False):
            if after.shape[1] != before.shape[0]:
                raise ValueError(
                    f"masks: shapes {shapes} do not chain: each must have as many columns as the one before has rows"
                )
        if not self.reads_features:
            self._check_features()
        if not isinstance(self.parameters, int) or self.parameters < 1:
            raise ValueError(f"parameters: expected a whole number of at least 1, got {self.parameters!r}")
        rows = self.features * self.parameters
        for m in self.masks[len(hidden) :]:
            if m.shape[0] != rows:
                raise ValueError(
                    f"masks: expected {self.features} features x {self.parameters} parameters = {rows} output rows, "
                    f"got shapes {shapes}"
                )
        if self.skip and self.masks[-1].shape[1] not in (self.features, self.masks[0].shape[1]):
            raise ValueError(f"masks: the skip connection must have {self.features} columns, got shapes {shapes}")
        one_of("layout", self.layout, LAYOUTS)
        order = self.parameter_order
        if order is not None and sorted(order) != list(range(self.parameters)):
            raise ValueError(f"parameter_order: expected a permutation of 0 to {self.parameters - 1}, got {order}")
        if len(hidden) > _MAX_HIDDEN:
            raise ValueError(f"masks: at most {_MAX_HIDDEN} hidden layers, got {len(hidden)}")
        if len(self.activated) != len(hidden) or len(self.residuals) != len(hidden):
            raise ValueError(f"activated, residuals: expected {len(hidden)} entries, one per hidden layer")
        count = len(self.masks) + len(self.conditioners)
        if len(self.biases) != count:
            raise ValueError(f"biases: expected {count} entries, one per layer, got {len(self.biases)}")
        if self.skip and self.biases[len(self.masks) - 1]:
            raise ValueError("biases: the skip connection has none; the last layer's bias does its work")
        for layer, source in enumerate(self.residuals):
            if source is not None and not (0 <= source < layer and hidden[source].shape[0] == hidden[layer].shape[0]):
                raise ValueError(
                    f"residuals: layer {layer} cannot add layer {source}: it must come before and have the same width"
                )
        if any(not 0 <= a <= len(hidden) for a in self.addends) or len(set(self.addends)) != len(self.addends):
            raise ValueError(f"addends: expected distinct layers between 0 and {len(hidden)}, got {self.addends}")
        if any(not 0 <= g < len(hidden) for g in self.gates) or len(set(self.gates)) != len(self.gates):
            raise ValueError(f"gates: expected distinct hidden layers between 0 and {len(hidden) - 1}, got {self.gates}")
        self._check_context(len(hidden))

    def _check_features(self) -> None:
        whole_number("features", self.features, 1)
        further = self.masks[0].shape[1] - len(self.context_columns)
        if further or self.skip:
            what = "a skip connection" if self.skip else f"{further} columns beside context_columns"
            raise ValueError(f"features: expected for a network that reads the context alone, got masks with {what}")

    def _check_context(self, depth: int) -> None:
        columns, width = self.context_columns, self.masks[0].shape[1]
        if not isinstance(self.context, int) or self.context < 0:
            raise ValueError(f"context: expected a whole number of at least 0, got {self.context!r}")
        if columns and (len(set(columns)) != self.context or any(not 0 <= c < width for c in columns)):
            raise ValueError(f"context_columns: expected {self.context} distinct columns below {width}, got {columns}")
        if self.context and not columns and not self.conditioners:
            raise ValueError(f"context: {self.context} features are read by no context_columns and no conditioners")
        own = self.conditioner_context
        if not isinstance(own, int) or not 0 <= own <= self.context:
            raise ValueError(f"conditioner_context: expected a whole number from 0 to {self.context}, got {own!r}")
        gated = self.gated
        for c in self.conditioners:
            if not self.context or not 0 <= c.layer < depth + (not c.gate) or c.activation not in ACTIVATIONS:
                raise ValueError(
                    f"conditioners: {c} does not fit a network of {depth} hidden layers and {self.context} contexts"
                )
        if len(set(gated)) != len(gated) or len(self.conditioners) > _MAX_CONDITIONERS:
            raise ValueError(f"conditioners: a layer has one gate, and a network {_MAX_CONDITIONERS} conditioners at most")

    def _of_features(self, layer: int, mask: Tensor) -> Tensor:
        """The columns of a mask that read features, of the first layer or the skip connection; of any other the mask."""
        reads = layer == 0 or (layer == len(self.activated) + 1 and self.skip_reads_context)
        return mask[:, self.feature_columns] if reads and self.context_columns else mask

    @property
    def gated(self) -> list[int]:
        """Layers with a gate: those given per row, then those of conditioners."""
        return [*self.gates, *(c.layer for c in self.conditioners if c.gate)]

    def _sort(self) -> None:
        """Levels of features and units, in rounds: what is known, then the units it completes, then their features."""
        masks = self.feature_masks
        depth = len(masks) - 1 - int(self.skip)
        columns = [m.t().contiguous().to(torch.int32) for m in masks]  # row i: who reads source i
        missing = [m.sum(1, dtype=torch.int32) for m in masks[: depth + 1]]
        if self.skip:
            missing[depth] = missing[depth] + masks[-1].sum(1, dtype=torch.int32)
        for layer, source in enumerate(self.residuals):
            if source is not None:
                missing[layer] = missing[layer] + 1
        unit_levels = [torch.full((m.shape[0],), -1, device="cpu") for m in masks[:depth]]
        feature_levels = torch.full((self.features,), -1, device="cpu")
        new_features = torch.empty(0, dtype=torch.int64, device="cpu")
        outputs = self.parameter_rows = self._parameter_rows()
        level = 0
        while (feature_levels < 0).any():
            if level:
                missing[0] -= columns[0][new_features].sum(0, dtype=torch.int32)
                if self.skip:
                    missing[depth] -= columns[-1][new_features].sum(0, dtype=torch.int32)
            for layer in range(depth):
                ready = ((missing[layer] == 0) & (unit_levels[layer] < 0)).nonzero().flatten()
                unit_levels[layer][ready] = level
                missing[layer + 1] -= columns[layer + 1][ready].sum(0, dtype=torch.int32)
                for later, source in enumerate(self.residuals):
                    if source == layer:
                        missing[later][ready] -= 1
            complete = (missing[depth][outputs] == 0).all(1)
            new_features = (complete & (feature_levels < 0)).nonzero().flatten()
            if len(new_features) == 0:
                stuck = (feature_levels < 0).nonzero().flatten().tolist()
                raise ValueError(
                    f"masks: not autoregressive: features {stuck[:8]}{'...' if len(stuck) > 8 else ''} "
                    "depend on themselves or on each other"
                )
            feature_levels[new_features] = level
            level += 1
        self.levels = level
        self.feature_levels = feature_levels
        self.feature_order = torch.argsort(feature_levels, stable=True)
        self.feature_starts = _starts(feature_levels, level)
        # Units that complete only after the last feature reach no output; they are left out.
        self.unit_orders = [torch.argsort(u, stable=True)[int((u < 0).sum()) :] for u in unit_levels]
        self.unit_starts = [_starts(u[u >= 0], level) for u in unit_levels]
        self.units = [len(o) for o in self.unit_orders]
        self.output_order = outputs[self.feature_order].flatten()
        self.output_starts = self.feature_starts * self.parameters
        # As numbers, for what walks the levels in plain PyTorch: a call that is traced must not read tensors.
        self.level_starts = [s.tolist() for s in (*self.unit_starts, self.output_starts)]
        self.level_features = self.feature_starts.tolist()
        self.residual_places = [[] if s is None else self._places(s, i) for i, s in enumerate(self.residuals)]

    def _places(self, source: int, layer: int) -> list[int]:
        """Where the sorted units of a hidden layer are among those of an earlier one of the same width."""
        place = {unit: i for i, unit in enumerate(self.unit_orders[source].tolist())}
        return [place[unit] for unit in self.unit_orders[layer].tolist()]

    def _parameter_rows(self) -> Tensor:
        """(features, parameters): the output row of every parameter, in the order of the univariate map."""
        rows = torch.arange(self.features * self.parameters, device="cpu")
        if self.layout == "feature_major":
            rows = rows.view(self.features, self.parameters)
        else:
            rows = rows.view(self.parameters, self.features).t()
        return rows if self.parameter_order is None else rows[:, list(self.parameter_order)]

    def rows_of(self, layer: int) -> Tensor:
        """The original rows of a layer, or of the output, in sorted order."""
        return self.unit_orders[layer] if layer < len(self.units) else self.output_order

    # -- what operators and oracles read ----------------------------------------------------------------------------

    @property
    def widest(self) -> int:
        """Units of the widest layer, or features where these are more."""
        return max(self.features, *self.units, 0)

    @property
    def structure(self) -> dict[str, Any]:
        """Keyword arguments of the oracle ``flowkern.reference.masked_mlp``."""
        return {
            "activation": self.activation,
            "constant": self.constant,
            "activated": self.activated,
            "residuals": self.residuals,
            "skip": self.skip,
        }

    @property
    def head(self) -> dict[str, Any]:
        """Further keyword arguments of the oracles that split the parameters."""
        return {"layout": self.layout, "parameter_order": self.parameter_order}

    def terms(self, given: Sequence[Tensor]) -> dict[str, Any]:
        """What the operators receive as addends, by layer: those that are added, and the gates."""
        count = len(self.addends)
        return {
            "addends": dict(zip(self.addends, given[:count], strict=True)),
            "gates": dict(zip(self.gates, given[count:], strict=True)),
        }

    @property
    def outside(self) -> AutoregressivePlan:
        """The plan without a context, for kernels that are given what it contributes."""
        if torch.compiler.is_compiling() or self._outside is None:
            _make_outside(self)
        assert self._outside is not None
        return self._outside

    @property
    def skip_reads_context(self) -> bool:
        """Whether the direct connection has columns for the context."""
        return self.skip and self.masks[-1].shape[1] != self.features

    @staticmethod
    def activation_number(activation: str) -> int:
        """What the kernels call an activation."""
        return ACTIVATIONS.index(activation)

    def constant_of(self, activation: str) -> float:
        """The constant of a conditioner's activation: that of the layers where it is theirs."""
        return self.constant if activation == self.activation else _DEFAULT_CONSTANT.get(activation, 0.0)

    def masks_like(self, weight: Tensor) -> list[Tensor]:
        """The masks on the device of ``weight``."""
        return self.masks if weight.device.type == "cpu" else [m.to(weight.device) for m in self.masks]

    def remember(self, key: Any, call: Any) -> Any:
        """Keeps what an operator prepared for its calls on this plan; small flows live by it."""
        self.calls[key] = call
        return call

    @staticmethod
    def find(key: str) -> AutoregressivePlan:
        """The plan with this key. Operators take tensors and numbers only; plans with one key are the same to all kernels."""
        return next(iter(_known[key]))

    def _register(self) -> None:
        _known.setdefault(self.key, weakref.WeakSet()).add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "calls": {}, "tables": {}, "chains": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()

    def __deepcopy__(self, memo: dict) -> AutoregressivePlan:
        return self  # immutable

    def __repr__(self) -> str:
        hidden = ", ".join(str(m.shape[0]) for m in self.masks[: len(self.units)])
        return (
            f"AutoregressivePlan(features={self.features}, parameters={self.parameters}, hidden=({hidden}), "
            f"levels={self.levels}, activation={self.activation!r})"
        )


@constant_while_compiling  # nothing can be made while a call is traced, but before
def _make_outside(plan: AutoregressivePlan) -> bool:
    if plan._outside is None:
        own = [len(plan.units)] if plan.skip_reads_context else []
        layers = [*([0] if plan.context_columns else []), *own, *(c.layer for c in plan.conditioners if not c.gate)]
        plan._outside = AutoregressivePlan(
            plan.feature_masks,
            parameters=plan.parameters,
            layout=plan.layout,
            parameter_order=plan.parameter_order,
            addends=tuple(dict.fromkeys([*plan.addends, *layers])),
            gates=plan.gated,
            biases=plan.biases[: len(plan.masks)],
            features=None if plan.reads_features else plan.features,
            **plan.structure,
        )
    return True


def _starts(levels: Tensor, count: int) -> Tensor:
    """First index of every level after sorting, and the total."""
    return torch.cat(
        [torch.zeros(1, dtype=torch.int64, device="cpu"), torch.bincount(levels, minlength=count)[:count].cumsum(0)]
    )
