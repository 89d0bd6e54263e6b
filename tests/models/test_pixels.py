"""The autoregressive models of images: what a number sees, probabilities, generation, completion, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import flowkern as fk
from flowkern.models import MADE, PixelCNN, PixelRNN
from flowkern.models.pixels import PixelModel
from flowkern.nn import pixels

IMAGE = (3, 4, 5)
KINDS = {
    "diagonal": lambda *given, **more: PixelRNN(*given, **{"hidden": 12, "layers": 1, **more}),
    "row": lambda *given, **more: PixelRNN(*given, scan="row", **{"hidden": 12, "layers": 2, **more}),
    "plain": lambda *given, **more: PixelCNN(*given, **{"hidden": 12, "layers": 2, **more}),
    "gated": lambda *given, **more: PixelCNN(*given, gated=True, **{"hidden": 12, "layers": 1, **more}),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def model(kind: str, *given: Any, **more: Any) -> PixelModel:
    """One whose numbers depend strongly on each other, through ReLUs that are awake."""
    torch.manual_seed(0)
    made = KINDS[kind](*given, **more).double().eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.mul_(2).copy_(p.abs() if name.endswith("bias") else p)
    return made


def seen(made: PixelModel) -> Tensor:
    """Which numbers of an image (channels, height, width) the parameters of each of them depend on, by their gradients."""
    numbers = made.image.numel()
    x = torch.rand(16, *made.image, dtype=torch.float64, requires_grad=True)
    parameters = made.parameters_of(x).sum((0, -1)).flatten()
    rows = [torch.autograd.grad(p, x, retain_graph=True)[0].abs().sum(0).flatten() > 0 for p in parameters]
    return torch.stack(rows).reshape(numbers, *made.image)


def past(image: tuple[int, ...], blind: bool = False) -> Tensor:
    """All numbers before each one; but for those in the blind spot, beyond the first convolution's right and its diagonal."""
    numbers = list(itertools.product(*map(range, image)))

    def sees(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        (channel, row, column), (other, above, right) = a, b
        before = (above, right, other) < (row, column, channel)
        return before and not (blind and above < row and right - column > row - above + 2)

    return torch.tensor([[sees(a, b) for b in numbers] for a in numbers]).reshape(len(numbers), *image)


@EACH
def test_a_number_sees_nothing_that_follows_and_all_before_it_outside_of_a_blind_spot(kind: str) -> None:
    assert torch.equal(seen(model(kind, IMAGE)), past(IMAGE, blind=kind in ("row", "plain")))


def test_the_proof_finds_the_mistakes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirrored direction that is not shifted down sees the future; one that is not flipped back misses a part of the past."""
    image = 1, 3, 12  # wider than what the first convolution reaches
    made, everything = model("diagonal", image), past(image)
    assert torch.equal(seen(made), everything)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "shift_down", lambda x: x)
        assert (seen(made) & ~everything).any()
    scan = fk.ops.diagonal_lstm
    with monkeypatch.context() as patch:
        patch.setattr(fk.ops, "diagonal_lstm", lambda z, w, *, mirrored: scan(z.flip(-2) if mirrored else z, w))
        assert (everything & ~seen(made)).any()


@pytest.mark.parametrize("kind", [*KINDS, "made"])
def test_probabilities_of_all_binary_images_sum_to_one(kind: str) -> None:
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64)
    if kind == "made":  # averaged over several orders and masks
        torch.manual_seed(0)
        made: Any = MADE(9, "bernoulli", (16,), order="random", masks=3).double().eval()
        assert len({tuple(plan.feature_order.tolist()) for plan in made.network.plans}) == 3
    else:
        made, images = model(kind, (1, 3, 3)), images.reshape(-1, 1, 3, 3)
    log_prob = made.log_prob(images).detach()
    assert abs(float(torch.logsumexp(log_prob, 0))) < 1e-9
    assert log_prob.std() > 0.1


@EACH
def test_probabilities_of_all_coloured_images_sum_to_one(kind: str) -> None:
    images = torch.tensor(list(itertools.product(range(3), repeat=6))).reshape(-1, 3, 1, 2)
    assert abs(float(torch.logsumexp(model(kind, (3, 1, 2), 3).log_prob(images).detach(), 0))) < 1e-9


def uncached(made: PixelModel, x: Tensor, given: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Generation by a pass over the whole image for every number."""
    x = x.clone()
    channels, height, width = made.image
    for row, column, channel in itertools.product(range(height), range(width), range(channels)):
        if not given[channel, row, column]:
            parameters = made.parameters_of(x)[:, channel, row, column] / temperature
            x[:, channel, row, column] = made.head.sample(parameters, generator)
    return x


@EACH
@torch.no_grad()
def test_generation_pixel_by_pixel_is_generation_by_whole_passes(kind: str) -> None:
    made, nothing = model(kind, IMAGE, 5, layers=2), torch.zeros(IMAGE, dtype=torch.bool)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    drawn = made.sample((4,), generator=generator(), temperature=0.8)
    empty = torch.zeros(4, *IMAGE, dtype=torch.float64)
    assert torch.equal(drawn, uncached(made, empty, nothing, generator(), 0.8))
    assert len(drawn.unique()) == 5
    assert torch.equal(made.complete(drawn, nothing, generator=generator(), temperature=0.8), drawn)

    given = torch.rand(IMAGE, generator=generator()) < 0.5
    completed = made.complete(torch.where(given, drawn, -7), given, generator=generator())
    assert torch.equal(completed, uncached(made, torch.where(given, drawn, 0), given, generator()))
    assert torch.equal(completed[:, given], drawn[:, given])
    half = torch.arange(4)[:, None] < 2  # of all channels and columns
    assert torch.equal(made.complete(drawn, half, generator=generator())[..., :2, :], drawn[..., :2, :])
    assert made.complete(drawn[0], half).shape == IMAGE


@pytest.mark.parametrize("levels", [2, 5])
@EACH
def test_without_temperature_numbers_are_the_most_probable_ones(kind: str, levels: int) -> None:
    made = model(kind, (3, 2, 2), levels).half()
    drawn = made.sample((3,), temperature=0)
    parameters = made.parameters_of(drawn)
    assert torch.equal(drawn.long(), parameters.argmax(-1) if levels > 2 else (parameters[..., 0] > 0).long())
    assert torch.equal(made.sample((3,), temperature=1e-300), drawn)


@pytest.mark.parametrize("kind", ["row", "gated"])
def test_levels_that_the_weights_could_not_hold(kind: str) -> None:
    """bfloat16 has 8 bits, in which 401 is 400."""
    made = model(kind, (1, 2, 3), 600)
    x = torch.randint(300, (4, 1, 2, 3)) * 2 + 1
    expected, half = made.log_prob(x), made.bfloat16()
    torch.testing.assert_close(half.log_prob(x).double(), expected, rtol=1e-2, atol=0)
    assert (made.sample((50,)) % 2 == 1).float().mean() > 0.3
    assert torch.equal(made.complete(x, torch.tensor(True)), x)
    assert torch.equal(fk.models.Encoded(half, fk.data.Identity((1, 2, 3), 600)).encode(x)[0], x)


@pytest.mark.parametrize("kind", ["diagonal", "gated"])
def test_vectors_are_images_of_one_row(kind: str) -> None:
    vectors, images = model(kind, 6, 3), model(kind, (1, 1, 6), 3)
    x = torch.randint(2, (2, 4, 6)) > 0  # of any dtype
    torch.testing.assert_close(vectors.log_prob(x), images.log_prob(x[:, :, None, None]))
    assert vectors.sample((2, 3)).shape == (2, 3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., 1:], r"x: expected shape \(\.\.\., 3, 4, 5\), got \(2, 3, 4, 4\)"),
        (lambda x: x + 1, "x: expected whole numbers from 0 to 3, the support of Categorical, got 4 to 4"),
        (lambda x: x - 0.5, r"x: expected whole numbers from 0 to 3, the support of Categorical, got 2\.5 to 2\.5"),
        (lambda x: x * math.nan, "x: expected whole numbers from 0 to 3, the support of Categorical, got nan to nan"),
    ],
)
def test_images_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    made, x = PixelCNN(IMAGE, 4, hidden=3, layers=0), torch.full((2, *IMAGE), 3.0)
    for call in (made.log_prob, lambda wrong: made.complete(wrong, torch.ones(4, 5, dtype=torch.bool))):
        call(x)
        with pytest.raises(ValueError, match=f"^{message}$"):
            call(change(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PixelRNN(IMAGE, hidden=4), ValueError, "hidden: expected a multiple of the image's 3 channels, got 4"),
        (lambda: PixelRNN(IMAGE, hidden=3, scan="rows"), ValueError, "scan: expected one of diagonal, row, got 'rows'"),
        (lambda: PixelRNN(IMAGE, 1, hidden=3), ValueError, "levels: expected a whole number of at least 2, got 1"),
        (lambda: PixelCNN((4, 5)), ValueError, r"features: expected a number or a shape \(channels, height, width\), got"),
        (lambda: PixelCNN(IMAGE, hidden=3, kernel=4), ValueError, "kernel: expected odd numbers of rows and columns, got 4"),
        (lambda: small().sample((1,), temperature=-1), ValueError, "temperature: expected a number of at least 0, got -1"),
        (lambda: small().sample((1,), temperature="1"), ValueError, "temperature: expected a number of at least 0, got '1'"),
        (lambda: small().sample((1,), torch.zeros(2)), ValueError, "context: this model takes no context, got shape"),
        (lambda: small().complete(torch.zeros(4), torch.ones(4)), TypeError, r"mask: expected dtype torch\.bool, got"),
        (
            lambda: small().complete(torch.zeros(4), torch.ones(3, dtype=torch.bool)),
            ValueError,
            r"mask: expected a shape that broadcasts to \(4,\), got \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


def small() -> PixelCNN:
    return PixelCNN(4, hidden=1, layers=0)
