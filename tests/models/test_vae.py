"""VAE: each formula of docs/vae.md, and what a user may get wrong."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from flowkern import nn as fnn
from flowkern.cli import main
from flowkern.models import VAE
from flowkern.models.posterior import Posterior
from flowkern.models.vae import AT_ONCE

D, ROWS = 3, 5


def posterior(transforms: int, gated: bool) -> tuple[Posterior, Tensor, Tensor]:
    """A posterior in float64, noise, and what an encoder might give."""
    torch.manual_seed(transforms)
    made = Posterior(D, transforms, (8, 8), 2, gated).double()
    return made, torch.randn(ROWS, D).double(), torch.randn(ROWS, made.outputs).double()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("transforms", [0, 1, 2, 4])
def test_log_q_is_the_running_sum_and_the_change_of_variables(transforms: int, gated: bool) -> None:
    made, eps, encoded = posterior(transforms, gated)
    z, log_q = made.draw(eps, encoded)

    # The sum of the paper, with the steps written out.
    mean, log_std = made.gaussian(encoded)
    h = encoded[:, 2 * D :]
    state, log_sigmas = mean + log_std.exp() * eps, log_std
    for layer in made.layers:
        m, raw = layer.network(state, h).unbind(-1)
        sigma = torch.sigmoid(raw + 2) if gated else torch.exp(raw / (1 + (raw / math.log(1000)).abs()))
        state = sigma * state + ((1 - sigma) * m if gated else m)
        log_sigmas = log_sigmas + sigma.log()
    torch.testing.assert_close(z, state)
    terms = -(eps.square() / 2 + math.log(2 * math.pi) / 2 + log_sigmas)
    torch.testing.assert_close(log_q, terms.sum(-1))
    torch.testing.assert_close(made.terms(eps, encoded), (state, terms))

    # A numerical change of variables: the Jacobian of the whole draw.
    jacobian = torch.autograd.functional.jacobian(lambda e: made.draw(e, encoded)[0].sum(0), eps)  # rows are independent
    log_det = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
    normal = Independent(Normal(torch.zeros(D).double(), 1.0), 1)
    torch.testing.assert_close(log_q, normal.log_prob(eps) - log_det)

    torch.testing.assert_close(made.log_prob(z, encoded), log_q)  # by the sweep back, which knows no eps


@pytest.mark.parametrize("transforms", [0, 2])
def test_gradients_of_the_draw(transforms: int) -> None:
    made, eps, encoded = posterior(transforms, True)
    encoded.requires_grad_()

    def draw(eps: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        return made.draw(eps.expand(2, ROWS, D), encoded)  # two samples for each row

    torch.autograd.gradcheck(draw, (eps.requires_grad_(), encoded))
    z = made.draw(eps, encoded)[0].detach().requires_grad_()
    frozen = made.log_prob(z, encoded, frozen=True)
    assert torch.autograd.grad(frozen.sum(), [encoded, *made.parameters()], retain_graph=True, allow_unused=True) == (None,) * (
        1 + len(list(made.parameters()))
    )
    expected = torch.autograd.grad(made.log_prob(z, encoded).sum(), z)
    torch.testing.assert_close(torch.autograd.grad(frozen.sum(), z), expected)


@pytest.mark.parametrize("name", ["diag", "iaf"])
def test_torch_conventions(name: Any) -> None:
    model = VAE((1, 2, 2), 2, name, hidden=(8,), flow_hidden=(8,))
    x = torch.randint(2, (4, 1, 1, 2, 2)).float()
    q = model.posterior(x)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4, 1), (2,), True)
    z, log_q = q.rsample_and_log_prob((3,))
    assert (z.shape, log_q.shape, q.sample().requires_grad, z.requires_grad) == ((3, 4, 1, 2), (3, 4, 1), False, True)
    wide = q.expand((3, 4, 1))
    assert wide.rsample((6,)).shape == (6, 3, 4, 1, 2)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x))
    assert model.log_prob(x).shape == (4, 1)
    assert model.log_prob(x[:0]).shape == (0, 1)
    assert model.posterior(x[:0]).sample((3,)).shape == (3, 0, 1, 2)


# -- a model whose density is known ---------------------------------------------------------------------------------


def linear_gaussian(exact: bool = False, rows: int = 1, **options: Any) -> tuple[VAE, Tensor, Tensor]:
    """One dimension of z, x = w z + b + noise of deviation 0.7; rows of x, and log p(x). ``exact``: q is p(z | x)."""
    torch.manual_seed(0)
    std, w, b = 0.7, torch.tensor([1.0, -0.5, 0.8]), torch.tensor([0.1, 0.2, -0.3])
    encoder, decoder = nn.Linear(3, 2), nn.Linear(1, 3)
    precision = 1 + w @ w / std**2
    raw = -0.5 * precision.log()
    with torch.no_grad():
        decoder.weight.copy_(w[:, None])
        decoder.bias.copy_(b)
        encoder.weight[0] = w / (std**2 * precision)
        encoder.bias[0] = -(encoder.weight[0] @ b)
        encoder.weight[1] = 0
        encoder.bias[1] = raw / (1 - raw.abs() / math.log(1000))  # undoes the soft clip
        if not exact:
            encoder.bias += torch.tensor([0.4, 0.5])
    given = {"likelihood": "gaussian", "variance": "fixed", "std": std, "encoder": encoder, "decoder": decoder, **options}
    model = VAE(3, 1, "diag", **given).double()
    x = torch.tensor([[0.9, -0.2, 0.4]]).double().expand(rows, 3)
    covariance = torch.outer(w, w) + std**2 * torch.eye(3)
    return model, x, MultivariateNormal(b.double(), covariance.double()).log_prob(x[0])


@torch.no_grad()
def test_importance_sampling_finds_the_density() -> None:
    model, x, log_p = linear_gaussian()
    grid = torch.linspace(-8, 8, 4001).double()[:, None]
    joint = model._log_likelihood(x, grid[:, None, :])[:, 0] + Normal(0.0, 1.0).log_prob(grid[:, 0])
    torch.testing.assert_close(torch.logsumexp(joint, 0) + math.log(16 / 4000), log_p)  # exact integration agrees
    assert float((model.eval().log_prob(x, samples=40_000) - log_p).abs()) < 0.01  # a weight's deviation is 0.7 or so
    exact, x, log_p = linear_gaussian(exact=True)
    torch.testing.assert_close(exact.log_prob(x, samples=1)[0], log_p)  # every weight is p(x)


def test_log_prob_goes_through_the_decoder_a_few_samples_at_a_time() -> None:
    model, x, _ = linear_gaussian(rows=50)
    seen: list[int] = []
    model.decoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    with torch.no_grad():
        many = model.eval().log_prob(x, samples=1000)
    assert max(seen) <= AT_ONCE < sum(seen) == 50_000
    eps = model._noise()((1, 50, 1))
    one = torch.sub(*model._weigh(x, model._encode(x), eps))[0]
    torch.testing.assert_close(model.log_prob(x, samples=1), one)
    assert many.std() < 0.2 * one.std()


def test_bounds_rise_with_the_samples() -> None:
    rows = 20_000
    means, errors = [], []
    for samples in (1, 2, 4, 8):
        model, x, log_p = linear_gaussian(rows=rows, samples=samples, kl="sampled")
        with torch.no_grad():  # of each row its own bound
            value = model.log_prob(x, samples=samples)
            falling = model.elbo(x, samples=samples)
            torch.manual_seed(samples)
            loss = model.loss(x)["loss"]
        means.append(float(value.mean()))
        errors.append(float(value.std()) / math.sqrt(rows))
        assert abs(loss.item() + means[-1]) < 6 * errors[-1]  # what is trained is the mean of this
        assert abs(falling.mean().item() - means[0]) < 6 * errors[0]  # the evidence lower bound, of which it is the mean
    for (low, high), (a, b) in zip(itertools.pairwise(means), itertools.pairwise(errors), strict=True):
        assert high - low > 4 * math.hypot(a, b)
    assert means[-1] < log_p
    both = (m._posterior.gaussian(m._encode(x[:1])) for m in (model, linear_gaussian(exact=True)[0]))
    gap = kl_divergence(*(Normal(mean, log_std.exp()) for mean, log_std in both))  # of q from p(z | x)
    assert abs(means[0] - (log_p - gap).item()) < 6 * errors[0]
    model, x, _ = linear_gaussian(rows=rows)  # the first of them with the divergence in closed form
    assert abs(model.loss(x)["loss"].item() + means[0]) < 6 * errors[0]


def test_the_analytic_divergence() -> None:
    model, x, _ = linear_gaussian(rows=2)
    mean, log_std = model._posterior.gaussian(model._encode(x))
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), 1.0)).sum(-1).mean()
    torch.testing.assert_close(model.loss(x)["kl"], expected)


def gradients(model: VAE, x: Tensor, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    found = torch.autograd.grad(model.loss(x)["loss"], list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def test_the_doubly_reparameterised_gradient() -> None:
    drawn: dict[str, list[Tensor]] = {}
    for gradient in ("pathwise", "dreg"):
        model, x, _ = linear_gaussian(rows=500, samples=4, gradient=gradient, kl="sampled")
        found = [gradients(model, x, seed) for seed in range(40)]
        drawn[gradient] = [torch.stack([torch.cat([g[n].flatten() for n in g if n.startswith(part)]) for g in found])
                           for part in ("encoder", "decoder")]  # fmt: skip
    (a, decoder), (b, other) = drawn["pathwise"], drawn["dreg"]
    torch.testing.assert_close(decoder, other)  # of the decoder it is the same, sample by sample
    error = (a.var(0) + b.var(0)).sqrt() / math.sqrt(40)
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()  # of the encoder it has the same expectation
    assert (b.mean(0).abs() > 10 * b.std(0) / math.sqrt(40)).any()  # which is not zero
    assert (b.var(0) < a.var(0)).all()
    exact, x, _ = linear_gaussian(exact=True, rows=7, samples=4, gradient="dreg")
    assert all(g.abs().max() < 1e-6 for name, g in gradients(exact, x, 0).items() if name.startswith("encoder"))


def test_the_doubly_reparameterised_gradient_of_a_flow() -> None:
    drawn = {}
    for gradient in ("pathwise", "dreg"):
        torch.manual_seed(1)
        model = VAE(2, 2, "iaf", "gaussian", hidden=(4,), flow_hidden=(4,), flow_context=1, transforms=2, samples=3,
                    gradient=gradient).double()  # fmt: skip
        x = torch.randn(1, 2).double().expand(2000, 2)
        drawn[gradient] = torch.stack([torch.cat([g.flatten() for n, g in gradients(model, x, s).items() if "_posterior" in n])
                                       for s in range(20)])  # fmt: skip
    a, b = drawn["pathwise"], drawn["dreg"]
    error = (a.var(0) + b.var(0)).sqrt() / math.sqrt(20)
    assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error).all()
    assert (b.mean(0).abs() > 5 * error).any()


# -- the rest of the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diag", "iaf"])
@pytest.mark.parametrize("prior", ["normal", "maf"])
def test_free_bits(name: Any, prior: Any) -> None:
    options: dict[str, Any] = {"hidden": (8,), "flow_hidden": (8,), "transforms": 2, "prior": prior}
    bits = [5.0, 0.0, 7.0]
    torch.manual_seed(0)
    model = VAE(4, 3, name, free_bits=bits, **options).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randint(2, (64, 4)).double()
    encoded = model._encode(x)
    torch.manual_seed(2)
    terms = model.loss(x)
    torch.manual_seed(2)
    z, log_q = model._posterior.draw(model._noise()((64, 3)), encoded)
    if name == "diag" and prior == "normal":
        mean, log_std = model._posterior.gaussian(encoded)
        kl = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), 1.0)).mean(0)
    else:
        torch.manual_seed(2)
        z, shares = model._posterior.terms(model._noise()((64, 3)), encoded)
        torch.testing.assert_close(shares.sum(-1), log_q)
        torch.testing.assert_close(model._prior_terms(z).sum(-1), model.prior.log_prob(z))
        kl = (shares - model._prior_terms(z)).mean(0)
    torch.testing.assert_close(terms["kl"], kl.sum())
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + torch.maximum(kl, torch.tensor(bits)).sum())
    plain = VAE(4, 3, name, **options).double()
    plain.load_state_dict(model.state_dict())
    assert model.eval().loss(x)["loss"] == plain.eval().loss(x)["loss"]


def test_the_divergence_warms_up() -> None:
    model, x, _ = linear_gaussian(kl_warmup=4)
    for step, beta in ((0, 0.2), (3, 0.8), (4, 1.0), (100, 1.0)):
        model.at_step(step)
        terms = model.loss(x)
        torch.testing.assert_close(terms["loss"], terms["reconstruction"] + beta * terms["kl"])
    model.at_step(0)
    terms = model.eval().loss(x)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["kl"])
    seen: list[float] = []
    model.encoder.register_forward_hook(lambda *_: seen.append(model.beta) if model.training else None)
    model.fit(x.expand(8, 3), epochs=3, batch_size=4, validation=0.5, progress=False)
    assert seen == pytest.approx([0.2, 0.4, 0.6])
    terms = model.train().loss(x)  # of a loop that knows nothing of steps, after a fit that was shorter than the warm-up
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["kl"])


def test_probabilities_sum_to_one() -> None:
    torch.manual_seed(0)
    model = VAE(3, 2, hidden=(8,), flow_hidden=(8,), transforms=2, prior="maf").double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    with torch.no_grad():
        total = model.log_prob(x, samples=20_000).exp().sum()
    assert abs(float(total) - 1) < 0.01


@pytest.mark.parametrize(
    "head",
    [fnn.Bernoulli(), fnn.Categorical(3), fnn.Gaussian(), fnn.IsotropicGaussian(0.5), fnn.MixtureOfGaussians(2),
     fnn.MixtureOfLogistics(256, 2), fnn.Logistic(256)],
    ids=lambda head: type(head).__name__,
)  # fmt: skip
def test_means_are_those_of_samples(head: fnn.Head) -> None:
    torch.manual_seed(0)
    p = 0.5 * torch.randn(4, head.outputs)
    if isinstance(head, fnn.MixtureOfLogistics):
        p *= 0.5  # none lies beyond the last level
        p[:, -head.components :] -= 4
    drawn = head.sample(p.expand(20_000, 4, -1))
    assert ((head.mean(p) - drawn.mean(0)).abs() < 5 * drawn.std(0) / math.sqrt(20_000)).all()


def test_what_is_shown_of_the_latents() -> None:
    model = VAE((1, 4, 4), 3, likelihood="logistic", levels=17, hidden=(8,), flow_hidden=(8,)).eval()
    x, y = torch.randint(17, (2, 5, 1, 4, 4)).float()
    way = model.interpolate(x, y, 4)
    assert way.shape == (4, 5, 1, 4, 4)
    torch.testing.assert_close(way[[0, -1]], torch.stack([model.reconstruct(x), model.reconstruct(y)]))
    z = model.encode(x)
    there = model.traverse(x, 1, [-2.0, z[0, 1].item()])
    torch.testing.assert_close(there[1, 0], model.reconstruct(x[:1])[0])
    z[:, 1] = -2
    torch.testing.assert_close(there[0], model.decode(z))


def test_the_page_names_the_tests_of_its_formulas() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vae.md").read_text()
    formulas, _, table = page.partition("## Where each formula is checked")
    numbers = set(re.findall(r"^    \((\d+)\)", formulas, re.MULTILINE))
    assert numbers == set(re.findall(r"\((\d+)\)", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert set(re.findall(r"`(test_\w+)`", table)) <= globals().keys()


def test_the_command(tmp_path: Path) -> None:
    """On the digits where no data are named; images give pictures of the latents."""
    options = ["epochs=1", "latent=2", "hidden=8", "flow_hidden=8", "importance=4", "network=resnet", "channels=4,4"]
    assert main(["train", "vae", "--output", str(tmp_path), "--set", *options]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["data"] == "digits"
    test = json.loads((tmp_path / "results.json").read_text())["test"]
    assert test["elbo"] < test["nats"] < 0
    assert (tmp_path / "latents.png").read_bytes().startswith(b"\x89PNG")


def test_bad_arguments() -> None:
    for name, value, message in (
        ("posterior", "full", r"^posterior: expected one of iaf, diag, got 'full'$"),
        ("likelihood", "poisson", r"^likelihood: expected one of bernoulli, gaussian, logistic or a Head, got 'poisson'$"),
        ("network", "unet", r"^network: expected one of mlp, resnet, got 'unet'$"),
        ("network", "resnet", r"^network: a resnet takes images \(channels, height, width\), got features \(4,\)$"),
        ("flow_hidden", (8, 4), r"^flow_hidden: expected widths of at least 5, the dimensions of z, .*, got \(8, 4\)$"),
        ("free_bits", 0.0, r"^free_bits: expected nats of at least 0, not all of them 0 .*, got 0\.0$"),
        ("free_bits", [0.0] * 5, r"^free_bits: .* not all of them 0"),
        ("free_bits", True, r"^free_bits: expected nats of at least 0, .*, got True$"),
        ("free_bits", -1.0, r"^free_bits: expected nats of at least 0"),
        ("free_bits", [1.0, 2.0], r"^free_bits: expected a number, or one for each of 5 dimensions, got shape \(2,\)$"),
        ("latent", 0, r"^latent: expected a whole number of at least 1, got 0$"),
        ("samples", 0, r"^samples: expected"),
        ("std", -1.0, r"^std: expected a number above 0, got -1\.0$"),
    ):
        with pytest.raises(ValueError, match=message):
            VAE(4, **{"latent": 5, "flow_hidden": (8,), "likelihood": "gaussian", "variance": "fixed", name: value})
    for name, value in (("std", -1.0), ("std", True), ("levels", 1), ("channels", (0,)), ("gated", "no")):  # of no use here
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            VAE(4, posterior="diag", **{name: value})
    with pytest.raises(ValueError, match=r"^free_bits: only the bound of one sample"):
        VAE(4, samples=2, free_bits=0.1)
    with pytest.raises(TypeError, match=r"^encoder: expected a torch\.nn\.Module, got str$"):
        VAE(4, encoder="linear")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^z: expected dtype torch\.float32 like the weights, got torch\.float64$"):
        VAE(4, latent=2, flow_hidden=(8,)).decode(torch.zeros(3, 2).double())


def test_free_bits_are_known_without_values() -> None:
    """A model that was made without them gets its weights from a state alone."""
    model = VAE(4, latent=2, flow_hidden=(8,), free_bits=[0.5, 0.2])
    with torch.device("meta"):
        twin = VAE(4, latent=2, flow_hidden=(8,), free_bits=[0.5, 0.2])
    twin.load_state_dict(model.state_dict(), assign=True)
    x = torch.ones(3, 4)
    losses = []
    for each in (model, twin):
        torch.manual_seed(0)
        losses.append(each.loss(x)["loss"])
    assert torch.equal(*losses)


def test_bad_input_comes_to_nothing() -> None:
    worked: list[Any] = []
    model = VAE((1, 4, 4), 2, hidden=(8,), flow_hidden=(8,))
    model.encoder.register_forward_pre_hook(lambda *_: worked.append(1))
    x = torch.zeros(3, 1, 4, 4)
    for wrong, error, message in (
        (torch.zeros(3, 1, 5, 5), ValueError, r"^x: expected shape \(\.\.\., 1, 4, 4\), got \(3, 1, 5, 5\)$"),
        (x + 1.5, ValueError, r"^x: expected numbers from 0 to 1, the support of Bernoulli, got 1\.5 to 1\.5$"),
        (x - 1, ValueError, r"^x: expected numbers from 0 to 1"),
        (x + math.nan, ValueError, r"^x: expected numbers from 0 to 1"),
        (x.double(), TypeError, r"^x: expected dtype torch\.float32 like the weights, got torch\.float64$"),
        (x.tolist(), TypeError, r"^x: expected a torch\.Tensor, got list$"),
    ):
        for call in (model.loss, model.log_prob, model.posterior, model.reconstruct):
            given = (wrong,) if call == model.loss else wrong
            with pytest.raises(error, match=message):
                call(given)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^context: this model takes no context, got shape \(3, 2\)$"):
        model.log_prob(x, torch.zeros(3, 2))
    assert not worked
    logistic = VAE((1, 4, 4), 2, likelihood="logistic", levels=17, hidden=(8,), flow_hidden=(8,))
    with pytest.raises(ValueError, match=r"^x: expected whole numbers from 0 to 16, the support of Logistic, got 0\.5 to"):
        logistic.loss(x + 0.5)
    q, z = model.posterior(x), torch.zeros(3, 2)
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: model.traverse(x, 2), ValueError, r"dimension: expected a whole number from 0 to 1, got 2$"),
        (lambda: model.traverse(x, 0.5), ValueError, r"dimension: expected a whole number of at least 0, got 0\.5$"),
        (lambda: model.traverse(x, 0, "far"), TypeError, "values: expected a tensor or a list of numbers, got 'far'"),
        (lambda: model.traverse(x, 0, 3), ValueError, r"values: expected a list of numbers, got shape \(\)$"),
        (
            lambda: model.interpolate(x, x[:2]),
            ValueError,
            r"y: expected a batch shape that broadcasts with \(3,\), got \(2,\)$",
        ),
        (lambda: model.interpolate(x, x + 2), ValueError, "y: expected numbers from 0 to 1"),
        (lambda: model.interpolate([x], x), TypeError, r"x: expected a torch\.Tensor, got list$"),
        (
            lambda: q.log_prob(z[:2]),
            ValueError,
            r"value: expected batch shapes that broadcast with \(3,\), got shapes \(2, 2\)$",
        ),
        (lambda: q.log_prob(z.double()), TypeError, r"value: expected dtype torch\.float32 like what the encoder gave, got"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=f"^{message}"):
            call()
    with pytest.raises(ValueError, match=r"^encoder: expected numbers of shape \(3, 4\)"):
        VAE(4, 2, "diag", encoder=nn.Linear(4, 3)).loss(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"^decoder: expected 1 numbers for each of 4 features of 3 rows, got shape \(3, 5\)$"):
        VAE(4, 2, "diag", decoder=nn.Linear(2, 5)).loss(torch.zeros(3, 4))
