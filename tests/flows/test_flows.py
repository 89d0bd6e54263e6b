"""Whole models: shapes, bases, embeddings, the distribution, training with and without the kernels."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Distribution, Independent, Normal

import flowkern as fk
from flowkern.flows import IAF, MAF, Flow
from flowkern.models import MADE

FLOWS = pytest.mark.parametrize("kind", [MAF, IAF])


def small(kind: type[Flow], **options: Any) -> Any:
    return kind(4, 3, (16, 16), **{"activation": "tanh", **options}).double()  # type: ignore[call-arg,arg-type]


@FLOWS
@pytest.mark.parametrize("order", ["natural", "reverse", "random"])
def test_density_integrates_to_one_and_matches_samples(kind: type[Flow], order: str) -> None:
    torch.manual_seed(2)
    flow = kind(2, 3, (16,), activation="tanh", order=order).double()  # type: ignore[call-arg,arg-type]
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    log_p = flow.log_prob(torch.cartesian_prod(axis, axis))
    cell = (axis[1] - axis[0]) ** 2
    assert (log_p.exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
    entropy = -(log_p.exp() * log_p).sum() * cell
    samples = flow.sample((20_000,), generator=torch.Generator().manual_seed(1))
    assert (-flow.log_prob(samples).mean()).item() == pytest.approx(entropy.item(), abs=0.05)


@FLOWS
def test_shapes_without_and_with_context(kind: type[Flow]) -> None:
    flow = small(kind)
    assert flow.sample().shape == (4,)
    assert flow.sample((3, 2)).shape == (3, 2, 4)
    assert flow.sample((0,)).shape == (0, 4)
    assert flow.log_prob(torch.zeros(4).double()).shape == ()
    conditional = small(kind, context=3)
    context = torch.randn(5, 3).double()
    assert conditional.sample((7,), context).shape == (7, 5, 4)
    assert conditional.sample((), context).shape == (5, 4)
    assert conditional.sample((7,), context[0]).shape == (7, 4)
    x, log_prob = conditional.rsample_and_log_prob((7,), context)
    torch.testing.assert_close(conditional.log_prob(x, context), log_prob)


@FLOWS
def test_generators_and_chunks(kind: type[Flow]) -> None:
    flow = small(kind, context=2)
    context = torch.randn(3, 2).double()

    def draw(**options: Any) -> torch.Tensor:
        return flow.sample((40,), context, generator=torch.Generator().manual_seed(5), **options)

    assert torch.equal(draw(), draw())
    assert flow.sample((2, 3), context, chunk_size=4).shape == (2, 3, 3, 4)
    assert flow.sample((0,), context, chunk_size=4).shape == (0, 3, 4)


@pytest.mark.parametrize("chunk_size", [1, 3, 16, 17, 40, 1000])
def test_samples_do_not_depend_on_the_chunk_size(chunk_size: int) -> None:
    context = torch.randn(3, 2).double()
    inner = small(IAF, context=2)
    for flow, shape, condition in (
        (small(MAF), (40,), None),
        (small(IAF, context=2), (5, 8), context),
        (small(MAF, context=2, base=inner), (40,), context),
        (small(MAF, base=small(MAF)), (40,), None),
    ):
        whole, parts = (
            flow.sample(shape, condition, generator=torch.Generator().manual_seed(5), chunk_size=size)
            for size in (None, chunk_size)
        )
        torch.testing.assert_close(parts, whole)


def test_chunks_of_bases_that_are_flows_or_draw_feature_by_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer sees more than a chunk."""
    seen: list[int] = []
    base = MADE(4, "mixture", (8,), context=2)
    flow = MAF(4, 1, (8,), context=2, base=MAF(4, 1, (8,), context=2, base=base))
    inverse, sample = fk.nn.Compose.inverse, MADE._sample
    monkeypatch.setattr(fk.nn.Compose, "inverse", lambda self, z, c=None: seen.append(len(z)) or inverse(self, z, c))
    monkeypatch.setattr(MADE, "_sample", lambda self, *a: seen.append(a[-2][0]) or sample(self, *a))
    assert flow.sample((7,), torch.randn(3, 2), chunk_size=3).shape == (7, 3, 4)
    assert seen == [3, 3, 1] * 3
    assert base.sample((0,), torch.randn(3, 2), chunk_size=2).shape == (0, 3, 4)
    assert base.sample((2, 2), torch.randn(3, 2), chunk_size=3).shape == (2, 2, 3, 4)


