"""Distillation: each loss against its definition, and a student that learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from audio_models import seeded
from torch import Tensor

import flowkern as fk
from flowkern.models import Distillation, ParallelWaveNet, WaveNet

KINDS = {  # output of the teacher, noise of the student
    "logistics, logistic": ("logistics", "logistic"),
    "logistics, gaussian": ("logistics", "gaussian"),
    "gaussian, logistic": ("gaussian", "logistic"),
    "gaussian, gaussian": ("gaussian", "gaussian"),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, time: int = 3, **options: Any) -> tuple[ParallelWaveNet, WaveNet]:
    """A student and a teacher of densities in float64, both far from constant."""
    output, noise = KINDS[kind]
    shared = {"residual": 4, "skip": 5, "rate": 8000, **options}
    teacher = WaveNet(time, output, levels=None, components=2, layers=2, **shared).double()
    teacher.network.last.bias.data[teacher.output.log_scales] = 0.0  # as wide as audio can be
    student = ParallelWaveNet(time, (1, 2), **shared, noise=noise).double()
    for network in (teacher.network, *student.flows):
        network.hidden.bias.data += 1
        network.last.weight.data *= 2
        for layer in network.layers:
            layer.skip.bias.data += 0.5
            for condition in (layer.context, layer.local):
                if condition is not None:
                    condition.weight.data *= 20
    return student, teacher


@EACH
def test_one_sample_by_numerical_integration(kind: str) -> None:
    """Of one sample nothing is before: the divergence of two known densities of a number."""
    student, teacher = pair(kind, 1)
    made = student.synthesize(torch.zeros(1, 1, dtype=torch.float64))
    mean, scale = made.mean.item(), made.log_scale.exp().item()
    x = mean + scale * torch.linspace(-45, 45, 100_001, dtype=torch.float64)[:, None]
    p = student.law.log_prob((x - mean) / scale) - math.log(scale)
    q = teacher.log_prob(x)[:, None]
    width = x[1] - x[0]
    expected = {"kl": (p.exp() * (p - q)).sum() * width, "cross_entropy": -(p.exp() * q).sum() * width}
    expected["entropy"] = -(p.exp() * p).sum() * width
    terms = Distillation(student, teacher, draws=4000, power=0.0).loss(torch.zeros(2, 1).double())
    names = ["kl", "regularisation"] if kind == "gaussian, gaussian" else ["kl", "cross_entropy", "entropy"]
    assert list(terms) == ["loss", *names]
    for name in set(names) - {"regularisation"}:
        torch.testing.assert_close(terms[name], expected[name].squeeze(), rtol=2e-3, atol=2e-3)


@EACH
def test_two_samples_by_numerical_integration(kind: str) -> None:
    """Over the noise of both, against the mean of many estimates."""
    student, teacher = pair(kind, 2)
    z = torch.cartesian_prod(*2 * [torch.linspace(-30, 30, 301, dtype=torch.float64)])
    weights = student.law.log_prob(z).sum(-1).exp() * 0.2**2
    made = student.synthesize(z)
    expected = (weights * (student.log_prob_of(made) - teacher.log_prob(made.x))).sum().detach()
    distillation = Distillation(student, teacher, draws=5, power=0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        found = torch.stack([distillation.loss(torch.zeros(500, 2).double())["kl"] for _ in range(40)]) * 2
    error = found.std() / 40**0.5
    assert abs(found.mean() - expected) < 4 * error
    assert error < 0.01 * expected


@EACH
def test_the_estimate_agrees_with_monte_carlo(kind: str) -> None:
    """Of whole sequences: the mean over samples of log p_S(x) - log p_T(x), by another way to the student's density."""
    student, teacher = pair(kind, 8)
    distillation = Distillation(student, teacher, draws=3, power=0.0)
    torch.manual_seed(2)
    with torch.no_grad():
        x = student.sample((3000,), generator=seeded(0))
        ratios = student.log_prob(x) - teacher.log_prob(x)
        found = torch.stack([distillation.loss(torch.zeros(200, 8).double())["kl"] for _ in range(20)]) * 8
    error = math.hypot(float(ratios.std()) / 3000**0.5, float(found.std()) / 20**0.5)
    assert abs(ratios.mean() - found.mean()) < 4 * error
    assert error < 0.1 * ratios.mean()


def test_more_draws_come_closer() -> None:
    student, teacher = pair("logistics, logistic", 4)
    made = student.synthesize(student.noise_of(1, 4, seeded(0)))
    given = teacher._given(None, None, torch.Size((1,)))
    spreads = []
    for draws in (1, 10):
        distillation = Distillation(student, teacher, draws=draws)
        with torch.no_grad():
            found = [distillation._divergence(made, given, distillation._fresh(made, None))["kl"] for _ in range(300)]
        spreads.append(torch.stack(found).std())
    assert spreads[1] < 0.4 * spreads[0]  # of independent draws 0.32


