"""Compiles the Triton kernels for GPUs that are not here and reads what the compilers say of them.

``python tests/kernels/compiled.py`` compiles the configurations that docs/kernels.md lists for every architecture and
prints their resources; ``--write`` puts the tables into that page. ``--cover 1`` takes instead a set of configurations
in which every kernel meets every choice (what CI does), ``--cover 2`` every pair of them, ``--cover 3`` every triple;
``--only REGEX`` compiles some of them, the other rows of the page stay; ``--json`` prints findings for tests. What is
compiled stays in Triton's cache, so that a run that was ended goes on. It must run without TRITON_INTERPRET, which would
leave nothing to compile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from allpairspy import AllPairs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[1]))
from kernel_page import PAGE, put, read_cubin
from networks import network

from flowkern.chain import ChainPlan, Elementwise, Network, Permute
from flowkern.kernels import _launch
from flowkern.kernels._network import network_of
from flowkern.kernels.actnorm import actnorm, actnorm_gradients
from flowkern.kernels.affine import affine, affine_gradients
from flowkern.kernels.autoregressive import autoregressive, autoregressive_gradients
from flowkern.kernels.autoregressive_chain import autoregressive_chain, autoregressive_chain_gradients, launches_of
from flowkern.kernels.causal_conv1d import causal_conv1d, causal_conv1d_gradients
from flowkern.kernels.invertible_conv1x1 import invertible_conv1x1, invertible_conv1x1_gradients
from flowkern.kernels.log_det import log_det
from flowkern.kernels.logistic_mixture import logistic_mixture
from flowkern.kernels.logistic_mixture_sample import logistic_mixture_sample
from flowkern.kernels.masked_mlp import masked_mlp, masked_mlp_gradients
from flowkern.kernels.normal_log_prob import normal_log_prob
from flowkern.kernels.spline import spline, spline_gradients
from flowkern.kernels.wavenet_layer import wavenet_layer, wavenet_layer_gradients
from flowkern.plan import ACTIVATIONS
from flowkern.univariate import (
    PARAMETRIZATIONS,
    PLACEMENTS,
    SCALES,
    TAILS,
    Affine,
    RationalLinear,
    RationalQuadratic,
    UnivariateMap,
)


@dataclass(frozen=True)
class Architecture:
    """A GPU to compile for, and what one of its multiprocessors (compute units) holds."""

    name: str
    target: GPUTarget
    shared: int  # bytes that one program may have
    shared_all: int  # bytes in all
    registers: int = 65536
    warps: int = 64


ARCHITECTURES = (
    Architecture("sm_80", GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10),
    Architecture("sm_90", GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10),
    Architecture("sm_100", GPUTarget("cuda", 100, 32), 227 << 10, 228 << 10),
    Architecture("sm_120", GPUTarget("cuda", 120, 32), 99 << 10, 100 << 10, warps=48),
    Architecture("gfx942", GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 512 * 4 * 64, 32),
)
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "autocast": torch.bfloat16,  # weights in bfloat16, rows in float32
}


# -- what is compiled -------------------------------------------------------------------------------------------------


@dataclass
class Launch:
    """One kernel with the types and constants of one launch."""

    kernel: JITFunction
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    label: str
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return repr((self.kernel.__name__, self.signature, self.constants, self.attributes, self.options))


def record(run: Callable[[], Any], label: str, **facts: str) -> list[Launch]:
    """The launches that a host function makes; nothing runs."""
    found: list[Launch] = []

    def remember(self: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {k: named.pop(k) for k in ("num_warps", "num_stages", "maxnreg") if k in named}
        bound = dict(zip(self.arg_names, args, strict=False), **named)
        assert bound.keys() == set(self.arg_names), set(self.arg_names) ^ bound.keys()
        launch = Launch(self, {}, {}, {}, options, label, {"kernel": self.__name__, **facts})
        for i, parameter in enumerate(self.params):
            launch.signature[parameter.name] = describe(launch, (i,), bound[parameter.name], parameter.is_constexpr)
        columns = [i for i, name in enumerate(self.arg_names) if name in ("columns", "pixels")]
        launch.facts["aligned"] = "yes" if any((i,) in launch.attributes for i in columns) else "no"
        found.append(launch)

    original = JITFunction.run
    JITFunction.run = remember
    try:
        run()
    finally:
        JITFunction.run = original
    return found


_TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TYPES |= {torch.int32: "i32", torch.int64: "i64"}


def describe(launch: Launch, path: tuple[int, ...], value: Any, constexpr: bool) -> Any:
    """The type of an argument as the launcher would specialise it."""
    if isinstance(value, tuple) and not constexpr:
        return tuple(describe(launch, (*path, i), v, False) for i, v in enumerate(value))
    if constexpr or (isinstance(value, int) and value == 1):
        launch.constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        launch.attributes[path] = [["tt.divisibility", 16]]
        return "*" + _TYPES[value.dtype]
    if value % 16 == 0:
        launch.attributes[path] = [["tt.divisibility", 16]]
    return "i32" if abs(value) < 2**31 else "i64"


STRUCTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True},
    "skip": {"skip": True},
    "gates": {"gates": (1,), "addends": (0,)},
    "context": {"addends": (0, 3)},
}


COVERED_SPLINES: dict[str, UnivariateMap] = {  # by what is said in place of a scale
    "rational-quadratic of 8": RationalQuadratic(8),
    "rational-quadratic of 10, circular": RationalQuadratic(10, tails="circular", parametrization="softplus"),
    "rational-linear of 8": RationalLinear(8),
}
NETWORK_SPLINES = {
    **COVERED_SPLINES,
    "rational-quadratic of 16": RationalQuadratic(16),
    "rational-quadratic of 32, unconstrained": RationalQuadratic(32, tails="unconstrained"),
}


def network_map(scale: str, placement: str) -> tuple[UnivariateMap, str]:
    """A map of a network's features, and what it is called."""
    if scale in NETWORK_SPLINES:
        return NETWORK_SPLINES[scale], f"{scale} bins"
    return Affine(scale, placement), f"{scale} {placement}"


