"""wavenet_vocoder (r9y9): signals (batch, channels, time), and a loop that draws one sample after another.

Its layers multiply sums by constants: what the next layer reads is h' = sqrt(1/2) (h + W_r u + b_r), and the skips are
scaled as well. The operators do not: here h stands for the library's h divided by what it was multiplied by so far, which
changes no more than the weights that read it, and those that are added to it.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import ops
from flowkern.adapters.calls import serving
from flowkern.adapters.library import Layer, Library
from flowkern.adapters.network import (
    Network,
    UnsupportedError,
    error_of,
    expect,
    parameter_of,
    stored,
    weight_norm_of,
)
from flowkern.adapters.state import STATE, State, own, peer_class, replaced_methods, state_of
from flowkern.reference.wavenet_generate import sample_of

HALF = math.sqrt(0.5)
LEAST, MOST = 1e-5, 1 - 1e-5  # between which the library draws uniform numbers


class UnservedError(Exception):
    """A call that is for the library's own code: it may be one that only this can serve, or an error that is its to raise."""


# -- reading ----------------------------------------------------------------------------------------------------------


def read(layer: Any) -> WaveNetNetwork:
    """First map, gated layers, last two maps; how skips are scaled, and what the outputs mean, differ by version."""
    layers = [expect(m, "wavenet_vocoder.modules.ResidualConv1dGLU", "layer") for m in layer.conv_layers]
    relu, hidden, other_relu, last = layer.last_conv_layers
    for module in (relu, other_relu):
        expect(module, "torch.nn.modules.activation.ReLU", "activation")
    for module in layers:
        if not module.causal:
            raise UnsupportedError("its layers are not causal")
        if replaced_methods(module):
            raise UnsupportedError(f"the {', '.join(replaced_methods(module))} of its layers was replaced")
    if not layers:
        raise UnsupportedError("it has no layers")
    if any(p.is_meta for p in layer.parameters()):
        raise UnsupportedError("it is on the meta device: accelerate it once it has values")
    network = WaveNetNetwork([layer.first_conv, *layers, hidden, last], [relu, other_relu])
    network.scalar, network.outputs = bool(layer.scalar_input), int(layer.out_channels)
    network.skip_factors = _skip_factors(layer, len(layers))
    newer = hasattr(layer, "output_distribution")
    network.rows_of_condition = newer
    network.upsampler = "upsample_net" if newer else "upsample_conv"
    network.kind = _kind(layer)
    sampler = sys.modules["wavenet_vocoder.wavenet"].sample_from_discretized_mix_logistic
    network.clamped = "clamp_log_scale" not in inspect.signature(sampler).parameters
    return network


def _skip_factors(layer: Any, count: int) -> list[float]:
    """What each layer's skip is multiplied by in the end."""
    if not hasattr(layer, "legacy"):
        return [math.sqrt(1 / count)] * count
    if not layer.legacy:
        return [1.0] * count
    return [HALF ** (count - max(i, 1)) for i in range(count)]  # each sum with the next is multiplied


def _kind(layer: Any) -> str | None:
    """The output as the operator names it; ``None`` where the library draws nothing from so many channels."""
    if not layer.scalar_input:
        return "categorical"
    distribution = getattr(layer, "output_distribution", "Logistic")
    if distribution == "Normal" and (layer.out_channels == 2 or layer.out_channels % 3 == 0):
        return "gaussians"
    return "logistics" if distribution == "Logistic" and layer.out_channels % 3 == 0 else None


def _expect_convolution(module: Any, taps: bool) -> Any:
    """The module, if it is the library's convolution: of one tap, or of several and causal."""
    module = expect(module, "wavenet_vocoder.conv.Conv1d", "convolution")
    (kernel,), (dilation,) = module.kernel_size, module.dilation
    ordinary = module.stride == (1,) and module.groups == 1 and module.padding_mode == "zeros"
    if not ordinary or module.padding != ((kernel - 1) * dilation,) or not (taps or kernel == 1):
        raise UnsupportedError(f"its convolution is {module}, expected a causal one")
    if replaced_methods(module):
        raise UnsupportedError(f"the {', '.join(replaced_methods(module))} of its convolutions was replaced")
    return module


def _weight(module: Any) -> Any:
    norm = weight_norm_of(module)
    return parameter_of(module, "weight") if norm is None else norm.compute_weight(module)


