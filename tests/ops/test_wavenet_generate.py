"""The sampling loop of a WaveNet: it draws what the network's forward pass gives, in pieces of any length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import check_rule, using
from torch import Tensor
from wavenets import cast

import flowkern as fk
from flowkern.ops import WaveNetState
from flowkern.reference import wavenet_outputs
from flowkern.reference.wavenet_generate import sample_of

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
NO_LIMITS: dict[str, Any] = {"levels": None, "log_scale_min": -torch.inf, "bound": torch.inf}


@dataclass(frozen=True)
class Case:
    """A network, and how it is called."""

    widths: tuple[int, int, int, int, int]  # outputs, residual, gate, skip, hidden
    dilations: tuple[int, ...]
    rows: int
    taps: tuple[int, ...] = (2,)  # of the layers, over and over
    channels: int = 0  # of the condition
    per_row: bool = False  # whether each row has its own gate biases
    output: str = "categorical"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def all_taps(self) -> list[int]:
        return [self.taps[layer % len(self.taps)] for layer in range(len(self.dilations))]

    @property
    def lengths(self) -> list[int]:
        return [(taps - 1) * dilation for taps, dilation in zip(self.all_taps, self.dilations, strict=True)]

    @property
    def called(self) -> dict[str, Any]:
        return {"output": self.output, **dict(self.options)}


SMALL = Case((5, 3, 2, 4, 6), (1, 2), 2)
SEVERAL_THREADS = Case((256, 64, 64, 64, 64), (1, 2, 4, 8, 16, 32, 64), 1)
WIDE_SKIPS = Case((32, 32, 32, 512, 32), (1, 2, 4, 8, 16, 1, 2, 4, 8), 1)
MIXTURE = {"levels": 256, "log_scale_min": -4.0, "bound": 0.9}
CASES = {
    "small": SMALL,
    "one layer, one row": Case((16, 8, 8, 8, 8), (3,), 1),
    "whole vectors": Case((64, 16, 32, 64, 32), (1, 2, 4, 8, 1, 2, 4, 8), 3),
    "odd, many rows": Case((33, 17, 19, 37, 35), (1, 5, 2), 19),
    "several threads": SEVERAL_THREADS,
    "one tap": Case((7, 5, 4, 6, 3), (1, 3), 2, taps=(1,)),
    "three taps": Case((7, 5, 4, 6, 3), (1, 3, 2), 2, taps=(3,)),
    "every number of taps": Case((18, 17, 19, 21, 20), (2, 1, 4, 3), 5, taps=(1, 4, 2)),
    "a condition": Case((9, 18, 17, 20, 33), (1, 2, 4), 4, channels=7),
    "gate biases of rows": Case((9, 18, 17, 20, 33), (1, 2, 4), 9, per_row=True),
    "logistics": Case((9, 17, 19, 37, 35), (1, 2, 4), 3, output="logistics"),
    "logistics of levels": Case((30, 16, 16, 32, 32), (1, 2, 4), 17, output="logistics", options=tuple(MIXTURE.items())),
    "one logistic, all at once": Case((3, 8, 9, 8, 7), (4, 1), 2, (3,), 5, True, "logistics", (("bound", 1.0),)),
    "gaussians": Case((9, 17, 19, 37, 35), (1, 2, 4), 10, output="gaussians", options=(("log_scale_min", -1.0),)),
    "gaussians, all at once": Case((6, 33, 20, 18, 16), (2, 7), 3, (3, 2), 6, True, "gaussians", (("bound", 0.7),)),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
OUTPUTS = pytest.mark.parametrize("case", [CASES["a condition"], CASES["logistics of levels"], CASES["gaussians, all at once"]])


def arguments(
    case: Case, time: int = 50, dtype: torch.dtype = torch.float64, stored: torch.dtype | None = None
) -> dict[str, Any]:
    """All arguments; of networks whose outputs are far enough apart to matter, with queues that are not zero."""
    outputs, residual, gate, skip, hidden = case.widths
    classes, components = case.output == "categorical", outputs // 3
    layers = [((2 * gate, residual, taps), (residual, gate), (skip, gate)) for taps in case.all_taps]
    shapes = [(outputs if classes else 1, residual), *(s for layer in layers for s in layer), (hidden, skip), (outputs, hidden)]
    conditions = [(2 * gate, case.channels)] * len(layers) if case.channels else []

    def weight(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape) / torch.tensor(shape[1:]).prod() ** 0.5

    weights = [weight(shape) for shape in shapes]
    weights[-1] *= 3 if classes else 1
    biases = [0.3 * torch.randn(residual), *(0.3 * torch.randn(shape[0]) for shape in shapes[1:])]
    if case.per_row:
        biases[1:-2:3] = [0.3 * torch.randn(case.rows, 2 * gate) for _ in layers]
    noise = torch.rand(case.rows, time, 1 if classes else components + 1)
    if not classes:
        noise = noise.clamp(1e-4, 1 - 1e-4)
    if case.output == "gaussians":
        noise[..., -1] = torch.randn(case.rows, time)
    previous = torch.arange(case.rows) % outputs if classes else torch.linspace(-0.5, 0.5, case.rows).to(dtype)
    condition = torch.randn(case.rows, case.channels, time).to(dtype) if case.channels else None
    kept = stored or dtype
    return {
        "noise": noise.to(dtype),
        "state": WaveNetState(previous, torch.randn(case.rows, sum(case.lengths), residual).to(dtype)),
        "weights": [w.to(kept) for w in weights],
        "biases": [b.to(dtype) for b in biases],
        "dilations": case.dilations,
        "condition": condition,
        "condition_weights": [weight(shape).to(kept) for shape in conditions],
        **case.called,
    }


def forward_pass(given: dict[str, Any], drawn: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The parameters (batch, time, outputs) of every sample, by the network's forward pass on those before it."""
    heard = torch.cat([given["state"].previous[:, None], drawn[:, :-1]], 1)
    names = "weights", "biases", "dilations", "condition", "condition_weights"
    return wavenet_outputs(heard, *(given[name] for name in names))


