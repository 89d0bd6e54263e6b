"""Small flows, the sizes that people use most: few features, a context, small batches. flowkern's own and accelerated ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import measure
from posteriors import LIBRARIES, posterior_loss
from torch import Tensor

import flowkern as fk
from flowkern.data import Rows
from flowkern.training import Processes, Settings, Training
from flowkern.training.batches import seeded

D, C, H, T, B = 5, 10, 50, 5, 200
WORK = f"{T} x D={D}, context {C}, {H}x2, B={B}"


def agree(calls: dict[str, Callable[[], Tensor]], rtol: float = 1e-3) -> None:
    """All give the same numbers from the same seed."""
    found = []
    for call in calls.values():
        torch.manual_seed(1)
        found.append(call().detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=rtol, atol=1e-2)


def twins(make: Callable[[], Any]) -> dict[str, Any]:
    """The same model as it was and accelerated."""
    torch.manual_seed(0)
    model = make()
    return {"peer": model, "accelerated": fk.accelerate(copy.deepcopy(model))}


def step(model: Any, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward."""
    parameters = list(model.parameters())

    def call() -> None:
        for p in parameters:
            p.grad = None
        loss().backward()

    return call


def time_densities(
    benchmark: Any, models: dict[str, Any], log_prob: Callable[[Any], Tensor], which: str, by: str, work: str
) -> None:
    """log_prob of the models, or its mean and the gradients."""
    with torch.no_grad():
        agree({name: lambda m=m: log_prob(m) for name, m in models.items()})
    model = models[by]
    if which == "training":
        measure(benchmark, step(model, lambda: -log_prob(model).mean()), f"{work}: forward + backward", by)
        return
    with torch.no_grad():
        measure(benchmark, lambda: log_prob(model), f"{work}: log_prob without gradient", by)


WHICH = pytest.mark.parametrize("which", ["training", "density"])
BY = pytest.mark.parametrize("by", ["flowkern", "accelerated", "peer"])
TWO = pytest.mark.parametrize("by", ["accelerated", "peer"])


# -- densities --------------------------------------------------------------------------------------------------------


def zuko_models(features: int, context: int, hidden: int) -> dict[str, Any]:
    zuko = pytest.importorskip("zuko")
    models = twins(lambda: zuko.flows.MAF(features, context, transforms=T, hidden_features=[hidden, hidden]))
    return {"flowkern": fk.flows.MAF(features, T, (hidden, hidden), context=context, placement="scale_shift"), **models}


@BY
@WHICH
@pytest.mark.parametrize(
    ("features", "context", "hidden", "batch"), [(D, C, H, B), (3, 10, 50, B), (8, 0, 128, 1024), (D, C, H, 1), (2, 0, 16, 1)]
)
def test_zuko(benchmark: Any, features: int, context: int, hidden: int, batch: int, which: str, by: str) -> None:
    models = zuko_models(features, context, hidden)
    x, c = torch.randn(batch, features), torch.randn(batch, context) if context else None

    def log_prob(model: Any) -> Tensor:
        return model.log_prob(x, c) if model is models["flowkern"] else model(c).log_prob(x)

    # The hidden units of zuko's networks have other degrees than ours: the numbers of its two models agree with each other.
    compared = {k: m for k, m in models.items() if (k == "flowkern") == (by == "flowkern")}
    work = f"zuko's MAF, {T} x D={features}, context {context}, {hidden}x2, B={batch}"
    time_densities(benchmark, compared, log_prob, which, by, work)


def sbi_network(kind: str, x: Tensor, c: Tensor) -> Any:
    """nflows as sbi builds it: standardisation, an embedding net; permutations and tanh, or spline couplings and LU maps."""
    factory = pytest.importorskip("sbi.neural_nets.net_builders.flow")
    embedding = torch.nn.Sequential(torch.nn.Linear(C, 32), torch.nn.ReLU(), torch.nn.Linear(32, C))
    return getattr(factory, "build_" + kind)(x, c, hidden_features=H, num_transforms=T, embedding_net=embedding)