def test_clarinets_terms() -> None:
    """Both Gaussian: the formula of the paper, sample by sample, with log-deviations below -6 as -6 in the divergence."""
    student, teacher = pair("gaussian, gaussian", 6)
    with torch.no_grad():  # half of the log-deviations of each below -6
        teacher.network.last.bias[1] -= 6 + teacher.network(torch.zeros(1, 6).double())[..., 1].mean()
        made = student.synthesize(student.noise_of(50, 6, seeded(0)))
        student.flows[0].last.bias[1] -= 6 + made.log_scale.mean()
    distillation = Distillation(student, teacher, power=0.0).eval()
    terms = distillation.loss(torch.zeros(50, 6).double())
    made = student.synthesize(student.noise_of(50, 6, seeded(0)))
    heard = torch.cat([torch.zeros(50, 1).double(), made.x[:, :-1]], 1)
    m_p, l_p = teacher.network(heard).unbind(-1)
    below = [(log_std < -6).double().mean() for log_std in (l_p, made.log_scale)]
    assert all(0 < part < 1 for part in below)
    l_q, m_q = made.log_scale, made.mean
    s_p, s_q = l_p.clamp(min=-6).exp(), l_q.clamp(min=-6).exp()
    kl = (torch.log(s_p / s_q) + (s_q**2 - s_p**2 + (m_p - m_q) ** 2) / (2 * s_p**2)).mean()
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(terms["regularisation"], ((l_p.clamp(min=-9) - l_q) ** 2).mean())
    torch.testing.assert_close(terms["loss"], kl + 4 * terms["regularisation"])


