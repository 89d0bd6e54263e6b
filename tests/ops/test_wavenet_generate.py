"""The sampling loop of a WaveNet: it draws what the network's forward pass gives, in pieces of any length."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import using
from torch import Tensor

import flowkern as fk
from flowkern.ops import WaveNetState
from flowkern.reference import wavenet_logits
from flowkern.reference.wavenet_generate import inverse_transform

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
# classes, residual, gate, skip, hidden; dilations; rows
SIZES = {
    "small": ((5, 3, 2, 4, 6), (1, 2), 2),
    "one layer, one row": ((16, 8, 8, 8, 8), (3,), 1),
    "whole vectors": ((64, 16, 32, 64, 32), (1, 2, 4, 8, 1, 2, 4, 8), 3),
    "odd, many rows": ((33, 17, 19, 37, 35), (1, 5, 2), 19),
    "several threads": ((256, 64, 64, 64, 64), (1, 2, 4, 8, 16, 32, 64), 1),
}
EACH_SIZE = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def network(size: Any, dtype: torch.dtype = torch.float64, sharpness: float = 3.0) -> dict[str, Any]:
    """Weights, biases and dilations; the logits are far enough apart for the classes to matter."""
    (classes, residual, gate, skip, hidden), dilations, _ = size
    layer = [(2 * gate, residual, 2), (residual, gate), (skip, gate)]
    shapes = [(classes, residual), *len(dilations) * layer, (hidden, skip), (classes, hidden)]
    weights = [torch.randn(shape, dtype=torch.float64) / shape[1] ** 0.5 for shape in shapes]
    weights[-1] *= sharpness
    biases = [0.3 * torch.randn(shape[0], dtype=torch.float64) for shape in shapes[1:]]
    return {"weights": [w.to(dtype) for w in weights], "biases": [b.to(dtype) for b in biases], "dilations": dilations}


def beginning(size: Any, dtype: torch.dtype = torch.float64) -> WaveNetState:
    (classes, residual, *_), dilations, rows = size
    return WaveNetState(torch.arange(rows) % classes, torch.zeros(rows, sum(dilations), residual, dtype=dtype))


@BACKENDS
@EACH_SIZE
def test_it_draws_what_the_forward_pass_gives(backend: str, size: Any) -> None:
    net, state, time = network(size), beginning(size), 90
    uniform = torch.rand(size[2], time, dtype=torch.float64)
    with using(backend):
        drawn, after = fk.ops.wavenet_generate(uniform, state, **net)
    heard = torch.cat([state.previous[:, None], drawn[:, :-1]], 1)
    logits, read = wavenet_logits(heard, **net)
    expected = torch.stack([inverse_transform(logits[:, t], uniform[:, t]) for t in range(time)], 1)
    assert torch.equal(drawn, expected)
    assert len(drawn.unique()) > min(4, size[0][0] - 1)
    queues = [torch.nn.functional.pad(r, (0, 0, d, 0))[:, time : time + d] for r, d in zip(read, size[1], strict=True)]
    torch.testing.assert_close(after.queues, torch.cat(queues, 1), rtol=1e-12, atol=1e-12)
    assert torch.equal(after.previous, drawn[:, -1])


@EACH_SIZE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_draws_what_the_loop_in_pytorch_draws(size: Any, dtype: torch.dtype) -> None:
    net = network(size, dtype)
    begin = beginning(size, dtype)._replace(queues=torch.randn_like(beginning(size, dtype).queues))
    uniform = torch.rand(size[2], 60, dtype=dtype)
    found = fk.ops.wavenet_generate(uniform, begin, **net)
    with fk.backend("reference"):
        expected = fk.ops.wavenet_generate(uniform, begin, **net)
    if dtype is torch.float64:
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)
        return
    # Where a number lies on the edge of two classes rounding decides, and everything after it is another sequence.
    alike = (found[0] == expected[0]).cumprod(1)
    assert alike.sum() > 0.9 * alike.numel()


@BACKENDS
def test_the_logits_by_hand(backend: str) -> None:
    """One channel: E = (1, -1), the first layer gates with tanh(h' + 2 h) sigmoid(0), the skip is u + 0.5."""
    one = torch.ones(1, 1)
    gate = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    weights = [torch.tensor([[1.0], [-1.0]]), gate, one, one, one, torch.tensor([[1.0], [0.0]])]
    biases = [torch.zeros(2), torch.zeros(1), torch.tensor([0.5]), torch.zeros(1), torch.zeros(2)]
    u = 0.5 * torch.tanh(torch.tensor([2.0, 1.0 + 2.0]))  # the class before is 0 at both times
    logits, _ = wavenet_logits(torch.zeros(1, 2, dtype=torch.long), weights, biases, [1])
    torch.testing.assert_close(logits[0], torch.stack([u + 0.5, torch.zeros(2)], 1))
    p = torch.sigmoid(u + 0.5)
    state = WaveNetState(torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, 1))
    for nudge, last in ((-1e-4, 0), (1e-4, 1)):
        with using(backend):
            drawn, _ = fk.ops.wavenet_generate((p + torch.tensor([-1e-4, nudge]))[None], state, weights, biases, [1])
        assert drawn.tolist() == [[0, last]]