# -- the network ------------------------------------------------------------------------------------------------------


class _GatedLayer(NamedTuple):
    """The tensors of a layer, as the operators take them; those that read a condition have no bias in newer versions."""

    gate: tuple[Tensor, Tensor]
    residual: tuple[Tensor, Tensor]
    skip: tuple[Tensor, Tensor]
    local: tuple[Tensor, Tensor | None] | None
    shared: tuple[Tensor, Tensor | None] | None  # of a condition that is the same at all times


class _Weights(NamedTuple):
    """The tensors of a whole network: of the first map, the layers and the last two maps."""

    first: tuple[Tensor, Tensor]
    layers: list[_GatedLayer]
    last: list[tuple[Tensor, Tensor]]


class WaveNetNetwork(Network):
    """What a WaveNet computes.

    Args:
        parts: the first convolution, the gated layers, the last two convolutions.
        others: modules without tensors that the operators pass over.
    """

    scalar: bool
    outputs: int
    kind: str | None
    skip_factors: list[float]
    rows_of_condition: bool  # whether the local condition says how many rows are drawn
    clamped: bool  # whether the sampler of logistics clamps log-scales
    upsampler: str

    def __init__(self, parts: list[Any], others: list[Any]) -> None:
        self.first, *self.layers = parts[:-2]
        self.last = parts[-2:]
        singles = [m.conv1x1_out for m in self.layers] + [m.conv1x1_skip for m in self.layers]
        conditions = [c for m in self.layers for c in (m.conv1x1c, m.conv1x1g) if c is not None]
        gates = [_expect_convolution(m.conv, taps=True) for m in self.layers]
        for module in (self.first, *singles, *self.last):
            if _expect_convolution(module, taps=False).bias is None:
                raise UnsupportedError("a convolution of it has no bias")
        if any(gate.bias is None or gate.out_channels % 2 for gate in gates):
            raise UnsupportedError("its gates have no bias, or an odd number of channels")
        for module in conditions:
            _expect_convolution(module, taps=False)
        self.dilations = [gate.dilation[0] for gate in gates]
        self.taps = [gate.kernel_size[0] for gate in gates]
        self.modules = [m for part in (*parts, *others) for m in part.modules()]
        self.channels = self.first.in_channels

    def same_as(self, other: WaveNetNetwork) -> bool:
        """Whether it is made of the same modules with the same numbers."""
        return vars(self) == vars(other)

    def busy(self) -> str | None:
        """The same; the library's code is what is transformed and compiled."""
        if torch._C._are_functorch_transforms_active():
            return "it is called under a transform of torch.func"
        if torch.compiler.is_compiling():
            return "it is being compiled"
        return super().busy()

    def hooked(self, module: nn.Module) -> bool:
        """Whether there are hooks but weight_norm's, whose work is done here, and the library's own."""
        normed = weight_norm_of(module) is not None
        backward = [hook for hook in module._backward_hooks.values() if not _clears_weight(module, hook)]
        more = bool(module._forward_hooks or backward or module._backward_pre_hooks)
        return more or len(module._forward_pre_hooks) > int(normed)

    def mode(self, module: Any, inverse: bool) -> str | None:
        """Dropout, and the loop in train mode, which the library refuses."""
        if module.training and getattr(module, "dropout", 0) > 0:
            return "dropout is active (train mode)"
        refused = inverse and module.training and isinstance(module, nn.Conv1d)
        return "its loop is for evaluation mode" if refused else None

    def packed(self) -> _Weights:
        """The weights as the operators take them."""
        return self.weights()

    def weights(self) -> _Weights:
        """Tensors with the constants between layers in them. The last layer feeds none: what it would, takes no gradient."""
        scale, layers = 1.0, []
        for i, (m, factor) in enumerate(zip(self.layers, self.skip_factors, strict=True)):
            weight, bias = _weight(m.conv1x1_out)[..., 0], m.conv1x1_out.bias
            residual = (weight / scale, bias / scale) if i + 1 < len(self.layers) else (weight.detach(), bias.detach())
            skip = _weight(m.conv1x1_skip)[..., 0] * factor, m.conv1x1_skip.bias * factor
            conditions = [None if c is None else (_weight(c)[..., 0], c.bias) for c in (m.conv1x1c, m.conv1x1g)]
            layers.append(_GatedLayer((_weight(m.conv) * scale, m.conv.bias), residual, skip, *conditions))
            scale *= HALF
        last = [(_weight(m)[..., 0], m.bias) for m in self.last]
        return _Weights((_weight(self.first)[..., 0], self.first.bias), layers, last)

    # -- calls --------------------------------------------------------------------------------------------------------

    def fits(self, x: Any, *shape: int) -> bool:
        """Whether something is a tensor of the dtype and on the device of the weights, and of a shape, -1 being any size."""
        norm = weight_norm_of(self.first)
        like = stored(self.first, "weight") if norm is None else self.first.weight_v
        if not isinstance(x, Tensor) or like is None or x.dtype is not like.dtype or x.device != like.device or x.is_meta:
            return False
        sizes = len(x.shape) == len(shape) and all(s in (-1, n) for s, n in zip(shape, x.shape, strict=True))
        return sizes and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)

    def local(self, layer: Any, c: Any, rows: int, time: int) -> Tensor | None:
        """The local condition (rows, channels, time) after the library's own upsampling."""
        if c is None:
            return None
        condition = self.layers[0].conv1x1c
        upsampler = getattr(layer, self.upsampler)
        if upsampler is not None and self.fits(c, rows, -1, -1):
            if isinstance(upsampler, nn.ModuleList):
                c = c.unsqueeze(1)
                for module in upsampler:
                    c = module(c)
                c = c.squeeze(1)
            else:
                c = upsampler(c)
        if condition is None or not self.fits(c, rows, condition.in_channels, time):
            raise UnservedError
        return c

    def shared(self, layer: Any, g: Any, rows: int) -> Tensor | None:
        """The condition that is the same at all times (rows or 1, features), embedded where it is an index."""
        if g is None:
            return None
        condition = self.layers[0].conv1x1g
        if layer.embed_speakers is not None and isinstance(g, Tensor) and g.numel() == rows:
            g = layer.embed_speakers(g.view(rows, -1)).transpose(1, 2)
        if isinstance(g, Tensor) and g.dim() == 3 and g.shape[2] == 1:
            g = g.squeeze(2)
        if condition is None or not self.fits(g, -1, condition.in_channels) or len(g) not in (1, rows):
            raise UnservedError
        return g

    def gate_bias(self, layer: _GatedLayer, local: Tensor | None, shared: Tensor | None, rows: int) -> Tensor:
        """The bias of a gate, with those of the conditions that there are; (rows, channels) with a shared condition."""
        bias = layer.gate[1]
        if local is not None and layer.local is not None and layer.local[1] is not None:
            bias = bias + layer.local[1]
        if shared is None or layer.shared is None:
            return bias
        return (bias + F.linear(shared, *layer.shared)).expand(rows, -1)

    def parameters(
        self, weights: _Weights, x: Tensor, local: Tensor | None, shared: Tensor | None, read: list[Tensor] | None = None
    ) -> Tensor:
        """Outputs (batch, outputs, time) for a signal (batch, channels, time); ``read`` takes what each layer reads."""
        h, skips = ops.causal_conv1d(x, weights.first[0][..., None], weights.first[1]), None
        for layer, dilation in zip(weights.layers, self.dilations, strict=True):
            if read is not None:
                read.append(h)
            bias = self.gate_bias(layer, local, shared, len(x))
            given = (None, None) if local is None or layer.local is None else (local, layer.local[0])
            h, skips = ops.wavenet_layer(h, skips, layer.gate[0], bias, *layer.residual, *layer.skip, *given, dilation=dilation)
        assert skips is not None
        for weight, bias in weights.last:
            skips = ops.causal_conv1d(F.relu(skips), weight[..., None], bias)
        return skips

    def generate(
        self,
        weights: _Weights,
        noise: Tensor,
        state: ops.WaveNetState,
        local: Tensor | None,
        shared: Tensor | None,
        log_scale_min: float,
    ) -> Tensor:
        """Samples (batch, time), classes or numbers, of so many random numbers (batch, time, numbers)."""
        pairs = [(weights.first[0].T, weights.first[1])]
        for layer in weights.layers:
            bias = self.gate_bias(layer, local, shared, len(noise))
            pairs += [(layer.gate[0], bias), layer.residual, layer.skip]
        pairs += weights.last
        if self.kind == "gaussians" and self.outputs == 2:
            weight, bias = pairs[-1]  # without logits, of the only component
            pairs[-1] = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
        given = [layer.local[0] for layer in weights.layers if local is not None and layer.local is not None]
        tensors = [w for w, _ in pairs], [b for _, b in pairs]
        return ops.wavenet_generate(noise, state, *tensors, self.dilations, local, given, **self.meaning(log_scale_min))[0]

    def meaning(self, log_scale_min: float) -> dict[str, Any]:
        """What the outputs mean, as keyword arguments of the operator."""
        if self.kind == "categorical":
            return {"output": "categorical"}
        clamped = self.kind == "logistics" and self.clamped
        return {"output": self.kind, "log_scale_min": log_scale_min if clamped else -math.inf, "bound": 1.0}

    def sampled(self, parameters: Tensor, noise: Tensor, log_scale_min: float) -> Tensor:
        """Samples (batch, time) of their parameters (batch, outputs, time)."""
        given = parameters.transpose(1, 2).flatten(0, 1)
        if self.kind == "gaussians" and self.outputs == 2:
            given = F.pad(given, (1, 0))
        options = {"levels": None, "log_scale_min": -math.inf, "bound": math.inf, **self.meaning(log_scale_min)}
        return sample_of(given, noise.flatten(0, 1), **options).unflatten(0, noise.shape[:2])

    # -- the self-check -----------------------------------------------------------------------------------------------

    def abridged(self, layer: Any) -> Any:
        """The first three layers, whose signals and conditions are as long as what is heard: formulas do not depend on more."""
        small: Any = object.__new__(peer_class(type(layer)))
        nothing = {"embed_speakers": None, self.upsampler: None}
        modules = {**layer._modules, "conv_layers": nn.ModuleList(self.layers[:3]), **nothing}
        small.__dict__.update(vars(layer), _modules=modules)
        small.__dict__.pop(STATE, None)
        return small

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Compares the forward pass on two rows of ten times, and the loop with what that gives for the samples it drew."""
        local, shared = (None if c is None else c.in_channels for c in (self.layers[0].conv1x1c, self.layers[0].conv1x1g))
        c = None if local is None else noise(2, local, 10)
        g = None if shared is None else noise(2, shared)
        weights, x = self.weights(), noise(2, self.channels, 10)
        error = error_of(self.parameters(weights, x, c, g), evaluate(x, c, g))
        if not error < 1e-9:
            return f"its value differs from the operator's by {error:.1e}: another version of the formula?"
        if self.kind is None:
            return None
        numbers = (noise(2, 10, self.numbers) * 0.499 + 0.5).to(x.dtype)
        drawn = self.generate(weights, numbers, self.state(self.silence(2, x), []), c, g, -3.0)
        heard = torch.cat([self.silence(2, x)[..., None], self.signal(drawn, x.dtype)[..., :-1]], 2)
        error = error_of(drawn.double(), self.sampled(evaluate(heard, c, g), numbers, -3.0).double())
        return None if error < 1e-9 else f"the loop's samples differ from those of its forward pass by {error:.1e}"

    # -- samples ------------------------------------------------------------------------------------------------------

    @property
    def numbers(self) -> int:
        """Random numbers for a sample."""
        return 1 if self.kind == "categorical" else max(self.outputs // 3, 1) + 1

    def silence(self, rows: int, like: Tensor) -> Tensor:
        """What the library's loop hears before the first sample (rows, channels)."""
        first = like.new_zeros(rows, self.channels)
        if not self.scalar:
            first[:, min(127, self.channels - 1)] = 1
        return first

    def signal(self, samples: Tensor, dtype: torch.dtype) -> Tensor:
        """Samples (batch, time) as the library has them (batch, channels, time)."""
        if self.scalar:
            return samples[:, None]
        hot = torch.zeros(len(samples), self.channels, samples.shape[1], dtype=dtype, device=samples.device)
        return hot.scatter_(1, samples[:, None], 1)

    def state(self, before: Tensor, read: list[Tensor]) -> ops.WaveNetState:
        """Where the loop begins: the sample before (batch, channels), and what the layers have read, if they have."""
        lengths = [(taps - 1) * dilation for taps, dilation in zip(self.taps, self.dilations, strict=True)]
        width = self.layers[0].conv.in_channels
        if read:
            queues = torch.cat([F.pad(h, (length, 0))[..., h.shape[2] :] for h, length in zip(read, lengths, strict=True)], 2)
        else:
            queues = before.new_zeros(len(before), width, sum(lengths))
        previous = before[:, 0] if self.scalar else before.argmax(1)
        return ops.WaveNetState(previous, queues.transpose(1, 2).contiguous())

    def noise(self, rows: int, time: int, like: Tensor) -> Tensor:
        """Random numbers (rows, time, numbers); those of numbers come from the generator in the library's order."""
        if self.kind == "categorical":
            return torch.rand(rows, time, 1, dtype=like.dtype, device=like.device)
        count = self.numbers - 1
        drawn = like.new_empty(time, rows * (count + 1))
        if self.kind == "logistics":
            drawn.uniform_(LEAST, MOST)
        else:
            choices, last = drawn.split([rows * count, rows], 1)
            for t in range(time):
                if count > 1:
                    choices[t].uniform_(LEAST, MOST)
                last[t].normal_()
            if count == 1:
                choices.fill_(0.5)  # of one component nothing is chosen
        choices, last = drawn.split([rows * count, rows], 1)
        return torch.cat([choices.unflatten(1, (rows, count)), last[..., None]], 2).transpose(0, 1)


