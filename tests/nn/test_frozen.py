"""Inside frozen, a parameter that changes is noticed: the next call warns and computes with what it has then."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils import prune

import flowkern as fk
from flowkern.flows import MAF

X, CONTEXT = torch.randn(6, 3), torch.randn(6, 2)


def flow() -> MAF:
    return MAF(3, 2, (8,), context=2)


def step(model: MAF, name: str) -> None:
    optimizer = torch.optim.Adam([dict(model.named_parameters())[name]])
    optimizer.zero_grad()
    model.log_prob(X, CONTEXT).sum().backward()
    optimizer.step()


def load(model: MAF, name: str) -> None:
    model.load_state_dict({name: torch.ones_like(model.state_dict()[name])}, strict=False)


def assign(model: MAF, name: str) -> None:
    model.load_state_dict({name: torch.ones_like(model.state_dict()[name])}, assign=True, strict=False)


def pruned(model: MAF, name: str) -> None:
    prune.random_unstructured(model.get_submodule(name.removesuffix(".weight")), "weight", 0.5)


@pytest.mark.parametrize("change", [step, load, assign, pruned])
@pytest.mark.parametrize("gradient", [True, False], ids=["with gradient", "without"])
def test_a_change_is_noticed(change: Callable[[MAF, str], None], gradient: bool) -> None:
    model, name = flow(), "transform.transforms.1.network.layers.1.weight"
    with fk.frozen(model):
        before = model.log_prob(X, CONTEXT).detach()
        change(model, name)
        with torch.set_grad_enabled(gradient), pytest.warns(RuntimeWarning, match="frozen: transform.transforms.1.network"):
            inside = model.log_prob(X, CONTEXT).detach()
    assert not torch.allclose(inside, before)
    torch.testing.assert_close(model.log_prob(X, CONTEXT).detach(), inside)


def test_the_warning_names_the_parameter() -> None:
    model = flow()
    with fk.frozen(model):
        step(model, "transform.transforms.0.network.layers.1.bias")
        with pytest.warns(RuntimeWarning, match=r"^flowkern.frozen: transform.transforms.0.network.layers.1.bias has changed"):
            model.sample((2,), CONTEXT)


def test_other_parameters_for_one_call() -> None:
    model, other = flow(), flow()
    with fk.frozen(model), torch.no_grad():
        frozen = model.log_prob(X, CONTEXT)
        with pytest.warns(RuntimeWarning, match="has changed"):
            found = torch.func.functional_call(model, dict(other.named_parameters()), (X, CONTEXT))
        torch.testing.assert_close(found, other.log_prob(X, CONTEXT))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(model.log_prob(X, CONTEXT), frozen)


def test_nothing_is_said_of_weights_that_stay() -> None:
    model = flow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fk.frozen(model):
            model.log_prob(X, CONTEXT).sum().backward()
            model.sample((2,), CONTEXT)
        step(model, "transform.transforms.0.network.layers.1.bias")
        with fk.frozen(model):
            model.log_prob(X, CONTEXT)
