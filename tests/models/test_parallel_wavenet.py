"""Parallel WaveNet's student: its density, its samples whole and in chunks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from audio_models import CONDITIONS, ROWS, given, seeded
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution, Uniform
from torch.distributions.transforms import SigmoidTransform

import flowkern as fk
from flowkern.models import ParallelWaveNet

EACH = pytest.mark.parametrize("conditions", CONDITIONS)
NOISES = pytest.mark.parametrize("noise", ["logistic", "gaussian"])
TIME = 26


def made(noise: str, conditions: str = "alone", **options: Any) -> ParallelWaveNet:
    """A small one in float64, whose flows do something."""
    sizes = {"layers": (2, 1, 3), "residual": 5, "skip": 6, "rate": 8000, **CONDITIONS[conditions]}
    model = ParallelWaveNet(TIME, **{**sizes, **options}, noise=noise).double()
    for flow in model.flows:
        flow.hidden.bias.data += 1
        flow.last.weight.data *= 2
        for layer in flow.layers:
            layer.skip.bias.data += 0.5
    return model


def base(noise: str, time: int) -> Any:
    """The law of the noise, of torch's own."""
    zero = torch.zeros(time, dtype=torch.float64)
    if noise == "gaussian":
        return Independent(Normal(zero, zero + 1, validate_args=False), 1)
    return Independent(TransformedDistribution(Uniform(zero, zero + 1), [SigmoidTransform().inv]), 1)


@NOISES
@EACH
def test_the_density_by_the_whole_jacobian(noise: str, conditions: str) -> None:
    model, time = made(noise, conditions), 12
    c, z = given(model, time), torch.randn(ROWS, time, dtype=torch.float64)
    one = [{name: value[i] for name, value in c.items()} for i in range(ROWS)]
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v, i=i: model.synthesize(v, **one[i]).x, z[i]) for i in range(ROWS)]
    )
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.tril(-1) != 0).any(0).sum() == time * (time - 1) / 2  # all within the receptive field
    expected = base(noise, time).log_prob(z) - torch.linalg.slogdet(jacobian)[1]
    found = model.synthesize(z, **c)
    torch.testing.assert_close(model.log_prob_of(found), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.log_prob(found.x, **c), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.x, z * found.log_scale.exp() + found.mean, rtol=1e-12, atol=1e-12)


@NOISES
def test_samples_with_their_log_prob(noise: str) -> None:
    model = made(noise, "both")
    c = given(model)
    x, log_prob = model.rsample_and_log_prob((2,), **c, generator=seeded())
    assert (x.shape, log_prob.shape) == ((2, ROWS, TIME), (2, ROWS))
    torch.testing.assert_close(model.log_prob(x, **c), log_prob)
    log_prob.sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())
    assert torch.equal(model.sample((2,), **c, generator=seeded()), x)
    drawn = model.sample((1000,), context=c["context"][0], local=c["local"][0], generator=seeded())
    assert drawn.shape == (1000, TIME)
    z = model._inverted(drawn[:, :6], model._given(c["context"][0], c["local"][0, :, :2], torch.Size((1000,))))[0]
    quantiles = base(noise, 6).base_dist.cdf(z).mean(0)
    torch.testing.assert_close(quantiles, torch.full((6,), 0.5).double(), atol=0.05, rtol=0)


@NOISES
def test_the_entropy(noise: str) -> None:
    """In closed form given the noise before; of whole sequences the mean of -log p."""
    model = made(noise)
    found = model.synthesize(model.noise_of(20_000, 5, seeded()))
    entropies, log_probs = model.entropy_of(found).sum(-1).detach(), model.log_prob_of(found).detach()
    error = float((entropies + log_probs).std()) / 20_000**0.5
    assert abs(float((entropies + log_probs).mean())) < 4 * error
    z = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    log_prob = model.law.log_prob(z)
    torch.testing.assert_close(log_prob.exp().sum() * (z[1] - z[0]), torch.tensor(1.0).double())
    entropy = -(log_prob.exp() * log_prob).sum() * (z[1] - z[0])
    torch.testing.assert_close(entropy, torch.tensor(model.law.entropy).double())


