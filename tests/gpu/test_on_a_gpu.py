"""What only a GPU can show: real sizes, CUDA graphs, no synchronisation, compiled flows, determinism, races.

``make gpu-check`` runs this and every test of a kernel that is marked ``gpu``.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import Pool
from networks import network, run
from wavenets import call, cast, generate

import flowkern as fk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICE = torch.device("cuda")


def flow(kind: Any = fk.flows.MAF, features: int = 64, hidden: tuple[int, ...] = (512, 512)) -> Any:
    torch.manual_seed(0)
    return kind(features, transforms=5, hidden=hidden).to(DEVICE)


SIZES = [(64, (512, 512), 4096), (784, (1024, 1024), 1024), (8, (128, 128), 65536)]


def step(model: Any, loss: Callable[[Any], torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of all parameters."""
    return list(torch.autograd.grad(loss(model), list(model.parameters())))


@pytest.fixture
def tf32() -> Any:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("operator", ["masked_mlp", "autoregressive"])
@pytest.mark.parametrize(("features", "hidden", "batch"), SIZES)
def test_real_sizes(operator: str, features: int, hidden: tuple[int, ...], batch: int) -> None:
    net = network(features, hidden, activation="tanh")
    x = torch.randn(batch, features, dtype=torch.float64)
    kernel, oracle = (run(operator, net, x, torch.float32, backend) for backend in ("triton", "reference"))
    exact = run(operator, net, x, torch.float64, "reference")
    for name, value in exact.items():
        pool = Pool()
        pool.add(kernel[name], oracle[name], value)
        pool.check(name, torch.float32)


@pytest.mark.parametrize(("features", "hidden", "context"), [(2, (50, 50), 0), (20, (128, 128), 10), (8, (128, 128), 0)])
@pytest.mark.parametrize("batch", [1, 100, 65536])
def test_chains_of_real_sizes(features: int, hidden: tuple[int, ...], context: int, batch: int) -> None:
    """A flow's density and its gradients, whose transforms are one launch each way."""
    torch.manual_seed(0)
    model = fk.flows.MAF(features, 5, hidden, context=context, activation="tanh").double()
    x = torch.randn(batch, features, dtype=torch.float64)
    given = (torch.randn(batch, context, dtype=torch.float64),) if context else ()
    found = {}
    for name, dtype, backend in (("kernel", torch.float32, "triton"), ("oracle", torch.float32, "reference"),
                                 ("exact", torch.float64, "reference")):  # fmt: skip
        twin = copy.deepcopy(model).to(DEVICE, dtype)
        with fk.backend(backend):
            density = twin.log_prob(x.to(DEVICE, dtype), *(c.to(DEVICE, dtype) for c in given))
            found[name] = [density.detach(), *step(twin, lambda _, d=density: d.mean())]
    for kernel, oracle, exact in zip(*found.values(), strict=True):
        pool = Pool()
        pool.add(kernel, oracle, exact)
        pool.check("a chain", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_programs_of_a_chain_that_take_several_tiles_reuse_their_scratch(dtype: torch.dtype, tf32: None) -> None:
    model = flow(features=20, hidden=(128, 128)).to(dtype)
    x = torch.randn(100_000, 20, device=DEVICE, dtype=dtype, requires_grad=True)
    kept = model.log_prob(x)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x), kept)
        assert torch.equal(model.log_prob(x[:100]), kept[:100])  # a row does not depend on its batch
    (with_parameters,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    for p in model.parameters():
        p.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(model.log_prob(x).sum(), x)[0], with_parameters)


# The oracle would take a pass per feature and keep them all: the CPU kernel, held to it elsewhere, stands in for it.
INVERSES = [*SIZES, (64, (512, 512), 1), (64, (512, 512), 300), (17, (4096, 4096), 8), (8, (4096, 4096), 700)]