@BACKENDS
@pytest.mark.parametrize("size", [SIZES["small"], SIZES["odd, many rows"]])
@pytest.mark.parametrize("pieces", [[1] * 50, [0, 7, 1, 30, 0, 12], [49, 1]])
def test_pieces_are_the_whole(backend: str, size: Any, pieces: list[int]) -> None:
    net, begin = network(size), beginning(size)
    uniform = torch.rand(size[2], 50, dtype=torch.float64)
    with using(backend):
        whole, end = fk.ops.wavenet_generate(uniform, begin, **net)
        state, drawn = begin, []
        for piece in uniform.split(pieces, 1):
            classes, state = fk.ops.wavenet_generate(piece, state, **net)
            drawn.append(classes)
    assert torch.equal(torch.cat(drawn, 1), whole)
    assert torch.equal(state.queues, end.queues)
    assert torch.equal(state.previous, end.previous)
    assert (begin.queues == 0).all()


def on_threads(threads: int, call: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_threads_draws_the_same(dtype: torch.dtype) -> None:
    """More threads than processors, too."""
    size = SIZES["several threads"]
    net, state, uniform = network(size, dtype), beginning(size, dtype), torch.rand(1, 300, dtype=dtype)
    found = [on_threads(n, lambda: fk.ops.wavenet_generate(uniform, state, **net)) for n in (1, 2, 4, 2)]
    for drawn, after in found[1:]:
        assert torch.equal(drawn, found[0][0])
        assert torch.equal(after.queues, found[0][1].queues)


def test_two_generators_at_once_draw_what_each_draws_alone() -> None:
    size = SIZES["several threads"]
    net, state = network(size, torch.float32), beginning(size, torch.float32)
    uniform = torch.rand(2, 1, 400)
    expected = [fk.ops.wavenet_generate(u, state, **net)[0] for u in uniform]
    found: list[Tensor | None] = [None, None]

    def generate(i: int) -> None:
        found[i] = on_threads(2, lambda: fk.ops.wavenet_generate(uniform[i], state, **net)[0])

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True) if f is not None)
    assert None not in found


def test_priming_with_given_classes_continues_them() -> None:
    """What the layers read in a forward pass is the state after it."""
    size = SIZES["small"]
    net, begin = network(size), beginning(size)
    uniform = torch.rand(2, 40, dtype=torch.float64)
    drawn, _ = fk.ops.wavenet_generate(uniform, begin, **net)
    heard = torch.cat([begin.previous[:, None], drawn[:, :19]], 1)  # all that was read before the class of time 20
    _, read = wavenet_logits(heard, **net)
    state = WaveNetState(drawn[:, 19], torch.cat([r[:, -d:] for r, d in zip(read, size[1], strict=True)], 1))
    assert torch.equal(fk.ops.wavenet_generate(uniform[:, 20:], state, **net)[0], drawn[:, 20:])


@BACKENDS
def test_no_rows_and_no_times(backend: str) -> None:
    size = SIZES["small"]
    net, state = network(size), beginning(size)
    with using(backend):
        none, after = fk.ops.wavenet_generate(torch.zeros(2, 0, dtype=torch.float64), state, **net)
        empty = WaveNetState(state.previous[:0], state.queues[:0])
        nobody, _ = fk.ops.wavenet_generate(torch.zeros(0, 7, dtype=torch.float64), empty, **net)
    assert none.shape == (2, 0)
    assert nobody.shape == (0, 7)
    assert none.dtype is nobody.dtype is torch.int64
    assert torch.equal(after.queues, state.queues)
    assert torch.equal(after.previous, state.previous)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_class_is_drawn_as_often_as_its_probability_says(backend: str) -> None:
    """Uniform numbers on a grid: the classes of one time are its probabilities; 0 and the number before 1 are the edges."""
    size = SIZES["small"]
    n = 1000
    net = network((*size[:2], n))
    grid = (torch.arange(n, dtype=torch.float64) / n)[:, None]
    grid[-1] = 1 - 2.0**-53
    state = WaveNetState(torch.zeros(n, dtype=torch.long), torch.zeros(n, 3, 3, dtype=torch.float64))
    with using(backend):
        drawn, _ = fk.ops.wavenet_generate(grid, state, **net)
    p = wavenet_logits(state.previous[:1, None], **net)[0][0, 0].softmax(-1)
    torch.testing.assert_close(drawn[:, 0].bincount(minlength=5) / n, p.float(), rtol=0, atol=2 / n)
    assert (drawn.diff(dim=0) >= 0).all()