def queues_after(case: Case, read: list[Tensor]) -> Tensor:
    """The queues after a forward pass, of what the layers read in it."""
    padded = [F.pad(r, (0, 0, n, 0)) for r, n in zip(read, case.lengths, strict=True)]
    return torch.cat([p[:, p.shape[1] - n :] for p, n in zip(padded, case.lengths, strict=True)], 1)


def from_silence(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with queues as a forward pass has them: before the first time what each layer reads is zero."""
    return {**given, "state": given["state"]._replace(queues=torch.zeros_like(given["state"].queues))}


def same_samples(found: Tensor, expected: Tensor) -> None:
    if expected.is_floating_point():
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    else:
        assert torch.equal(found, expected)


@BACKENDS
@EACH_CASE
def test_it_draws_what_the_forward_pass_gives(backend: str, case: Case) -> None:
    time = 90
    given = from_silence(arguments(case, time))
    with using(backend):
        drawn, after = fk.ops.wavenet_generate(**given)
    parameters, read = forward_pass(given, drawn)
    options = {**NO_LIMITS, **case.called}
    expected = [sample_of(parameters[:, t], given["noise"][:, t], **options) for t in range(time)]
    same_samples(drawn, torch.stack(expected, 1))
    assert len(drawn.unique()) > min(4, case.widths[0] - 1)
    torch.testing.assert_close(after.queues, queues_after(case, read), rtol=1e-12, atol=1e-12)
    assert torch.equal(after.previous, drawn[:, -1])


@EACH_CASE
def test_it_draws_what_the_loop_in_pytorch_draws(case: Case) -> None:
    given = arguments(case, 60)
    found = fk.ops.wavenet_generate(**given)
    with fk.backend("reference"):
        expected = fk.ops.wavenet_generate(**given)
    same_samples(found[0], expected[0])
    same_samples(found[1].previous, expected[1].previous)
    torch.testing.assert_close(found[1].queues, expected[1].queues, rtol=1e-9, atol=1e-9)


@EACH_CASE
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_float32_and_weights_in_bfloat16(case: Case, stored: torch.dtype) -> None:
    """Numbers by the accuracy rule; classes by the float64 forward pass on what was drawn, to the rounding of float32."""
    if case.output != "categorical":
        check_rule(_few_times(case, stored), _evaluate, torch.float32, least=5)
        return
    given = from_silence(arguments(case, 60, torch.float32, stored))
    drawn, after = fk.ops.wavenet_generate(**given)
    parameters, read = forward_pass(cast(given, torch.float64), drawn)
    cumulative = F.pad(parameters.softmax(-1).cumsum(-1), (1, 0))
    below, above = (cumulative.gather(-1, drawn[..., None] + i) for i in (0, 1))
    edge = 1e-5
    assert ((below <= given["noise"] + edge) & (given["noise"] < above + edge)).all()
    torch.testing.assert_close(after.queues.double(), queues_after(case, read), rtol=1e-5, atol=1e-5)


def _few_times(case: Case, stored: torch.dtype) -> Iterator[dict[str, Any]]:
    """No rounding to levels, which would turn the last digits of a parameter into a level."""
    options = tuple((name, value) for name, value in case.options if name != "levels")
    wide = replace(case, rows=case.rows + 40, options=options)
    for seed in range(30):
        torch.manual_seed(seed)
        yield arguments(wide, 3, torch.float32, stored)


def _evaluate(given: dict[str, Any], dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    with using(backend):
        drawn, after = fk.ops.wavenet_generate(**(given if dtype is torch.float32 else cast(given, dtype)))
    return {"samples": drawn, "queues": after.queues}


@BACKENDS
def test_the_logits_by_hand(backend: str) -> None:
    """One channel: E = (1, -1), the first layer gates with tanh(h' + 2 h) sigmoid(0), the skip is u + 0.5."""
    one = torch.ones(1, 1)
    gate = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    weights = [torch.tensor([[1.0], [-1.0]]), gate, one, one, one, torch.tensor([[1.0], [0.0]])]
    biases = [torch.zeros(1), torch.zeros(2), torch.zeros(1), torch.tensor([0.5]), torch.zeros(1), torch.zeros(2)]
    u = 0.5 * torch.tanh(torch.tensor([2.0, 1.0 + 2.0]))  # the class before is 0 at both times
    logits, _ = wavenet_outputs(torch.zeros(1, 2, dtype=torch.long), weights, biases, [1])
    torch.testing.assert_close(logits[0], torch.stack([u + 0.5, torch.zeros(2)], 1))
    p = torch.sigmoid(u + 0.5)
    state = WaveNetState(torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, 1))
    for nudge, last in ((-1e-4, 0), (1e-4, 1)):
        with using(backend):
            uniform = (p + torch.tensor([-1e-4, nudge]))[None, :, None]
            drawn, _ = fk.ops.wavenet_generate(uniform, state, weights, biases, [1])
        assert drawn.tolist() == [[0, last]]


@BACKENDS
def test_numbers_by_hand(backend: str) -> None:
    """Two components and no layer that matters: all is in the last bias."""
    widths, zero = ((1, 1), (2, 1, 1), (1, 1), (1, 1), (1, 1), (6, 1)), torch.zeros(1)
    weights = [torch.zeros(shape) for shape in widths]
    logits, means, log_scales = [0.0, 1.0], [-0.25, 0.25], [-1.0, -9.0]
    biases = [zero, torch.zeros(2), zero, zero, zero, torch.tensor([*logits, *means, *log_scales])]
    state = WaveNetState(torch.zeros(1), torch.zeros(1, 0, 1))
    # The first component at the first two times, of which one is clamped; then the second, with the least scale.
    noise = torch.tensor([[[0.9, 0.1, 0.75], [0.9, 0.1, 0.999], [0.5, 0.5, 0.75]]])
    scales, odds = torch.tensor([-1.0, -1.0, -2.0]).exp(), (noise[0, :, 2] / (1 - noise[0, :, 2])).log()
    means_of = torch.tensor([-0.25, -0.25, 0.25])
    with using(backend):
        options: dict[str, Any] = {"log_scale_min": -2.0, "bound": 1.0}
        logistic, after = fk.ops.wavenet_generate(noise, state, weights, biases, [1], output="logistics", **options)
        level, _ = fk.ops.wavenet_generate(noise, state, weights, biases, [1], output="logistics", levels=5, **options)
        gaussian, _ = fk.ops.wavenet_generate(noise, state, weights, biases, [1], output="gaussians", **options)
    torch.testing.assert_close(logistic[0], (means_of + scales * odds).clamp(-1, 1))
    assert logistic[0, 1] == 1
    assert level.tolist() == [[0, 1, 0.5]]
    torch.testing.assert_close(gaussian[0], means_of + scales * noise[0, :, 2])
    assert torch.equal(after.previous, logistic[:, -1])


@BACKENDS
@EACH_CASE
@pytest.mark.parametrize("pieces", [[1] * 50, [0, 7, 1, 30, 0, 12], [49, 1]], ids=str)
def test_pieces_are_the_whole(backend: str, case: Case, pieces: list[int]) -> None:
    given = arguments(case)
    begin, condition = given["state"], given["condition"]
    before = begin.queues.clone()
    with using(backend):
        whole, end = fk.ops.wavenet_generate(**given)
        state, drawn = begin, []
        conditions = [None] * len(pieces) if condition is None else condition.split(pieces, 2)
        for noise, part in zip(given["noise"].split(pieces, 1), conditions, strict=True):
            samples, state = fk.ops.wavenet_generate(**{**given, "noise": noise, "condition": part, "state": state})
            drawn.append(samples)
    assert torch.equal(torch.cat(drawn, 1), whole)
    assert torch.equal(state.queues, end.queues)
    assert torch.equal(state.previous, end.previous)
    assert torch.equal(begin.queues, before)


@EACH_CASE
def test_strides_do_not_matter(case: Case) -> None:
    """Every tensor is every second element of a larger one, whose others are NaN."""

    def spread(t: Any) -> Any:
        if isinstance(t, list):
            return [spread(u) for u in t]
        if isinstance(t, WaveNetState):
            return WaveNetState(*map(spread, t))
        if not isinstance(t, Tensor):
            return t
        filler = torch.full_like(t, torch.nan if t.is_floating_point() else -1)
        return torch.stack([t, filler], -1)[..., 0]

    given = arguments(case, 10)
    found = fk.ops.wavenet_generate(**{name: spread(value) for name, value in given.items()})
    expected = fk.ops.wavenet_generate(**given)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].queues, expected[1].queues)


