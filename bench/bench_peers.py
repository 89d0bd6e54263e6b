"""Models of other libraries, as they are and after one line, through the libraries' own interfaces."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import measure
from posteriors import LIBRARIES, posterior_loss

import flowkern as fk

BY = pytest.mark.parametrize("implementation", ["flowkern", "peer"])


def twins(make: Callable[[], Any]) -> dict[str, Any]:
    """The same model accelerated and as it was."""
    torch.manual_seed(0)
    model = make()
    return {"flowkern": fk.accelerate(copy.deepcopy(model)), "peer": model}


def compare(models: dict[str, Any], call: Callable[[Any], torch.Tensor]) -> None:
    """Both give the same numbers from the same seed."""
    found = []
    for model in models.values():
        torch.manual_seed(1)
        found.append(call(model).detach())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-2)


def step(model: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward."""

    def call() -> None:
        model.zero_grad()
        loss().backward()

    return call


# -- zuko -------------------------------------------------------------------------------------------------------------


def zuko_maf(features: int, hidden: list[int]) -> dict[str, Any]:
    zuko = pytest.importorskip("zuko")
    return twins(lambda: zuko.flows.MAF(features, transforms=5, hidden_features=hidden))


@BY
@pytest.mark.parametrize("batch", [1024, 1])
def test_zuko_sample(benchmark: Any, batch: int, implementation: str) -> None:
    models = zuko_maf(64, [512, 512])
    compare(models, lambda model: model().sample((4,)))
    flow = models[implementation]
    measure(benchmark, lambda: flow().sample((batch,)), f"zuko MAF sample, 5 x D=64, 512x2, B={batch}", implementation)


@BY
@pytest.mark.parametrize(("features", "hidden"), [(64, 512), (8, 128)])
def test_zuko_training(benchmark: Any, features: int, hidden: int, implementation: str) -> None:
    models, x = zuko_maf(features, [hidden, hidden]), torch.randn(1024, features)
    compare(models, lambda model: model().log_prob(x))
    flow = models[implementation]
    group = f"zuko MAF forward + backward, 5 x D={features}, {hidden}x2, B=1024"
    measure(benchmark, step(flow, lambda: -flow().log_prob(x).mean()), group, implementation)


@BY
@pytest.mark.parametrize("batch", [1024, 1])
def test_zuko_nsf_sample(benchmark: Any, batch: int, implementation: str) -> None:
    zuko = pytest.importorskip("zuko")
    models = twins(lambda: zuko.flows.NSF(64, transforms=5, hidden_features=[512, 512]))
    compare(models, lambda model: model().sample((4,)))
    flow = models[implementation]
    measure(benchmark, lambda: flow().sample((batch,)), f"zuko NSF sample, 5 x D=64, 512x2, K=8, B={batch}", implementation)


@BY
def test_zuko_nsf_training(benchmark: Any, implementation: str) -> None:
    zuko = pytest.importorskip("zuko")
    models, x = twins(lambda: zuko.flows.NSF(64, transforms=5, hidden_features=[512, 512])), torch.randn(1024, 64)
    compare(models, lambda model: model().log_prob(x))
    flow = models[implementation]
    group = "zuko NSF forward + backward, 5 x D=64, 512x2, K=8, B=1024"
    measure(benchmark, step(flow, lambda: -flow().log_prob(x).mean()), group, implementation)


# -- nflows -----------------------------------------------------------------------------------------------------------


def nflows_maf(residual: bool) -> dict[str, Any]:
    flows = pytest.importorskip("nflows.flows")
    from nflows import distributions, transforms

    def make() -> Any:
        layers: list[Any] = []
        for _ in range(5):
            layers.append(transforms.ReversePermutation(64))
            layer = transforms.MaskedAffineAutoregressiveTransform(64, 512, num_blocks=1, use_residual_blocks=residual)
            layers.append(layer)
        return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([64]))

    return twins(make)


@BY
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_nflows_sample(benchmark: Any, residual: bool, implementation: str) -> None:
    models = nflows_maf(residual)
    compare(models, lambda model: model.sample(4))
    flow, kind = models[implementation], "residual" if residual else "plain"
    with torch.no_grad():
        measure(benchmark, lambda: flow.sample(1024), f"nflows MAF ({kind}) sample, 5 x D=64, 512x2, B=1024", implementation)


@BY
def test_nflows_training(benchmark: Any, implementation: str) -> None:
    models, x = nflows_maf(residual=False), torch.randn(1024, 64)
    compare(models, lambda model: model.log_prob(x))
    flow = models[implementation]
    group = "nflows MAF (plain) forward + backward, 5 x D=64, 512x2, B=1024"
    measure(benchmark, step(flow, lambda: -flow.log_prob(x).mean()), group, implementation)


