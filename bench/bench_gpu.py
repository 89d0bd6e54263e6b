"""Throughput on a GPU: flowkern eager and in a CUDA graph, its oracle, zuko and nflows eager and compiled.

The oracle is as plain as it reads: it brings its masks to the GPU at every eager call. A speed is recorded only after the
implementations of a group gave the same numbers. ``flowkern bench --suite gpu`` times them with CUDA events.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import flowkern as fk
from flowkern.cli.timing import zuko_twin

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Work = Callable[[], Any]
COPY_BYTES = 256 << 20


@pytest.fixture(autouse=True, scope="module")
def _tf32() -> Any:
    """tf32 on all sides."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def graphed(work: Work) -> Work:
    """The work captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def compiled(function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """The function under torch.compile with CUDA graphs, or a skip with the reason where it does not compile."""
    torch._dynamo.reset()
    wrapped = torch.compile(function, mode="reduce-overhead")
    try:
        wrapped(*example)
    except Exception as error:
        pytest.skip(f"does not compile: {str(error).splitlines()[0][:200]}")
    return wrapped


def record(benchmark: Any, work: Work, group: str, implementation: str, **facts: float) -> None:
    """Times the work and notes its peak memory."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    benchmark.group = group
    benchmark.extra_info.update(implementation=implementation, **facts)
    benchmark.extra_info["peak_memory_mb"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    benchmark(work)


# -- flows ------------------------------------------------------------------------------------------------------------

SIZES = {  # transforms, features, hidden layers, rows
    "wide": (5, 64, (512, 512), 4096),
    "narrow": (5, 8, (128, 128), 1024),
    "large batch": (5, 64, (512, 512), 65536),
    "one row": (5, 64, (512, 512), 1),
    "image": (1, 784, (1024, 1024), 1024),
}
DENSITY = pytest.mark.parametrize("size", ["wide", "narrow", "large batch"])
IMPLEMENTATIONS = ("flowkern", "flowkern graph", "oracle", "oracle compiled", "zuko", "zuko compiled")


class Models:
    """A MAF, zuko's twin with the same parameters, and a batch; checked against each other."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        transforms, features, hidden, batch = SIZES[size]
        self.flow = fk.flows.MAF(features, transforms, hidden, placement="scale_shift")
        self.zuko = zuko_twin(self.flow)
        self.flow = self.flow.cuda()
        self.x = torch.randn(batch, features, device="cuda")
        self.text = f"{transforms} transforms, D={features}, hidden {hidden[0]}x{len(hidden)}, B={batch}"
        with torch.no_grad():
            expected = self.flow.double().log_prob(self.x[:512].double())
            self.flow.float()
            tolerance = {"rtol": 1e-2, "atol": 1e-2 * float(expected.abs().max())}
            torch.testing.assert_close(self.flow.log_prob(self.x[:512]).double(), expected, **tolerance)
            if self.zuko is not None:
                self.zuko = self.zuko.cuda()
                torch.testing.assert_close(self.zuko().log_prob(self.x[:512]).double(), expected, **tolerance)


_models: dict[str, Models] = {}


def density(size: str, implementation: str) -> tuple[Models, torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The models, the one at work, and its log_prob."""
    found = _models.get(size) or _models.setdefault(size, Models(size))
    if implementation.startswith("zuko"):
        if found.zuko is None:
            pytest.skip("zuko is not installed: pip install 'flowkern[peers]'")
        function: Any = lambda x: found.zuko().log_prob(x)  # noqa: E731
        return found, found.zuko, compiled(function, found.x) if "compiled" in implementation else function
    if implementation.startswith("oracle"):

        def function(x: torch.Tensor) -> torch.Tensor:
            with fk.backend("reference"):
                return found.flow.log_prob(x)

        return found, found.flow, compiled(function, found.x) if "compiled" in implementation else function
    return found, found.flow, found.flow.log_prob


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@DENSITY
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_training_step(benchmark: Any, size: str, implementation: str, precision: str) -> None:
    found, model, log_prob = density(size, implementation)

    def work() -> None:
        for p in model.parameters():
            p.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = -log_prob(found.x).mean()
        loss.backward()

    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"log_prob forward + backward, {precision}: {found.text}", implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@DENSITY
def test_density(benchmark: Any, size: str, implementation: str) -> None:
    found, _, log_prob = density(size, implementation)

    def work() -> None:
        with torch.no_grad():
            log_prob(found.x)

    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"log_prob without gradient, tf32: {found.text}", implementation)


# -- chains: small flows, whose time is that of their launches -----------------------------------------------------------