def _clears_weight(module: Any, hook: Any) -> bool:
    """Whether a hook is the one with which the library's convolution forgets a weight that its loop keeps."""
    clear = getattr(type(module), "_clear_linearized_weight", None)
    return clear is not None and getattr(hook, "__func__", None) is clear


# -- what the class does ----------------------------------------------------------------------------------------------


def evaluate(layer: Any, x: Tensor, c: Tensor | None, g: Tensor | None) -> Tensor:
    """The forward pass."""
    found: Tensor = type(layer).forward(layer, x, c, g)
    return found


def _weights_of(state: State) -> _Weights:
    """Frozen ones only where no gradient is recorded."""
    frozen = None
    if state.frozen is not None and not torch.is_grad_enabled():
        frozen = state.frozen.packed(state.network)
    return state.network.weights() if frozen is None else frozen


def forward(self: Any, x: Tensor, c: Any = None, g: Any = None, softmax: bool = False) -> Tensor:
    """One pass over a signal, layer by layer."""
    state, y = serving(self, inverse=False), None
    try:
        if state is not None:
            y = _pass(self, state, x, c, g)
    except UnservedError:
        pass  # an error of the library's own code must not seem to come from this one
    if y is None:
        found: Tensor = own(self, "forward")(self, x, c, g, softmax)
        return found
    return F.softmax(y, 1) if softmax else y