def nflows_spline_couplings() -> dict[str, Any]:
    flows = pytest.importorskip("nflows.flows")
    from nflows import distributions, transforms
    from nflows.nn.nets import ResidualNet

    def make() -> Any:
        net = functools.partial(ResidualNet, hidden_features=128)
        options = {"num_bins": 8, "tails": "linear", "tail_bound": 3.0}
        masks = ([(i + d) % 2 for d in range(64)] for i in range(10))
        layers = [transforms.PiecewiseRationalQuadraticCouplingTransform(mask, net, **options) for mask in masks]
        return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([64]))

    return twins(make)


@BY
@pytest.mark.parametrize("direction", ["forward + backward", "sample"])
def test_nflows_spline_couplings(benchmark: Any, direction: str, implementation: str) -> None:
    models, x = nflows_spline_couplings(), torch.randn(1024, 64)
    compare(models, lambda model: model.log_prob(x))
    flow = models[implementation]
    call = step(flow, lambda: -flow.log_prob(x).mean()) if "back" in direction else torch.no_grad()(lambda: flow.sample(1024))
    measure(benchmark, call, f"nflows RQ coupling, 10 x D=64, 128, K=8, B=1024: {direction}", implementation)


# -- normflows --------------------------------------------------------------------------------------------------------


@BY
def test_normflows_training(benchmark: Any, implementation: str) -> None:
    nf = pytest.importorskip("normflows")

    def make() -> Any:
        layers = [nf.flows.MaskedAffineAutoregressive(64, 512, num_blocks=1, use_residual_blocks=False) for _ in range(5)]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(64), layers)

    models, x = twins(make), torch.randn(1024, 64)
    compare(models, lambda model: model.log_prob(x[:4]))
    flow = models[implementation]
    group = "normflows MAF forward_kld forward + backward, 5 x D=64, 512x2, B=1024"
    measure(benchmark, step(flow, lambda: flow.forward_kld(x)), group, implementation)


# -- Pyro -------------------------------------------------------------------------------------------------------------


@BY
def test_pyro_log_prob(benchmark: Any, implementation: str) -> None:
    dist = pytest.importorskip("pyro.distributions")
    from pyro.nn import AutoRegressiveNN

    base = dist.Normal(torch.zeros(64), torch.ones(64)).to_event(1)
    models = twins(lambda: dist.transforms.AffineAutoregressive(AutoRegressiveNN(64, [512, 512])))
    x = torch.randn(1024, 64)
    compare(models, lambda model: dist.TransformedDistribution(base, [model]).log_prob(x))
    flow = dist.TransformedDistribution(base, [models[implementation]])
    with torch.no_grad():  # a clone is not in the cache
        group = "Pyro AffineAutoregressive log_prob of new values, D=64, 512x2, B=1024"
        measure(benchmark, lambda: flow.log_prob(x.clone()), group, implementation)


@BY
@pytest.mark.parametrize("direction", ["log_prob of new values: forward + backward", "sample"])
@pytest.mark.parametrize(("features", "hidden", "rows"), [(5, 50, 200), (64, 512, 256)])
def test_pyro_splines(benchmark: Any, features: int, hidden: int, rows: int, direction: str, implementation: str) -> None:
    """Of linear order, the library's default."""
    dist = pytest.importorskip("pyro.distributions")
    base = dist.Normal(torch.zeros(features), torch.ones(features)).to_event(1)
    models = twins(lambda: dist.transforms.spline_autoregressive(features, [hidden, hidden]))
    x = torch.randn(rows, features)
    compare(models, lambda model: dist.TransformedDistribution(base, [model]).log_prob(x))
    model = models[implementation]
    flow = dist.TransformedDistribution(base, [model])
    train = step(model, lambda: -flow.log_prob(x.clone()).mean())  # a clone is not in the cache
    call = train if "back" in direction else lambda: flow.sample((rows,))
    group = f"Pyro SplineAutoregressive {direction}, D={features}, {hidden}x2, K=8, B={rows}"
    measure(benchmark, call, group, implementation)


# -- sbi --------------------------------------------------------------------------------------------------------------


