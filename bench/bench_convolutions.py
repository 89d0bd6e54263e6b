"""Causal convolutions, layers and networks of them, forward and backward, and the sampling loop of a WaveNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import compiled, forced_oracle, measure
from torch import Tensor, nn

import flowkern as fk

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


LAYERS, RESIDUAL, SKIP, CLASSES = 20, 64, 256, 256
DILATIONS = [2 ** (layer % 10) for layer in range(LAYERS)]


@pytest.mark.parametrize("implementation", ["flowkern", "oracle"])
@pytest.mark.parametrize("batch", [1, 16])
def test_wavenet_generate(benchmark: Any, batch: int, implementation: str) -> None:
    """The oracle is a loop over time in PyTorch, with cached queues; it is timed on fewer classes."""
    torch.manual_seed(0)
    layer = [(2 * RESIDUAL, RESIDUAL, 2), (RESIDUAL, RESIDUAL), (SKIP, RESIDUAL)]
    shapes = [(CLASSES, RESIDUAL), *LAYERS * layer, (SKIP, SKIP), (CLASSES, SKIP)]
    weights = [torch.randn(s) / s[1] ** 0.5 for s in shapes]
    biases = [torch.zeros(s[0]) for s in shapes[1:]]
    state = fk.ops.WaveNetState(torch.full((batch,), CLASSES // 2), torch.zeros(batch, sum(DILATIONS), RESIDUAL))
    time = 4000 if implementation == "flowkern" else 100
    uniform = torch.rand(batch, time)

    def work() -> Tensor:
        return fk.ops.wavenet_generate(uniform, state, weights, biases, DILATIONS)[0]

    group = f"wavenet_generate, per class: L={LAYERS}, R={RESIDUAL}, S={SKIP}, A={CLASSES}, B={batch}"
    measure(benchmark, work if implementation == "flowkern" else forced_oracle(work), group, implementation)
    benchmark.extra_info["classes"] = batch * time
    benchmark.extra_info["classes_per_second"] = round(batch * time / benchmark.stats.stats.min)