def network_launches(
    operator: str, dtype: str, width: int, activation: str, scale: str, placement: str, structure: str, keep: bool
) -> list[Launch]:
    """Forward and backward of one masked network."""
    structure = structure if width or structure == "skip" else "plain"
    univariate, called = network_map(scale, placement)
    options = {"activation": activation, "map": univariate, **STRUCTURES[structure]}
    net = network(64 if width >= 256 else 8, (width,) * 3 if width else (), **options)
    low = DTYPES[dtype]
    rows = torch.float32 if dtype == "autocast" else low
    weights = [w.to(low) for w in net.weights]
    biases = [b.to(rows) for b in net.biases]
    x = torch.zeros(256, net.plan.features, dtype=rows)
    addends = [torch.zeros(256, w, dtype=rows) for w in net.plan.addend_widths]
    map = univariate.words

    def run() -> None:
        given = None if operator == "masked_mlp" else map
        config = network_of(net.plan, low, x.device, "tf32" if dtype == "tf32" else "ieee", given)
        if operator == "masked_mlp":
            out, _ = masked_mlp(x, weights, biases, addends, config, keep)
            _, state = masked_mlp(x, weights, biases, addends, config, True)
            masked_mlp_gradients(out, weights, biases, addends, state, config, keep)
        else:
            autoregressive(x, weights, biases, addends, config, map, keep)
            _, g, state = autoregressive(x, weights, biases, addends, config, map, True)
            autoregressive_gradients(x, g, x, weights, biases, addends, state, config, map, keep)

    kind = "" if operator == "masked_mlp" else f", {called}"
    label = f"{dtype}, {net.plan.features} x {width}x3, {structure}, {activation}{kind}{'' if keep else ', nothing kept'}"
    return record(run, label, dtype=dtype, family="network")


CHAINS = ("networks", "with elementwise steps, density", "from noise")