@pytest.mark.parametrize(("features", "hidden", "batch"), INVERSES)
def test_inverses_of_real_sizes(features: int, hidden: tuple[int, ...], batch: int) -> None:
    """One row per tile, sixteen, thirty-two; in shared memory and not; groups of blocks."""
    net = network(features, hidden, activation="tanh")
    z = torch.randn(batch, features, dtype=torch.float64)
    kernel, other = (run("autoregressive_inverse", net, z, torch.float32, kernels) for kernels in ("cuda", "native"))
    exact = run("autoregressive_inverse", net, z, torch.float64, "native")
    for name, value in exact.items():
        pool = Pool()
        pool.add(kernel[name], other[name], value)
        assert pool.kernel <= 3 * pool.oracle + 8 * torch.finfo(torch.float32).eps * pool.largest, name
    double = run("autoregressive_inverse", net, z, torch.float64, "cuda")
    for name, value in exact.items():
        torch.testing.assert_close(double[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()))


LOOPS = {
    "classes": {"sizes": (64, 64, 256, 256, 256), "dilations": 2 * tuple(1 << i for i in range(10))},
    "a mixture": {"sizes": (64, 64, 128, 128, 0), "components": 10, "output": "logistics", "levels": 65536, "channels": 80,
                  "dilations": 3 * tuple(1 << i for i in range(10)), "log_scale_min": -7.0, "bound": 1.0},
    "large": {"sizes": (512, 256, 256, 256, 0), "components": 1, "output": "gaussians", "taps": 3, "bound": 1.0,
              "dilations": 4 * tuple(1 << i for i in range(6)), "log_scale_min": -7.0},
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 40, 600])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_sampling_loops_of_real_sizes(loop: dict[str, Any], rows: int) -> None:
    """Sample by sample in float64; the queues after the first time in float32, before rounding chooses another sequence."""
    exact = call(rows, 200 if rows == 1 else 8, **loop)
    drawn, state = generate(cast(exact, torch.float64, device=DEVICE), "cuda")
    expected, after = generate(exact, "reference")  # on the CPU: on a GPU it is not deterministic
    torch.testing.assert_close(drawn.cpu(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(state.queues.cpu(), after.queues, rtol=0, atol=1e-9)
    for weights in (torch.float32, torch.bfloat16):
        single = cast({**exact, "noise": exact["noise"][:, :1]}, torch.float32, weights)
        found = generate(cast(single, torch.float32, weights, DEVICE), "cuda")[1].queues
        pool = Pool()
        pool.add(
            found.cpu(),
            generate(single, "reference")[1].queues,
            generate(cast(single, torch.float64), "reference")[1].queues,
        )
        pool.check("queues", torch.float32)


def test_a_captured_sampling_loop_and_two_at_once() -> None:
    """Both take nearly all multiprocessors: one waits for the other, and neither for ever."""
    calls = [cast(call(200, 500, seed=seed, **LOOPS["classes"]), torch.float32, device=DEVICE) for seed in (0, 1)]
    expected = [generate(arguments, "cuda")[0] for arguments in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    found = []
    for stream, arguments in zip(streams, calls, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(generate(arguments, "cuda")[0])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = generate(calls[0], "cuda")[0]
    calls[0]["noise"].copy_(calls[1]["noise"])
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, generate(calls[0], "cuda")[0])
    assert not torch.equal(captured, expected[0])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_inverses_under_autocast_undo_densities_under_autocast(low: torch.dtype) -> None:
    model, x = flow(), torch.randn(4096, 64, device=DEVICE)
    with torch.no_grad(), torch.autocast("cuda", low):
        z, log_det = model.transform(x)
        back, inverse_log_det = model.transform.inverse(z)
    assert float((back - x).abs().median()) < 1e-3
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0.05, atol=0.5)


def test_tf32_is_used_where_torch_allows_it(tf32: None) -> None:
    net, x = network(64, (512, 512)), torch.randn(512, 64, dtype=torch.float64)
    found = run("masked_mlp", net, x, torch.float32, "triton", grads=False)
    exact = run("masked_mlp", net, x, torch.float64, "reference", grads=False)
    error = (found["value"] - exact["value"]).norm() / exact["value"].norm()
    assert 1e-6 < error < 2e-3


@pytest.mark.parametrize("work", ["density", "inverse", "IAF"])
def test_a_training_step_is_captured_in_a_cuda_graph(work: str) -> None:
    model = flow(fk.flows.IAF if work == "IAF" else fk.flows.MAF, 16, (64, 64))
    x, noise = torch.randn(256, 16, device=DEVICE), torch.randn(256, 16, device=DEVICE)

    def loss(m: Any) -> torch.Tensor:
        if work == "density":
            return -m.log_prob(x).mean()
        y, log_det = m.transform.inverse(noise)
        return (y.square().sum(-1) - log_det).mean()

    expected = step(model, loss)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model, loss)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(model, loss)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)  # the graph packs the weights that it finds
    graph.replay()
    torch.cuda.synchronize()
    for found, now in zip(captured, step(model, loss), strict=True):
        torch.testing.assert_close(found, now)
    assert not torch.equal(captured[0], expected[0])


