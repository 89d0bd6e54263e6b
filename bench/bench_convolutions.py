"""Causal convolutions, layers and networks of them, forward and backward, and the sampling loop of a WaveNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import compiled, measure
from torch import Tensor, nn

import flowkern as fk
from flowkern.reference.wavenet_generate import embedded, inverse_transform, last_layers, sample_of

CHANNELS, TIME = 64, 16000


def padded(x: Tensor, weight: Tensor, bias: Tensor, *, dilation: int) -> Tensor:
    """The same by torch's convolution."""
    return F.conv1d(F.pad(x, ((weight.shape[-1] - 1) * dilation, 0)), weight, bias, dilation=dilation)


@pytest.mark.parametrize("implementation", ["flowkern", "torch"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_causal_conv1d(benchmark: Any, kernel: int, implementation: str) -> None:
    """Dilations 1 to 512, one after another, each forward and backward."""
    torch.manual_seed(0)
    leaves = [torch.randn(s, requires_grad=True) for s in ((1, CHANNELS, TIME), (CHANNELS, CHANNELS, kernel), (CHANNELS,))]
    cotangent = torch.randn(1, CHANNELS, TIME)
    call = {"flowkern": fk.ops.causal_conv1d, "torch": padded}[implementation]
    torch.testing.assert_close(call(*leaves, dilation=8), padded(*leaves, dilation=8), rtol=1e-3, atol=1e-3)

    def work() -> None:
        for power in range(10):
            torch.autograd.grad(call(*leaves, dilation=2**power), leaves, cotangent)

    group = f"causal_conv1d forward + backward: {CHANNELS} channels, kernel {kernel}, dilations 1 to 512, {TIME} times"
    measure(benchmark, work, group, implementation, 30 * CHANNELS**2 * kernel * TIME)


class Layer(nn.Module):
    """A layer of a WaveNet as people write it in PyTorch."""

    def __init__(self, width: int, skip: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.gate = nn.Conv1d(width, 2 * width, kernel, dilation=dilation, padding=(kernel - 1) * dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, skip, 1)

    def forward(self, x: Tensor, skips: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = self.gate(x)[..., : x.shape[-1]].chunk(2, 1)
        u = torch.tanh(a) * torch.sigmoid(b)
        skip = self.skip(u)
        return x + self.residual(u), skip if skips is None else skips + skip


class FusedLayer(Layer):
    """The same by flowkern's operator."""

    def forward(self, x: Tensor, skips: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters: list[Any] = [self.gate.weight, self.gate.bias]
        parameters += [t for m in (self.residual, self.skip) for t in (m.weight[..., 0], m.bias)]
        return fk.ops.wavenet_layer(x, skips, *parameters, dilation=self.gate.dilation[0])


class Network(nn.Module):
    """A WaveNet from one channel to some, with a head of two maps, and the multiply-adds of its layers for one time."""

    def __init__(self, layer: type[Layer], layers: int, width: int, skip: int, kernel: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(layer(width, skip, kernel, 2 ** (i % 10)) for i in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, outputs, 1))
        self.multiply_adds = layers * (2 * width * width * kernel + width * width + skip * width)

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.first(x), None
        for layer in self.layers:
            h, skips = layer(h, skips)
        return self.head(skips)


def same_networks(*sizes: int) -> tuple[Network, Network]:
    """One of flowkern's layers and one of plain PyTorch, with the same parameters."""
    torch.manual_seed(0)
    fused, plain = Network(FusedLayer, *sizes), Network(Layer, *sizes)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


@pytest.mark.parametrize("implementation", ["flowkern", "torch", "torch compiled"])
def test_wavenet_training(benchmark: Any, implementation: str) -> None:
    """A training step of a second of sound: forward, backward."""
    fused, plain = same_networks(30, 64, 128, 2, 30)
    x = torch.randn(1, 1, TIME)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-3, atol=1e-3)
    network: Any = fused if implementation == "flowkern" else plain
    call = compiled(network, x) if implementation == "torch compiled" else network

    def work() -> None:
        network.zero_grad()
        call(x).square().mean().backward()

    group = f"wavenet_layer, training step: L=30, R=64, S=128, kernel 2, {TIME} times"
    measure(benchmark, work, group, implementation, 3 * fused.multiply_adds * TIME)


@pytest.mark.parametrize("implementation", ["flowkern", "torch", "torch compiled"])
def test_student(benchmark: Any, implementation: str) -> None:
    """A student of Parallel WaveNet draws a second of sound: four flows, each after a WaveNet of what it is given."""
    pairs = [same_networks(layers, 64, 64, 3, 2) for layers in (10, 10, 10, 30)]
    noise = torch.randn(1, 1, TIME)

    def sample(networks: list[Any]) -> Tensor:
        z = noise
        for network in networks:
            shift, log_scale = F.pad(network(z), (1, -1)).chunk(2, 1)
            z = shift + z * log_scale.exp()
        return z

    with torch.no_grad():
        fused, plain = ([pair[i] for pair in pairs] for i in (0, 1))
        torch.testing.assert_close(sample(fused), sample(plain), rtol=1e-3, atol=1e-3)
        networks: list[Any] = fused if implementation == "flowkern" else plain
        if implementation == "torch compiled":
            networks = [compiled(network, noise) for network in plain]
        group = f"student: 10/10/10/30 layers, width 64, kernel 3, {TIME} times"
        measure(benchmark, lambda: sample(networks), group, implementation, sum(n.multiply_adds for n in fused) * TIME)
    benchmark.extra_info["real_time_factor"] = round(TIME / 16000 / benchmark.stats.stats.min, 2)


@dataclass(frozen=True)
class Sizes:
    """A WaveNet of two taps whose dilations are 1 to 512, over and over."""

    layers: int
    residual: int
    skip: int
    outputs: int
    output: str
    rate: int  # samples of a second

    @property
    def dilations(self) -> list[int]:
        return [2 ** (layer % 10) for layer in range(self.layers)]

    @property
    def options(self) -> dict[str, Any]:
        return (
            {"output": self.output} if self.output == "categorical" else {"output": self.output, "levels": 65536, "bound": 1.0}
        )

    def arguments(self, batch: int, time: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        layer = [(2 * self.residual, self.residual, 2), (self.residual, self.residual), (self.skip, self.residual)]
        classes = self.output == "categorical"
        shapes = [(self.outputs if classes else 1, self.residual), *self.layers * layer, (self.skip, self.skip)]
        shapes.append((self.outputs, self.skip))
        weights = [torch.randn(s) / torch.tensor(s[1:]).prod() ** 0.5 for s in shapes]
        biases = [torch.zeros(self.residual), *(torch.zeros(s[0]) for s in shapes[1:])]
        previous = torch.full((batch,), self.outputs // 2) if classes else torch.zeros(batch, dtype=dtype)
        queues = torch.zeros(batch, sum(self.dilations), self.residual, dtype=dtype)
        noise = torch.rand(batch, time, 1 if classes else self.outputs // 3 + 1).clamp(1e-5, 1 - 1e-5)
        return {
            "noise": noise.to(dtype),
            "state": fk.ops.WaveNetState(previous, queues),
            "weights": [w.to(dtype) for w in weights],
            "biases": [b.to(dtype) for b in biases],
            "dilations": self.dilations,
        }

    def __str__(self) -> str:
        return f"L={self.layers}, R={self.residual}, S={self.skip}, A={self.outputs}, {self.output}"


CLASSES = Sizes(20, 64, 256, 256, "categorical", 16000)
MIXTURE = Sizes(30, 64, 128, 30, "logistics", 24000)


class CachedLoop:
    """The loop in PyTorch as it is usually written: the weights' layout is made once, queues are allocated once."""

    def __init__(self, network, arguments: dict[str, Any]) -> None:
        self.network, self.given = network, arguments
        weights, self.biases, batch = arguments["weights"], arguments["biases"], len(arguments["noise"])
        self.gates = [w.transpose(1, 2).flatten(1).contiguous() for w in weights[1:-2:3]]
        self.queues = [weights[0].new_zeros(d, batch, network.residual) for d in network.dilations]

    def __call__(self) -> Tensor:
        weights, biases, noise = self.given["weights"], self.biases, self.given["noise"]
        previous, drawn = self.given["state"].previous, []
        for queue in self.queues:
            queue.zero_()
        for t in range(noise.shape[1]):
            h, skips = embedded(previous, weights[0], biases[0]), 0
            for layer, (queue, gate, dilation) in enumerate(zip(self.queues, self.gates, self.network.dilations, strict=True)):
                z = F.linear(torch.cat([queue[t % dilation], h], 1), gate, biases[3 * layer + 1])
                queue[t % dilation] = h
                a, b = z.chunk(2, 1)
                u = torch.tanh(a) * torch.sigmoid(b)
                skips = skips + F.linear(u, weights[3 * layer + 3], biases[3 * layer + 3])
                h = h + F.linear(u, weights[3 * layer + 2], biases[3 * layer + 2])
            parameters = last_layers(skips, weights[-2:], biases[-2:])
            options = {"levels": None, "log_scale_min": -math.inf, "bound": math.inf, **self.network.options}
            previous = sample_of(parameters, noise[:, t], **options)
            drawn.append(previous)
        return torch.stack(drawn, 1)


class WithoutQueues:
    """The forward pass of the receptive field for every sample, by torch's convolution, after the samples ``heard``."""

    def __init__(self, network, arguments: dict[str, Any], heard: Tensor) -> None:
        self.network, self.given, self.heard = network, arguments, heard

    def __call__(self) -> Tensor:
        weights, biases, noise, heard = self.given["weights"], self.given["biases"], self.given["noise"], self.heard
        for t in range(noise.shape[1]):
            h, skips = embedded(heard[:, -sum(self.network.dilations) - 1 :], weights[0], biases[0]).mT, 0
            for layer, dilation in enumerate(self.network.dilations):
                i = 3 * layer + 1
                a, b = padded(h, weights[i], biases[i], dilation=dilation).chunk(2, 1)
                u = torch.tanh(a) * torch.sigmoid(b)
                skips = skips + F.conv1d(u, weights[i + 2][..., None], biases[i + 2])
                h = h + F.conv1d(u, weights[i + 1][..., None], biases[i + 1])
            parameters = last_layers(skips.mT, weights[-2:], biases[-2:])
            heard = torch.cat([heard, inverse_transform(parameters[:, -1], noise[:, t, 0])[:, None]], 1)
        return heard[:, self.heard.shape[1] :]


def check_loops(network) -> None:
    """In float64 the loops draw what the operator draws."""
    given = network.arguments(2, 20, torch.float64)
    expected = fk.ops.wavenet_generate(**given, **network.options)[0]
    torch.testing.assert_close(CachedLoop(network, given)(), expected)
    if network.output == "categorical":
        assert torch.equal(WithoutQueues(network, given, given["state"].previous[:, None])(), expected)


CASES = [
    *((CLASSES, batch, implementation) for batch in (1, 16) for implementation in ("flowkern", "flowkern bfloat16", "loop")),
    (CLASSES, 1, "receptive field"),
    *((MIXTURE, 1, implementation) for implementation in ("flowkern", "flowkern bfloat16", "loop")),
]


@pytest.mark.parametrize(("network", "batch", "implementation"), CASES, ids=str)
@torch.no_grad()
def test_wavenet_generate(benchmark: Any, network, batch: int, implementation: str) -> None:
    """Samples per second: the slow ones draw fewer of them."""
    torch.manual_seed(0)
    check_loops(network)
    fast = implementation.startswith("flowkern")
    time = (1000 if batch == 1 else 250) if fast else 3 if implementation == "receptive field" else 50
    given = network.arguments(batch, time)
    if implementation == "flowkern bfloat16":
        given["weights"] = [w.bfloat16() for w in given["weights"]]
    if fast:
        work: Callable[[], Any] = lambda: fk.ops.wavenet_generate(**given, **network.options)  # noqa: E731
    elif implementation == "loop":
        work = CachedLoop(network, given)
    else:
        work = WithoutQueues(network, given, given["state"].previous[:, None].expand(-1, sum(network.dilations) + 1))
    measure(benchmark, work, f"wavenet_generate, per sample: {network}, B={batch}", implementation)
    rate = batch * time / benchmark.stats.stats.min
    benchmark.extra_info["samples_per_second"] = round(rate)
    benchmark.extra_info["real_time_factor"] = round(rate / batch / network.rate, 2)