def chain_launches(
    chain: str, dtype: str, width: int, activation: str, scale: str, placement: str, structure: str, keep: bool
) -> list[Launch]:
    """Forward and backward of a chain of three transforms."""
    structure = structure if width or structure == "skip" else "plain"
    map, called = network_map(scale, placement)
    options = {"activation": activation, "map": map, **STRUCTURES[structure]}
    nets = [network(8, (width,) * 3 if width else (), seed=seed, **options) for seed in range(3)]
    networks = [Network(False, net.plan, map) for net in nets]
    between = [Permute(tuple(range(8))[::-1]), Elementwise(True)] if "elementwise" in chain else []
    normal = {"networks": None, "from noise": "input"}.get(chain, "output")
    steps = ChainPlan([networks[0], *between, *networks[1:]], normal)
    low = DTYPES[dtype]
    rows = torch.float32 if dtype == "autocast" else low
    weights = [w.to(low) for net in nets for w in net.weights]
    biases = [b.to(rows) for net in nets for b in net.biases]
    more = len(nets[0].biases)
    biases[more:more] = [torch.ones(8, dtype=rows)] * (2 * ("elementwise" in chain))
    x = torch.zeros(256, 8, dtype=rows)
    addends = [torch.zeros(256, w, dtype=rows) for net in nets for w in net.plan.addend_widths]

    def run() -> None:
        config = launches_of(steps, low, x.device, "tf32" if dtype == "tf32" else "ieee")
        autoregressive_chain(x, weights, biases, addends, config, keep)
        _, g, state = autoregressive_chain(x, weights, biases, addends, config, True)
        given = (None if normal == "output" else x), g  # of a density, the cotangent of the result is missing
        autoregressive_chain_gradients(*given, x, weights, biases, addends, state, config, keep)

    label = f"{dtype}, chain of three 8 x {width}x3, {chain}, {structure}, {activation}, {called}"
    return record(run, f"{label}{'' if keep else ', nothing kept'}", dtype=dtype, family="network")


FEATURES = {"all": (0, 0), "half": (32, 1), "alternating": (1, 2), "table": (0, 1)}


def row_launches(dtype: str, width: int, scale: str, placement: str, inverse: bool, features: str) -> list[Launch]:
    """Forward and backward of the maps of rows."""
    t = DTYPES[dtype]
    begin, step = FEATURES[features]
    count = width // 2 if step else 0
    x, part = torch.zeros(64, width, dtype=t), torch.zeros(64, count or width, dtype=t)
    place = torch.zeros(width, dtype=torch.int64) if features == "table" else None
    univariate = Affine(scale, placement)
    map, parameters = univariate.words, [part] * univariate.count
    rebuild = univariate.reads(inverse).output

    def run() -> None:
        z, found = affine(x, parameters, place, (begin, step, count), inverse, map)
        affine_gradients(z, found, x, parameters, place, (begin, step, count), rebuild, inverse, map)

    label = f"{dtype}, {width} features, {features}, {scale} {placement}{', inverse' if inverse else ''}"
    return record(run, label, dtype=dtype, family="rows", gathered="yes" if features in ("alternating", "table") else "no")


def reduction_launches(dtype: str, width: int) -> list[Launch]:
    """The row reductions."""
    x = torch.zeros(64, width, dtype=DTYPES[dtype])

    def run() -> None:
        log_det(x)
        normal_log_prob(x, x[:, 0])

    return record(run, f"{dtype}, {width} features", dtype=dtype, family="rows", gathered="no")


def norm_launches(dtype: str, channels: int, pixels: int, inverse: bool) -> list[Launch]:
    """Forward and backward of the activation normalisation of images."""
    x = torch.empty(64, channels, pixels, dtype=DTYPES[dtype], device="meta")

    def run() -> None:
        z, found = actnorm(x, x[0, :, 0], x[0, :, 0], inverse)
        actnorm_gradients(z, found, x, x[0, :, 0], x[0, :, 0], inverse)

    label = f"{dtype}, {channels} channels of {pixels} pixels{', inverse' if inverse else ''}"
    return record(run, label, dtype=dtype, family="rows", gathered="no")


def system_launches(dtype: str, channels: int, pixels: int) -> list[Launch]:
    """The triangular systems of an inverse 1x1 convolution, and those of its gradient."""
    x = torch.empty(64, channels, pixels, dtype=DTYPES[dtype], device="meta")
    matrix = x.new_empty(channels, channels)
    given = matrix, matrix, matrix[0], torch.empty(channels, dtype=torch.int64, device="meta"), matrix[0], True

    def run() -> None:
        z, found = invertible_conv1x1(x, *given)
        invertible_conv1x1_gradients(z, found, z, *given)

    return record(run, f"{dtype}, {channels} channels of {pixels} pixels", dtype=dtype, family="systems")


