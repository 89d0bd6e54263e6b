"""A peer's masked network as the operators take it: a list of linear maps, read from the live modules at every call."""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from flowkern import ops
from flowkern._checks import FLOATS
from flowkern._tensors import content
from flowkern.backends import exporting
from flowkern.nn.activations import activation_named
from flowkern.nn.checks import has_hooks
from flowkern.ops.pack import can_pack
from flowkern.plan import AutoregressivePlan, Conditioner
from flowkern.univariate import Affine, RationalLinear, RationalQuadratic, UnivariateMap

Found = TypeVar("Found", bound=Callable[..., Any])
Map = TypeVar("Map", bound=UnivariateMap)


class UnsupportedError(Exception):
    """A layer is left alone; the message says why."""


# -- activations ------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[Callable[..., Any], tuple[str, float | None]] = {
    F.relu: ("relu", None),
    torch.relu: ("relu", None),
    F.leaky_relu: ("leaky_relu", 0.01),
    F.elu: ("elu", 1.0),
    F.gelu: ("gelu", None),
    F.silu: ("silu", None),
    F.tanh: ("tanh", None),
    torch.tanh: ("tanh", None),
    F.sigmoid: ("sigmoid", None),
    torch.sigmoid: ("sigmoid", None),
    F.softplus: ("softplus", None),
}


def _unknown(activation: Any) -> Any:
    raise UnsupportedError(f"the activation {activation!r} has no kernel")


def activation_of(*found: Any) -> tuple[str, float | None]:
    """Name and constant of the one activation that all of these modules or functions are."""
    names = set()
    for activation in found:
        if isinstance(activation, nn.Module):
            names.add(activation_named(activation) or _unknown(activation))
        else:
            names.add(_FUNCTIONS[activation] if activation in _FUNCTIONS else _unknown(activation))
    if len(names) > 1:
        raise UnsupportedError(f"it mixes activations ({', '.join(sorted(name for name, _ in names))})")
    return names.pop() if names else ("identity", None)


# -- reading ----------------------------------------------------------------------------------------------------------


class ChangedError(Exception):
    """A module is not what it was when its layer was read: its bias or its running statistics are gone, or are new."""