@TWO
@WHICH
@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_nflows_as_sbi_builds_it(benchmark: Any, kind: str, which: str, by: str) -> None:
    x, c = torch.randn(B, D), torch.randn(B, C)
    models = twins(lambda: sbi_network(kind, torch.randn(500, D), torch.randn(500, C)))
    time_densities(benchmark, models, lambda m: m.log_prob(x[None], c)[0], which, by, f"sbi's {kind.upper()} (nflows), {WORK}")


@TWO
@WHICH
def test_normflows(benchmark: Any, which: str, by: str) -> None:
    nf = pytest.importorskip("normflows")
    x = torch.randn(B, D)

    def make() -> Any:
        layers: list[Any] = []
        for _ in range(T):
            layers.append(nf.flows.MaskedAffineAutoregressive(D, H, num_blocks=1, use_residual_blocks=False))
            layers.append(nf.flows.Permute(D, mode="swap"))
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(D), layers)

    work = f"normflows' MAF (forward_kld), {T} x D={D}, {H}x2, B={B}"
    time_densities(benchmark, twins(make), lambda m: m.log_prob(x), which, by, work)


@TWO
@WHICH
def test_normflows_splines(benchmark: Any, which: str, by: str) -> None:
    nf = pytest.importorskip("normflows")
    x = torch.randn(B, D)

    def make() -> Any:
        layers: list[Any] = []
        for i in range(T):
            layers.append(nf.flows.CoupledRationalQuadraticSpline(D, 2, H, reverse_mask=bool(i % 2)))
            layers.append(nf.flows.LULinearPermute(D))
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(D), layers)

    work = f"normflows' NSF (couplings), {T} x D={D}, {H}x2 residual, B={B}"
    time_densities(benchmark, twins(make), lambda m: m.log_prob(x), which, by, work)


@TWO
@WHICH
def test_pyro(benchmark: Any, which: str, by: str) -> None:
    dist = pytest.importorskip("pyro.distributions")
    from pyro.nn import AutoRegressiveNN

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            make = dist.transforms.AffineAutoregressive
            self.layers = torch.nn.ModuleList(make(AutoRegressiveNN(D, [H, H])) for _ in range(T))
            base = dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
            self.flow = [dist.TransformedDistribution(base, list(self.layers))]

    models = twins(Model)
    for name, model in models.items():  # the distribution of a copy
        base = dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
        model.flow = [dist.TransformedDistribution(base, list(model.layers))]
        if name == "accelerated":
            fk.accelerate(model.flow)
    x = torch.randn(B, D)
    work = f"Pyro's IAF, log_prob of new values, {T} x D={D}, {H}x2, B={B}"
    time_densities(benchmark, models, lambda m: m.flow[0].log_prob(x.clone()), which, by, work)  # a clone is in no cache


# -- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["flowkern", "peer"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_posterior_of_a_vae(benchmark: Any, library: str, by: str) -> None:
    """z = 8, hidden 64x2, context 32, four steps, 128 rows: a draw, log q, and the gradients of both."""
    z, c, h, t, b = 8, 32, 64, 4, 128
    model, loss = posterior_loss("flowkern" if by == "flowkern" else library, z, h, t, torch.randn(b, c))
    group = f"IAF as a VAE's posterior, {t} x z={z}, context {c}, {h}x2, B={b}, to {library}'s: draw + log q + backward"
    measure(benchmark, step(model, loss), group, by)


# -- sbi --------------------------------------------------------------------------------------------------------------


