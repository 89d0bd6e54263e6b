"""autoregressive_chain against the float64 oracle, and against the steps one by one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from accuracy import check_rule
from networks import Network, network, strided

import flowkern as fk

CHAINS: dict[str, list[tuple[bool, dict[str, Any]]]] = {
    "density": [(False, {}), (False, {"order": range(10, -1, -1)}), (False, {"hidden": (40,)})],
    "inverse": [(True, {}), (True, {"hidden": ()}), (True, {"masks": "dag"})],
    "both": [(False, {"scale": "tanh"}), (True, {"scale": "softplus", "placement": "scale_shift"}), (False, {"scale": "none"})],
    "one step": [(True, {"hidden": (70, 70)})],
    "addends": [(False, {"addends": (0,)}), (True, {}), (True, {"addends": (2, 0)})],
    "many weights": [(False, {"hidden": (200, 200)}), (True, {"hidden": (200, 200), "order": range(10, -1, -1)})],
}


def steps_of(
    networks: Sequence[tuple[bool, Network]], addends: Sequence[torch.Tensor], dtype: torch.dtype
) -> list[fk.ops.Step]:
    left = list(addends)
    return [
        (
            inverse,
            {
                "weights": [w.to(dtype) for w in net.weights],
                "biases": [b.to(dtype) for b in net.biases],
                "plan": net.plan,
                "addends": [left.pop(0).to(dtype) for _ in net.plan.addends],
                **net.map,
            },
        )
        for inverse, net in networks
    ]


def draw(name: str, seed: int, batch: int) -> tuple[list[tuple[bool, Network]], torch.Tensor, list[torch.Tensor]]:
    networks = [(inverse, network(**{"features": 11, "seed": seed, **options})) for inverse, options in CHAINS[name]]
    added = [0.3 * torch.randn(batch, w, dtype=torch.float64) for _, net in networks for w in net.plan.addend_widths]
    return networks, torch.randn(batch, 11, dtype=torch.float64), added


@pytest.mark.parametrize("batch", [1, 3, 8, 9, 33, 100])
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, batch: int, dtype: torch.dtype) -> None:
    cases: Iterator[Any] = (draw(name, seed, batch) for seed in range(300))

    def evaluate(case: Any, dtype: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
        networks, x, added = case
        with fk.backend(backend), torch.no_grad():
            value, log_det = fk.ops.autoregressive_chain(strided(x.to(dtype), "sliced"), steps_of(networks, added, dtype))
        return {"value": value, "log_det": log_det}

    check_rule(cases, evaluate, dtype)


def test_it_equals_its_steps_bit_by_bit_in_every_batch_shape() -> None:
    for name in CHAINS:
        networks, x, added = draw(name, 0, 12)
        steps = steps_of(networks, added, torch.float32)
        with torch.no_grad():
            z, log_det = fk.ops.autoregressive_chain(x.float(), steps)
            each, total = x.float(), torch.zeros(12)
            for inverse, arguments in steps:
                each, term = (fk.ops.autoregressive_inverse if inverse else fk.ops.autoregressive)(each, **arguments)
                total = total + term
            assert torch.equal(z, each)
            assert torch.equal(log_det, total)
            if not added:
                for shape in [(3, 4), (1, 12), (2, 1, 6)]:
                    again, log_det = fk.ops.autoregressive_chain(x.float().reshape(*shape, 11), steps)
                    assert torch.equal(again, z.reshape(*shape, 11))
                    assert log_det.shape == shape
                assert fk.ops.autoregressive_chain(x[:0].float(), steps)[0].shape == (0, 11)
                assert torch.allclose(fk.ops.autoregressive_chain(x[0].float(), steps)[0], z[0], atol=1e-5)


def test_the_oracle_is_the_composition() -> None:
    networks, x, added = draw("addends", 0, 5)
    found, log_det = fk.reference.autoregressive_chain(
        x,
        [
            (
                inverse,
                {
                    "weights": net.weights,
                    "biases": net.biases,
                    "masks": net.plan.masks,
                    "addends": dict(zip(net.plan.addends, part, strict=True)),
                    "scale": "exp",
                    "placement": "standardize",
                    "constants": (),
                    **net.plan.structure,
                    **net.plan.head,
                },
            )
            for (inverse, net), part in zip(networks, [added[:1], [], added[1:]], strict=True)
        ],
    )
    with torch.no_grad():
        expected = fk.ops.autoregressive_chain(x, steps_of(networks, added, torch.float64))
    torch.testing.assert_close((found, log_det), expected)


def test_gradients_compilation_and_half_precision_go_step_by_step() -> None:
    networks, x, added = draw("both", 0, 5)
    steps = steps_of(networks, added, torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(functools.partial(fk.ops.autoregressive_chain, steps=steps), (x,))
    x = x.detach().float()
    steps = steps_of(networks, added, torch.float32)
    with torch.no_grad():
        eager = fk.ops.autoregressive_chain(x, steps)
        compiled = torch.compile(lambda x: fk.ops.autoregressive_chain(x, steps), fullgraph=True)(x)
        half = fk.ops.autoregressive_chain(x.bfloat16(), steps_of(networks, added, torch.bfloat16))
    torch.testing.assert_close(compiled, eager)
    assert half[0].dtype == torch.bfloat16


def test_frozen_weights() -> None:
    networks, x, _ = draw("density", 0, 5)
    steps = steps_of(networks, [], torch.float64)
    packed = [(i, {**a, "packed": fk.ops.pack(a["plan"], a["weights"], a["biases"])}) for i, a in steps]
    with torch.no_grad():
        expected = fk.ops.autoregressive_chain(x, steps)
        for a in (a for _, a in packed):
            a["weights"] = [torch.full_like(w, float("nan")) for w in a["weights"]]
        assert torch.equal(fk.ops.autoregressive_chain(x, packed)[0], expected[0])


def change(argument: str, value: Any) -> Any:
    def apply(steps: list[fk.ops.Step]) -> None:
        steps[1][1][argument] = value(steps[1][1][argument])

    return apply


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (change("weights", lambda w: w[:-1]), ValueError, "weights: expected 3 tensors, got 2"),
        (change("weights", lambda w: [w[0].t(), *w[1:]]), ValueError, r"weights\[0\]: .* \(16, 11\), got \(11, 16\)"),
        (change("biases", lambda b: [b[0].float(), *b[1:]]), TypeError, r"biases\[0\]: expected dtype torch.float64"),
        (change("biases", lambda b: [b[0][None], *b[1:]]), ValueError, r"biases\[0\]: expected shape \(16,\)"),
        (change("addends", lambda _: [torch.zeros(5, 16)]), ValueError, "addends: the plan takes 0, got 1"),
        (change("plan", lambda _: network(features=3).plan), ValueError, r"expected shape \(\.\.\., 3\), got \(5, 11\)"),
    ],
)
def test_a_step_that_does_not_fit_is_named(break_it: Any, error: type[Exception], message: str) -> None:
    networks, x, _ = draw("density", 0, 5)
    steps = steps_of(networks, [], torch.float64)
    break_it(steps)
    with torch.no_grad(), pytest.raises(error, match=message):
        fk.ops.autoregressive_chain(x, steps)


def test_bad_input() -> None:
    networks, x, _ = draw("density", 0, 5)
    steps = steps_of(networks, [], torch.float64)
    with pytest.raises(ValueError, match="steps: expected at least one"):
        fk.ops.autoregressive_chain(x, [])
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 11\), got \(5, 3\)"):
            fk.ops.autoregressive_chain(x[:, :3], steps)
        with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
            fk.ops.autoregressive_chain(x.long(), steps)
        with pytest.raises(TypeError, match=r"x: expected dtype torch.float64 like weights\[0\]"):
            fk.ops.autoregressive_chain(x.float(), steps)


def test_the_kernel_trusts_no_list_and_no_device() -> None:
    networks, x, _ = draw("density", 0, 5)
    steps = steps_of(networks, [], torch.float64)
    plan, weights, biases = networks[0][1].plan, steps[0][1]["weights"], steps[0][1]["biases"]
    call = torch.ops.flowkern.autoregressive_chain
    with pytest.raises(RuntimeError, match="lists of a chain differ in length"):
        call(x, weights, biases, [], [], [plan.meta], [plan.mask_bytes], [], [])
    with pytest.raises(RuntimeError, match="lists of a chain differ in length"):
        call(x, [], [], [], [], [], [], [], [])
    meta = [(False, {**steps[0][1], "weights": [w.to("meta") for w in weights]})]
    with torch.no_grad(), pytest.raises(ValueError, match=r"expected device meta like weights\[0\], got cpu"):
        fk.ops.autoregressive_chain(x, meta)
    uneven = [
        (False, {**steps[0][1], "weights": weights * 2, "biases": biases * 2}),
        (False, {**steps[0][1], "weights": [], "biases": []}),
    ]
    with torch.no_grad(), pytest.raises(ValueError, match="weights: expected 3 tensors, got 6"):
        fk.ops.autoregressive_chain(x, uneven)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["masked_mlp", "autoregressive", "autoregressive_inverse", "autoregressive_chain"])
def test_packed_weights_that_cannot_be_those_of_the_call(name: str, grad: bool) -> None:
    networks, x, _ = draw("density", 0, 5)
    steps = steps_of(networks, [], torch.float64)
    arguments = {k: steps[0][1][k] for k in ("weights", "biases", "plan")}
    good = fk.ops.pack(arguments["plan"], arguments["weights"], arguments["biases"])

    def call(packed: torch.Tensor) -> None:
        if name == "autoregressive_chain":
            fk.ops.autoregressive_chain(x, [(False, {**arguments, "packed": packed})] * 2)
        else:
            getattr(fk.ops, name)(x, **arguments, packed=packed)

    with torch.set_grad_enabled(grad):
        call(good)
        for packed, error, message in (
            (good.to("meta"), ValueError, "packed: expected device cpu like x, got meta"),
            (good.float(), TypeError, "packed: expected dtype torch.float64 like x, got torch.float32"),
            (good[:-1], ValueError, rf"packed: expected shape \({len(good)},\) for this plan, got \({len(good) - 1},\)"),
        ):
            with pytest.raises(error, match=message):
                call(packed)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_flow_calls_it_unless_a_hook_wants_to_see_its_layers(inverse: bool) -> None:
    flow = fk.flows.MAF(4, transforms=3, hidden=(8,), context=2, batch_norm=True).eval()
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    call = flow.transform.inverse if inverse else flow.transform
    with torch.no_grad():
        joined = call(x, context)
    single = call(x, context)
    torch.testing.assert_close(joined, single)
    seen = []
    flow.transform.transforms[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        torch.testing.assert_close(call(x, context), single)
    assert len(seen) == int(not inverse)
    context[2] = float("inf")
    with torch.no_grad():
        assert call(x, context)[1].isfinite().tolist() == [True, True, False, True, True]
