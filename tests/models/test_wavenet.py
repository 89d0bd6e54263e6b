"""WaveNet: what it draws is what it scores, from the past alone, in pieces of any size."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from audio_models import CONDITIONS, ROWS, given, seeded
from torch import Tensor

import flowkern as fk
from flowkern import nn as fnn
from flowkern.models import WaveNet
from flowkern.models.audio_outputs import MuLaw
from flowkern.nn.heads import uniform
from flowkern.nn.spectra import log_mel_spectrogram, power_spectrum
from flowkern.reference.wavenet_generate import sample_of

OUTPUTS: dict[str, dict[str, Any]] = {
    "categorical": {"output": "categorical", "categories": 32},
    "logistics, 16 bits": {"output": "logistics", "components": 3},
    "logistics": {"output": "logistics", "components": 3, "levels": None},
    "gaussian": {"output": "gaussian"},
}
EACH_OUTPUT = pytest.mark.parametrize("output", OUTPUTS)
EACH_CONDITION = pytest.mark.parametrize("conditions", CONDITIONS)
TIME = 40


def made(output: str, conditions: str = "alone", **options: Any) -> WaveNet:
    """A small one in float64, whose samples vary."""
    given = {"layers": 5, "cycle": 3, "residual": 5, "skip": 6, "rate": 8000, **OUTPUTS[output], **CONDITIONS[conditions]}
    model = WaveNet(TIME, **{**given, **options}).double()
    net = model.network
    net.hidden.bias.data += 1  # so that no path ends in units that are off
    for layer in net.layers:
        layer.skip.bias.data += 0.5
    net.last.weight.data *= 4
    silence = model._heard(torch.zeros(1, TIME, dtype=torch.float64))
    context, condition = torch.zeros(1, model.context).double(), torch.zeros(1, model.mels, TIME).double()
    usual = net(silence, context if model.context else None, condition if model.mels else None)
    net.last.bias.data -= usual.detach().mean((0, 1))
    if output != "categorical":
        net.last.bias.data[-net.last.out_features // (3 if output.startswith("logistics") else 2) :] -= 2  # log-scales
    return model


def teacher_forced(model: WaveNet, x: Tensor, conditions: dict[str, Tensor], temperature: float = 1.0) -> Tensor:
    """What the conditionals of one pass over x make of the random numbers of `seeded`."""
    rows, conditioned, _ = model._rows("x", x, conditions.get("context"), conditions.get("local"))
    p, output = model._parameters_of(rows, conditioned), model.output
    noise = output.random(uniform((x.shape[1], len(x), output.noise), x, seeded()).transpose(0, 1))
    identity = torch.eye(output.outputs, dtype=x.dtype)
    weight, bias = output.last_layer(identity, torch.zeros(len(identity), dtype=x.dtype), temperature)
    p, options = F.linear(p, weight, bias), output.options(temperature)
    numbers = {"levels": None, "bound": math.inf, "log_scale_min": -math.inf, **options}
    drawn = [sample_of(p[:, t], noise[:, t], **numbers) for t in range(x.shape[1])]
    return output.audio(torch.stack(drawn, 1), x.dtype)


@EACH_OUTPUT
@EACH_CONDITION
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_it_draws_what_one_pass_gives(output: str, conditions: str, kernel: int) -> None:
    model = made(output, conditions, kernel=kernel)
    c = given(model)
    drawn = model.sample((), **c, generator=seeded()) if c else model.sample((ROWS,), generator=seeded())
    expected = teacher_forced(model, drawn, c)
    torch.testing.assert_close(drawn, expected, rtol=1e-12, atol=1e-12)
    assert drawn.std() > 0.02
    assert drawn.abs().max() <= 1


@EACH_OUTPUT
@pytest.mark.parametrize("conditions", ["alone", "both"])
def test_it_draws_what_one_pass_gives_in_float32(output: str, conditions: str) -> None:
    """To rounding, which now and then decides between two classes or levels."""
    model = made(output, conditions).float()
    c = {name: value.float() for name, value in given(model).items()}
    drawn = model.sample((4,), **c, generator=seeded()) if c else model.sample((12,), generator=seeded())
    drawn = drawn.reshape(-1, TIME)
    expected = teacher_forced(model, drawn, {name: value.repeat(4, *[1] * (value.dim() - 1)) for name, value in c.items()})
    if output == "categorical":
        assert (drawn == expected).double().mean() > 0.99
    else:
        torch.testing.assert_close(drawn, expected, rtol=0, atol=4e-5 if "16 bits" in output else 1e-5)


@EACH_OUTPUT
@EACH_CONDITION
def test_chunks_a_prime_and_a_temperature(output: str, conditions: str) -> None:
    model = made(output, conditions)
    past = 0.3 * torch.randn(ROWS, 33, dtype=torch.float64).clamp(-1, 1)
    c = given(model, 33 + TIME)
    options = {**c, "temperature": 0.7, "prime": past}
    whole = model.generate(TIME, **options, generator=seeded())
    for chunk in (1, 7, TIME):
        chunks = list(model.stream(TIME, **options, chunk=chunk, generator=seeded()))
        assert [x.shape[1] for x in chunks] == [min(chunk, TIME - i) for i in range(0, TIME, chunk)]
        torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=1e-12, atol=1e-12)
    heard = torch.cat([past, whole], 1)
    p_generator = seeded()
    rows, conditioned, _ = model._rows("x", heard, c.get("context"), c.get("local"))
    noise = model.output.random(uniform((TIME, ROWS, model.output.noise), whole, p_generator).transpose(0, 1))
    last = model.network.last
    weight, bias = model.output.last_layer(last.weight.data, last.bias.data, 0.7)
    cooled = copy.deepcopy(model)
    cooled.network.last.weight.data, cooled.network.last.bias.data = weight, bias
    p = cooled._parameters_of(rows, conditioned)[:, 33:]
    numbers = {"levels": None, "bound": math.inf, **model.output.options(0.7)}
    numbers.setdefault("log_scale_min", -math.inf)
    expected = torch.stack([sample_of(p[:, t], noise[:, t], **numbers) for t in range(TIME)], 1)
    torch.testing.assert_close(whole, model.output.audio(expected, torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 3, 12, 200])
@EACH_OUTPUT
def test_samples_that_continue_those_before(output: str, length: int) -> None:
    """What was drawn, given as a prime of any length, leads to the same samples; the numbers are those that would come."""
    model, generator = made(output), seeded()
    first = model.generate(length, generator=generator)
    rest = model.generate(20, prime=first, generator=generator)
    torch.testing.assert_close(torch.cat([first, rest], 1), model.generate(length + 20, generator=seeded()))


@EACH_OUTPUT
def test_without_temperature_samples_are_the_most_probable_ones(output: str) -> None:
    model = made(output).float()
    first, *others = model.generate(TIME, temperature=0, batch=3)
    assert first.isfinite().all()
    for other in (*others, model.generate(TIME, temperature=1e-300)[0]):
        torch.testing.assert_close(other, first, rtol=0, atol=1e-2)


@EACH_OUTPUT
def test_the_law_of_a_sample(output: str) -> None:
    """Frequencies of what is drawn at a temperature are the probabilities that its definition gives."""
    model = made(output, layers=1, categories=8, components=2)
    n, temperature = 4000, 0.6
    x = model.generate(1, temperature=temperature, batch=n, generator=seeded())[:, 0]
    p = model._parameters_of(torch.zeros(1, 1).double(), model._given(None, None, torch.Size((1,))))[0, 0].detach()
    if output == "categorical":
        found = torch.bincount(model.output.heard(x), minlength=8) / n
        torch.testing.assert_close(found.double(), torch.softmax(p / temperature, 0), atol=0.03, rtol=0)
        return
    grid = torch.linspace(-0.95, 0.95, 7, dtype=torch.float64)
    if output == "gaussian":
        mean, log_std = p
        expected = torch.special.ndtr((grid - mean) / (log_std.exp() * temperature))
    else:
        logits, means, log_scales = p.reshape(3, -1, 1)
        parts = torch.sigmoid((grid - means) / (log_scales.exp() * temperature))
        expected = (torch.softmax(logits / temperature, 0) * parts).sum(0)
    found = (x[:, None] < grid).double().mean(0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@EACH_OUTPUT
@EACH_CONDITION
def test_causality_and_the_receptive_field(output: str, conditions: str) -> None:
    """The conditional of a sample depends on as many before it as stated, and on nothing else of x."""
    model = made(output, conditions)
    c, t = given(model), TIME - 3
    if output == "categorical":
        x, changed = torch.zeros(TIME, TIME).double(), torch.eye(TIME).double()
        c = {name: value[:1] for name, value in c.items()}
        both = [model._parameters_of(*model._rows("x", v, c.get("context"), c.get("local"))[:2]) for v in (x, changed)]
        felt = (both[1] - both[0])[:, t].abs().sum(-1)
    else:
        x = torch.randn(ROWS, TIME, dtype=torch.float64, requires_grad=True)
        rows, conditioned, _ = model._rows("x", x, c.get("context"), c.get("local"))
        (g,) = torch.autograd.grad(model._parameters_of(rows, conditioned)[:, t].sum(), x)
        felt = g.abs().sum(0)
    assert model.receptive_field == 1 + (1 + 2 + 4 + 1 + 2)
    assert felt.nonzero().flatten().tolist() == list(range(t - model.receptive_field, t))


@pytest.mark.parametrize("output", ["categorical", "logistics, 8 bits", "logistics, 16 bits", "gaussian"])
def test_probabilities_sum_to_one(output: str) -> None:
    """Over all values of the next sample."""
    levels = {"logistics, 8 bits": 256, "logistics, 16 bits": 65536}.get(output)
    name = "logistics, 16 bits" if levels else output
    model = made(name, **({"levels": levels} if levels else {}))
    past = 0.2 * torch.randn(5, dtype=torch.float64)
    if output == "categorical":
        values = model.output.audio(torch.arange(32), torch.float64)
    elif output == "gaussian":
        values = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    else:
        values = torch.linspace(-1, 1, levels or 0, dtype=torch.float64)
    x = torch.cat([past.expand(1, 5), torch.zeros(1, 1).double()], 1)
    p = model._parameters_of(x, model._given(None, None, torch.Size((1,))))[:, -1]
    each = model.output.log_prob(values, p.expand(len(values), -1))
    total = each.exp().sum() * (values[1] - values[0] if output == "gaussian" else 1)
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)
    found = model.log_prob(torch.cat([past.expand(3, 5), values[[0, 7, -1], None]], 1))
    torch.testing.assert_close(found, model.log_prob(past) + each[[0, 7, -1]])


def test_the_mu_law() -> None:
    law = MuLaw(256)
    classes = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(law.heard(law.audio(classes, dtype)), classes)
    x = torch.tensor([-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, math.inf, math.nan])
    by_hand = round(255 * (1 + math.log(1 + 25.5) / math.log(256)) / 2)
    assert law.heard(x).tolist() == [0, 0, 255 - by_hand, 128, by_hand, 255, 255, 255, 128]
    log_prob = law.log_prob(x, torch.zeros(9, 256))
    assert log_prob[:-1].isfinite().all()
    assert log_prob[-1].isnan()


@EACH_OUTPUT
def test_any_length_and_batch(output: str) -> None:
    model = made(output, "both")
    for batch in ((), (0,), (2, 3)):
        for time in (1, 13, 90):
            x = torch.rand(*batch, time, dtype=torch.float64)
            c = torch.randn(3, 2).double() if batch == (2, 3) else torch.randn(2).double()
            found = model.log_prob(x, c)
            assert found.shape == batch
            torch.testing.assert_close(model.log_prob(x, c, model.log_mel(x)), found)
    one = model.log_prob(x[1, 2], c[2])
    torch.testing.assert_close(found[1, 2], one)
    assert model.sample((0,), torch.randn(2).double(), torch.rand(4, 8)).shape == (0, TIME)
    nothing = model.sample((), torch.randn(0, 2).double(), torch.rand(4, 8))
    assert (nothing.shape, model.log_prob(nothing, torch.randn(0, 2).double()).shape) == ((0, TIME), (0,))
    local = torch.rand(2, 1, 4, 8)
    assert model.sample((5,), torch.randn(3, 2).double(), local, chunk_size=2).shape == (5, 2, 3, TIME)


@EACH_OUTPUT
def test_dtypes(output: str) -> None:
    exact = made(output, "both")
    x, context = (torch.rand(ROWS, TIME) * 2 - 1).double(), torch.randn(ROWS, 2).double()
    expected = exact.log_prob(x, context)
    model = copy.deepcopy(exact).float()
    torch.testing.assert_close(model.log_prob(x.float(), context.float()).double(), expected, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss((x.float(), context.float()))["loss"]
        low.backward()
        drawn = model.sample((), context.float(), model.log_mel(x.float()), generator=seeded())
    assert low.dtype is torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(low.double(), -expected.mean(), rtol=0.1, atol=TIME * 0.1)
    assert torch.equal(drawn, model.sample((), context.float(), model.log_mel(x.float()), generator=seeded()))
    half = copy.deepcopy(exact).bfloat16()
    found = half.log_prob(x.bfloat16(), context.bfloat16())
    assert found.isfinite().all()
    of_data = fk.models.Encoded(half, fk.data.Waveform((TIME,), half.rate))  # which does not round them to 8 bits
    assert torch.equal(of_data.log_prob(x, context.bfloat16()), half.log_prob(x.float(), context.bfloat16()).double())
    drawn = half.sample((2,), context.bfloat16(), half.log_mel(x.bfloat16()))
    assert (drawn.dtype, drawn.shape) == (torch.float32, (2, ROWS, TIME))


def test_one_graph() -> None:
    model = made("logistics, 16 bits", "both").float()
    x, context = torch.rand(ROWS, TIME), torch.randn(ROWS, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context), model(x, context))


def test_what_is_saved(tmp_path: Path) -> None:
    model = made("logistics, 16 bits", "both", rate=22050).float().eval()
    assert fk.models.WaveNet(**model.config).rate == 22050
    model.save_pretrained(tmp_path)
    x, context = torch.rand(ROWS, TIME), torch.randn(ROWS, 2)
    for twin in (WaveNet.from_pretrained(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.log_prob(x, context), model.log_prob(x, context))
        assert (twin.rate, twin.config) == (22050, model.config)


def test_the_loss_and_its_bits() -> None:
    model = made("categorical", "local")
    x = torch.rand(ROWS, 25, dtype=torch.float64)
    terms = model.loss([x])
    torch.testing.assert_close(terms["loss"], -model.log_prob(x).mean())
    torch.testing.assert_close(terms["bits_per_sample"], terms["loss"].detach() / 25 / math.log(2))
    terms["loss"].backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())


def test_it_learns_a_sine() -> None:
    torch.manual_seed(0)
    phases = 6.28 * torch.rand(48, 1)
    x = 0.5 * torch.sin(0.3 * torch.arange(60) + phases)
    model = WaveNet(60, categories=64, layers=4, cycle=4, residual=16, skip=16)
    before = float(model.loss(x)["bits_per_sample"])
    model.fit(x, epochs=30, batch_size=16, learning_rate=0.01, progress=False)
    assert before > 5.5
    assert float(model.loss(x)["bits_per_sample"]) < 3
    new = model.generate(20, prime=x[:, :40], temperature=0.2, generator=seeded())
    assert (new - x[:, 40:]).abs().mean() < 0.15  # a guess by silence would be 0.32 off


# -- spectra and frames -----------------------------------------------------------------------------------------------


def test_spectrograms_are_what_they_say() -> None:
    """Frame by frame, with a Fourier transform by its definition."""
    rate, hop, mels, time = 8000, 16, 5, 83
    x = torch.randn(2, time, dtype=torch.float64)
    found = log_mel_spectrogram(x, mels, rate, hop)
    assert found.shape == (2, mels, 6)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(64).double() / 64)
    k = torch.arange(33).double()
    transform = torch.exp(-2j * math.pi * k[:, None] * torch.arange(64) / 64)
    edges = [700 * (10 ** (i / (mels + 1) * math.log10(1 + rate / 2 / 700)) - 1) for i in range(mels + 2)]
    for frame in range(6):
        first = 16 * frame - 24  # 64 samples around the 16 of the frame
        inside = torch.zeros(2, 64, dtype=torch.float64)
        places = [i for i in range(64) if 0 <= first + i < time]
        inside[:, places] = x[:, [first + i for i in places]]
        magnitudes = ((window * inside).to(torch.complex128) @ transform.T).abs() * 2 / window.sum()
        for band in range(mels):
            below, centre, above = edges[band : band + 3]
            f = k * rate / 64
            up, down = (f - below) / (centre - below), (above - f) / (above - centre)
            weights = torch.where(f < centre, up, down).clamp(min=0)
            expected = 1 + (magnitudes @ weights).clamp(min=1e-5).log10() / 5
            torch.testing.assert_close(found[:, band, frame], expected, rtol=1e-9, atol=1e-9)


def test_loudness() -> None:
    n = torch.arange(4000)
    sine = log_mel_spectrogram(torch.sin(2 * math.pi * 1000 / 16000 * n), 40, 16000, 64)[:, 20].max()
    assert abs(float(sine) - 1) < 0.1
    assert (log_mel_spectrogram(torch.zeros(100), 8, 16000, 64) == 0).all()
    noise = 0.3 * torch.randn(200_000, dtype=torch.float64)
    torch.testing.assert_close(power_spectrum(noise)[5:-5], torch.full((503,), 0.09).double(), rtol=0.3, atol=0)
    assert power_spectrum(torch.rand(2, 3)).shape == (2, 2)
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(power_spectrum, x)


@pytest.mark.parametrize("factors", [(2,), (3, 2), (2, 2, 5)])
def test_a_part_of_the_samples_of_frames(factors: tuple[int, ...]) -> None:
    upsample = fnn.Upsample(3, factors).double()
    for convolution in upsample.smooth:
        convolution.weight.data.normal_()
    frames = torch.randn(2, 3, 11, dtype=torch.float64)
    whole = upsample(frames)
    assert whole.shape == (2, 3, 11 * upsample.hop)
    for start, stop in ((0, 1), (0, 11 * upsample.hop), (upsample.hop - 1, upsample.hop + 1), (7, 8 * upsample.hop), (9, 9)):
        torch.testing.assert_close(upsample.between(frames, start, stop), whole[..., start:stop])
    flat = fnn.Upsample(3, factors)(torch.ones(1, 3, 9))[..., 4 * upsample.hop : 5 * upsample.hop]
    torch.testing.assert_close(flat, torch.ones_like(flat))


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features: expected a whole number of at least 1, got 0"),
        ({"output": "mixture"}, "output: expected one of categorical, logistics, gaussian, got 'mixture'"),
        ({"categories": 1}, "categories: expected a whole number of at least 2, got 1"),
        ({"output": "logistics", "levels": 1}, "levels: expected a whole number of at least 2, got 1"),
        ({"output": "logistics", "components": 0}, "components: expected a whole number of at least 1, got 0"),
        ({"levels": "8"}, "levels: expected a whole number of at least 2, got '8'"),
        ({"upsample": (0,)}, r"upsample: expected positive widths, got \(0,\)"),
        ({"layers": 0}, "layers: expected a whole number of at least 1, got 0"),
        ({"cycle": 0}, "cycle: expected"),
        ({"cycle": 99, "layers": 40}, r"cycle: expected at most 24, got 99 with 40 layers: dilations up to 2\^39"),
        ({"kernel": 0}, "kernel: expected"),
        ({"rate": 0}, "rate: expected"),
        ({"mels": -1}, "mels: expected"),
        ({"mels": 4, "upsample": ()}, "upsample: expected one or more of at least 2"),
        ({"mels": 4, "upsample": (1, 4)}, "upsample: expected one or more of at least 2"),
    ],
)
def test_models_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        WaveNet(**{"features": 8, "layers": 1, **options})


@pytest.mark.parametrize("output", ["logistics", "gaussian"])
def test_a_new_model_is_not_as_loud_as_can_be(output: str) -> None:
    """Training does not begin below what classes that are all alike are worth, nor with samples beyond the range of audio."""
    torch.manual_seed(0)
    model = fk.models.WaveNet(200, output, layers=3, residual=8, skip=64)
    assert model.sample((20,)).abs().quantile(0.9) < 0.9
    assert model.log_prob(0.1 * torch.randn(5, 200)).mean() / 200 > (
        -math.log(2**16) if output == "logistics" else -math.log(2)
    )


def test_input_that_does_not_fit() -> None:
    plain, both = made("gaussian"), made("gaussian", "both")
    x, context, local = torch.zeros(2, TIME).double(), torch.zeros(2, 2).double(), torch.zeros(2, 4, 8).double()
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: plain.log_prob([0.0]), TypeError, "x: expected a torch.Tensor, got list"),
        (lambda: plain.log_prob(torch.zeros(2, 0).double()), ValueError, "x: expected shape .* at least one sample"),
        (lambda: both.log_prob(torch.zeros(2, 0).double(), context), ValueError, "x: expected shape .* at least one sample"),
        (lambda: both.log_mel(torch.tensor(0.0).double()), ValueError, "x: expected shape .* at least one sample"),
        (lambda: plain.log_prob(torch.tensor(1.0).double()), ValueError, "x: expected shape"),
        (lambda: plain.log_prob(x.float()), TypeError, "x: expected dtype torch.float64 like the parameters"),
        (lambda: plain.log_prob(x.long()), TypeError, "x: expected a floating-point tensor"),
        (lambda: plain.log_prob(x, context), ValueError, "context: this model takes no context"),
        (lambda: plain.log_prob(x, None, local), ValueError, "local: this model takes none, got shape"),
        (lambda: both.log_prob(x), ValueError, "context: this model takes 2 context features, got None"),
        (lambda: both.log_prob(x, context[:, :1]), ValueError, r"context: expected shape \(..., 2\)"),
        (lambda: both.log_prob(x, context, local[..., :7]), ValueError, r"local: expected shape \(..., 4, 8\) for 40 samples"),
        (lambda: both.log_prob(x, context, local[:, :3]), ValueError, "local: expected shape"),
        (lambda: both.log_prob(x, torch.zeros(3, 2).double()), ValueError, "context and local: expected batch shapes"),
        (lambda: both.sample((), context), ValueError, "local: this model takes 4 mel bands, got None"),
        (lambda: plain.sample((2,), chunk_size=0), ValueError, "chunk_size: expected"),
        (lambda: plain.sample((2,), generator=3), TypeError, "generator: expected"),
        (lambda: plain.stream(0), ValueError, "time: expected"),
        (lambda: plain.stream(5, chunk=0), ValueError, "chunk: expected"),
        (lambda: plain.stream(5, temperature=-1.0), ValueError, "temperature: expected a number of at least 0"),
        (lambda: plain.stream(5, prime=3.0), TypeError, "prime: expected a torch.Tensor"),
        (lambda: plain.stream(5, prime=torch.tensor(0.5)), ValueError, "prime: expected audio of shape"),
        (lambda: plain.stream(5, prime=x, batch=3), ValueError, "prime, context, local and batch: expected"),
        (lambda: plain.stream(5, prime=x[None]), ValueError, "batch: expected .* one batch dimension"),
        (lambda: both.stream(41, context, local), ValueError, r"local: expected shape \(..., 4, at least 9\) for 41 samples"),
        (lambda: both.stream(20, context, local, prime=x[:, :21]), ValueError, "local: expected .* for 41 samples"),
        (lambda: plain.log_mel(x), ValueError, "local: this model has no local condition"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=f"^{message}"):
            call()


# -- an independent implementation ------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("wavenet_vocoder") is None, reason="wavenet_vocoder is not installed")
@pytest.mark.parametrize("output", ["categorical", "logistics"])
@pytest.mark.filterwarnings("ignore")
def test_against_r9y9s(output: str) -> None:
    """The same log-likelihood, and the same parameters in the peer's step-by-step mode, of the same weights."""
    from wavenet_vocoder import WaveNet as Peer
    from wavenet_vocoder.mixture import discretized_mix_logistic_loss

    scalar = output == "logistics"
    sizes = {"residual_channels": 6, "gate_channels": 12, "skip_out_channels": 7, "kernel_size": 3, "dropout": 0.0}
    conditions = {"cin_channels": 4, "gin_channels": 2, "use_speaker_embedding": False}
    peer = Peer(9 if scalar else 16, 6, 2, **sizes, **conditions, scalar_input=scalar).eval()
    for module in peer.modules():
        if isinstance(getattr(module, "bias", None), Tensor):
            module.bias.data.normal_(0, 0.3)
    peer.double().make_generation_fast_()
    model = WaveNet(
        TIME, output, categories=16, components=3, levels=256, layers=6, cycle=3, residual=6, skip=7, kernel=3, context=2,
        mels=4, upsample=(5,),
    ).double()  # fmt: skip
    from_r9y9(peer, model.network)
    x = 0.5 * torch.randn(ROWS, TIME, dtype=torch.float64).clamp(-0.99, 0.99)
    c = given(model)
    rows, conditioned, _ = model._rows("x", x, **c)
    condition = model._condition(conditioned, 0, TIME, torch.float64)
    heard = model._heard(rows)
    inputs = heard[:, None] if scalar else F.one_hot(heard, 16).transpose(1, 2).double()
    y = peer(inputs, condition, c["context"][..., None])
    torch.testing.assert_close(model._parameters_of(rows, conditioned), y.transpose(1, 2), rtol=1e-9, atol=1e-9)
    if scalar:
        expected = -discretized_mix_logistic_loss(y, x[..., None], 256, -math.log(255) - 2, reduce=False)[..., 0].sum(1)
    else:
        expected = -F.cross_entropy(y, model.output.heard(x), reduction="none").sum(1)
    # Its probabilities of 1e-5 and less are those of a density, as in PixelCNN++.
    torch.testing.assert_close(model.log_prob(x, **c), expected, rtol=1e-3 if scalar else 1e-9, atol=1e-9)