@pytest.mark.parametrize("implementation", ["flowkern", "flowkern graph", "step by step", "step by step graph"])
@pytest.mark.parametrize(("features", "hidden", "context"), [(2, 50, 0), (8, 128, 0), (20, 50, 10), (20, 128, 10)])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_chain(benchmark: Any, direction: str, features: int, hidden: int, context: int, implementation: str) -> None:
    """Five transforms in one call, and one by one."""
    torch.manual_seed(0)
    flow = fk.flows.MAF(features, 5, (hidden, hidden), context=context).cuda()
    x = torch.randn(1024, features, device="cuda")
    given = (torch.randn(1024, context, device="cuda"),) if context else ()

    def one_by_one() -> torch.Tensor:
        rows, total = x, torch.zeros((), device="cuda")
        for transform in flow.transform.transforms:
            rows, log_det = transform(rows, *given)
            total = total + log_det
        return fk.ops.normal_log_prob(rows, total)

    log_prob = one_by_one if implementation.startswith("step") else lambda: flow.log_prob(x, *given)
    with torch.no_grad():
        torch.testing.assert_close(log_prob(), flow.log_prob(x, *given), rtol=1e-2, atol=1e-2)

    def work() -> None:
        if direction == "forward":
            with torch.no_grad():
                log_prob()
            return
        for p in flow.parameters():
            p.grad = None
        (-log_prob().mean()).backward()

    text = f"5 transforms, D={features}, hidden {hidden}x2, context {context}, B=1024"
    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"chain, {direction}, tf32: {text}", implementation)


# -- samples: the inverse -----------------------------------------------------------------------------------------------


def sampler(size: str, implementation: str) -> tuple[Models, Work]:
    """The models, and what draws a batch through a library's own interface; the inverse was checked by a round trip."""
    found = _models.get(size) or _models.setdefault(size, Models(size))
    with torch.no_grad():
        back = found.flow.transform(found.flow.transform.inverse(found.x)[0])[0]
        torch.testing.assert_close(back, found.x, rtol=2e-2, atol=5e-2)
    if implementation.startswith("zuko"):
        if found.zuko is None:
            pytest.skip("zuko is not installed: pip install 'flowkern[peers]'")
        return found, lambda: found.zuko().rsample((len(found.x),))
    if implementation == "flowkern density":
        return found, lambda: found.flow.log_prob(found.x)
    return found, lambda: found.flow.rsample((len(found.x),))


@pytest.mark.parametrize("implementation", ["flowkern", "flowkern graph", "flowkern density", "zuko", "zuko graph"])
@pytest.mark.parametrize("size", SIZES)
def test_samples(benchmark: Any, size: str, implementation: str) -> None:
    """Also beside the density of the same flow, whose arithmetic is the same."""
    if size == "large batch" and implementation.startswith("zuko"):
        pytest.skip("65 passes of zuko over 65,536 rows for each of five transforms are left out")
    found, draw = sampler(size, implementation)

    def work() -> None:
        with torch.no_grad():
            draw()

    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"sample, tf32: {found.text}", implementation)


@pytest.mark.parametrize("implementation", ["flowkern", "zuko"])
def test_reparameterised_samples_and_their_gradient(benchmark: Any, implementation: str) -> None:
    found, draw = sampler("wide", implementation)
    model = found.zuko if implementation == "zuko" else found.flow

    def work() -> None:
        model.zero_grad()
        draw().square().mean().backward()

    record(benchmark, work, f"rsample + backward, tf32: {found.text}", implementation)


@pytest.mark.parametrize("hidden", [(), (1024,), (1024, 1024)], ids=len)
def test_what_a_dependent_step_costs(benchmark: Any, hidden: tuple[int, ...]) -> None:
    """One row of a network with a unit per level: nothing but steps that wait for each other."""
    layer = fk.flows.MAF(1025, 1, hidden).cuda()
    z, steps = torch.randn(1, 1025, device="cuda"), 1025 * (len(hidden) + 1)

    def work() -> None:
        with torch.no_grad():
            layer.transform.inverse(z)

    record(benchmark, graphed(work), "dependent steps, B=1", f"D=1025, {len(hidden)} hidden layers", steps=steps)


WAVENETS = {  # residual, skip, outputs of the last two matrices, layers
    "256 classes": (64, 128, 256, 256, 20),
    "ten logistics": (64, 128, 128, 30, 30),
}


