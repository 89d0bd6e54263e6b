"""The protocol of every model, a flow or not: density, samples, loss, configuration."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import flowkern as fk
from flowkern import nn as fnn
from flowkern.config import configured
from flowkern.data import Identity, Standardised
from flowkern.flows import IAF, MAF, NICE, NSF, Flow, Glow, RealNVP, StandardNormal
from flowkern.models import MADE, VAE, Distillation, Encoded, Model, ParallelWaveNet, PixelCNN, PixelRNN, WaveNet
from flowkern.univariate import Affine

IMAGE = (1, 4, 4)


def models() -> dict[str, Model]:
    """Every model class, with the parts that a user may pass."""
    standardize = fnn.Standardize(torch.randn(4), torch.rand(4) + 0.5)
    coupling = fnn.AffineCoupling(16, mask=torch.arange(16) % 3 == 0, network=nn.Linear(10, 12))
    image = [fnn.Squeeze(IMAGE), fnn.Reshape((4, 2, 2)), coupling, fnn.Permutation(torch.randperm(16))]
    level = fnn.Compose([*copy.deepcopy(image[:3]), fnn.Reshape((16,), (4, 2, 2))])
    return {
        "MAF": MAF(4, 2, (8, 8)),
        "MAF, all": MAF(
            np.int64(4), 2, torch.tensor([8, 8]), 3, "tanh", "random", batch_norm=True, base=MADE(4, "mixture", (8,), 3),
            embedding=nn.Linear(2, 3), standardize=standardize, scale="exp", constants=None, degrees="random", residual=True,
            generator=torch.Generator().manual_seed(1),
        ),
        "IAF": IAF(4, 2, (8,), gated=True, constants=np.array([2.0, 0.0])),
        "IAF, base": IAF(4, 2, (8,), skip=True, base=Independent(Normal(torch.zeros(4), torch.ones(4)), 1)),
        "IAF, map": IAF(4, 2, (8,), map=Affine("tanh", "gate")),
        "MADE": MADE(4, fnn.MixtureOfGaussians(3), [8], order=torch.tensor([3, 1, 0, 2]), masks=2),
        "MADE, context": MADE(4, "categorical", iter([8, 8]), context=2, categories=3),
        "Encoded, image": Encoded(MAF(16, 1, (8,)), Identity(IMAGE)),
        "Flow": Flow(iter([fnn.Reverse(4), fnn.MaskedAutoregressive(4, (8,)), fnn.BatchNorm(4), fnn.AdditiveCoupling(4)])),
        "Flow, modules": Flow(nn.ModuleList([fnn.InverseAutoregressive(4, (8,))]), base=MAF(4, 1, (8,))),
        "Encoded": Encoded(MAF(4, 1, (8,), context=2), Standardised([1.0, 2, 3, 4], [4.0, 3, 2, 1])),
        "WaveNet": WaveNet(4, layers=3, cycle=2, residual=5, skip=6, categories=16),
        "WaveNet, context": WaveNet(4, "logistics", layers=2, residual=5, skip=6, components=3, context=2),
        "WaveNet, gaussian": WaveNet(4, "gaussian", layers=1, residual=5, skip=6, kernel=3),
        "ParallelWaveNet": ParallelWaveNet(4, [2, 1], 5, 6),
        "ParallelWaveNet, context": ParallelWaveNet(4, (1,), 5, 6, 2, noise="gaussian", context=2),
        "PixelRNN": PixelRNN((2, 3, 2), 3, hidden=4, layers=1),
        "PixelRNN, vector": PixelRNN(4, 3, hidden=2, layers=1, scan="row"),
        "PixelCNN": PixelCNN((2, 3, 2), 3, hidden=4, layers=1),
        "PixelCNN, gated": PixelCNN(4, 3, hidden=2, layers=1, gated=True),
        "Flow, image": Flow(image, base=fk.flows.StandardNormal(16)),
        "NSF": NSF(4, 2, (8,), bins=3),
        "NSF, coupling": NSF(4, 2, (8,), 2, bins=3, coupling=True),
        "NSF, circles": NSF(4, 2, (8,), bins=3, circular=[1, 3], circle=[[0, 3], [-1.5, 2]]),
        "NSF, circles, coupling": NSF(4, 2, (8,), 2, bins=3, coupling=True, circular=True),
        "NICE": NICE(4, 2, (8,)),
        "NICE, all": NICE(4, 2, iter([8]), 2, base=StandardNormal(4), standardize=standardize),
        "RealNVP": RealNVP(4, 2, (8,), batch_norm=True),
        "RealNVP, image": RealNVP(torch.tensor(IMAGE), 2, (8, 8), 2, 2, memory="reversible"),
        "Glow": Glow(4, 2, hidden=(8,), lu=False),
        "Glow, image": Glow(IMAGE, 2, 2, [8, 8], 2, generator=torch.Generator().manual_seed(1)),
        # One sample, so that the density is minus the loss.
        "VAE": VAE(4, 2, hidden=(8,), flow_hidden=[8], flow_context=3, importance=1, transforms=2, free_bits=[0.1, 0.0]),
        "VAE, diag": VAE(4, 2, "diag", "gaussian", hidden=(8,), kl="sampled", samples=2, importance=2, gradient="dreg"),
        "VAE, image": VAE(
            IMAGE, 3, likelihood="logistic", levels=3, network="resnet", channels=iter([5, 6]), hidden=(8,), flow_hidden=(8,),
            transforms=2, gated=True, prior="maf", importance=1, kl_warmup=3,
        ),
        "VAE, modules": VAE(
            4, 2, likelihood=fnn.Categorical(3), encoder=nn.Linear(4, 6), decoder=nn.Linear(2, 12), flow_hidden=(8,),
            flow_context=2, importance=1,
        ),
        "Flow, scales": Flow([fnn.MultiScale([level, fnn.Standardize(torch.zeros(2, 2, 2), torch.ones(2, 2, 2))])]),
    }  # fmt: skip


NAMES = pytest.mark.parametrize("name", models())
CONDITIONAL = (
    *(
        "MAF, all",
        "MADE, context",
        "Encoded",
        "NSF, coupling",
        "NSF, circles, coupling",
        "NICE, all",
        "RealNVP, image",
        "Glow, image",
    ),
    *("WaveNet, context", "ParallelWaveNet, context"),
)
CONTEXTS = dict.fromkeys(CONDITIONAL, 2)  # numbers of features


def batch(name: str, model: Model, rows: int = 6) -> tuple[Tensor, ...]:
    values = 2 if name == "VAE" else 3
    x = torch.randint(values, (rows, *model.event_shape)).float()  # which every head takes
    return (x, torch.randn(rows, CONTEXTS[name])) if name in CONTEXTS else (x,)


def build_again(model: Any) -> Any:
    """From classes and configurations alone, as a file has them; what is the user's own is given again."""

    def again(value: Any) -> Any:
        if isinstance(value, list):
            return [again(item) for item in value]
        if hasattr(value, "config"):
            return build_again(value)
        return copy.deepcopy(value) if hasattr(value, "__dict__") else json.loads(json.dumps(value))

    return type(model)(**{name: again(value) for name, value in model.config.items()})