@BY
@pytest.mark.parametrize(
    ("estimator", "features", "count"), [("maf", 10, 100_000), ("nsf", 5, 10_000), ("zuko_nsf", 5, 10_000)]
)
def test_sbi_posterior(
    benchmark: Any,
    estimator: str,
    features: int,
    count: int,
    implementation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    from sbi.inference import NPE

    def make() -> Any:
        prior = torch.distributions.MultivariateNormal(torch.zeros(features), torch.eye(features))
        theta = prior.sample((1000,))
        inference = NPE(prior=prior, density_estimator=estimator, show_progress_bars=False)
        inference.append_simulations(theta, theta + 0.5 * torch.randn_like(theta)).train(max_num_epochs=3)
        return inference.build_posterior()

    models, x = twins(make), torch.zeros(features)
    compare(models, lambda posterior: posterior.sample((4,), x=x, show_progress_bars=False))
    posterior = models[implementation]
    sample = lambda: posterior.sample((count,), x=x, show_progress_bars=False)  # noqa: E731
    measure(benchmark, sample, f"sbi NPE {estimator}, posterior.sample of {count:,}, D={features}", implementation)


# -- wavenet_vocoder --------------------------------------------------------------------------------------------------


def wavenet() -> dict[str, Any]:
    """20 layers of two taps, 64 channels between them, 256 skips and classes. Only an accelerated one can be copied."""
    wavenet_vocoder = pytest.importorskip("wavenet_vocoder")
    torch.manual_seed(0)
    widths = {"out_channels": 256, "residual_channels": 64, "gate_channels": 128, "skip_out_channels": 256}
    model = fk.accelerate(wavenet_vocoder.WaveNet(layers=20, stacks=2, kernel_size=2, dropout=0.0, **widths).eval())
    return {"flowkern": model, "peer": fk.restore(copy.deepcopy(model))}


def heard(time: int) -> torch.Tensor:
    """Classes as vectors (1, 256, time)."""
    return torch.nn.functional.one_hot(torch.randint(256, (1, time)), 256).transpose(1, 2).float().contiguous()


@BY
def test_wavenet_vocoder_loop(benchmark: Any, implementation: str) -> None:
    models, x = wavenet(), heard(20)
    compare(models, lambda model: model.incremental_forward(test_inputs=x, T=20, quantize=False))
    model = models[implementation]
    group = "wavenet_vocoder incremental_forward of 1000 samples, L=20, R=64, S=256, A=256"
    measure(benchmark, lambda: model.incremental_forward(T=1000), group, implementation)


@BY
def test_wavenet_vocoder_training(benchmark: Any, implementation: str) -> None:
    models, x = wavenet(), heard(8000)
    compare(models, lambda model: model(x))
    model, classes = models[implementation].train(), x.argmax(1)
    loss = lambda: torch.nn.functional.cross_entropy(model(x[..., :-1]), classes[:, 1:])  # noqa: E731
    group = "wavenet_vocoder forward + backward, 8000 samples, L=20, R=64, S=256, A=256"
    measure(benchmark, step(model, loss), group, implementation)


# -- the line itself --------------------------------------------------------------------------------------------------


def test_cost_of_accelerate(benchmark: Any) -> None:
    zuko = pytest.importorskip("zuko")
    context = torch.randn(1, 10)

    def make() -> tuple[tuple[Any], dict[str, Any]]:
        model = zuko.flows.MAF(64, 10, transforms=10, hidden_features=[512, 512])
        model(context).sample()  # what the first call costs zuko itself
        return (model,), {}

    benchmark.group = "fk.accelerate(model) of 10 transforms"
    benchmark.extra_info["implementation"] = "flowkern"
    benchmark.pedantic(fk.accelerate, setup=make, rounds=5)


def test_cost_of_the_first_call(benchmark: Any) -> None:
    zuko = pytest.importorskip("zuko")
    context = torch.randn(1, 10)

    def make() -> tuple[tuple[Any], dict[str, Any]]:
        model = zuko.flows.MAF(64, 10, transforms=10, hidden_features=[512, 512])
        model(context).sample()
        return (fk.accelerate(model),), {}

    benchmark.group = "first call after it, self-check of 10 transforms included"
    benchmark.extra_info["implementation"] = "flowkern"
    benchmark.pedantic(lambda model: model(context).sample(), setup=make, rounds=5)


# -- Pyro and nflows: the posterior of a VAE ---------------------------------------------------------------------------


@BY
@pytest.mark.parametrize("library", LIBRARIES)
def test_posterior_of_a_vae(benchmark: Any, library: str, implementation: str) -> None:
    """A draw, log q, and the gradients of both."""
    torch.manual_seed(0)
    model, loss = posterior_loss("flowkern" if implementation == "flowkern" else library, 64, 512, 4, torch.randn(1024, 64))
    group = f"IAF as a VAE's posterior, 4 x z=64, context 64, 512x2, B=1024, to {library}'s: draw + log q + backward"
    measure(benchmark, step(model, loss), group, implementation)
