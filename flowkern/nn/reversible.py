"""Layers that keep no activations: each rebuilds its input from its output when its gradient is asked for.

A pass through layers is one node of the graph per layer. The last keeps its output, and the first its input; all others
keep nothing that grows with the batch. On the way back a layer is handed its output by the layer after it, rebuilds its
input, runs again with a graph of its own, whose gradients go on, and hands its input to the layer before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from flowkern._checks import autocasts

if TYPE_CHECKING:
    from flowkern.nn.transform import Transform

Memory = Literal["full", "reversible"]
MEMORY = get_args(Memory)


def records() -> bool:
    """Whether gradients will be asked for by autograd's usual way, which is the one that reversible layers know."""
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return torch.is_grad_enabled() and not compiled and not torch._C._are_functorch_transforms_active()


@dataclass
class Guard:
    """Which layers of a stack keep their input, because what is rebuilt without it would be too far off.

    Each layer's own error is measured in the first pass. The whole way back is measured in every pass: wherever an input is
    kept, what the layer gives for it is compared with what the layers after it have rebuilt. Where that is too far off, the
    gradient just computed was so too; from the next pass on more inputs are kept, and all layers are measured again.

    Errors are relative to the largest number. The most that is allowed is the machine epsilon to the power 2/3 for a layer,
    1/2 for the way from one kept input to the next: 2.4e-5 and 3.5e-4 in float32.
    """

    kept: set[int] = field(default_factory=set)
    measures: bool = True
    pending: list[tuple[list[int], float, Tensor]] = field(default_factory=list)  # layers, epsilon, error

    def settle(self) -> None:
        """Looks at the errors of passes back since the last time; now they are known, and a GPU need not wait."""
        pending, self.pending = self.pending, []
        for layers, epsilon, error in pending:
            if float(error) > epsilon**0.5:
                self.measures = True
                self._divide([i for i in layers if i not in self.kept], epsilon, float(error))

    def _divide(self, layers: list[int], epsilon: float, error: float) -> None:
        """Keeps the inputs of some layers, evenly spaced: errors grow by a factor from layer to layer."""
        grown = math.log(error / epsilon) if math.isfinite(error) else math.inf
        parts = min(len(layers) + 1, grown / math.log(epsilon**-0.5))
        between = math.ceil(parts) - 1
        for i in range(between):
            self.keep(layers[(i + 1) * len(layers) // (between + 1)], error, "the way back through it and others")

    def keep(self, layer: int, error: float, what: str = "its round trip") -> None:
        """From now on a layer keeps its input."""
        self.kept.add(layer)
        warnings.warn(
            f"flowkern: memory='reversible': {self.name(layer)} keeps its input from now on: {reason(error, what)}",
            RuntimeWarning,
            stacklevel=2,
        )

    def name(self, layer: int) -> str:
        """Of a layer, in the warning."""
        return f"layer {layer}"


def reason(error: float, what: str) -> str:
    """Why a layer keeps its input; an error that is no number is that of a layer without an inverse."""
    return f"{what} has an error of {error:.1e}" if math.isfinite(error) else "it cannot go back"


def relative_error(found: Tensor, exact: Tensor) -> Tensor:
    """The largest difference, relative to the largest number; 0 where the exact ones are not finite, which proves nothing."""
    if exact.numel() == 0:
        return exact.new_zeros(())
    largest = exact.abs().max()
    error = (found - exact).abs().max() / largest.clamp_min(torch.finfo(exact.dtype).tiny)
    return torch.where(largest.isfinite(), error.nan_to_num(nan=torch.inf), 0)


class Circumstances:
    """What a layer's result depends on besides its arguments: autocast, random numbers, buffers that training changes."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        self.device, self.autocast = x.device.type, autocasts(x)
        self.dtype = torch.get_autocast_dtype(self.device) if self.autocast else x.dtype
        self.devices = [x.device] if x.is_cuda else []
        self.random: list[Tensor] | None = self._random()
        self.buffers = [
            (module, _values(module), {name: b.clone() for name, b in module._buffers.items() if b is not None})
            for module in layer.modules()
            if module.training and any(b is not None and b.is_floating_point() for b in module._buffers.values())
        ]

    def _random(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def ran(self) -> None:
        """After the layer has run: forgets what it need not replay.

        That is the state of the random numbers where it drew none, and buffers of a module which took its parameters from
        this first batch, and must not do so again.
        """
        assert self.random is not None
        if all(map(torch.equal, self.random, self._random())):
            self.random = None
        self.buffers = [entry for entry in self.buffers if entry[1] == _values(entry[0])]

    @property
    def epsilon(self) -> float:
        """Of the dtype that products are computed in."""
        return torch.finfo(self.dtype).eps

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Autocast as it was. It may not remember weights that it cast without a graph."""
        if self.device == "meta":  # which knows none
            yield
            return
        with torch.autocast(self.device, self.dtype if self.autocast else None, self.autocast, cache_enabled=False):
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """As they were when the layer began; what it draws and counts inside leaves no trace."""
        changed = [(module, dict(module._buffers)) for module, _, _ in self.buffers]
        with torch.random.fork_rng(self.devices, enabled=self.random is not None), self.cast():
            if self.random is not None:
                torch.set_rng_state(self.random[0])
                for device, state in zip(self.devices, self.random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            try:
                for module, _, before in self.buffers:
                    module._buffers.update({name: b.clone() for name, b in before.items()})
                yield
            finally:
                for module, own in changed:
                    module._buffers.update(own)


def _values(module: nn.Module) -> list[tuple[int, int]]:
    """Where the values of a module's own parameters are, and how often they were written to."""
    return [(p.data_ptr(), p._version) for p in module._parameters.values() if p is not None]


class _Tape:
    """What the nodes of one pass hand on: on the way back, the output of the layer whose turn is next."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.output: Tensor | None = None
        self.layers: list[int] = []  # whose inputs were rebuilt since the last one that was kept


class _Turn:
    """One layer of one pass."""

    circumstances: Circumstances
    memo: Any

    def __init__(self, tape: _Tape, index: int, layer: Transform, inverse: bool, first: bool, last: bool) -> None:
        self.tape, self.index, self.layer, self.inverse, self.last = tape, index, layer, inverse, last
        self.keeps_input = first or index in tape.guard.kept

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return (self.layer.inverse if self.inverse else self.layer)(x, context)

    def begin(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's result, and all that its repetition will need."""
        self.circumstances = Circumstances(self.layer, x)
        with self.circumstances.cast():
            y, log_det = self.run(x, context)
        self.circumstances.ran()
        self.memo = self.layer.memo()
        if self.tape.guard.measures and not self.keeps_input and bool(y.isfinite().all()):
            self._measure(x, y, context)
        return (y.view_as(y) if y is x else y), log_det

    def _measure(self, x: Tensor, y: Tensor, context: Tensor | None) -> None:
        try:
            with self.circumstances.again():
                error = float(relative_error(self.layer.rebuild(y, context, self.inverse, self.memo)[0].detach(), x))
        except NotImplementedError:
            error = float("inf")
        if not error <= self.circumstances.epsilon ** (2 / 3):
            self.keeps_input = True
            self.tape.guard.keep(self.index, error)

    def repeat(
        self, x: Tensor | None, y: Tensor | None, context: Tensor | None, needs_x: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The input, a leaf, and the layer's results as functions of it; x is the input where it was kept."""
        tape = self.tape
        if self.last:
            tape.layers = []
        else:
            y, tape.output = tape.output, None
        assert y is not None
        if x is None:
            tape.layers.append(self.index)
            x, found, log_det = self.layer.rebuild(y, context, self.inverse, self.memo)
        else:
            x = x.detach().requires_grad_(needs_x)
            found, log_det = self.run(x, context)
            if tape.layers:
                error = relative_error(y, found.detach())
                tape.guard.pending.append((tape.layers, self.circumstances.epsilon, error))
                tape.layers = []
        tape.output = x.detach()
        return x, found, log_det


class _Layer(torch.autograd.Function):
    """A layer that keeps its parameters and context, the last of a pass its output too, the first its input."""

    @staticmethod
    def forward(ctx: Any, turn: _Turn, x: Tensor, total: Tensor | None, context: Tensor | None, *parameters: Tensor) -> Any:
        y, log_det = turn.begin(x, context)
        ctx.turn = turn
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if turn.keeps_input else None, y if turn.last else None, context, *parameters)
        return y, log_det if total is None else total + log_det

    @staticmethod
    def backward(ctx: Any, g_y: Tensor | None, g_total: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "memory='reversible' has no graph for second derivatives; set memory='full' where they are needed"
            )
        turn: _Turn = ctx.turn
        x, y, context, *parameters = ctx.saved_tensors
        if any(a is not b for a, b in zip(parameters, turn.layer.parameters(), strict=True)):
            raise RuntimeError(
                f"memory='reversible': {turn.layer._get_name()} has other parameters than in the forward pass; "
                "set memory='full' to exchange them in between, as torch.func.functional_call does"
            )
        needs_x, needs = ctx.needs_input_grad[1], ctx.needs_input_grad[3:]
        with turn.circumstances.again(), torch.enable_grad():
            if context is not None:
                context = context.detach().requires_grad_(needs[0])
            x, *outputs = turn.repeat(x, y, context, needs_x)
            pairs = [(o, g) for o, g in zip(outputs, (g_y, g_total), strict=True) if g is not None and o.requires_grad]
            wanted = [t for t, need in zip((x, context, *parameters), (needs_x, *needs), strict=True) if need]
            found: Sequence[Tensor | None] = [None] * len(wanted)
            if pairs:
                retain, (values, grads) = turn.layer.retains_graph, zip(*pairs, strict=True)
                found = torch.autograd.grad(values, wanted, grads, retain, allow_unused=True)
        given = iter(found)
        g_x, *rest = (next(given) if need else None for need in (needs_x, *needs))
        return None, g_x, g_total if ctx.needs_input_grad[2] else None, *rest


def run(
    guard: Guard, layers: Sequence[tuple[int, Transform]], x: Tensor, context: Tensor | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The layers one after another, in the order in which they are given, and the sum of their log-determinants.

    Args:
        guard: of the stack.
        layers: with their places in the stack.
        x: the input, with the batch shape of the output.
        context: of all layers.
        inverse: whether their ``inverse`` is run.
    """
    total: Tensor | None = None
    tape, first = _Tape(guard), True
    for place, (index, layer) in enumerate(layers, 1):
        turn = _Turn(tape, index, layer, inverse, first, last=place == len(layers))
        parameters = list(layer.parameters())
        if any(t is not None and t.requires_grad for t in (x, context, *parameters)):
            x, total = _Layer.apply(turn, x, total, context, *parameters)
            first = False
        else:  # nothing is kept for a gradient that nobody asks for
            x, log_det = turn.run(x, context)
            total = log_det if total is None else total + log_det
    assert total is not None
    return x, total