def test_every_model_class_is_here() -> None:
    found = {cls for home in (fk.flows, fk.models) for cls in vars(home).values() if inspect.isclass(cls)}
    wanted = {cls for cls in found if issubclass(cls, Model)} - {Model, Distillation}  # which is its student, but for the loss
    assert {type(model) for model in models().values()} == wanted


@NAMES
def test_density_and_samples(name: str) -> None:
    model = models()[name].eval()
    assert model.conditional == (name in CONTEXTS)
    x, *context = batch(name, model)
    log_prob = model.log_prob(x, *context)
    assert log_prob.shape == (6,)
    torch.testing.assert_close(model(x, *context), log_prob)
    rows = (6,) if context else ()
    for shape in ((), (0,), (2, 3)):
        drawn = model.sample(shape, *context)
        assert (drawn.shape, drawn.requires_grad) == ((*shape, *rows, *model.event_shape), False)
    assert model.sample((3,), *context, chunk_size=2).shape == (3, *rows, *model.event_shape)
    if name != "IAF, base":  # torch's distributions take no generator
        first, second = (model.sample((3,), *context, generator=torch.Generator().manual_seed(2)) for _ in range(2))
        assert torch.equal(first, second)


@NAMES
def test_the_first_call_under_a_transform_of_torch_func(name: str) -> None:
    """What it makes and keeps is ordinary, so that other calls may use it."""
    model = models()[name].eval()
    x, *context = (part.double() for part in batch(name, model, 2))
    x, model = x.requires_grad_(), model.double()
    found = torch.func.grad(lambda x: model.log_prob(x, *context).sum())(x.detach())
    (expected,) = torch.autograd.grad(model.log_prob(x, *context).sum(), x, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected)