def test_nothing_waits_for_the_gpu() -> None:
    model, x = flow(features=16, hidden=(64, 64)), torch.randn(256, 16, device=DEVICE)
    iaf, noise = flow(fk.flows.IAF, 16, (64, 64)), torch.randn(256, 16, device=DEVICE)
    layers = [layer.to(DEVICE) for layer in (fk.nn.AffineCoupling(16), fk.nn.ActNorm(16), fk.nn.InvertibleConv1x1(16))]
    loop = cast(call(3, 20), torch.float32, device=DEVICE)

    def work() -> None:
        fk.ops.wavenet_generate(**loop)
        step(model, lambda m: m.log_prob(x).mean())
        step(model, lambda m: m.transform.inverse(x)[0].mean())
        step(iaf, lambda m: m.transform.inverse(noise)[0].mean())
        for layer in layers:
            step(layer, lambda m: m(x)[0].sum() + m.inverse(x)[1].sum())

    work()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("work", ["density", "inverse"])
def test_compiled_flows(work: str, mode: str) -> None:
    model, x = flow(features=16, hidden=(64, 64)), torch.randn(256, 16, device=DEVICE)

    def call(rows: torch.Tensor) -> torch.Tensor:
        return model.log_prob(rows) if work == "density" else model.transform.inverse(rows)[0]

    compiled = torch.compile(call, fullgraph=True, mode=mode)
    for _ in range(3):
        found = step(model, lambda m: compiled(x).mean())
    for a, b in zip(found, step(model, lambda m: call(x).mean()), strict=True):
        torch.testing.assert_close(a, b)


def test_two_runs_agree_bit_for_bit(tf32: None) -> None:
    model, x = flow(), torch.randn(4096, 64, device=DEVICE)
    for loss in (lambda m: m.log_prob(x).mean(), lambda m: m.transform.inverse(x)[0].square().mean()):
        first, second = (step(model, loss) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    rows = model.log_prob(x)
    assert torch.equal(model.log_prob(x[:100]), rows[:100])  # a row does not depend on its batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_programs_that_take_several_tiles_reuse_their_scratch(dtype: torch.dtype, tf32: None) -> None:
    model = flow(features=64, hidden=(256, 256)).to(dtype)
    x = torch.randn(100_000, 64, device=DEVICE, dtype=dtype, requires_grad=True)
    kept = model.log_prob(x)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x), kept)
    (with_parameters,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    for p in model.parameters():
        p.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(model.log_prob(x).sum(), x)[0], with_parameters)


def test_more_elements_than_32_bits_count() -> None:
    rows, columns = 36_000, 60_001
    x = torch.randn(rows, columns, dtype=torch.bfloat16, device=DEVICE)
    t = torch.full((columns,), 0.5, dtype=torch.bfloat16, device=DEVICE)
    z, log_det = fk.ops.affine(x, t, t, placement="scale_shift")
    torch.testing.assert_close(z[-1].float(), x[-1].float() * math.exp(0.5) + 0.5, rtol=0.01, atol=0.01)
    torch.testing.assert_close(log_det.float(), torch.full((rows,), columns * 0.5, device=DEVICE), rtol=0.01, atol=0)