@pytest.mark.parametrize("implementation", ["float32", "bfloat16 weights", "float32 graph", "oracle"])
@pytest.mark.parametrize("batch", [1, 16, 256, 2048])
@pytest.mark.parametrize("size", WAVENETS)
def test_sampling_loop(benchmark: Any, size: str, batch: int, implementation: str) -> None:
    """Samples of every row in a second are `times` over the time. The oracle, a loop in Python, draws a hundredth."""
    torch.manual_seed(0)
    residual, skip, hidden, outputs, layers = WAVENETS[size]
    classes, times = outputs if size == "256 classes" else 1, 40 if implementation == "oracle" else 4000
    layer = [(2 * residual, residual, 2), (residual, residual), (skip, residual)]
    shapes = [(classes, residual), *layers * layer, (hidden, skip), (outputs, hidden)]
    weights = [torch.randn(shape, device="cuda") / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.zeros(residual, device="cuda"), *(torch.zeros(shape[0], device="cuda") for shape in shapes[1:])]
    dilations = [1 << i % 10 for i in range(layers)]
    kind = "categorical" if classes > 1 else "logistics"
    begin = torch.zeros(batch, dtype=torch.long if classes > 1 else torch.float32, device="cuda")
    state = fk.ops.WaveNetState(begin, torch.zeros(batch, sum(dilations), residual, device="cuda"))
    noise = torch.rand(batch, times, 1 if classes > 1 else outputs // 3 + 1, device="cuda")
    options: dict[str, Any] = {} if classes > 1 else {"levels": 65536, "log_scale_min": -7.0, "bound": 1.0}
    if "bfloat16" in implementation:
        weights = [w.bfloat16() for w in weights]

    def work() -> Any:
        with fk.backend("reference" if implementation == "oracle" else "auto"):
            return fk.ops.wavenet_generate(noise, state, weights, biases, dilations, output=kind, **options)

    with fk.backend("reference"):
        few = fk.ops.wavenet_generate(noise[:, :3], state, weights, biases, dilations, output=kind, **options)
    drawn = work()[0]
    agree = (drawn[:, :3] == few[0]) if classes > 1 else (drawn[:, :3] - few[0]).abs() < 1e-3
    assert agree.float().mean() > 0.99  # a number on the edge of two classes may fall on either side
    text = f"L={layers}, R={residual}, S={skip}, A={outputs}, B={batch}"
    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"sampling loop, {size}: {text}", implementation, times=times)


@pytest.mark.parametrize("implementation", ["flowkern", "flowkern graph", "oracle", "oracle compiled"])
@pytest.mark.parametrize("gated", [False, True])
def test_iaf_samples(benchmark: Any, gated: bool, implementation: str) -> None:
    torch.manual_seed(0)
    flow = fk.flows.IAF(64, 5, (512, 512), gated=gated).cuda()
    noise = torch.randn(4096, 64, device="cuda")

    def sample(z: torch.Tensor) -> torch.Tensor:
        return flow.transform.inverse(z)[0]

    def oracle(z: torch.Tensor) -> torch.Tensor:
        with fk.backend("reference"):
            return sample(z)

    torch.testing.assert_close(sample(noise), oracle(noise), rtol=1e-2, atol=2e-2)
    function: Any = oracle if "oracle" in implementation else sample
    function = compiled(function, noise) if "compiled" in implementation else function

    def work() -> None:
        flow.zero_grad()
        function(noise).square().mean().backward()

    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"IAF sample + backward, {'gated' if gated else 'affine'}: D=64, 512x2, B=4096", implementation)


@pytest.mark.parametrize("implementation", ["flowkern", "flowkern graph", "oracle", "oracle compiled"])
@pytest.mark.parametrize("kind", ["MADE", "coupling"])
def test_other_training_steps(benchmark: Any, kind: str, implementation: str) -> None:
    """A MADE with a Bernoulli head, and eight affine coupling layers with networks of their own."""
    torch.manual_seed(0)
    if kind == "MADE":
        model: Any = fk.models.MADE(784, "bernoulli", (1024, 1024)).cuda()
        x = (torch.rand(1024, 784, device="cuda") < 0.5).float()
        text = "D=784, 1024x2, B=1024"
    else:
        layers = [fk.nn.AffineCoupling(64, hidden=(512, 512), swap=bool(i % 2)) for i in range(8)]
        model, x = fk.flows.Flow(layers).cuda(), torch.randn(4096, 64, device="cuda")
        text = "8 layers, D=64, 512x2, B=4096"

    def oracle(rows: torch.Tensor) -> torch.Tensor:
        with fk.backend("reference"):
            return model.log_prob(rows)

    torch.testing.assert_close(model.log_prob(x), oracle(x), rtol=1e-2, atol=1e-1)
    function: Any = oracle if "oracle" in implementation else model.log_prob
    function = compiled(function, x) if "compiled" in implementation else function

    def work() -> None:
        model.zero_grad()
        (-function(x).mean()).backward()

    work = graphed(work) if "graph" in implementation else work
    record(benchmark, work, f"{kind} forward + backward, tf32: {text}", implementation)