@NAMES
def test_a_model_made_without_values_takes_them_from_a_state(name: str) -> None:
    model = models()[name].eval()
    twin, given = copy.deepcopy(model).to("meta").to_empty(device="cpu"), batch(name, model, 2)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.log_prob(*given), model.log_prob(*given))
    twin.to("meta").load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(twin.log_prob(*given), model.log_prob(*given))
    drawn = []
    for each in (twin, model):
        torch.manual_seed(0)
        drawn.append(each.sample((3,), *given[1:]))
    torch.testing.assert_close(*drawn)


@NAMES
def test_loss(name: str) -> None:
    model = models()[name]
    given = batch(name, model)
    terms = model.loss(given)
    assert all(isinstance(key, str) and term.shape == () for key, term in terms.items())
    terms["loss"].backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None for p in parameters)
    assert any((p.grad != 0).any() for p in parameters)
    model.eval()
    expected = -model.log_prob(*given).mean()
    for same in (given, list(given), given[0] if len(given) == 1 else given):
        torch.testing.assert_close(model.loss(same)["loss"], expected, check_dtype=False)


@NAMES
def test_a_configuration_builds_the_same_structure(name: str) -> None:
    model = models()[name].eval()
    other = build_again(model).eval()
    assert type(other) is type(model)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(a is not b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    other.load_state_dict(model.state_dict())
    given = batch(name, model)
    torch.testing.assert_close(other.log_prob(*given), model.log_prob(*given))
    assert "generator" not in model.config
    assert set(inspect.signature(type(model)).parameters) - set(model.config) <= {"generator"}


def test_a_configuration_holds_plain_values_and_the_parts_as_they_were_given() -> None:
    model = models()["MAF, all"]
    parts = {name: model.config[name] for name in ("base", "embedding", "standardize")}
    assert (parts["base"], parts["embedding"]) == (model.base, model.embedding)
    assert parts["standardize"] is model.transform.transforms[0]
    assert json.loads(json.dumps({name: value for name, value in model.config.items() if name not in parts})) == {
        "features": 4,
        "transforms": 2,
        "hidden": [8, 8],
        "context": 3,
        "activation": "tanh",
        "order": "random",
        "batch_norm": True,
        "scale": "exp",
        "placement": "standardize",
        "constants": None,
        "degrees": "random",
        "residual": True,
        "skip": False,
        "map": None,
        "memory": "full",
    }
    twin = copy.deepcopy(model)
    assert twin.config["base"] is twin.base
    assert twin.base is not model.base
    assert set(model.state_dict()) == set(twin.state_dict())
    assert not any(key.startswith("config") for key in model.state_dict())


def layers() -> list[nn.Module]:
    """The layers and heads that no model above is made of."""
    return [
        fnn.MADE(3, 2, (8,), order=[2, 0, 1], masks=2),
        fnn.Coupling(4, Affine("softplus"), (8,)),
        fnn.MaskedLinear(torch.tensor([[True, False]])),
        fnn.Bernoulli(),
        fnn.Gaussian(),
        fnn.Categorical(4),
        fnn.MixtureOfLogistics(16, 3),
        fnn.IsotropicGaussian(2.0),
        fnn.WaveNet(2, layers=3, cycle=2, residual=4, skip=5, context=2, channels=3),
        fnn.Upsample(3, (2, 3)),
    ]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_layers_have_configurations_too(layer: Any) -> None:
    other = build_again(layer)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}
    assert vars(other).keys() == vars(layer).keys()