def simulations(n: int) -> tuple[Any, Tensor, Tensor]:
    prior = torch.distributions.MultivariateNormal(torch.zeros(D), torch.eye(D))
    theta = prior.sample((n,))
    return prior, theta, theta.repeat(1, C // D) + 0.5 * torch.randn(n, C)


@TWO
@pytest.mark.parametrize("estimator", ["maf", "zuko_maf", "nsf"])
@pytest.mark.parametrize("which", ["train", "sample", "log_prob"])
def test_sbi(benchmark: Any, which: str, estimator: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NPE.train of 10,000 simulations for five epochs; 10,000 samples, and their densities."""
    sbi = pytest.importorskip("sbi.inference")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    torch.manual_seed(0)
    prior, theta, x = simulations(10_000)

    def train(epochs: int) -> Any:
        build = pytest.importorskip("sbi.neural_nets").posterior_nn(estimator, hidden_features=H, num_transforms=T)

        def made(*data: Any) -> Any:
            network = build(*data)
            return fk.accelerate(network) if by == "accelerated" else network

        torch.manual_seed(1)
        inference = sbi.NPE(prior=prior, density_estimator=made, show_progress_bars=False)
        network = inference.append_simulations(theta, x).train(max_num_epochs=epochs, training_batch_size=B)
        return inference.build_posterior(network)

    work = f"sbi NPE {estimator}, D={D}, x of {C}, {H}x2"
    if which == "train":
        benchmark.group, benchmark.extra_info["implementation"] = f"{work}: train of 10,000 for 5 epochs", by
        benchmark.pedantic(train, args=(4,), rounds=3, warmup_rounds=1)
        return
    posterior = train(1)
    if which == "sample":
        sample = lambda: posterior.sample((10_000,), x=x[:1], show_progress_bars=False)  # noqa: E731
        measure(benchmark, sample, f"{work}: posterior.sample of 10,000", by)
        return
    with torch.no_grad():
        measure(benchmark, lambda: posterior.log_prob(theta, x=x[:1]), f"{work}: posterior.log_prob of 10,000", by)


# -- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [1, 5])
def test_one_call_of_the_operators(benchmark: Any, transforms: int) -> None:
    """The registered operators, forward and back, where there is next to no arithmetic: what a call costs."""
    flow, x = fk.flows.MAF(2, transforms, (16, 16)), torch.randn(1, 2)
    steps = [t.step(x, False) for t in flow.transform.transforms]
    tensors = [p for s in steps for p in (*s.arguments["weights"], *s.arguments["biases"])]

    def call() -> None:
        _, log_prob = fk.ops.autoregressive_chain(x, steps, normal="output")
        torch.autograd.grad(log_prob, tensors, torch.ones_like(log_prob))

    measure(benchmark, call, f"autoregressive_chain forward + backward, {transforms} x D=2, 16x2, B=1", "flowkern")


# -- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["flowkern", "peer"])
def test_the_training_loop(benchmark: Any, by: str) -> None:
    """What the loop costs beside the same steps by hand ("peer"), on one flow: 100 of them, of about a millisecond."""
    rows, steps = 128, 100
    x = torch.randn(rows * steps, D, generator=torch.Generator().manual_seed(0))
    settings = Settings(epochs=1, batch_size=rows)

    def loop() -> Tensor:
        torch.manual_seed(0)
        flow = fk.flows.MAF(D, T, (H, H))
        Training(flow, Rows(x), Rows(x[:1]), None, settings, Processes()).run()
        return flow.log_prob(x[:1])

    def by_hand() -> Tensor:
        torch.manual_seed(0)
        flow = fk.flows.MAF(D, T, (H, H))
        optimizer = torch.optim.Adam(flow.parameters(), settings.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: settings.rate(i, steps) / settings.learning_rate)
        for batch in x[torch.randperm(len(x), generator=seeded(settings.seed, 0))].split(rows):
            optimizer.zero_grad()
            loss = -flow.log_prob(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
        return flow.log_prob(x[:1])

    agree({"loop": loop, "by hand": by_hand})
    measure(benchmark, loop if by == "flowkern" else by_hand, f"{steps} training steps of {T} x D={D}, {H}x2, B={rows}", by)