def mixture_launches(
    dtype: str, components: int, levels: int, log_scale_min: float, keep: bool, gaussian: bool = False
) -> list[Launch]:
    """Log-probabilities, with their derivatives where they are kept, and samples."""
    x = torch.zeros(64, 64, dtype=DTYPES[dtype])
    parts = [torch.zeros(64, 64, components, dtype=DTYPES[dtype]) for _ in range(4)]

    def run() -> None:
        logistic_mixture(x, *parts[:3], levels, log_scale_min, gaussian, keep)
        if not gaussian:
            logistic_mixture_sample(x, *parts, levels, log_scale_min)

    kind = "Gaussians" if gaussian else f"{levels} levels" if levels else "densities"
    label = f"{dtype}, {components} components, {kind}, log-scales from {log_scale_min}"
    return record(run, f"{label}{'' if keep else ', nothing kept'}", dtype=dtype, family="mixtures")


def spline_launches(dtype: str, bins: int, tails: str, kind: str, inverse: bool) -> list[Launch]:
    """Forward and backward of splines with parameters of their own."""
    map: RationalLinear | RationalQuadratic
    if kind == "rational-linear":  # which has linear tails only
        map, tails, lambdas = RationalLinear(bins), "linear", [bins]
    else:
        map, lambdas = RationalQuadratic(bins, tails=tails, parametrization=kind), []
    x = torch.zeros(4096, dtype=DTYPES[dtype])
    parameters = [x.new_zeros(4096, n) for n in (bins, bins, map.derivatives, *lambdas)]

    def run() -> None:
        spline(x, parameters, inverse, map.words)
        spline_gradients(x, x, x, parameters, inverse, map.words)

    label = f"{dtype}, {bins} bins, {tails}, {kind}{', inverse' if inverse else ''}"
    return record(run, label, dtype=dtype, family="splines")


def spline_row_launches(dtype: str, map: UnivariateMap, inverse: bool) -> list[Launch]:
    """Forward and backward of splines of rows, whose parameters a thread holds."""
    x = torch.zeros(64, 64, dtype=DTYPES[dtype])
    parameters = [x] * map.count

    def run() -> None:
        z, found = affine(x, parameters, None, (0, 0, 0), inverse, map.words)
        affine_gradients(z, found, x, parameters, None, (0, 0, 0), False, inverse, map.words)

    label = f"{dtype}, rows of {map.family.replace('_', '-')} splines, {map.options[0]} bins{', inverse' if inverse else ''}"
    return record(run, label, dtype=dtype, family="splines")


def layer_launches(dtype: str, width: int, taps: int, channels: int) -> list[Launch]:
    """Forward and backward of a layer of a WaveNet."""
    x = torch.empty(2, width, 256, dtype=DTYPES[dtype], device="meta")
    shapes = (2 * width, width, taps), (2 * width,), (width, width), (width,), (2 * width, width), (2 * width,)
    weights = [x.new_empty(shape) for shape in shapes]
    given = (x.new_empty(2, channels, 256), x.new_empty(2 * width, channels)) if channels else (None, None)
    numbers = 4, "tf32" if dtype == "tf32" else "ieee"

    def run() -> None:
        y, skips = wavenet_layer(x, None, *weights, *given, *numbers)
        wavenet_layer(x, skips, *weights, *given, *numbers)
        needed = *weights[:3], weights[4], *given
        wavenet_layer_gradients(y, skips, x, *needed, *numbers, True, True, channels > 0)

    label = f"{dtype}, {width} channels, {taps} taps, condition of {channels}"
    return record(run, label, dtype=dtype, family="network")