def on_threads(threads: int, call: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("case", "rows"), [*((SEVERAL_THREADS, rows) for rows in (1, 2, 6, 19)), (WIDE_SKIPS, 1)])
def test_any_number_of_threads_draws_the_same(stored: torch.dtype, case: Case, rows: int) -> None:
    """More threads than processors, too. Of few rows one thread computes the layers, of six all, of many each has its own.

    What else the one computes are products with the past, and of wide skips a part.
    """
    dtype = torch.float64 if stored is torch.float64 else torch.float32
    given = arguments(replace(case, rows=rows, channels=3), 300 // rows, dtype, stored)
    found = [on_threads(n, lambda: fk.ops.wavenet_generate(**given)) for n in (1, 2, 4, 2)]
    for drawn, after in found[1:]:
        assert torch.equal(drawn, found[0][0])
        assert torch.equal(after.queues, found[0][1].queues)


def test_two_generators_at_once_draw_what_each_draws_alone() -> None:
    given = [arguments(SEVERAL_THREADS, 400, torch.float32) for _ in range(2)]
    expected = [fk.ops.wavenet_generate(**g)[0] for g in given]
    found: list[Tensor | None] = [None, None]

    def generate(i: int) -> None:
        found[i] = on_threads(2, lambda: fk.ops.wavenet_generate(**given[i])[0])

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True) if f is not None)
    assert None not in found


