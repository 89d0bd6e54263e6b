"""Whole models, whose neighbouring layers share a call, against their unaccelerated twins in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import Calls
from models import MODELS, Model
from torch.utils._python_dispatch import TorchDispatchMode

import flowkern as fk
from flowkern.adapters import state

EACH = pytest.mark.parametrize("name", MODELS)
EACH_USE = pytest.mark.parametrize(("name", "use"), [(name, use) for name, model in MODELS.items() for use in model.uses])


def made(name: str) -> tuple[Model, Any, Any]:
    """The model, an accelerated one and its twin."""
    pytest.importorskip(name.split(":")[0])
    torch.manual_seed(0)
    model = MODELS[name]
    twin = model.make()
    accelerated = fk.accelerate(copy.deepcopy(twin))
    assert all(s.startswith("accelerated") for s in statuses(accelerated))
    return model, accelerated, twin


def statuses(model: Any) -> list[str]:
    rows = fk.explain(model).rows
    return [status for _, cls, status in rows if "Autoregressive" in cls or "Coupling" in cls]


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    if isinstance(model, torch.nn.Module):
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
    modules = torch.nn.ModuleList(layers_of(model.transforms))
    return dict(modules.named_parameters())


def layers_of(transforms: Any) -> list[torch.nn.Module]:
    """The modules in transforms of Pyro."""
    found: list[torch.nn.Module] = []
    for t in transforms:
        t = getattr(t, "_inv", None) if type(t).__name__ in ("_InverseTransform", "Inverse") else t
        t = getattr(t, "transform", t)  # ConstantConditionalTransform
        if isinstance(t, torch.nn.Module):
            found.append(t)
        found += layers_of(getattr(t, "parts", ()))
    return found


def outcome(model: Model, use: str, made: Any, grads: bool = True) -> dict[str, torch.Tensor]:
    x, c = model.arguments()
    leaves = parameters_of(made) | {"x": x.requires_grad_(grads)}
    if c is not None:
        leaves["context"] = c.requires_grad_(grads)
    with torch.set_grad_enabled(grads):
        values = model.uses[use](made, x, c)
        found = {str(i): v.detach() for i, v in enumerate(values)}
        if grads:
            total = sum((v.sin() * (i + 1)).sum() for i, v in enumerate(values))
            got = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
            found |= dict(zip(leaves, got, strict=True))
    return found


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@EACH_USE
def test_values_and_gradients_are_those_of_the_twin(name: str, use: str) -> None:
    model, accelerated, twin = made(name)
    for grads in (True, False):
        assert_same(outcome(model, use, accelerated, grads), outcome(model, use, twin, grads))


@EACH_USE
def test_one_native_call_forward_and_one_back(name: str, use: str) -> None:
    model, accelerated, _ = made(name)
    outcome(model, use, accelerated)  # the checks at the first use
    for grads in (True, False):
        with Calls() as calls:
            outcome(model, use, accelerated, grads)
        repeats = 2 if use == "inverse" else 1
        forward = ["autoregressive_chain"] * (model.joined * repeats)
        backward = ["autoregressive_chain_backward"] * (len(forward) * grads)
        assert [n for n in calls.names if "chain" in n] == forward + backward


@EACH
def test_training_takes_the_same_course(name: str) -> None:
    model, accelerated, twin = made(name)
    use = next(iter(model.uses))
    losses = []
    for each in (accelerated, twin):
        optimizer = torch.optim.Adam(parameters_of(each).values(), 1e-3)
        generator, course = torch.Generator().manual_seed(0), []
        for _ in range(50):
            x = torch.randn(7, model.features, generator=generator, dtype=torch.float64)
            c = torch.randn(7, model.context, generator=generator, dtype=torch.float64) if model.context else None
            loss = -model.uses[use](each, 0.5 * x + 1, c)[-1].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        losses.append(course)
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-6, atol=1e-6)


@EACH
def test_modes_are_followed(name: str) -> None:
    model, accelerated, twin = made(name)
    if not isinstance(twin, torch.nn.Module):
        return
    for training in (True, False, True):
        accelerated.train(training)
        twin.train(training)
        assert_same(outcome(model, next(iter(model.uses)), accelerated), outcome(model, next(iter(model.uses)), twin))


@EACH
def test_copies_pickles_and_restore(name: str, tmp_path: Path) -> None:
    model, accelerated, twin = made(name)
    use = next(iter(model.uses))
    expected = outcome(model, use, twin)
    double = copy.deepcopy(accelerated)
    assert type(double) is type(accelerated)
    assert_same(outcome(model, use, double), expected)
    assert state.is_container(accelerated)
    assert fk.accelerate(accelerated) is accelerated
    if not name.startswith(("glasflow", "FrEIA")):  # whose layers hold functions that cannot be pickled
        stored = pickle.loads(pickle.dumps(accelerated))
        assert type(stored) is type(twin)
        assert_same(outcome(model, use, stored), expected)
    if isinstance(twin, torch.nn.Module):
        assert list(accelerated.state_dict()) == list(twin.state_dict())
        assert repr(accelerated) == repr(twin)
    fk.restore(accelerated)
    assert type(accelerated) is type(twin)
    assert vars(accelerated).keys() == vars(twin).keys()
    with Calls() as calls:
        assert_same(outcome(model, use, accelerated), expected)
    assert not calls.names


def hooked_inside(model: Any) -> Any:
    """The second autoregressive layer, or coupling."""
    names = ("Autoregressive", "Coupling")
    layers = [m for m in model.modules() if any(n in type(m).__name__ for n in names) and hasattr(m, "parameters")]
    own = ("Masked", "General", "Piecewise")
    found = [
        m for m in layers if state.is_accelerated(m) or type(m).__name__.startswith(own) or type(m).__name__.endswith("Block")
    ]
    return found[1]


@EACH
def test_hooks_on_inner_layers_run(name: str) -> None:
    model, accelerated, twin = made(name)
    use = next(iter(model.uses))
    if not isinstance(twin, torch.nn.Module):
        return
    for inner in (False, True):
        seen: list[list[str]] = []
        for each in (accelerated, twin):
            outcome(model, use, each)
            seen.append([])
            layer = hooked_inside(each)
            layer = next(m for m in layer.modules() if type(m).__name__ in ("MaskedLinear", "Linear")) if inner else layer
            handle = layer.register_forward_hook(lambda *_, seen=seen[-1]: seen.append("called"))
            result = outcome(model, use, each)
            handle.remove()
            seen[-1].append(result)
        assert len(seen[0]) == len(seen[1])
        assert_same(seen[0][-1], seen[1][-1])


@EACH
def test_autocast_and_errors_are_as_before(name: str) -> None:
    model, accelerated, twin = made(name)
    use, (x, c) = next(iter(model.uses)), model.arguments()
    if isinstance(twin, torch.nn.Module):
        x, c = x.float(), None if c is None else c.float()
        with torch.no_grad(), torch.autocast("cpu"):
            found, expected = (model.uses[use](each.float(), x, c)[-1] for each in (accelerated, twin))
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.1, atol=0.1)
    errors = []
    for each in (accelerated, twin):
        with pytest.raises(Exception) as error:  # noqa: PT011
            model.uses[use](each, x[:, :3], c)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


@pytest.fixture
def _double() -> Iterator[None]:
    """Pyro's inverse makes its zeros in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def counted(call: Any) -> int:
    with Calls() as calls:
        call()
    return len(calls.names)