def test_the_power_loss() -> None:
    """By the definition of the Fourier transform, of one window and of several."""
    for time in (12, 1300):
        student, teacher = pair("gaussian, gaussian", time)
        y = torch.randn(2, time, dtype=torch.float64)
        terms = Distillation(student, teacher, power=0.7).eval().loss(y)
        x = student.synthesize(student.noise_of(2, time, seeded(0))).x
        size = min(time, 1024)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(size).double() / size)
        transform = torch.exp(-2j * math.pi * torch.outer(torch.arange(size // 2 + 1), torch.arange(size)).double() / size)
        power = []
        for audio in (x, y):
            starts = range(0, time - size + 1, size // 4)
            frames = torch.stack([(window * audio[:, s : s + size]).to(transform.dtype) @ transform.T for s in starts])
            power.append(frames.abs().square().mean(0) / window.square().sum())
        expected = ((power[0] - power[1]) ** 2).mean()
        torch.testing.assert_close(terms["power"], expected)
        torch.testing.assert_close(terms["loss"], terms["kl"] + 4 * terms["regularisation"] + 0.7 * expected)


def conditions_of(model: ParallelWaveNet, batch: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Global and local, where the model has them."""
    return batch[1] if model.context else None, model.log_mel(batch[0]) if model.mels else None


@pytest.mark.parametrize("conditions", [{"context": 2}, {"mels": 3, "upsample": (2, 2)}], ids=["global", "local"])
@EACH
def test_the_contrastive_loss(kind: str, conditions: dict[str, Any]) -> None:
    """The student's divergence from what the teacher says under the conditions of another row."""
    student, teacher = pair(kind, 9, **conditions)
    loudness = torch.tensor([[1e-4], [1.0], [1e-2]], dtype=torch.float64)
    y, context = loudness * torch.randn(3, 9).double(), 3 * torch.randn(3, 2).double()
    batch = (y, context) if student.context else (y,)
    last, bends = teacher.network.last, teacher._parameters_of(*teacher._rows("x", y, *conditions_of(student, batch))[:2])
    last.weight.data *= 20  # the conditions matter much more, the mean of the parameters is what it was
    last.bias.data -= 19 * (bends - last.bias).detach().mean((0, 1))
    torch.manual_seed(3)
    distillation = Distillation(student, teacher, draws=2000, power=0.0, contrastive=0.3).eval()
    terms = distillation.loss(batch)
    c = conditions_of(student, batch)
    made = student.synthesize(student.noise_of(3, 9, seeded(0)), *c)
    for name, other in (("kl", c), ("contrastive", [None if part is None else part[[2, 0, 1]] for part in c])):
        p = teacher._parameters_of(*teacher._rows("x", made.x, *other)[:2])
        z = torch.linspace(-40, 40, 8001).double()[:, None, None]
        weight = student.law.log_prob(z).exp() * 0.01
        x = made.mean + made.log_scale.exp() * z
        cross_entropy = -(weight * teacher.output.log_density(x, p)).sum(0).mean()
        expected = cross_entropy - made.log_scale.mean() - student.law.entropy
        torch.testing.assert_close(terms[name], expected, rtol=5e-3, atol=5e-3)
    assert (terms["kl"] - terms["contrastive"]).abs() > 0.02 * terms["kl"]
    total = terms["kl"] - 0.3 * terms["contrastive"] + 4 * terms.get("regularisation", 0.0)
    torch.testing.assert_close(terms["loss"], total)
    alone = distillation.loss([part[:1] for part in batch])
    assert "contrastive" not in alone


def linear(network: fk.nn.WaveNet, taps: list[float], log_scale: float) -> None:
    """Makes a network of one layer and one channel give mean = sum of taps times what it hears, and a log-scale.

    tanh and relu are those of numbers so small, or so far from zero, that they are lines to all but 1e-9 of them.
    """
    small = 1e-4
    for p in network.parameters():
        p.data.zero_()
    network.embedding.data.fill_(1.0)
    layer = network.layers[0]
    layer.gate.weight.data[0, 0] = small * torch.tensor(taps, dtype=torch.float64)
    layer.skip.weight.data[0, 0] = 2 / small  # the other factor is sigmoid(0)
    layer.skip.bias.data.fill_(1000.0)
    network.hidden.weight.data[0, 0] = network.last.weight.data[0, 0] = 1.0
    network.last.bias.data[:] = torch.tensor([-1000.0, log_scale])


def test_a_linear_teacher_and_its_student_in_closed_form() -> None:
    """x_t = a x_{t-1} + s e_t is s e_t + sum_j a^j s e_{t-j}: of four samples, three taps are the whole of it."""
    a, log_scale = 0.6, -1.0
    teacher = WaveNet(4, "gaussian", layers=1, residual=1, skip=1, kernel=3).double()
    linear(teacher.network, [0.0, 0.0, a], log_scale)
    student = ParallelWaveNet(4, (1,), 1, 1, 3, noise="gaussian").double()
    s = math.exp(log_scale)
    linear(student.flows[0], [a**3 * s, a**2 * s, a * s], log_scale)
    covariance = torch.zeros(4, 4, dtype=torch.float64)
    mixing = torch.tensor([[s * a ** (i - j) if i >= j else 0.0 for j in range(4)] for i in range(4)], dtype=torch.float64)
    covariance = mixing @ mixing.T
    x = torch.randn(6, 4, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(x)
    torch.testing.assert_close(teacher.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(student.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    terms = Distillation(student, teacher, power=0.0).loss(x)
    assert abs(terms["kl"]) < 1e-7
    assert abs(terms["regularisation"]) < 1e-12
    terms["loss"].backward()
    assert all(p.grad.abs().max() < 1e-2 for p in (student.flows[0].last.weight, student.flows[0].last.bias))
    linear(student.flows[0], [0.0, a**2 * s, a * s], log_scale + 0.2)  # another: a known divergence of two Gaussians
    other = torch.tensor([[mixing[i, j] / s if 0 < i - j < 3 else 0.0 for j in range(4)] for i in range(4)]).double() * s
    other = other + torch.eye(4).double() * s * math.exp(0.2)
    known = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(torch.zeros(4).double(), other @ other.T),
        torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance),
    )
    with torch.no_grad():
        found = Distillation(student, teacher, power=0.0).loss(torch.zeros(200_000, 4).double())["kl"] * 4
    torch.testing.assert_close(found, known, rtol=5e-3, atol=0)


@EACH
def test_a_short_distillation(kind: str) -> None:
    """Trained by the loop of every model, the student comes nearer; the teacher stays as it was."""
    student, teacher = (model.float() for model in pair(kind, 16))
    distillation = Distillation(student, teacher, draws=4, power=0.0)
    before, held = copy.deepcopy(teacher.state_dict()), torch.zeros(400, 16)
    with torch.no_grad():
        first = distillation.eval().loss(held)["kl"]
    y = teacher.sample((64,), generator=seeded(0))
    history = distillation.fit(y, epochs=30, batch_size=64, learning_rate=0.03, progress=False)
    with torch.no_grad():
        last = distillation.eval().loss(held)["kl"]
    assert last < 0.1 * first
    assert history.validation[history.best] < history.validation[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_it_is_its_student(tmp_path: Path) -> None:
    student, teacher = pair("logistics, logistic", context=2)
    distillation = Distillation(student, teacher)
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    assert list(distillation.parameters()) == list(student.parameters())
    assert set(distillation.state_dict()) == {f"student.{name}" for name in student.state_dict()}
    assert distillation.train().student.training
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert (distillation.event_shape, distillation.conditional) == ((3,), True)
    assert torch.equal(distillation.log_prob(x, context), student.log_prob(x, context))
    drawn = distillation.sample((2,), context, generator=seeded(0))
    assert torch.equal(drawn, student.sample((2,), context, generator=seeded(0)))
    twin = copy.deepcopy(distillation)
    assert twin.teacher is not teacher
    distillation.float()
    assert {p.dtype for p in (*teacher.parameters(), *student.parameters())} == {torch.float32}
    distillation.save_pretrained(tmp_path)
    loaded = fk.Model.from_pretrained(tmp_path)
    assert type(loaded) is ParallelWaveNet
    x, context = x.float(), context.float()
    assert torch.equal(loaded.log_prob(x, context), student.eval().log_prob(x, context))
    again = Distillation(**distillation.config)
    assert torch.equal(again.eval().loss((x, context))["loss"], distillation.eval().loss((x, context))["loss"])
    assert not torch.equal(again.train().loss((x, context))["loss"], again.loss((x, context))["loss"])


@EACH
def test_gradients(kind: str) -> None:
    """Of every parameter, through the sample that the teacher hears too; as finite differences say."""
    student, teacher = pair(kind, 4, context=2)
    distillation = Distillation(student, teacher, draws=3, contrastive=0.2).eval()
    names = [name for name, _ in distillation.named_parameters()]
    batch = torch.randn(2, 4).double(), torch.randn(2, 2).double()

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = distillation

        def forward(self) -> Tensor:
            return self.model.loss(batch)["loss"]

    def loss(*parameters: Tensor) -> Tensor:
        named = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), named, ())

    assert torch.autograd.gradcheck(loss, tuple(distillation.parameters()), fast_mode=True)
    loss(*distillation.parameters()).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in distillation.parameters())


def test_under_autocast() -> None:
    student, teacher = (model.float() for model in pair("logistics, logistic", 30, mels=3, upsample=(2, 3)))
    distillation = Distillation(student, teacher, contrastive=0.3).eval()
    y = 0.3 * torch.randn(3, 30)
    expected = distillation.loss(y)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation.loss(y)
    found["loss"].backward()
    for name, term in found.items():
        assert term.dtype is torch.float32
        torch.testing.assert_close(term, expected[name], rtol=0.1, atol=0.1)


def test_pairs_that_do_not_fit() -> None:
    student, teacher = pair("logistics, logistic")
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: Distillation(teacher, student), TypeError, "student: expected a ParallelWaveNet, got WaveNet"),
        (lambda: Distillation(student, student), TypeError, "teacher: expected a WaveNet, got ParallelWaveNet"),
        (
            lambda: Distillation(student, WaveNet(3, layers=1, rate=8000)),
            ValueError,
            "teacher: expected an output with a density, logistics or gaussian, got categorical",
        ),
        (
            lambda: Distillation(student, WaveNet(3, "gaussian", layers=1)),
            ValueError,
            "student: expected rate 16000 like the teacher, got 8000",
        ),
        (
            lambda: Distillation(student, pair("logistics, logistic", context=2)[1]),
            ValueError,
            "student: expected context 2 like the teacher, got 0",
        ),
        (
            lambda: Distillation(
                pair("logistics, logistic", mels=2, upsample=(2,))[0],
                pair("logistics, logistic", mels=2, upsample=(2, 2))[1],
            ),
            ValueError,
            "student: expected frames of 4 samples like the teacher, got 2",
        ),
        (lambda: Distillation(copy.deepcopy(student).float(), teacher), TypeError, "student: expected dtype torch.float64"),
        (lambda: Distillation(student, teacher, draws=0), ValueError, "draws: expected"),
        (lambda: Distillation(student, teacher, power=-1.0), ValueError, "power: expected a number of at least 0"),
        (lambda: Distillation(student, teacher, contrastive="1"), ValueError, "contrastive: expected a number .*, got '1'"),
        (lambda: Distillation(student, teacher, contrastive=0.3), ValueError, "contrastive: the term compares conditions"),
        (lambda: Distillation(student, teacher).loss([torch.zeros(2, 3)] * 3), ValueError, "batch: expected x, "),
        (lambda: Distillation(student, teacher).loss(torch.zeros(2, 3)), TypeError, "x: expected dtype torch.float64"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=f"^{message}"):
            call()