@FLOWS
def test_gradients_of_samples_and_of_densities(kind: type[Flow]) -> None:
    flow = small(kind, context=2)
    context = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    inputs = [context, *flow.parameters()]

    def gradients() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        x, log_prob = flow.rsample_and_log_prob((5,), context, generator=generator)
        loss = (x.sin().sum(-1) + log_prob).mean() + flow.log_prob(x.detach(), context).mean()
        return list(torch.autograd.grad(loss, inputs))

    native = gradients()
    with fk.backend("reference"):
        oracle = gradients()
    torch.testing.assert_close(native, oracle)


class Recorder(nn.Module):
    """An embedding that doubles its input."""

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        return torch.cat([c, c], -1)


def test_embedding_is_applied_to_the_context_once() -> None:
    flow = small(MAF, context=4, embedding=Recorder())
    plain = small(MAF, context=4)
    plain.load_state_dict(flow.state_dict())
    x, context = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(flow.log_prob(x, context), plain.log_prob(x, torch.cat([context, context], -1)))
    assert flow.sample((3,), context).shape == (3, 5, 4)


def test_standardize_comes_first() -> None:
    data = torch.randn(500, 4).double() * 3 + 7
    flow = small(MAF, standardize=fk.nn.Standardize.fit(data))
    z, _ = flow.transform.transforms[0](data)
    torch.testing.assert_close(z.mean(0), torch.zeros(4).double(), atol=1e-9, rtol=0)
    assert flow.log_prob(data).mean() > small(MAF).log_prob(data).mean()


def test_bases() -> None:
    x = torch.randn(5, 4).double()
    normal = Independent(Normal(torch.zeros(4).double(), torch.ones(4).double()), 1)
    flow, other = small(MAF), small(MAF, base=normal)
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.log_prob(x), flow.log_prob(x))
    assert other.sample((3,)).shape == (3, 4)
    with pytest.raises(ValueError, match=r"generator: Independent\.rsample takes none"):
        other.rsample((3,), generator=torch.Generator())
    mixture = small(MAF, base=MADE(4, "mixture", (16,), components=3))
    y = mixture.sample((6,))
    assert torch.isfinite(mixture.log_prob(y)).all()
    with pytest.raises(NotImplementedError, match="has no rsample"):
        mixture.rsample((6,))
    conditional = small(MAF, context=2, base=MADE(4, "mixture", (16,), context=2))
    assert conditional.sample((3,), torch.randn(5, 2).double()).shape == (3, 5, 4)
    assert conditional.log_prob(x, torch.randn(5, 2).double()).shape == (5,)
    nested = small(MAF, base=small(IAF))
    assert nested.sample((3,)).shape == (3, 4)
    assert nested.rsample((3,)).requires_grad


def test_the_distribution_is_a_torch_distribution() -> None:
    flow = small(MAF, context=2)
    context = torch.randn(5, 2).double()
    d = flow.distribution(context)
    assert isinstance(d, Distribution)
    assert (d.batch_shape, d.event_shape, d.has_rsample) == ((5,), (4,), True)
    x = d.rsample((7,))
    assert x.shape == (7, 5, 4)
    assert x.requires_grad
    assert not d.sample((7,)).requires_grad
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x, context))
    wide = d.expand((3, 5))
    assert wide.sample((2,)).shape == (2, 3, 5, 4)
    assert wide.log_prob(wide.sample()).shape == (3, 5)
    free = small(MAF).distribution()
    assert free.sample((2,)).shape == (2, 4)
    many = free.expand((6,))
    assert many.sample((2,)).shape == (2, 6, 4)
    assert many.log_prob(torch.zeros(4).double()).shape == (6,)
    y, log_prob = d.rsample_and_log_prob((2,))
    torch.testing.assert_close(log_prob, d.log_prob(y))


def test_calibrate_sets_the_statistics_of_the_whole_data_set() -> None:
    flow = small(MAF, batch_norm=True)
    data = torch.randn(300, 4).double() * 2 + 1
    flow.calibrate(data, batch_size=64)
    assert flow.training
    flow.eval()
    norms = [t for t in flow.transform.transforms if isinstance(t, fk.nn.BatchNorm)]
    assert len(norms) == 3
    x = data
    for transform in flow.transform.transforms:
        if isinstance(transform, fk.nn.BatchNorm):
            torch.testing.assert_close(transform.running_mean, x.mean(0))
            torch.testing.assert_close(transform.running_var, x.var(0, unbiased=False))
        x, _ = transform(x)
    conditional = small(MAF, batch_norm=True, context=2)
    conditional.calibrate(data, torch.randn(300, 2).double())