def _pass(self: Any, state: State, x: Any, c: Any, g: Any) -> Tensor:
    network: WaveNetNetwork = state.network
    if not network.fits(x, -1, network.channels, -1) or x.numel() == 0:
        raise UnservedError
    rows, _, time = x.shape
    shared, local = network.shared(self, g, rows), network.local(self, c, rows, time)
    if torch.is_grad_enabled():
        _forget(network)
    return network.parameters(_weights_of(state), x, local, shared)


def _forget(network: WaveNetNetwork) -> None:
    """The weights that the library's loop keeps, which it forgets in a backward pass through its own convolutions."""
    for module in network.modules:
        if vars(module).get("_linearized_weight") is not None:
            module._linearized_weight = None  # type: ignore[assignment]


def incremental_forward(
    self: Any,
    initial_input: Any = None,
    c: Any = None,
    g: Any = None,
    T: Any = 100,  # noqa: N803
    test_inputs: Any = None,
    tqdm: Any = lambda x: x,
    softmax: bool = True,
    quantize: bool = True,
    log_scale_min: float = -7.0,
) -> Tensor:
    """Draws samples, all of them in one call; those that hear given inputs come from one pass over these."""
    state, found = serving(self, inverse=True), None
    try:
        if state is not None:
            with torch.no_grad():
                call = _call(self, state.network, initial_input, c, g, T, test_inputs, softmax and quantize, not quantize)
                found = _answer(state.network, _weights_of(state), call, softmax, log_scale_min)
    except UnservedError:
        pass
    if found is None:
        given = initial_input, c, g, T, test_inputs, tqdm, softmax, quantize, log_scale_min
        try:
            return own(self, "incremental_forward")(self, *given)
        finally:
            known = state_of(self)
            if known is not None:
                _forget(known.network)
    self.clear_buffer()
    for _ in tqdm(range(found.shape[2])):
        pass  # all is done: a progress bar runs to its end
    return found