def from_r9y9(peer: Any, network: fnn.WaveNet) -> None:
    """Weights of r9y9's network, which scales each residual sum, and the sum of the skips after each layer, by sqrt(1/2)."""
    root, last = math.sqrt(0.5), len(peer.conv_layers) - 1
    network.embedding.data = peer.first_conv.weight.data[..., 0].T.clone()
    network.bias.data = peer.first_conv.bias.data.clone()
    for i, (theirs, layer) in enumerate(zip(peer.conv_layers, network.layers, strict=True)):
        grown, faded = root**-i, root ** (last - max(i - 1, 0))
        layer.gate.weight.data = theirs.conv.weight.data / grown
        layer.gate.bias.data = theirs.conv.bias.data + theirs.conv1x1c.bias.data + theirs.conv1x1g.bias.data
        layer.context.weight.data = theirs.conv1x1g.weight.data[..., 0]
        layer.local.weight.data = theirs.conv1x1c.weight.data[..., 0]
        layer.skip.weight.data = theirs.conv1x1_skip.weight.data[..., 0] * faded
        layer.skip.bias.data = theirs.conv1x1_skip.bias.data * faded
        if i < last:
            layer.residual.weight.data = theirs.conv1x1_out.weight.data[..., 0] * grown
            layer.residual.bias.data = theirs.conv1x1_out.bias.data * grown
    for ours, theirs in ((network.hidden, peer.last_conv_layers[1]), (network.last, peer.last_conv_layers[3])):
        ours.weight.data, ours.bias.data = theirs.weight.data[..., 0], theirs.bias.data