@pytest.mark.usefixtures("_double")
def test_caches_of_a_pyro_distribution_are_as_the_librarys() -> None:
    _, accelerated, twin = made("pyro: IAF")
    drawn = accelerated.rsample((4,))
    assert counted(lambda: accelerated.log_prob(drawn)) == 0
    assert_same(accelerated.log_prob(drawn), twin.log_prob(drawn.detach().clone()))
    assert counted(lambda: accelerated.log_prob(drawn.clone())) == 1, "another value"
    assert counted(lambda: accelerated.log_prob(drawn)) == 1, "the caches hold the other value now"
    assert counted(lambda: accelerated.log_prob(drawn)) == 0
    accelerated.clear_cache()
    assert counted(lambda: accelerated.log_prob(drawn)) == 1
    accelerated.transforms[1].clear_cache()
    assert counted(lambda: accelerated.log_prob(drawn)) == 1, "one of the caches was cleared"
    accelerated.transforms[0](torch.randn(4, 5))
    assert counted(lambda: accelerated.log_prob(drawn)) == 1, "a transform was used by itself"
    y = drawn.detach()
    for t in accelerated.transforms:
        y = t(y)
    assert counted(lambda: accelerated.log_prob(y)) == 0, "the transforms remember it by themselves"


@pytest.mark.usefixtures("_double")
def test_a_value_that_a_pyro_distribution_remembers_after_a_step() -> None:
    _, *flows = made("pyro: IAF")
    value, found = torch.randn(4, 5), []
    for flow in flows:
        before = flow.log_prob(value)
        with torch.no_grad():
            next(iter(parameters_of(flow).values())).add_(0.1)
        remembered = flow.log_prob(value)
        flow.clear_cache()
        found.append([before, remembered, flow.log_prob(value)])
        assert torch.equal(before, remembered)
        assert not torch.equal(before, found[-1][2])
    assert_same(*found)