def convolution_launches(dtype: str, width: int, taps: int, groups: int) -> list[Launch]:
    """Forward and backward of a causal convolution; of fewer channels than groups, a depthwise one."""
    x = torch.empty(2, width, 256, dtype=DTYPES[dtype], device="meta")
    weight, numbers = x.new_empty(width, max(width // groups, 1), taps), (4, min(groups, width))
    precision = "tf32" if dtype == "tf32" else "ieee"

    def run() -> None:
        y = causal_conv1d(x, weight, weight[:, 0, 0], *numbers, precision)
        causal_conv1d_gradients(y, x, weight, *numbers, precision, True, True, True)

    label = f"{dtype}, {width} channels, {taps} taps, {groups} groups"
    return record(run, label, dtype=dtype, family="network")


NETWORKS = [
    ("autoregressive", "masked_mlp"),
    tuple(DTYPES),
    (0, 48, 256),
    ACTIVATIONS,
    (*SCALES, *COVERED_SPLINES),
    PLACEMENTS,
    tuple(STRUCTURES),
    (True, False),
]
CHAIN_NETWORKS = [CHAINS, NETWORKS[1], (0, 48, 128), *NETWORKS[3:]]
ROW_DTYPES = tuple(d for d in DTYPES if d not in ("tf32", "autocast"))
LAYERS = [tuple(d for d in DTYPES if d != "autocast"), (1, 64, 512), (1, 2, 3), (0, 80)]
CONVOLUTIONS = [*LAYERS[:3], (1, 4)]
MIXTURES = [ROW_DTYPES, (1, 5, 10, 32, 100), (0, 2, 256, 65536), (-math.inf, -7.0), (True, False)]
SPLINES = [ROW_DTYPES, (2, 8, 10, 32), TAILS, (*PARAMETRIZATIONS, "rational-linear"), (False, True)]
ROWS = [ROW_DTYPES, (1, 8, 64, 1000, 65536), SCALES, PLACEMENTS, (False, True), tuple(FEATURES)]
SYSTEMS = [("float32", "float64"), (1, 3, 48), (1, 16, 49, 4096)]
NORMS = [ROW_DTYPES, (1, 3, 48), (1, 16, 49, 4096), (False, True)]


Job = tuple[Launch, Architecture]


def cover(strength: int) -> Iterator[Job]:
    """Configurations in which every combination of ``strength`` choices occurs, the architecture being one of them.

    Of 1, those of the configurations for pairs that are the first to show some choice, or some launch of a call, to a kernel:
    so each kernel meets each choice, at a fifth of the cost.
    """
    for make, choices in (
        (network_launches, NETWORKS),
        (chain_launches, CHAIN_NETWORKS),
        (row_launches, ROWS),
        (reduction_launches, ROWS[:2]),
        (norm_launches, NORMS),
        (system_launches, SYSTEMS),
        (mixture_launches, MIXTURES),
        (spline_launches, SPLINES),
        (layer_launches, LAYERS),
        (convolution_launches, CONVOLUTIONS),
    ):
        seen: set[Any] = set()
        for *case, architecture in AllPairs([*choices, ARCHITECTURES], n=min(max(strength, 2), len(choices))):
            calls: Counter[str] = Counter()
            for job in launched(architecture, make, *case):
                name = job[0].kernel.__name__
                shown = {(name, *fact) for fact in (*enumerate(case), ("on", architecture.name), ("launch", calls[name]))}
                calls[name] += 1
                if strength > 1 or not shown <= seen:
                    yield job
                seen |= shown
    for inverse, architecture in zip((False, True), (ARCHITECTURES[1], ARCHITECTURES[-1]), strict=True):  # they take long
        for map in (RationalQuadratic(4), RationalLinear(4)):
            yield from launched(architecture, spline_row_launches, "float32", map, inverse)


def launched(architecture: Architecture, make: Callable[..., list[Launch]], *case: Any) -> Iterator[Job]:
    """The launches of one configuration as an architecture would get them."""
    _launch.GPU = architecture.target.backend
    for launch in make(*case):
        yield launch, architecture


def listed() -> Iterator[Job]:
    """The configurations of docs/kernels.md, each for every architecture."""
    plain = "relu", "exp", "standardize", "plain"
    cases: list[tuple[Any, ...]] = [
        (network_launches, "autoregressive", dtype, width, *plain, True) for dtype in DTYPES for width in (48, 256)
    ]
    cases.append((network_launches, "autoregressive", "tf32", 256, *plain, False))
    cases.append((network_launches, "masked_mlp", "tf32", 256, "silu", "none", "standardize", "residual", True))
    splines = [("relu", kind, "", "plain") for kind in NETWORK_SPLINES]
    cases += [(network_launches, "autoregressive", dtype, 256, *splines[0], True) for dtype in DTYPES]
    cases += [(network_launches, "autoregressive", "tf32", 256, *kind, True) for kind in splines[1:]]
    cases.append((chain_launches, CHAINS[1], "tf32", 128, *splines[0], True))
    exact = ("float32", "tf32", "float64")  # the others take chains with elementwise steps one by one
    cases += [(chain_launches, CHAINS[dtype in exact], dtype, 128, *plain, True) for dtype in DTYPES]
    cases.append((chain_launches, CHAINS[1], "tf32", 128, *plain[:3], "context", True))
    cases.append((chain_launches, CHAINS[1], "tf32", 128, *plain, False))
    cases += [(row_launches, dtype, 64, "exp", "standardize", False, "all") for dtype in ROW_DTYPES]
    cases.append((row_launches, "float32", 64, "sigmoid", "gate", False, "all"))
    cases += [(row_launches, "float32", 64, "exp", "scale_shift", False, f) for f in ("half", "alternating", "table")]
    cases += [(row_launches, "float32", 65536, "exp", "standardize", False, "all"), (reduction_launches, "float32", 64)]
    cases += [(norm_launches, dtype, 48, 16, False) for dtype in ROW_DTYPES]
    cases += [(norm_launches, "float32", *size, False) for size in ((3, 1024), (64, 1))]
    cases += [(system_launches, dtype, 48, 16) for dtype in SYSTEMS[0]]
    cases += [(mixture_launches, dtype, 10, 65536, -14.0, True) for dtype in ROW_DTYPES]
    cases += [(mixture_launches, "float32", 10, 65536, -14.0, False), (mixture_launches, "float32", 10, 0, -math.inf, True)]
    cases += [(mixture_launches, "float32", 10, 0, -math.inf, True, True)]
    cases += [(layer_launches, dtype, 64, 2, 80) for dtype in LAYERS[0]]
    cases += [(convolution_launches, dtype, 64, 3, groups) for dtype in ("float32", "tf32", "bfloat16") for groups in (1, 4)]
    for case, architecture in product(cases, ARCHITECTURES):
        yield from launched(architecture, *case)


# -- what the compilers say -------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """Resources and instructions of one compiled kernel."""

    label: str
    facts: dict[str, str]
    architecture: str
    registers: int
    stack: int
    shared: int
    shared_limit: int
    warps: int
    occupancy: int
    matrix: dict[str, int]
    wide: int  # global loads and stores of 16 bytes
    global_accesses: int


MATRIX = r"\b(HGMMA|UTC\w*MMA|HMMA|DMMA|v_mfma\w*)"
CUDA_GLOBAL, AMD_GLOBAL = r"(?:LDG|STG|LDGSTS)\.E", r"(?:global|buffer)_(?:load|store)_"
WIDE = rf"(?:{CUDA_GLOBAL}(?:\.\w+)*\.128|{AMD_GLOBAL}dwordx4)"
ANY_GLOBAL = rf"(?:{CUDA_GLOBAL}|{AMD_GLOBAL})"


def compile_one(index: int) -> Finding:
    """Compiles one job of the parent process's list."""
    launch, architecture = _jobs[index]
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    try:
        compiled = triton.compile(source, target=architecture.target, options=launch.options)
    except Exception as error:
        raise RuntimeError(f"{launch.kernel.__name__} ({launch.label}) on {architecture.name}") from error
    if architecture.target.backend == "cuda":
        registers, stack, text = registers_of(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        registers = metadata(text, "vgpr_count")
        stack = metadata(text, "private_segment_fixed_size")  # registers may be kept in accumulation registers at no cost
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    matrix: dict[str, int] = {}
    for name in re.findall(MATRIX, text):
        name = "MFMA" if name.startswith("v_") else name
        matrix[name] = matrix.get(name, 0) + 1
    return Finding(
        launch.label, launch.facts, architecture.name, registers, stack, shared, architecture.shared, warps,
        occupancy(architecture, registers, shared, warps), matrix,
        len(re.findall(WIDE, text)), len(re.findall(ANY_GLOBAL, text)),
    )  # fmt: skip


def registers_of(cubin: bytes) -> tuple[int, int, str]:
    """Registers per thread, bytes of stack, disassembly."""
    usage, sass = read_cubin(cubin, ("cuobjdump", "--dump-resource-usage"), ("nvdisasm",))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2]), sass


def metadata(text: str, name: str) -> int:
    """A number of a kernel's AMD metadata."""
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    assert found, name
    return int(found[1])


def occupancy(architecture: Architecture, registers: int, shared: int, warps: int) -> int:
    """Warps that a multiprocessor holds at a time, as registers and shared memory allow."""
    lanes = architecture.target.warp_size
    by_registers = architecture.registers // (max(-(-registers // 8) * 8, 8) * lanes * warps)
    by_shared = architecture.shared_all // (shared + 1024) if shared else architecture.warps
    return min(architecture.warps // warps, by_registers, by_shared) * warps


_jobs: list[Job] = []


def once(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, each kernel of the same types once."""
    return list({(launch.key, architecture.name): (launch, architecture) for launch, architecture in jobs}.values())


def findings(jobs: list[Job]) -> list[Finding]:
    """What the compilers say of each job."""
    _jobs[:] = jobs
    with ProcessPoolExecutor() as pool:
        return list(pool.map(compile_one, range(len(_jobs)), chunksize=4))


def faults(finding: Finding) -> list[str]:
    """What is wrong with a compiled kernel."""
    found = []
    if finding.stack:
        found.append(f"{finding.stack} bytes of stack")
    if finding.shared > finding.shared_limit:
        found.append(f"{finding.shared} bytes of shared memory, at most {finding.shared_limit}")
    low = finding.facts["dtype"] in ("tf32", "bfloat16", "float16", "autocast")
    product_kernel = finding.facts["family"] == "network" and finding.facts["kernel"] not in ("pack_kernel", "unpack_kernel")
    if low and product_kernel and not finding.matrix:
        found.append("no matrix instructions")
    facts = finding.facts
    moves_rows = facts["family"] == "rows" and facts["kernel"] != "actnorm_sums"  # which reads a little
    if moves_rows and facts["aligned"] == "yes" and facts["gathered"] == "no" and not finding.wide:
        found.append("no 16-byte loads and stores")
    return [f"{finding.facts['kernel']} on {finding.architecture} ({finding.label}): {fault}" for fault in found]


# -- the page ---------------------------------------------------------------------------------------------------------


def tables(jobs: Iterable[Job], found: list[Finding], page: str) -> str:
    """Markdown: one line per kernel and configuration, one column per architecture; what was not compiled, from a page."""
    names = [a.name for a in ARCHITECTURES]
    lines = ["| kernel | configuration | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    rows: dict[str, dict[str, str]] = {}
    for f in found:
        matrix = " ".join(f.matrix) or "-"
        cell = f"{f.registers} / {f.shared >> 10} / {f.occupancy} / {matrix}"
        rows.setdefault(row_of(f.facts, f.label), {})[f.architecture] = cell
    known = {line[: len(row)]: line for line in page.split("\n") for row in [" | ".join(line.split(" | ")[:2])]}
    for row in dict.fromkeys(row_of(launch.facts, launch.label) for launch, _ in jobs):
        if row in rows:
            cells = (rows[row].get(name, "") for name in names)  # none where it is the same kernel as another row's
            lines.append(f"{row} | {' | '.join(cells)} |")
        elif row in known:
            lines.append(known[row])
        else:
            raise KeyError(f"{PAGE.name} has no row {row!r}: compile its kernel as well")
    return "\n".join(lines)


def row_of(facts: dict[str, str], label: str) -> str:
    """How a line of the table begins."""
    return f"| {facts['kernel']} | {label}"


# Bytes per second of a device copy and operations per second of matrix products: the H200's measured (docs/measured.md)
# but for tf32, the others' from their data sheets.
CARDS = {
    "H200": {"bytes": 4.3e12, "tf32": 495e12, "bfloat16": 790e12},
    "A100": {"bytes": 2.0e12, "tf32": 156e12, "bfloat16": 312e12},
    "L4": {"bytes": 0.3e12, "tf32": 60e12, "bfloat16": 121e12},
}
LAUNCH = 3.0  # microseconds
FLOWS: list[tuple[int, int, int, str, UnivariateMap]] = [
    (64, 512, 4096, "tf32", Affine()),
    (64, 512, 65536, "bfloat16", Affine()),
    (8, 128, 1024, "tf32", Affine()),
    (64, 512, 4096, "tf32", RationalQuadratic(8)),
]


def floors() -> str:
    """Markdown: bytes that must move, operations, the least time that they take on some cards, and what to expect of one."""
    heads = [*(f"{card}, us" for card in CARDS), "H200 expected, us"]
    lines = ["| work | kernel | MB | GFLOP | " + " | ".join(heads) + " |", "|---|---|---:|---:|" + "---:|" * len(heads)]
    for work, kernel, size, operations, rate in counted():
        times = [1e6 * max(size / card["bytes"], operations / card[rate]) for card in CARDS.values()]
        times.append(times[0] / (0.5 if operations else 0.85) + LAUNCH)
        cells = [work, kernel, f"{size / 1e6:,.1f}", f"{operations / 1e9:,.2f}", *(f"{t:,.1f}" for t in times)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def counted() -> Iterator[tuple[str, str, float, float, str]]:
    """Work, kernel, bytes, operations and the kind of its products."""
    _launch.GPU = "cuda"  # as all of the cards are
    for features, width, batch, dtype, map in FLOWS:
        plan = network(features, (width, width), map=map).plan
        config = network_of(plan, DTYPES[dtype], torch.device("cpu"), "tf32" if dtype == "tf32" else "ieee", map.words)
        host, e = config.host, DTYPES[dtype].itemsize
        products = 2.0 * batch * host.blocks * config.config.block**2
        ends = batch * (2 * features + 1) * 4  # x, z and log_det in float32
        kept, deltas, weights = batch * host.width * e, batch * host.all_width * e, len(host.gathered) * e
        splines = "" if isinstance(map, Affine) else f", {map.options[0]} bins"
        work = f"one transform, D={features}, {width}x2{splines}, B={batch}, {dtype}"
        yield work, "forward, nothing kept", ends + weights, products, dtype
        yield work, "forward", ends + kept + weights, products, dtype
        yield work, "backward, rows", 2 * ends + kept + deltas + weights, products, dtype
        yield work, "backward, weights", kept + deltas + weights, products, dtype
    matrix = (256 << 20) / 3  # three float32 inputs of 256 MB together
    for operator, forward, backward in (("affine, iaf_step", 4, 7), ("coupling of one half", 3, 5)):
        yield f"{operator}, 256 MB of inputs", "forward", forward * matrix, 0, "tf32"
        yield f"{operator}, 256 MB of inputs", "backward", backward * matrix, 0, "tf32"
    yield "actnorm, 256 MB of images", "forward", 2 * (256 << 20), 0, "tf32"
    yield "actnorm, 256 MB of images", "backward", 3 * (256 << 20), 0, "tf32"
    yield "log_det, normal_log_prob, 256 MB", "forward", 256 << 20, 0, "tf32"
    element = (256 << 20) / 30  # 10 components in float32, 256 MB of parameters
    for work, numbers in (("forward, nothing kept", 32), ("forward", 62), ("backward", 61)):
        yield "logistic_mixture, 256 MB of parameters", work, numbers * element, 0, "tf32"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cover", type=int, choices=(1, 2, 3), help="configurations that cover every choice, pair or triple of them"
    )
    parser.add_argument("--json", action="store_true", help="print findings and faults as JSON")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--only", metavar="REGEX", default="", help="configurations with a kernel or words that match")
    options = parser.parse_args()
    if _launch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: there is nothing to compile")
    jobs = once(cover(options.cover) if options.cover else listed())
    found = findings([job for job in jobs if re.search(options.only, row_of(job[0].facts, job[0].label))])
    wrong = [fault for f in found for fault in faults(f)]
    if options.json:
        print(json.dumps({"compiled": len(found), "faults": wrong, "findings": [asdict(f) for f in found]}))
        return 0
    page = PAGE.read_text()
    text = tables(jobs, found, page)
    if options.write:
        PAGE.write_text(put(put(page, "resources", text), "floors", floors()))
    print(text, *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