def train(flow: Flow, backend: str, steps: int = 60) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    with fk.backend(backend):
        for _ in range(steps):
            angle = torch.rand(256, generator=generator) * 2 * math.pi
            noise = torch.randn(256, 2, generator=generator) * 0.1
            batch = torch.stack([angle.cos(), angle.sin()], 1) * 2 + noise
            optimizer.zero_grad()
            loss = -flow.log_prob(batch).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@FLOWS
def test_training_with_and_without_the_kernels_follows_the_same_curve(kind: type[Flow]) -> None:
    flow = kind(2, 3, (32, 32), batch_norm=kind is MAF)  # type: ignore[call-arg]
    twin = copy.deepcopy(flow)
    native, oracle = train(flow, "native"), train(twin, "reference")
    torch.testing.assert_close(torch.tensor(native), torch.tensor(oracle), rtol=2e-3, atol=2e-3)
    assert native[-1] < native[0] - 0.3


@FLOWS
def test_several_masks_are_cycled_in_training_and_averaged_in_evaluation(kind: type[Flow]) -> None:
    model = MADE(4, "gaussian", (16,), masks=3, order="random").double()
    x = torch.randn(5, 4).double()
    parts = torch.stack([model.log_prob(x) for _ in range(3)])
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(model.log_prob(x), parts[0])
    torch.testing.assert_close(model.eval().log_prob(x), torch.logsumexp(parts, 0) - math.log(3))
    assert model.sample((3,)).shape == (3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAF(3, transforms=0), "transforms: expected a whole number of at least 1"),
        (lambda: MAF(3, order="sideways"), "order: expected one of"),
        (lambda: MAF(3, scale="cube"), "scale: expected one of"),
        (lambda: IAF(3, placement="left"), "placement: expected one of"),
        (lambda: MADE(3, head="poisson"), "head: expected one of"),
        (lambda: Flow([]), "transforms: expected at least one"),
        (
            lambda: Flow([fk.nn.Reverse(2), fk.nn.Reverse(3)]),
            r"transforms\[1\]: expected event shape \(2,\) like the noise of the one before, got \(3,\)",
        ),
    ],
)
def test_bad_flows_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_compiled_flow_gives_the_same_numbers() -> None:
    flow, x = MAF(5, 2, (16,), context=2), torch.randn(30, 5)
    context = torch.randn(30, 2)
    compiled = torch.compile(lambda a, c: flow.log_prob(a, c).mean(), fullgraph=True, backend="aot_eager")
    expected = flow.log_prob(x, context).mean()
    torch.testing.assert_close(compiled(x, context), expected)
    wanted = torch.autograd.grad(expected, list(flow.parameters()))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, context), list(flow.parameters())), wanted)
    sampler = torch.compile(lambda z, c: flow.transform.inverse(z, c)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(sampler(x, context), flow.transform.inverse(x, context)[0])


def sampling_functions() -> dict[str, tuple[Any, list[Any]]]:
    """Functions that sample, and arguments of three sizes."""
    free, conditional, gated = MAF(3, 2, (8,)), MAF(3, 1, (8,), context=2), IAF(3, 1, (8,), context=2, gated=True)
    based = MAF(3, 1, (8,), base=MADE(3, "gaussian", (8,)))
    mixture = MADE(3, "mixture", (8,), context=2)
    sizes, contexts = [3, 5, 7], [torch.randn(n, 2) for n in (3, 5, 7)]
    return {
        "size": (lambda n: free.sample((n,)), sizes),
        "context": (lambda c: conditional.sample((), c), contexts),
        "density": (lambda c: gated.rsample_and_log_prob((2,), c), contexts),
        "base": (lambda n: based.sample((n,)), sizes),
        "mixture": (lambda c: mixture.sample((2,), c), contexts),
        "noise": (lambda n: fk.flows.StandardNormal(3).rsample(torch.Size((n,))), sizes),
        "distribution": (lambda c: conditional.distribution(c).stddev, contexts),
        "entropy": (lambda c: gated.distribution(c).entropy(), contexts),
    }


@pytest.mark.parametrize("name", sampling_functions())
def test_compiled_sampling_takes_every_size(name: str) -> None:
    function, arguments = sampling_functions()[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for argument in arguments:
        found, wanted = compiled(argument), function(argument)
        found, wanted = (t if isinstance(t, tuple) else (t,) for t in (found, wanted))
        assert [t.shape for t in found] == [t.shape for t in wanted]
        assert all(torch.isfinite(t).all() for t in found)


def test_compiled_sampling_with_a_generator_outside_the_graph() -> None:
    flow, generator = MAF(3, 1, (8,)), torch.Generator()
    compiled = torch.compile(lambda n: flow.sample((n,), generator=generator.manual_seed(n)), backend="aot_eager")
    for n in (3, 5):
        torch.testing.assert_close(compiled(n), flow.sample((n,), generator=torch.Generator().manual_seed(n)))


def test_cost_of_the_inverse_in_multiply_adds_is_one_pass() -> None:
    """Counted, not timed: every unmasked weight of the packed form is used once, zero padding stays small."""
    plan = MAF(256, 1, (512, 512)).transform.transforms[0].network.plans[0]
    unmasked = sum(int(m.sum()) for m in plan.masks)
    assert plan.packed_size < 1.35 * unmasked


# -- what a review found once ---------------------------------------------------------------------------------------


def test_unconditional_bases_under_a_conditional_flow() -> None:
    x, context = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    for base in (MADE(4, "mixture", (16,), components=3), small(MAF)):
        flow = small(MAF, context=2, base=base)
        assert flow.log_prob(x, context).shape == (5,)
        assert flow.sample((3,), context).shape == (3, 5, 4)


class Duck:
    """A base by its methods alone."""

    def log_prob(self, z: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return -z.square().sum(-1)

    def rsample(self, shape: torch.Size, context: torch.Tensor | None = None) -> torch.Tensor:
        batch = () if context is None else context.shape[:-1]
        return torch.randn(*shape, *batch, 4, dtype=torch.float64)


def test_bases_by_their_signature_and_bases_of_single_numbers() -> None:
    assert small(MAF, context=2, base=Duck()).sample((3,), torch.randn(5, 2).double()).shape == (3, 5, 4)
    with pytest.raises(ValueError, match=r"torch\.distributions\.Independent"):
        small(MAF, base=Normal(torch.zeros(4).double(), torch.ones(4).double())).log_prob(torch.zeros(3, 4).double())


def test_contexts_that_nothing_takes_or_that_the_embedding_hides() -> None:
    with pytest.raises(ValueError, match="context: this flow takes none"):
        Flow([fk.nn.Reverse(3)]).log_prob(torch.zeros(2, 3), torch.zeros(2, 1))
    flow = MAF(3, 2, (8,), context=2, embedding=nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    context = torch.tensor([[0.0, 0.0], [math.inf, 0.0]])
    assert torch.isfinite(flow.log_prob(torch.zeros(2, 3), context)).tolist() == [True, False]


def test_the_distribution_of_an_embedded_image() -> None:
    flow = MAF(3, 1, (8,), context=16, embedding=nn.Flatten(-3))
    d = flow.distribution(torch.randn(4, 1, 4, 4))
    assert d.batch_shape == (4,)
    assert d.sample((2,)).shape == (2, 4, 3)
    assert d.log_prob(torch.zeros(4, 3)).shape == (4,)
    assert d.expand((6, 4)).sample().shape == (6, 4, 3)


def test_calibrate_reaches_nested_layers_and_shares_a_context() -> None:
    data = torch.randn(100, 3) * 2 + 1
    inner = fk.nn.Compose([fk.nn.Reverse(3), fk.nn.BatchNorm(3)])
    flow = Flow([fk.nn.MaskedAutoregressive(3, (8,), context=2), inner], base=Flow([fk.nn.BatchNorm(3)]))
    flow.calibrate(data, torch.zeros(2), batch_size=10)
    flow.eval()
    z, _ = flow.transform(data, torch.zeros(2))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    base_norm = flow.base.transform.transforms[0]
    torch.testing.assert_close(base_norm.running_var, torch.ones(3), atol=1e-3, rtol=0)


def test_wrappers_of_modules_call_log_prob() -> None:
    flow, x = MAF(3, 1, (8,)), torch.randn(5, 3)
    torch.testing.assert_close(nn.DataParallel(flow)(x), flow.log_prob(x))
    model = MADE(3, "bernoulli", (8,), context=2)
    assert model(torch.ones(3), torch.randn(5, 2)).shape == (5,)