@EACH_CASE
def test_priming_with_given_samples_continues_them(case: Case) -> None:
    """What the layers read in a forward pass is the state after it."""
    given = from_silence(arguments(case, 40))
    drawn, _ = fk.ops.wavenet_generate(**given)
    condition = given["condition"]
    first = {**given, "condition": None if condition is None else condition[..., :20]}
    _, read = forward_pass(first, drawn[:, :20])  # all that was read before the sample of time 20
    second = {**given, "noise": given["noise"][:, 20:], "state": WaveNetState(drawn[:, 19], queues_after(case, read))}
    second["condition"] = None if condition is None else condition[..., 20:]
    same_samples(fk.ops.wavenet_generate(**second)[0], drawn[:, 20:])


@BACKENDS
@OUTPUTS
def test_no_rows_and_no_times(backend: str, case: Case) -> None:
    never, nobody = arguments(case, 0), arguments(replace(case, rows=0), 7)
    with using(backend):
        none, after = fk.ops.wavenet_generate(**never)
        nothing, _ = fk.ops.wavenet_generate(**nobody)
    assert none.shape == (case.rows, 0)
    assert nothing.shape == (0, 7)
    assert none.dtype is nothing.dtype is never["state"].previous.dtype
    assert torch.equal(after.queues, never["state"].queues)
    assert torch.equal(after.previous, never["state"].previous)