def test_numbers_that_are_not_finite_draw_some_class() -> None:
    size = SIZES["small"]
    net, state = network(size, torch.float32), beginning(size, torch.float32)
    net["biases"][-1][2] = torch.nan
    drawn, _ = fk.ops.wavenet_generate(torch.rand(2, 9), state, **net)
    assert ((drawn >= 0) & (drawn < 5)).all()


BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], type[Exception], str]] = {
    "no dilations": (lambda a: {"dilations": []}, ValueError, "dilations: expected those of at least one layer"),
    "a dilation": (lambda a: {"dilations": (1, 0)}, ValueError, "dilations: expected a whole number of at least 1, got 0"),
    "integers": (lambda a: {"uniform": a["uniform"].long()}, TypeError, "uniform: expected a floating"),
    "shape": (lambda a: {"uniform": a["uniform"][0]}, ValueError, r"uniform: expected shape \(batch, time\)"),
    "weights": (lambda a: {"weights": a["weights"][1:]}, ValueError, "weights: expected 9 tensors for 2 layers, got 8"),
    "biases": (lambda a: {"biases": a["biases"][1:]}, ValueError, "biases: expected 8 tensors for 2 layers, got 7"),
    "dtype": (lambda a: {"weights": [w.float() for w in a["weights"]]}, TypeError, r"weights\[0\]: expected dtype"),
    "no weight": (lambda a: {"weights": [None, *a["weights"][1:]]}, TypeError, r"weights\[0\]: expected a torch\.Tensor"),
    "a weight": (
        lambda a: {"weights": [*a["weights"][:5], a["weights"][5].t(), *a["weights"][6:]]},
        ValueError,
        r"weights\[5\]: expected shape \(3, 2\), got \(2, 3\)",
    ),
    "dimensions": (
        lambda a: {"weights": [a["weights"][0], a["weights"][2], *a["weights"][2:]]},
        ValueError,
        r"weights\[1\]: expected 3 dimensions, none of size 0",
    ),
    "a bias": (
        lambda a: {"biases": [a["biases"][0][:-1], *a["biases"][1:]]},
        ValueError,
        r"biases\[0\]: expected shape \(4,\), got \(3,\)",
    ),
    "no state": (lambda a: {"state": tuple(a["state"])}, TypeError, "state: expected a WaveNetState, got tuple"),
    "queues": (
        lambda a: {"state": a["state"]._replace(queues=a["state"].queues[:, 1:])},
        ValueError,
        r"state\.queues: expected shape \(2, 3, 3\), got \(2, 2, 3\)",
    ),
    "previous": (
        lambda a: {"state": a["state"]._replace(previous=a["state"].previous.int())},
        ValueError,
        r"state\.previous: expected torch\.int64 of shape \(2,\), got torch\.int32 of shape \(2,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    change, error, message = BAD[name]
    size = SIZES["small"]
    arguments = {"uniform": torch.rand(2, 3, dtype=torch.float64), "state": beginning(size), **network(size)}
    fk.ops.wavenet_generate(**arguments)
    with pytest.raises(error, match=message):
        fk.ops.wavenet_generate(**{**arguments, **change(arguments)})


def test_a_class_that_is_none_is_refused_before_anything_is_drawn() -> None:
    size = SIZES["small"]
    state = beginning(size)._replace(previous=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"state\.previous: expected classes from 0 to 4, got \[0, 5\]"):
        fk.ops.wavenet_generate(torch.rand(2, 3, dtype=torch.float64), state, **network(size))


def test_it_is_registered() -> None:
    size = SIZES["small"]
    net, state = network(size), beginning(size)
    arguments = torch.rand(2, 3, dtype=torch.float64), *state, net["weights"], net["biases"], list(net["dilations"])
    torch.library.opcheck(torch.ops.flowkern.wavenet_generate, arguments, test_utils=("test_schema", "test_faketensor"))