class Reading:
    """The parameters that one call uses. Each module is read once: a parametrization may draw, or take a step, every time."""

    def __init__(self) -> None:
        self._found: dict[nn.Module, Any] = {}

    def linear(self, module: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        own = module._parameters
        if "weight" in own and "bias" in own:  # plain parameters are the same every time
            weight, bias = own["weight"], own["bias"]
        else:
            if module not in self._found:
                self._found[module] = parameter_of(module, "weight"), parameter_of(module, "bias")
            weight, bias = self._found[module]
        if weight is None:
            raise ChangedError
        return weight, bias

    def norm(self, module: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """Batch normalisation in evaluation mode as y = s x + t: s and t."""
        found = self._found.get(module)
        if found is None:
            found = self._found[module] = _scale_and_shift(module)
        return found


def parameter_of(module: nn.Module, name: str) -> Tensor | None:
    # The dictionary first: attribute look-ups of nn.Module are slow. A parametrized one is an attribute only.
    own = module._parameters
    return own[name] if name in own else getattr(module, name)


def stored(module: nn.Module, name: str) -> Tensor | None:
    """A parameter, or of one with a parametrization, which is not evaluated, a tensor that it is made from."""
    own = module._parameters
    if name in own or not parametrize.is_parametrized(module, name):
        return parameter_of(module, name)
    return next(iter(module.parametrizations[name].state_dict(keep_vars=True).values()))  # type: ignore[index, union-attr]


def weight_norm_of(module: nn.Module) -> WeightNorm | None:
    """The hook of torch.nn.utils.weight_norm, which makes the weight of a module anew before each of its calls."""
    hooks = module._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, WeightNorm) and hook.name == "weight"), None)


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ChangedError
    scale = torch.rsqrt(var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


# -- linear maps ------------------------------------------------------------------------------------------------------


class Linear:
    """A masked linear module of a peer.

    Args:
        module: has ``weight``, ``bias`` and ``mask``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.biased = self._has_bias = stored(module, "bias") is not None

    def mask(self) -> Tensor:
        """What each unit may read, on the mask's device."""
        (mask,) = self.masks()
        if mask is None:
            raise UnsupportedError("a mask of it is no buffer any more")
        return mask != 0

    def checked_mask(self) -> Tensor:
        """The same, if it is a mask."""
        for mask in self.masks():
            if mask is not None and mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
                raise UnsupportedError("its masks have values other than 0 and 1")
        return self.mask()

    def masks(self) -> list[Tensor | None]:
        """The buffers that the plan depends on; ``None`` for one that is there no more."""
        return [self.module._buffers.get("mask")]

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, as many as when the layer was read."""
        weight, bias = read.linear(self.module)
        if (bias is not None) != self._has_bias:
            raise ChangedError
        return weight, bias


def _expect_norm(norm: nn.Module) -> nn.BatchNorm1d:
    """The module, if it is batch normalisation and no kin of it, which may do other things in train mode."""
    if parametrize.type_before_parametrizations(norm) is not nn.BatchNorm1d:
        raise UnsupportedError(f"its normalisation is a {type(norm).__qualname__}, expected BatchNorm1d")
    return norm  # type: ignore[return-value]


class LinearThenNorm(Linear):
    """A linear map of which only batch normalisation reads the result."""

    def __init__(self, module: nn.Module, norm: nn.Module) -> None:
        super().__init__(module)
        self.norm, self.biased = _expect_norm(norm), True

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().tensors(read)
        scale, shift = read.norm(self.norm)
        return weight * scale[:, None], shift if bias is None else bias * scale + shift


class NormThenLinear(LinearThenNorm):
    """Batch normalisation whose result only a linear map reads: folded into its weights."""

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        weight, bias = Linear.tensors(self, read)
        scale, shift = read.norm(self.norm)
        moved = (torch.where(self.mask(), weight, 0) * shift).sum(1)  # no matrix product, which autocast would round
        return weight * scale, moved if bias is None else bias + moved


class Norm(Linear):
    """Batch normalisation of a sum that a later residual reads too: a diagonal layer of its own."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm, self.biased = _expect_norm(norm), True

    def mask(self) -> Tensor:
        return torch.eye(self.norm.num_features, dtype=torch.bool, device="cpu")

    def masks(self) -> list[Tensor | None]:
        return []

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        scale, shift = read.norm(self.norm)
        return torch.diag(scale), shift


class ContextLinear:
    """A linear map of the context alone.

    Args:
        module: ``nn.Linear``; a subclass may do anything else.
        norm: batch normalisation that its result, added to a layer's, passes through.
    """

    def __init__(self, module: nn.Module, norm: nn.Module | None) -> None:
        self.module = expect(module, "torch.nn.modules.linear.Linear", "context layer")
        self.norm = None if norm is None else _expect_norm(norm)
        self.biased = stored(module, "bias") is not None

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, as many as when the layer was read. The shift of the norm is the layer's."""
        weight, bias = read.linear(self.module)
        if (bias is not None) != self.biased:
            raise ChangedError
        if self.norm is None:
            return weight, bias
        scale, _ = read.norm(self.norm)
        return weight * scale[:, None], bias if bias is None else bias * scale


# -- the network ------------------------------------------------------------------------------------------------------

_plans: weakref.WeakValueDictionary[Any, AutoregressivePlan] = weakref.WeakValueDictionary()


def _shared_plan(masks: Sequence[Tensor], **structure: Any) -> AutoregressivePlan:
    """Layers with the same masks share one plan: building it takes milliseconds."""
    found = hashlib.sha1(usedforsecurity=False)
    for mask in masks:
        found.update(content(mask))
    key = found.digest(), tuple(m.shape for m in masks), tuple(sorted((k, str(v)) for k, v in structure.items()))
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = AutoregressivePlan(masks, **structure)
    return plan


class Network:
    """What an accelerated layer computes, and when the operators may compute it.

    ``modules`` are those whose hooks and modes matter: all that the operators' call passes over. ``plan`` is what is made
    once, and anew where masks change.
    """

    modules: Sequence[nn.Module] = ()
    plan: Any = None

    def same_as(self, other: Any) -> bool:
        """Whether another network that was read from the same layer differs in nothing but its tensors."""
        raise NotImplementedError

    def touched(self) -> bool:
        """Whether something that the plan depends on may have changed since it was last looked at."""
        return False

    def follow(self) -> bool:
        """Makes a new plan where it must be another now, and says whether it is."""
        return False

    def busy(self) -> str | None:
        """Why the peer's own code must run now whatever the modules are like, or ``None``."""
        if _has_any_global_hook():
            return "a hook on all modules is registered, which the fused call would pass over"
        if exporting():
            return "it is being exported: what is stored is the library's own code, which runs without flowkern"
        return None

    def obstacle(self, inverse: bool) -> str | None:
        """Why the modes and hooks of the modules call for the peer's own code, or ``None``."""
        for m in self.modules:
            if self.hooked(m):
                return f"a hook is registered on its {type(m).__name__}, which the fused call would pass over"
            replaced = m.__dict__.get("forward")
            # Who replaces a method for a time puts the bound method of the class in its place afterwards.
            if replaced is not None and getattr(replaced, "__func__", None) is not type(m).forward:
                return f"the forward of its {type(m).__name__} was replaced"
            reason = self.mode(m, inverse)
            if reason is not None:
                return reason
        return None

    def hooked(self, module: nn.Module) -> bool:
        """Whether there are hooks on a module that a call of it would run."""
        return has_hooks(module)

    def mode(self, module: nn.Module, inverse: bool) -> str | None:
        """Why the mode that a module is in calls for the peer's own code, or ``None``."""
        raise NotImplementedError

    def packed(self) -> Any:
        """What :func:`flowkern.frozen` keeps, made of the weights; ``None`` where there is no such thing."""
        raise NotImplementedError

    def abridged(self, layer: Any) -> Any:
        """What the self-check copies: the layer, or the peer's own object that computes the same with fewer like parts."""
        return layer

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """How the operators differ from the peer's code, or ``None``.

        Args:
            evaluate: the peer's own code for the layer that this network was read from, which is in float64.
            noise: sizes -> uniform numbers in [-1, 1).
        """
        raise NotImplementedError


class PeerNetwork(Network):
    """What a layer computes: a masked network, read layer by layer, and a univariate map.

    Args:
        features: number of features.
        context: number of context features, 0 for none.
        map: the univariate map.
        layout, parameter_order: the order of the parameters, see :class:`flowkern.AutoregressivePlan`.

    The library's file then calls :meth:`add` for each linear map in order, :meth:`skip` for a direct connection,
    :meth:`add_context` for the linear maps of the context, and sets ``activation``; ``context_columns`` where the first map,
    and the direct connection, read features and context side by side.
    """

    def __init__(
        self,
        features: int,
        context: int,
        map: UnivariateMap,
        *,
        layout: str = "feature_major",
        parameter_order: Sequence[int] | None = None,
    ) -> None:
        self.features, self.context, self.map = features, context, map
        self.layout, self.parameter_order = layout, parameter_order
        self.activation: tuple[str, float | None] = ("identity", None)
        self.linears: list[Linear] = []
        self.skipped: Linear | None = None
        self.activated: list[bool] = []
        self.residuals: list[int | None] = []
        self.context_columns: Sequence[int] = ()
        self.conditioners: list[Conditioner] = []
        self._conditions: list[ContextLinear] = []
        self.modules: list[nn.Module] = []
        self._seen: list[tuple[Tensor | None, int | None]] = []
        self._refused = False  # whether the masks, as they are now, are such that there is no plan

    def add(self, linear: Linear, *, activated: bool = False, residual: int | None = None) -> int:
        """The next layer; returns its index. The last one gives the parameters."""
        self.linears.append(linear)
        self.activated.append(activated)
        self.residuals.append(residual)
        return len(self.linears) - 1

    def add_context(
        self, layer: int, module: nn.Module, activation: str = "identity", *, gate: bool = False, norm: nn.Module | None = None
    ) -> None:
        """A linear map of the context, activated, that a layer adds, or as a gate is multiplied by, before its residual."""
        self.conditioners.append(Conditioner(layer, activation, gate))
        self._conditions.append(ContextLinear(module, norm))

    def skip(self, linear: Linear) -> None:
        """A direct connection from the features to the parameters."""
        self.skipped = linear

    def finish(self, *modules: nn.Module) -> PeerNetwork:
        """Builds the plan. ``modules`` are those whose hooks and modes matter: all that the fused call passes over."""
        self.modules = [m for module in modules for m in module.modules()]
        self._all_linears = self._all()
        self._maps: list[Linear | ContextLinear] = [*self._all_linears, *self._conditions]
        self._plan()
        return self

    def _all(self) -> list[Linear]:
        return self.linears if self.skipped is None else [*self.linears, self.skipped]

    def _plan(self) -> None:
        linears = self._all()
        activation, constant = self.activation
        depth = len(self.linears) - 1
        self._see()
        refuse_tensors("activation", (constant,))
        if any(mask is not None and mask.is_meta for mask in self._masks()):
            raise UnsupportedError("its masks are on the meta device: accelerate it once it has values")
        try:
            self.plan = _shared_plan(
                [linear.checked_mask().cpu() for linear in linears],
                parameters=self.map.count,
                layout=self.layout,
                parameter_order=self.parameter_order,
                activation=activation,
                constant=constant,
                activated=tuple(self.activated[:depth]),
                residuals=tuple(self.residuals[:depth]),
                skip=self.skipped is not None,
                biases=(*(linear.biased for linear in linears), *(linear.biased for linear in self._conditions)),
                conditioners=tuple(self.conditioners),
                **self.structure(),
            )
        except ValueError as error:
            raise UnsupportedError(f"its network does not fit: {error}") from None

    def structure(self) -> dict[str, Any]:
        """Of the plan: what the network reads of a context."""
        return {"context": self.context, "context_columns": tuple(self.context_columns)}

    def _masks(self) -> list[Tensor | None]:
        return [mask for linear in self._all() for mask in linear.masks()]

    def _see(self) -> None:
        # Inference tensors, like none at all, count no changes.
        self._seen = [(m, None if m is None or m.is_inference() else m._version) for m in self._masks()]

    def same_as(self, other: PeerNetwork) -> bool:
        """Whether map and plan are the same."""
        return self.map == other.map and self.plan is other.plan

    def touched(self) -> bool:
        """Whether masks were exchanged, or written to, since they were last looked at."""
        seen = iter(self._seen)
        for linear in self._all_linears:
            for now in linear.masks():
                before, version = next(seen)
                if now is not before or (version is not None and now._version != version):  # type: ignore[union-attr]
                    return True
        return False

    def follow(self) -> bool:
        """A new plan where masks were changed: a checkpoint brings its own random masks. Says whether the plan is another now.

        Who touches all buffers (DistributedDataParallel, averages of weights) mostly writes what was there.
        """
        if not self.touched():
            return False
        before, self._refused = self._refused, True
        same = self._masks_are_those_of_the_plan()
        if same:
            self._see()
        else:
            self._plan()
        self._refused = False
        return before or not same

    def _masks_are_those_of_the_plan(self) -> bool:
        for linear, planned in zip(self._all(), self.plan.masks, strict=True):
            for mask in linear.masks():
                if mask is None or mask.is_meta or not torch.equal(mask, planned.to(mask.device, mask.dtype)):
                    return False
        return True

    def busy(self) -> str | None:
        """The same; masks that a transform of torch.func exchanges are another reason."""
        reason = super().busy()
        if reason is not None or not torch._C._are_functorch_transforms_active():
            return reason
        if any(now is not before for now, (before, _) in zip(self._masks(), self._seen, strict=True)):
            return "its masks are an argument of a torch.func transform: those of an ensemble may differ"
        return None

    def mode(self, module: nn.Module, inverse: bool) -> str | None:
        """Statistics of a batch, and dropout."""
        if isinstance(module, nn.BatchNorm1d) and (module.training or module.running_mean is None):
            return "its batch normalisation uses the statistics of the batch (train mode)"
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return "dropout draws anew in every pass (train mode)" if inverse else "dropout is active (train mode)"
        return None

    def fits(self, x: Tensor, context: Tensor | None) -> bool:
        """Whether the operators take these arguments; those that they do not are for the peer to judge."""
        own = self.linears[0].module._parameters
        like = own["weight"] if "weight" in own else stored(self.linears[0].module, "weight")
        return (
            like is not None
            and isinstance(x, Tensor)
            and x.dtype in FLOATS
            and x.dtype is like.dtype
            and x.device == like.device
            and not x.is_meta
            and x.dim() > 0
            and x.shape[-1] == self.features
            and (context is not None) == (self.context > 0)
            and (context is None or self._fits_context(x, context))
        )

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same for a network beside one that fits, given the width of the context, 0 for none."""
        own = self.linears[0].module._parameters
        like = own["weight"] if "weight" in own else stored(self.linears[0].module, "weight")
        return (
            like is not None
            and like.dtype is x.dtype
            and like.device == x.device
            and self.features == x.shape[-1]
            and self.context == width
        )

    def _fits_context(self, x: Tensor, context: Tensor) -> bool:
        return (
            isinstance(context, Tensor)
            and context.dtype is x.dtype
            and context.device == x.device
            and context.dim() > 0
            and context.shape[-1] == self.context
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`flowkern.ops.autoregressive` and :func:`flowkern.ops.autoregressive_inverse`.

        Raises:
            ChangedError: where a module is not what it was when the layer was read.
        """
        read = Reading()
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for linear in self._maps:
            weight, bias = linear.tensors(read)
            weights.append(weight)
            if bias is not None:
                biases.append(bias)
        return {"weights": weights, "biases": biases, "plan": self.plan, "map": self.map}

    def steps(self, inverse: bool, packed: Tensor | None = None) -> list[ops.Step]:
        """What it is in a chain.

        Args:
            packed: what :meth:`packed` gave.

        Raises:
            ChangedError: as :meth:`arguments`.
        """
        arguments = self.arguments()
        return [self.step(inverse, arguments if packed is None else {**arguments, "packed": packed})]

    def step(self, inverse: bool, arguments: dict[str, Any]) -> ops.Step:
        """The same, of these arguments."""
        return ops.NetworkStep(inverse, arguments)

    def packed(self) -> Tensor | None:
        """The weights as the CPU kernels read them."""
        arguments = self.arguments()
        weights, biases = arguments["weights"], arguments["biases"]
        return ops.pack(self.plan, weights, biases) if can_pack(weights[0]) else None

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Compares on two rows."""
        x = noise(2, self.features)
        if isinstance(self.map, RationalQuadratic):  # which may refuse what is outside of its interval
            lower, upper = self.map.interval
            x = (lower + upper + (upper - lower) * x) / 2
        return steps_disagree(self, evaluate, x, noise(2, self.context) if self.context else None)


def run_steps(x: Tensor, context: Tensor | None, steps: Sequence[ops.Step]) -> tuple[Tensor, Tensor]:
    """By one call of an operator."""
    step = steps[0]
    if len(steps) > 1 or not isinstance(step, ops.NetworkStep):
        return ops.autoregressive_chain(x, steps, context)
    return (ops.autoregressive_inverse if step.inverse else ops.autoregressive)(x, **step.arguments, context=context)


def steps_disagree(network: Any, evaluate: Callable[..., Any], x: Tensor, context: Tensor | None) -> str | None:
    """Compares the value, the log-determinant, and the inverse by the way back through the peer's code."""
    expected = evaluate(x, context)
    found = run_steps(x, context, network.steps(False))
    for name, ours, theirs in zip(("value", "log-determinant"), found, expected, strict=True):
        error = error_of(ours, theirs)
        if not error < 1e-9:
            return f"its {name} differs from the operator's by {error:.1e}: another version of the formula?"
    back, _ = run_steps(expected[0], context, network.steps(True))
    error = error_of(evaluate(back, context)[0], expected[0])
    return None if error < 1e-6 else f"the round trip through its own code is off by {error:.1e}"


def error_of(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / (1 + theirs.abs().max()))


def affine(scale: str, placement: str, *constants: Any) -> Affine:
    """An affine map whose constants a library holds."""
    refuse_tensors("univariate map", constants)
    return Affine(scale, placement, constants)


def spline(
    bins: int, interval: tuple[Any, Any], parametrization: str, *settings: Any, tails: str = "linear", shifted: bool = False
) -> RationalQuadratic:
    """A rational-quadratic spline whose constants a library holds."""
    return _made(lambda: RationalQuadratic(bins, interval, tails, parametrization, settings, shifted), *interval, *settings)


def linear_spline(bins: int, interval: tuple[Any, Any], *settings: Any) -> RationalLinear:
    """A rational-linear spline whose constants a library holds."""
    return _made(lambda: RationalLinear(bins, interval, settings), *interval, *settings)


def _made(make: Callable[[], Map], *constants: Any) -> Map:
    refuse_tensors("univariate map", constants)
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"its spline has no operator: {error}") from None


