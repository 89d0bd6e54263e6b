"""Plans: levels, what is left out, what is refused, and that packing follows every way in which a weight changes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from networks import dag_masks, made_masks, network
from torch import nn

import flowkern as fk
from flowkern import AutoregressivePlan


def test_levels_of_a_small_network_by_hand() -> None:
    # x0 -> h0 -> x1; x0, x1 -> h1 -> x2
    masks = [torch.tensor([[1, 0, 0], [1, 1, 0]]), torch.tensor([[0, 0], [1, 0], [1, 1]])]
    plan = AutoregressivePlan(masks, parameters=1)
    assert plan.feature_levels.tolist() == [0, 1, 2]
    assert [s.tolist() for s in plan.unit_starts] == [[0, 0, 1, 2]]
    assert plan.unit_orders[0].tolist() == [0, 1]


def test_an_order_is_followed_and_equal_levels_are_merged() -> None:
    plan = AutoregressivePlan(made_masks(3, (2, 2), 2, order=[2, 0, 1]))
    assert plan.feature_levels.tolist() == [2, 0, 1]
    # Two units for five features: features that see the same units share a level.
    assert AutoregressivePlan(made_masks(6, (2,), 2)).levels == 3


def test_units_that_reach_no_output_are_left_out() -> None:
    masks = [torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)]
    plan = AutoregressivePlan(masks, parameters=1)
    assert plan.levels == 1
    assert plan.units == [0]


def test_coupling_is_the_case_of_two_levels() -> None:
    masks = [torch.tensor([[1, 1, 0, 0]] * 8), torch.tensor([[0] * 8] * 4 + [[1] * 8] * 4)]
    assert AutoregressivePlan(masks).feature_levels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_levels_of_a_random_graph_respect_every_connection(seed: int) -> None:
    masks = dag_masks(9, (20, 14), 2, torch.Generator().manual_seed(seed))
    plan = AutoregressivePlan(masks)
    sees = (masks[2].double() @ masks[1].double() @ masks[0].double()).unflatten(0, (9, 2)).sum(1) > 0
    target, source = sees.nonzero().unbind(1)
    assert (plan.feature_levels[target] > plan.feature_levels[source]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [torch.ones_like(m[0]), torch.ones_like(m[1])], "not autoregressive: features"),
        (lambda m: [m[0], m[1][:, :-1]], "do not chain"),
        (lambda m: [m[0], m[1][:-1]], "output rows"),
        (lambda m: [], "at least one matrix"),
        (lambda m: [m[0][0], m[1]], "at least one matrix"),
    ],
)
def test_bad_masks_are_refused(change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        AutoregressivePlan(change(made_masks(3, (4,), 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "activation: expected one of"),
        ({"layout": "rows"}, "layout: expected one of"),
        ({"activated": [True, False]}, "activated, residuals: expected 1"),
        ({"residuals": [0]}, "cannot add layer 0"),
        ({"addends": (2,)}, "addends: expected distinct layers"),
        ({"gates": (1,)}, "gates: expected distinct hidden layers"),
        ({"biases": [True]}, "biases: expected 2"),
        ({"skip": True}, "output rows|do not chain|skip"),
    ],
)
def test_bad_structure_is_refused(options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        AutoregressivePlan(made_masks(3, (4,), 2), **options)


def test_copies_and_pickles() -> None:
    net = network(4, (8,))
    x = torch.randn(5, 4, dtype=torch.float64)
    before = fk.ops.autoregressive(x, net.weights, net.biases, net.plan)
    for plan in (copy.deepcopy(net.plan), pickle.loads(pickle.dumps(net.plan))):
        after = fk.ops.autoregressive(x, net.weights, net.biases, plan)
        assert torch.equal(before[0], after[0])


# -- packing happens on every call ----------------------------------------------------------------------------------


def layer() -> fk.nn.MaskedAutoregressive:
    return fk.nn.MaskedAutoregressive(4, hidden=(8, 8))


def expect_current(module: nn.Module, x: torch.Tensor) -> None:
    """What the kernels compute now is what plain PyTorch computes now."""
    z, log_det = module(x)
    back, _ = module.inverse(z)
    with fk.backend("reference"):
        torch.testing.assert_close((z, log_det), module(x))
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)


def change_by_step(m: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
    m(x)[0].square().sum().backward()
    optimizer.step()


def change_in_place(m: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        m.network.layers[1].weight.mul_(1.5)


def change_data(m: nn.Module, x: torch.Tensor) -> None:
    for p in m.parameters():
        p.data.copy_(torch.randn_like(p) * 0.3)  # as an exponential moving average does


def change_by_loading(m: nn.Module, x: torch.Tensor) -> None:
    m.load_state_dict(layer().state_dict())


def change_dtype(m: nn.Module, x: torch.Tensor) -> None:
    m.double()
    m.float()


def change_by_parametrization(m: nn.Module, x: torch.Tensor) -> None:
    nn.utils.parametrizations.weight_norm(m.network.layers[0])
    with torch.no_grad():
        m.network.layers[0].parametrizations.weight.original0.mul_(2)


CHANGES = [change_by_step, change_in_place, change_data, change_by_loading, change_dtype, change_by_parametrization]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_weight_is_seen(change) -> None:  # type: ignore[no-untyped-def]
    module, x = layer(), torch.randn(20, 4)
    before = module(x)[0].detach().clone()
    change(module, x)
    expect_current(module, x)
    if change is not change_dtype:
        assert not torch.allclose(before, module(x)[0])


def test_functional_call_sees_its_own_weights() -> None:
    module, other, x = layer(), layer(), torch.randn(20, 4)
    z, _ = torch.func.functional_call(module, dict(other.named_parameters()), x)
    torch.testing.assert_close(z, other(x)[0])
    expect_current(module, x)


def test_compiled_code_replayed_sees_a_change() -> None:
    module, x = layer(), torch.randn(20, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(x)
    change_data(module, x)
    torch.testing.assert_close(compiled(x), module(x))


def test_inference_tensors() -> None:
    with torch.inference_mode():
        module, x = layer(), torch.randn(20, 4)
        expect_current(module, x)
        for p in module.parameters():
            p.mul_(1.3)
        expect_current(module, x)


def test_frozen_packs_once_and_thaws() -> None:
    module, x = layer(), torch.randn(20, 4)
    before = module(x)[0].detach()
    with fk.frozen(module), torch.no_grad():
        change_data(module, x)
        torch.testing.assert_close(module(x)[0], before)  # as documented: changes inside have no effect
    expect_current(module, x)


def test_frozen_weights_of_another_dtype_are_refused() -> None:
    module = layer()
    with fk.frozen(module), pytest.raises(TypeError, match=r"packed: expected dtype torch\.float64"):
        module.double()(torch.randn(3, 4, dtype=torch.float64))


def test_a_saved_model_with_random_order_restores_its_order() -> None:
    first = fk.flows.MAF(6, 2, (16,), order="random", degrees="random", generator=torch.Generator().manual_seed(1))
    second = fk.flows.MAF(6, 2, (16,), order="random", degrees="random", generator=torch.Generator().manual_seed(2))
    x, file = torch.randn(9, 6), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    torch.testing.assert_close(second.log_prob(x), first.log_prob(x))
    torch.testing.assert_close(copy.deepcopy(first).log_prob(x), first.log_prob(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(first)).log_prob(x), first.log_prob(x))