@NOISES
@EACH
@pytest.mark.parametrize("prime", [0, 9, 22])
def test_chunks(noise: str, conditions: str, prime: int) -> None:
    """Any size gives the same, also after audio from which the flows go on."""
    model = made(noise, conditions)
    c = given(model, 60)
    z = 0.8 * model.noise_of(ROWS, 60, seeded())
    whole = model.synthesize(z, **c).x.detach()
    options: dict[str, Any] = {**c, "temperature": 0.8, "generator": seeded(), "batch": ROWS}
    if prime:
        model.noise_of(ROWS, prime, options["generator"])
        options["prime"] = whole[:, :prime]
    state = options["generator"].get_state()
    for chunk in (1, 7, 200):
        options["generator"].set_state(state)
        chunks = list(model.stream(60 - prime, **options, chunk=chunk))
        assert [x.shape[1] for x in chunks] == [min(chunk, 60 - prime - i) for i in range(0, 60 - prime, chunk)]
        torch.testing.assert_close(torch.cat(chunks, 1), whole[:, prime:].clamp(-1, 1), rtol=1e-9, atol=1e-9)


@NOISES
def test_the_receptive_field(noise: str) -> None:
    model = made(noise)
    assert model.receptive_field == (1 + 2 * 3) + (1 + 2) + (1 + 2 * 7)
    z = torch.randn(8, 40, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(model.synthesize(z).x[:, 35].sum(), z)
    assert g.abs().sum(0).nonzero().flatten().tolist() == list(range(35 - 25, 36))


def test_the_flows_of_the_paper() -> None:
    model = ParallelWaveNet(100)
    assert [len(flow.layers) for flow in model.flows] == [10, 10, 10, 30]
    assert [flow.layers[-1].dilation for flow in model.flows] == [512] * 4
    assert model.flows[0].layers[0].gate.weight.shape == (128, 64, 3)
    drawn = model.sample((2,), generator=seeded())
    assert 0.02 < drawn.std() < 0.5  # of a new one


@NOISES
def test_dtypes_and_copies(noise: str, tmp_path: Path) -> None:
    exact = made(noise, "both")
    c = given(exact)
    z = exact.noise_of(ROWS, TIME)
    model, low = copy.deepcopy(exact).float().eval(), {name: value.float() for name, value in c.items()}
    expected = exact.synthesize(z, **c)
    torch.testing.assert_close(model.synthesize(z.float(), **low).x.double(), expected.x, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.synthesize(z.float(), **low)
        assert torch.equal(model.sample((), **low, generator=seeded()), model.sample((), **low, generator=seeded()))
    assert all(t.dtype is torch.float32 for t in found)
    torch.testing.assert_close(found.mean.double(), expected.mean, rtol=0.2, atol=0.2)
    half = copy.deepcopy(exact).bfloat16()
    assert half.sample((2,), c["context"].bfloat16(), c["local"]).dtype is torch.float32  # bfloat16 has 8 bits
    model.save_pretrained(tmp_path)
    for twin in (fk.Model.from_pretrained(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.sample((2,), **low, generator=seeded()), model.sample((2,), **low, generator=seeded()))
        assert (twin.rate, twin.config) == (8000, model.config)


def test_gradients_of_the_density_of_any_audio() -> None:
    model = made("logistic", layers=(1, 1), residual=2, skip=2)
    names = [name for name, _ in model.named_parameters()]

    def density(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(density, (x, *model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "layers: expected those of at least one flow, got none"),
        ({"layers": (3, 0)}, "layers: expected positive widths"),
        ({"noise": "uniform"}, "noise: expected one of logistic, gaussian, got 'uniform'"),
        ({"residual": 0}, "residual: expected"),
    ],
)
def test_models_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ParallelWaveNet(8, **{"layers": (1,), **options})


def test_noise_that_does_not_fit() -> None:
    model = made("logistic", "both")
    z, c = torch.zeros(ROWS, TIME).double(), given(model)
    with pytest.raises(ValueError, match=r"^z: expected shape \(..., time\)"):
        model.synthesize(z[:, :0], **c)
    with pytest.raises(TypeError, match=r"^z: expected dtype torch\.float64 like the parameters"):
        model.synthesize(z.float(), **c)
    with pytest.raises(ValueError, match=r"^local: this model takes 4 mel bands, got None"):
        model.synthesize(z, c["context"])
    with pytest.raises(ValueError, match=r"^z: expected batch shapes that broadcast"):
        model.synthesize(z[:2], **c)