class _Call(NamedTuple):
    """A call of the loop: how long, what it is given to hear, what is before the first sample, and the conditions."""

    time: int
    heard: Tensor | None  # (batch, channels, forced)
    before: Tensor  # (batch, channels)
    local: Tensor | None
    shared: Tensor | None
    sampled: bool  # or the outputs themselves


def _call(
    self: Any, network: WaveNetNetwork, initial: Any, c: Any, g: Any, time: Any, heard: Any, drawn: bool, kept: bool
) -> _Call:
    """Understands the arguments as the library does.

    Args:
        drawn: whether classes are drawn, from probabilities.
        kept: whether outputs are kept as they are, which can be heard only where all that is heard is given.
    """
    rows, forced = 1, 0
    if heard is not None:
        heard = _channels_first(heard, network.channels)
        rows, _, forced = heard.shape
        time = forced if time is None else max(time, forced)
    sampled = network.scalar or drawn
    if time is None or int(time) < 1 or network.kind is None or not (sampled or (kept and forced >= time)):
        raise UnservedError
    time, shared = int(time), network.shared(self, g, rows)
    if network.rows_of_condition and isinstance(c, Tensor):
        rows = len(c)
    before = _before(network, initial, rows) if heard is None else heard[..., -1]
    if not network.fits(before, rows, network.channels):
        raise UnservedError
    if getattr(self, network.upsampler) is None and isinstance(c, Tensor) and c.dim() == 3 and c.shape[2] != time:
        c = c.transpose(1, 2)[..., :time]  # (batch, time, channels)
    return _Call(time, heard, before, network.local(self, c, rows, time), shared, sampled)