@pytest.mark.parametrize("implementation", ["nflows", "nflows compiled", "nflows accelerated"])
def test_nflows_training_step(benchmark: Any, implementation: str) -> None:
    autoregressive = pytest.importorskip("nflows.flows.autoregressive")
    torch.manual_seed(0)
    model = autoregressive.MaskedAutoregressiveFlow(64, 512, 5, 1, use_residual_blocks=False).cuda()
    x = torch.randn(4096, 64, device="cuda")
    expected = model.log_prob(x).detach()
    if "accelerated" in implementation:
        fk.accelerate(model)
        torch.testing.assert_close(model.log_prob(x).detach(), expected, rtol=1e-2, atol=1e-1)
    log_prob = compiled(lambda rows: model.log_prob(rows), x) if "compiled" in implementation else model.log_prob

    def work() -> None:
        model.zero_grad()
        (-log_prob(x).mean()).backward()

    record(benchmark, work, "nflows MAF forward + backward: 5 x D=64, hidden 512x2, B=4096", implementation)


# -- memory-bound operators against a copy ----------------------------------------------------------------------------

IMAGES = {"actnorm 12x16x16": (12, 256), "actnorm 48x4x4": (48, 16), "actnorm of vectors": (64, 1)}  # channels, pixels


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("operator", ["copy", "affine", "iaf_step", "coupling", *IMAGES])
def test_bandwidth(benchmark: Any, operator: str, direction: str) -> None:
    """256 MB of inputs; the bytes that must move are counted, and their rate compared with that of a copy."""
    channels, pixels = IMAGES.get(operator, (64, 1))
    columns = channels * pixels
    rows = COPY_BYTES // 4 // 3 // columns
    part = columns // 2 if operator == "coupling" else columns
    shapes = [(rows, columns), (rows, part), (rows, part)]
    if operator in IMAGES:
        shapes = [(rows, channels, pixels), (channels,), (channels,)]
    x, t, a = (torch.randn(shape, device="cuda", requires_grad=direction != "forward") for shape in shapes)
    out = torch.empty_like(x)
    size = x.numel() * 4
    bytes_moved = {"affine": 4 * size, "iaf_step": 4 * size, "coupling": 3 * size}.get(operator, 2 * size)
    functions: dict[str, Callable[[], Any]] = {
        "affine": lambda: fk.ops.affine(x, t, a),
        "iaf_step": lambda: fk.ops.iaf_step(x, t, a, bias=2.0),
        "coupling": lambda: fk.ops.coupling(x, t, a, transformed=slice(32, None)),
        **dict.fromkeys(IMAGES, lambda: fk.ops.actnorm(x, t, a)),
    }
    if operator == "copy":
        record(benchmark, lambda: out.copy_(x.detach()), f"bandwidth, {direction}", operator, bytes=bytes_moved)
        return
    call = functions[operator]
    with torch.no_grad():
        found = call()[0]
        with fk.backend("reference"):
            torch.testing.assert_close(found, call()[0], rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(found), torch.randn(rows, device="cuda")
    work: Work = call
    if direction != "forward":
        # Backward reads the inputs and the cotangent and writes as many gradients as there are inputs (a channel's are few).
        bytes_moved += {"affine": 7, "iaf_step": 7, "coupling": 5}.get(operator, 3) * size
        work = lambda: torch.autograd.grad(call(), (x, t, a), grad)  # noqa: E731
    record(benchmark, work, f"bandwidth, {direction}", operator, bytes=bytes_moved)


@pytest.mark.parametrize("implementation", ["flowkern", "oracle"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("shape", [(12, 16, 16), (48, 4, 4)], ids=str)
def test_invertible_conv1x1(benchmark: Any, shape: tuple[int, ...], direction: str, implementation: str) -> None:
    """A direction and its gradients: three reads and two writes of x are the least."""
    torch.manual_seed(0)
    layer, rows = fk.nn.InvertibleConv1x1(shape).cuda(), COPY_BYTES // 4 // 3 // math.prod(shape)
    x, g = (torch.randn(rows, *shape, device="cuda", requires_grad=needs) for needs in (True, False))
    g_log_det, leaves = torch.randn(rows, device="cuda"), [x, *layer.parameters()]

    def work() -> Any:
        with fk.backend("reference" if implementation == "oracle" else "auto"):
            outputs = (layer.inverse if direction == "inverse" else layer)(x)
            return outputs[0], *torch.autograd.grad(outputs, leaves, (g, g_log_det))

    with fk.backend("reference"):
        expected = (layer.inverse if direction == "inverse" else layer)(x)[0]
    torch.testing.assert_close(work()[0], expected, rtol=1e-2, atol=1e-2)
    group = f"invertible_conv1x1, {direction} + backward: {rows} x {' x '.join(map(str, shape))}"
    record(benchmark, work, group, implementation, bytes=5 * x.numel() * 4)