@BACKENDS
def test_every_class_is_drawn_as_often_as_its_probability_says(backend: str) -> None:
    """Uniform numbers on a grid: the classes of one time are its probabilities; 0 and the number before 1 are the edges."""
    n = 1000
    given = from_silence(arguments(replace(SMALL, rows=n), 1))
    grid = torch.arange(n, dtype=torch.float64) / n
    grid[-1] = 1 - 2.0**-53
    state = given["state"]._replace(previous=torch.zeros(n, dtype=torch.long))
    given = {**given, "noise": grid[:, None, None], "state": state}
    with using(backend):
        drawn, _ = fk.ops.wavenet_generate(**given)
    p = forward_pass(given, drawn)[0][0, 0].softmax(-1)
    torch.testing.assert_close(drawn[:, 0].bincount(minlength=5) / n, p.float(), rtol=0, atol=2 / n)
    assert (drawn.diff(dim=0) >= 0).all()


def test_numbers_that_are_not_finite_draw_some_class() -> None:
    given = arguments(SMALL, 9, torch.float32)
    given["biases"][-1][2] = torch.nan
    drawn, _ = fk.ops.wavenet_generate(**given)
    assert ((drawn >= 0) & (drawn < 5)).all()


def changed(name: str, index: int, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Another tensor in a list of them."""
    return lambda a: {name: [*a[name][:index], change(a[name][index]), *a[name][index:][1:]]}


def state(**change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {"state": a["state"]._replace(**{k: f(getattr(a["state"], k)) for k, f in change.items()})}


Change = Callable[[dict[str, Any]], dict[str, Any]]
BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "no sequence": (lambda a: {"dilations": 3}, TypeError, r"dilations: expected a sequence .*, got 3"),
    "no dilations": (lambda a: {"dilations": []}, ValueError, "dilations: expected those of at least one layer"),
    "a dilation": (lambda a: {"dilations": (1, 0)}, ValueError, "dilations: expected a whole number of at least 1, got 0"),
    "output": (lambda a: {"output": "gaussian"}, ValueError, "output: expected one of categorical, logistics, gaussians"),
    "levels": (lambda a: {"levels": 1}, ValueError, "levels: expected a whole number of at least 2, got 1"),
    "levels of classes": (lambda a: {"levels": 256}, ValueError, "levels: expected None for categorical, got 256"),
    "log_scale_min": (lambda a: {"log_scale_min": torch.nan}, ValueError, "log_scale_min: expected a number, got nan"),
    "bound": (lambda a: {"bound": 0}, ValueError, "bound: expected a positive number, got 0"),
    "integers": (lambda a: {"noise": a["noise"].long()}, TypeError, "noise: expected a floating"),
    "half": (lambda a: {"noise": a["noise"].half()}, TypeError, r"noise: expected dtype torch\.float32 or torch\.float64"),
    "shape": (
        lambda a: {"noise": a["noise"][..., 0]},
        ValueError,
        r"noise: expected shape \(batch, time, 1\) for categorical, got \(2, 3\)",
    ),
    "weights": (lambda a: {"weights": a["weights"][1:]}, ValueError, "weights: expected 9 tensors for 2 layers, got 8"),
    "biases": (lambda a: {"biases": a["biases"][1:]}, ValueError, "biases: expected 9 tensors for 2 layers, got 8"),
    "dtype": (changed("weights", 0, Tensor.float), TypeError, r"weights\[0\]: expected dtype torch\.float64, since noise is"),
    "bfloat16": (
        lambda a: {"weights": [w.bfloat16() for w in a["weights"]]},
        TypeError,
        r"weights\[0\]: expected dtype torch\.float64, since noise is torch\.float64, got torch\.bfloat16",
    ),
    "another dtype": (
        changed("weights", 4, Tensor.float),
        TypeError,
        r"weights\[4\]: expected dtype torch\.float64 like weights\[0\]",
    ),
    "dtype of a bias": (
        changed("biases", 2, Tensor.float),
        TypeError,
        r"biases\[2\]: expected dtype torch\.float64 like noise",
    ),
    "no weight": (changed("weights", 0, lambda w: None), TypeError, r"weights\[0\]: expected a torch\.Tensor, got NoneType"),
    "no bias": (changed("biases", 3, lambda b: 0.0), TypeError, r"biases\[3\]: expected a torch\.Tensor, got float"),
    "a weight": (changed("weights", 5, Tensor.t), ValueError, r"weights\[5\]: expected shape \(3, 2\), got \(2, 3\)"),
    "dimensions": (
        changed("weights", 4, lambda w: w[..., 0]),
        ValueError,
        r"weights\[4\]: expected 3 dimensions, none of size 0, got \(4, 3\)",
    ),
    "no taps": (changed("weights", 1, lambda w: w[..., :0]), ValueError, r"weights\[1\]: expected 3 dimensions, none of"),
    "classes": (changed("weights", 0, lambda w: w[1:]), ValueError, r"weights\[0\]: expected shape \(5, 3\), got \(4, 3\)"),
    "a bias": (changed("biases", 0, lambda b: b[1:]), ValueError, r"biases\[0\]: expected shape \(3,\), got \(2,\)"),
    "biases of rows": (
        changed("biases", 4, lambda b: b.expand(3, -1)),
        ValueError,
        r"biases\[4\]: expected shape \(4,\) or \(2, 4\), got \(3, 4\)",
    ),
    "biases of rows elsewhere": (
        changed("biases", 2, lambda b: b.expand(2, -1)),
        ValueError,
        r"biases\[2\]: expected shape \(3,\)",
    ),
    "no state": (lambda a: {"state": tuple(a["state"])}, TypeError, "state: expected a WaveNetState, got tuple"),
    "queues": (
        state(queues=lambda q: q[:, 1:]),
        ValueError,
        r"state\.queues: expected shape \(2, 3, 3\), got \(2, 2, 3\)",
    ),
    "dtype of queues": (state(queues=Tensor.float), TypeError, r"state\.queues: expected dtype torch\.float64 like noise"),
    "previous": (
        state(previous=Tensor.int),
        ValueError,
        r"state\.previous: expected torch\.int64 of shape \(2,\), got torch\.int32 of shape \(2,\)",
    ),
    "a class that is none": (
        state(previous=lambda p: torch.tensor([0, 5])),
        ValueError,
        r"state\.previous: expected classes from 0 to 4, got \[0, 5\]",
    ),
    "weights of no condition": (
        lambda a: {"condition_weights": a["weights"][:1]},
        ValueError,
        "condition_weights: expected 0 tensors without a condition, got 1",
    ),
}
MIXED: dict[str, tuple[Change, type[Exception], str]] = {
    "previous": (
        state(previous=Tensor.long),
        ValueError,
        r"state\.previous: expected torch\.float64 of shape \(3,\), got torch\.int64",
    ),
    "numbers": (
        lambda a: {"noise": a["noise"][..., 1:]},
        ValueError,
        r"noise: expected shape \(batch, time, 3\) for gaussians, got \(3, 3, 2\)",
    ),
    "levels": (lambda a: {"levels": 256}, ValueError, "levels: expected None for gaussians, got 256"),
    "outputs": (
        changed("weights", -1, lambda w: w[:5]),
        ValueError,
        r"weights\[8\]: expected 3 outputs for each component, got 5",
    ),
    "embedding": (
        changed("weights", 0, lambda w: w.expand(6, -1)),
        ValueError,
        r"weights\[0\]: expected shape \(1, 33\), got \(6, 33\)",
    ),
    "condition": (
        lambda a: {"condition": a["condition"][..., 1:]},
        ValueError,
        r"condition: expected shape \(3, channels, 3\), got \(3, 6, 2\)",
    ),
    "dtype of the condition": (
        lambda a: {"condition": a["condition"].float()},
        TypeError,
        r"condition: expected dtype torch\.float64 like noise",
    ),
    "no condition": (lambda a: {"condition": 3.0}, TypeError, r"condition: expected a torch\.Tensor, got float"),
    "too few": (
        lambda a: {"condition_weights": a["condition_weights"][1:]},
        ValueError,
        "condition_weights: expected 2 tensors for 2 layers, got 1",
    ),
    "a condition's weight": (
        changed("condition_weights", 1, lambda w: w[:, 1:]),
        ValueError,
        r"condition_weights\[1\]: expected shape \(40, 6\), got \(40, 5\)",
    ),
    "a condition's dtype": (
        changed("condition_weights", 1, Tensor.bfloat16),
        TypeError,
        r"condition_weights\[1\]: expected dtype torch\.float64 like weights\[0\]",
    ),
}
EACH_BAD = [(SMALL, name, *bad) for name, bad in BAD.items()]
EACH_BAD += [(CASES["gaussians, all at once"], name, *bad) for name, bad in MIXED.items()]


@pytest.mark.parametrize(
    ("case", "change", "error", "message"),
    [(c, *bad) for c, _, *bad in EACH_BAD],
    ids=[f"{c.output}: {n}" for c, n, *_ in EACH_BAD],
)
def test_bad_arguments_are_named(case: Case, change: Change, error: type[Exception], message: str) -> None:
    given = arguments(case, 3)
    fk.ops.wavenet_generate(**given)
    with pytest.raises(error, match=message):
        fk.ops.wavenet_generate(**{**given, **change(given)})


@OUTPUTS
def test_it_is_registered(case: Case) -> None:
    given = arguments(case, 3)
    options = {**NO_LIMITS, **case.called}
    sampler = ["categorical", "logistics", "gaussians"].index(case.output), options["levels"] or 0
    network = given["weights"], given["biases"], list(case.dilations)
    condition = None if given["condition"] is None else given["condition"].mT.contiguous()
    called = (given["noise"], *given["state"], *network, condition, given["condition_weights"], *sampler)
    called = (*called, options["log_scale_min"], options["bound"])
    torch.library.opcheck(torch.ops.flowkern.wavenet_generate, called, test_utils=("test_schema", "test_faketensor"))