def _answer(network: WaveNetNetwork, weights: _Weights, call: _Call, softmax: bool, log_scale_min: float) -> Tensor:
    """Samples, or the outputs (batch, channels, time)."""
    before, local, forced = call.before, call.local, 0
    pieces: list[Tensor] = []
    read: list[Tensor] = []
    noise = network.noise(len(before), call.time, before) if call.sampled else before
    if call.heard is not None:
        forced = call.heard.shape[2]
        given = None if local is None else local[..., :forced]
        parameters = network.parameters(weights, call.heard, given, call.shared, read)
        if not call.sampled:
            return F.softmax(parameters, 1) if softmax else parameters
        pieces.append(network.sampled(parameters, noise[:, :forced], log_scale_min))
        before = network.signal(pieces[0], before.dtype)[..., -1]
    if forced < call.time:
        rest = None if local is None else local[..., forced:]
        begin = network.state(before, read)
        pieces.append(network.generate(weights, noise[:, forced:], begin, rest, call.shared, log_scale_min))
    return network.signal(torch.cat(pieces, 1), before.dtype)


def _channels_first(heard: Any, channels: int) -> Tensor:
    """Given inputs (batch, channels, time), which the library also takes as (batch, time, channels)."""
    if not isinstance(heard, Tensor) or heard.dim() != 3 or heard.numel() == 0:
        raise UnservedError
    heard = heard if heard.shape[1] == channels else heard.transpose(1, 2)
    if heard.shape[1] != channels:
        raise UnservedError
    return heard


def _before(network: WaveNetNetwork, initial: Any, rows: int) -> Tensor:
    """What is heard before the first sample (rows, channels): a number, or a class as a vector that is 1 in one place."""
    if initial is None:
        if not network.scalar and network.channels <= 127:
            raise UnservedError  # the library's own error
        return network.silence(rows, network.first.bias)
    if not isinstance(initial, Tensor) or initial.dim() != 3:
        raise UnservedError
    initial = initial.transpose(1, 2) if initial.shape[1] == network.outputs else initial
    if initial.shape[1] != 1:
        raise UnservedError
    before = initial[:, 0]
    if not network.scalar and not bool(((before == 1).sum(1) == 1).all() and ((before != 0).sum(1) == 1).all()):
        raise UnservedError
    return before


WAVENET_VOCODER = Library(
    name="wavenet_vocoder",
    tested=("0.1.1", "0.3"),
    layers={
        "wavenet_vocoder.wavenet.WaveNet": Layer(
            read, evaluate, {"forward": forward, "incremental_forward": incremental_forward}
        )
    },
    left_alone={"wavenet_vocoder.modules.ResidualConv1dGLU": "a layer without its network"},
)