def refuse_tensors(what: str, constants: Iterable[Any]) -> None:
    """Constants are read once: one that can change in place, or wants a gradient, is for the peer's own code."""
    if any(isinstance(c, Tensor) for c in constants):
        raise UnsupportedError(f"a constant of its {what} is a tensor, which may change at any time")


def expect(module: Any, path: str, what: str) -> Any:
    """The module, if it is of the class ``path`` and behaves like it."""
    reason = differs(type(module), path)
    if reason is not None:
        raise UnsupportedError(f"its {what} is a {type(module).__qualname__}: {reason}")
    return module


def by_class(function: Found) -> Found:
    """Keeps what a function of a class gives: classes are asked about at every call."""
    return functools.lru_cache(1024)(function)  # type: ignore[return-value]


def differs(cls: type, path: str) -> str | None:
    """Why a class is not one that behaves like the class named ``path``, or ``None``."""
    bases = cls.__mro__
    for i, base in enumerate(bases):
        if class_path(base) == path:
            changed = {name for b in bases[:i] for name in _methods(b) if hasattr(base, name)}
            return f"a subclass that overrides {', '.join(sorted(changed))}" if changed else None
    return f"expected {path}"


def _methods(cls: type) -> Iterable[str]:
    return (name for name, value in vars(cls).items() if callable(value) and (name == "__call__" or not name.startswith("__")))


def class_path(cls: type) -> str:
    """Where a class comes from, in words."""
    return f"{cls.__module__}.{cls.__qualname__}"