def test_every_layer_class_has_one() -> None:
    """All but what is no layer itself: the protocol, and its halves."""
    built = {type(m) for model in models().values() for m in model.modules()} | {type(layer) for layer in layers()}
    assert built >= {cls for cls in vars(fnn).values() if inspect.isclass(cls)} - {fnn.Transform, fnn.Head}


def test_subclasses() -> None:
    """One without an __init__ of its own inherits it; one with an __init__ has a configuration if that is decorated."""

    class Same(MAF):
        pass

    class Plain(MAF):
        def __init__(self, width: int) -> None:
            super().__init__(3, 1, (width,))

    class Decorated(MAF):
        @configured
        def __init__(self, width: int, *, generator: torch.Generator | None = None) -> None:
            super().__init__(3, 1, (width,), generator=generator)

    assert Same(3, 1, (8,)).config == MAF(3, 1, (8,)).config
    assert not hasattr(Plain(8), "config")
    assert Decorated(8, generator=torch.Generator()).config == {"width": 8}
    assert inspect.signature(Decorated).parameters.keys() == {"width", "generator"}


class Standard(Model):
    """What a model has to say: nothing but its density, its samples and its arguments."""

    conditional = False

    @configured
    def __init__(self, features: int) -> None:
        super().__init__()
        self.event_shape = torch.Size((features,))
        self.mean = nn.Parameter(torch.zeros(features))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return Independent(Normal(self.mean, 1.0), 1).log_prob(x)

    def sample(self, shape: Any = (), context: Any = None, *, generator: Any = None, chunk_size: int | None = None) -> Tensor:
        return Normal(self.mean, 1.0).sample(shape)


def test_a_model_of_ones_own_and_as_a_base() -> None:
    model, x = Standard(3), torch.randn(5, 3)
    model.loss([x])["loss"].backward()
    torch.testing.assert_close(model.mean.grad, -x.mean(0))
    assert build_again(model).event_shape == (3,)
    flow = Flow([fnn.Reverse(3)], base=model)
    torch.testing.assert_close(flow.log_prob(x), model.log_prob(x.flip(-1)))
    assert flow.sample((2,)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"^base: expected event shape \(4,\), got \(3,\)$"):
        Flow([fnn.Reverse(4)], base=model)


def test_batches_that_do_not_fit() -> None:
    model = MAF(4, 1, (8,))
    with pytest.raises(ValueError, match=r"^batch: expected x, \(x,\) or \(x, context\), got 3 parts$"):
        model.loss([torch.zeros(5, 4)] * 3)
    with pytest.raises(ValueError, match=r"^batch: expected x, \(x,\) or \(x, context\), got 0 parts$"):
        model.loss(())
    for wrong in (None, np.zeros((5, 4))):
        with pytest.raises(TypeError, match=r"^x: expected a torch\.Tensor, got"):
            model.loss(wrong)  # type: ignore[arg-type]


def test_levels_that_the_weights_could_not_hold() -> None:
    """bfloat16 has 8 bits: it knows 256 levels, but not once they are scaled to [-1, 1], and of 3,000 not all."""
    model, x = MADE(6, "logistics", (16,), levels=3000), torch.randint(3000, (50, 6)).float()
    half = model.bfloat16()
    torch.testing.assert_close(half.log_prob(x).double(), copy.deepcopy(half).double().log_prob(x.double()), rtol=0, atol=0.01)
    assert half.log_prob(half.sample((5,))).isfinite().all()
    autoencoder = VAE(6, 2, likelihood="logistic", levels=3000, hidden=(8,), flow_hidden=(8,), importance=2).bfloat16()
    assert autoencoder.log_prob(autoencoder.sample((5,))).dtype is autoencoder.loss(x)["loss"].dtype is torch.float32
    assert autoencoder.interpolate(x, x.flip(0), 3).dtype is torch.bfloat16
    levels, head = torch.arange(256.0).bfloat16(), fnn.Categorical(256)
    assert torch.equal(head.seen(levels, torch.bfloat16), head.encode(levels.float()).bfloat16())
    with pytest.raises(TypeError, match=r"^x: expected dtype torch\.bfloat16 like the weights, got torch\.float64$"):
        autoencoder.log_prob(x.double())