@pytest.mark.usefixtures("_double")
def test_a_pyro_distribution_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # which zuko puts out for all
    _, accelerated, twin = made("pyro: IAF")
    errors = []
    for flow in (accelerated, twin):
        with pytest.raises(ValueError, match="to be within the support") as error:
            flow.log_prob(torch.full((3, 5), float("nan")))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    expanded = accelerated.expand((4,))
    assert state.is_container(expanded)
    assert_same(expanded.log_prob(torch.ones(4, 5)), twin.expand((4,)).log_prob(torch.ones(4, 5)))


@pytest.mark.parametrize("name", ["zuko: context", "nflows: norms", "normflows: context", "zuko: with a layer between"])
def test_frozen_packs_once_and_notices_changes(name: str) -> None:
    model, accelerated, twin = made(name)
    use = next(iter(model.uses))
    expected = outcome(model, use, twin)
    packed: list[int] = []

    class Given(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() == "flowkern::autoregressive_chain":
                packed.append(len(args[4]))
            return func(*args, **(kwargs or {}))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fk.frozen(accelerated), Given():
            assert_same(outcome(model, use, accelerated), expected)
        assert sum(packed) == len(statuses(accelerated))
        assert_same(outcome(model, use, accelerated), expected)
    with fk.frozen(accelerated):
        for each in (accelerated, twin):
            layer = hooked_inside(each)
            weight = next(m for m in layer.modules() if type(m).__name__ == "MaskedLinear").weight
            with torch.no_grad():
                weight.mul_(1.5)
        with pytest.warns(RuntimeWarning, match=r"^flowkern.frozen: [a-z_]*\..*weight has changed inside the block"):
            found = outcome(model, use, accelerated)
        assert_same(found, outcome(model, use, twin))
    assert_same(outcome(model, use, accelerated), outcome(model, use, twin))


@EACH
def test_transforms_of_functions_and_second_derivatives(name: str) -> None:
    model, accelerated, twin = made(name)
    if not isinstance(twin, torch.nn.Module):
        return
    use, (x, c) = next(iter(model.uses)), model.arguments()

    def value(made: Any) -> Any:
        return lambda x: model.uses[use](made, x, c)[0].sum()

    expected = torch.func.grad(value(twin))(x)
    assert_same(torch.func.grad(value(accelerated))(x), expected)
    again = torch.autograd.functional.hvp(value(accelerated), x, torch.ones_like(x))[1]
    assert_same(again, torch.autograd.functional.hvp(value(twin), x, torch.ones_like(x))[1])


@pytest.mark.parametrize("name", ["nflows: context", "nflows: another base"])
def test_compiled_whole_where_the_library_compiles_so(name: str) -> None:
    model, accelerated, twin = made(name)
    x, c = model.arguments()
    found = torch.compile(lambda x: accelerated.log_prob(x, c), fullgraph=True, backend="eager")(x)
    assert_same(found, twin.log_prob(x, c))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zuko: mixed", "normflows: norms", "pyro: context"])
def test_compiled_in_pieces(name: str) -> None:
    """Where a graph breaks inside of a library's method, the rest of it runs by itself."""
    model, accelerated, twin = made(name)
    use, (x, c) = next(iter(model.uses)), model.arguments()
    found = torch.compile(lambda x: model.uses[use](accelerated, x, c)[-1], backend="eager")(x)
    assert_same(found, model.uses[use](twin, x, c)[-1])


def test_every_layer_of_a_composition_is_called_as_the_library_calls_it() -> None:
    """Forwards as a module, with its hooks; backwards by its method, past them. Methods replaced in a layer are followed."""
    _, accelerated, twin = made("nflows: norms")
    x, c = torch.randn(7, 5).double(), torch.randn(7, 4).double()
    seen: dict[int, list[int]] = {0: [], 1: []}
    for i, each in enumerate((accelerated, twin)):
        for place in (0, 2, 4, 6):
            each._transform._transforms[place].register_forward_hook(lambda *_, i=i, place=place: seen[i].append(place))
        each._transform(x, c)
        each._transform.inverse(x, c)
    assert seen[0] == seen[1] == [0, 2, 4, 6]
    found = []
    for each in (accelerated, twin):
        each._transform._transforms[2].forward = lambda inputs, context=None: (2 * inputs, inputs.new_ones(len(inputs)))
        each._transform._transforms[4]._permute = lambda inputs, *_: (3 * inputs, inputs.new_ones(len(inputs)))
        each._distribution._log_prob = lambda inputs, context: inputs.sum(1)
        found.append([each.log_prob(x, torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double())])
        del each._transform._transforms[2].forward
        found[-1] += each._transform(x, c)
    assert_same(*found)


def test_a_parametrized_weight_is_drawn_once_per_call_of_a_model() -> None:
    class Noise(torch.nn.Module):
        drawn = 0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            Noise.drawn += 1
            return weight + torch.randn_like(weight)

    model, accelerated, _ = made("nflows: context")
    layers = [m for m in accelerated.modules() if type(m).__name__ == "MaskedLinear"]
    torch.nn.utils.parametrize.register_parametrization(layers[4], "weight", Noise())
    x, c = model.arguments()
    accelerated.log_prob(x, c)
    Noise.drawn = 0
    assert counted(lambda: accelerated.log_prob(x, c)) == 1
    assert Noise.drawn == 1


def test_orders_and_constants_are_followed() -> None:
    model, accelerated, twin = made("nflows: MAF")
    outcome(model, "log_prob", accelerated)
    for each in (accelerated, twin):
        each._transform._transforms[2]._permutation.copy_(torch.tensor([4, 2, 0, 1, 3]))
        each._transform._transforms[0]._scale.mul_(2)
    assert_same(outcome(model, "log_prob", accelerated), outcome(model, "log_prob", twin))
    for each in (accelerated, twin):
        each._transform._transforms[4]._permutation = torch.tensor([1, 0, 3, 2, 4])
    assert_same(outcome(model, "inverse of the transform", accelerated), outcome(model, "inverse of the transform", twin))
    with fk.backend("reference"):
        assert_same(outcome(model, "log_prob", accelerated), outcome(model, "log_prob", twin))


def test_a_subclass_that_overrides_a_method_of_a_container_is_left_alone() -> None:
    nflows_base = pytest.importorskip("nflows.flows.base")

    class Louder(nflows_base.Flow):
        def _log_prob(self, inputs: Any, context: Any) -> Any:
            return 2 * super()._log_prob(inputs, context)

    model, _, twin = made("nflows: MAF")
    flow = Louder(twin._transform, twin._distribution)
    accelerated = fk.accelerate(copy.deepcopy(flow))
    assert not state.is_container(accelerated)
    assert state.is_container(accelerated._transform)
    x, _ = model.arguments()
    assert_same(accelerated.log_prob(x), flow.log_prob(x))
    fk.restore(accelerated)
    assert not state.is_accelerated(accelerated._transform)