@pytest.mark.parametrize("shape", [(600, 3, 1025 * 1201), (40_000_000, 55, 1), (1, 1, 2**31 + 5)])
def test_activation_normalisation_of_more_elements_than_32_bits_count(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)
    bias, log_scale = (torch.full(shape[1:2], v, device=DEVICE, dtype=x.dtype, requires_grad=True) for v in (1.0, 0.0))
    z, log_det = fk.ops.actnorm(x, bias, log_scale)
    assert bool((z.view(-1)[:: 2**20] == 2).all())
    assert bool((z[-1, -1, -100:] == 2).all())
    assert bool((log_det == 0).all())
    grads = torch.autograd.grad(z, (bias, log_scale), torch.ones_like(z))
    count = float(x.numel() // shape[1])
    for g, expected in zip(grads, (count, 2 * count), strict=True):
        torch.testing.assert_close(g.double(), torch.full_like(g, expected, dtype=torch.float64), rtol=1e-2, atol=0)


def test_memory_of_a_training_step_is_at_most_half_of_zukos() -> None:
    zuko = pytest.importorskip("zuko")
    peer = zuko.flows.MAF(64, transforms=5, hidden_features=(512, 512)).to(DEVICE)
    model, x = flow(), torch.randn(4096, 64, device=DEVICE)
    peaks = []
    for loss in (lambda: model.log_prob(x).mean(), lambda: peer().log_prob(x).mean()):
        loss().backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] <= peaks[1] / 2, peaks


@pytest.mark.parametrize("library", ["zuko", "nflows"])
def test_accelerated_models(library: str) -> None:
    pytest.importorskip(library)
    if library == "zuko":
        import zuko

        model: Any = zuko.flows.MAF(6, transforms=2, hidden_features=(32, 32)).to(DEVICE)
        log_prob = lambda m, x: m().log_prob(x)  # noqa: E731
    else:
        from nflows.flows.autoregressive import MaskedAutoregressiveFlow

        model = MaskedAutoregressiveFlow(6, 32, 2, 2).to(DEVICE)
        log_prob = lambda m, x: m.log_prob(x)  # noqa: E731
    twin, x = copy.deepcopy(model), torch.randn(50, 6, device=DEVICE)
    fk.accelerate(model)
    torch.testing.assert_close(log_prob(model, x), log_prob(twin, x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        drawn = [(m().rsample if library == "zuko" else m.sample) for m in (model, twin)]
        samples = []
        for draw in drawn:
            torch.manual_seed(3)
            samples.append(draw((50,)) if library == "zuko" else draw(50))
    torch.testing.assert_close(*samples, rtol=1e-3, atol=1e-3)


def test_inputs_on_two_devices_are_named() -> None:
    x = torch.randn(3, 4, device=DEVICE)
    with pytest.raises(ValueError, match="shift: expected device cuda:0 like x, got cpu"):
        fk.ops.affine(x, torch.zeros(4), torch.zeros(4))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_that_is_not_the_current_one() -> None:
    x = torch.randn(5, 6)
    model = fk.flows.MAF(6, 2, (16,))
    expected = model.log_prob(x)
    torch.testing.assert_close(model.to("cuda:1").log_prob(x.to("cuda:1")).cpu(), expected, rtol=1e-4, atol=1e-4)


PROGRAM = """
import torch, flowkern as fk
flow = fk.flows.MAF(9, 2, (40, 40)).cuda()
x = torch.randn(70, 9, device="cuda", requires_grad=True)
flow.log_prob(x).sum().backward()
flow.rsample((70,)).sum().backward()
flow.rsample((300,)).sum().backward()
flow.sample((5000,))
fk.ops.coupling(x, x[:, :4], x[:, :4], transformed=slice(5, None))[0].sum().backward()
fk.nn.ActNorm(9).cuda()(x)[0].sum().backward()
fk.nn.InvertibleConv1x1(9).cuda().inverse(x)[0].sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("kernels", ["ward", "inverse", "solve"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_compute_sanitizer(tool: str, kernels: str) -> None:
    """On the kernels whose names hold a text: `*_forward` and `*_backward`, the sweeps, triangular systems."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    only = ["--error-exitcode", "9"]
    if tool != "initcheck":  # which must see who wrote what the kernels read
        only += ["--kernel-regex", f"kns={kernels}"]
    command = [sanitizer, "--tool", tool, *only, sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "Device not supported" in found.stdout or "not supported" in found.stderr:
        pytest.skip("compute-sanitizer does not know this GPU, or may not reach it from here")
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_to_fit_may_be_on_either_device(device: str) -> None:
    made, x = flow(features=3, hidden=(16,)), torch.randn(200, 3, device=device)
    assert made.fit(x, epochs=2, progress=False).ended == "epochs"
    assert next(made.parameters()).device.type == "cuda"
