"""What only the operators on masked networks have: masks, plans, packed weights, products under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import device_of, using
from calls import outputs_of
from case import Case
from contract import CASES, Recorder, on_each_kernel
from networks import TRANSFORMS, network, run

import flowkern as fk
from flowkern.univariate import PLACEMENTS

NETWORKS = [case for case in CASES if case.name in ("masked_mlp", *TRANSFORMS)]
OPERATOR = pytest.mark.parametrize("operator", [case.name for case in NETWORKS])
TRANSFORM = pytest.mark.parametrize("operator", TRANSFORMS)
ON_TRANSFORMS = on_each_kernel(cases=[case for case in NETWORKS if case.name in TRANSFORMS])


@on_each_kernel(cases=NETWORKS)
def test_masked_weights_may_hold_anything(case: Case, kernels: str) -> None:
    net = network(5, (16, 16))
    x = torch.randn(40, 5)
    before = run(case.name, net, x, torch.float32, kernels)
    net.weights = [torch.where(m, w, torch.nan) for m, w in zip(net.plan.masks, net.weights, strict=True)]
    after = run(case.name, net, x, torch.float32, kernels)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@TRANSFORM
def test_jacobian_is_triangular_and_gives_the_log_det(operator: str) -> None:
    order = [3, 0, 4, 1, 2]
    net = network(5, (16, 16), order=order, activation="tanh")
    x = torch.randn(5, dtype=torch.float64)

    def call(v: torch.Tensor) -> Any:
        return getattr(fk.ops, operator)(v, net.weights, net.biases, net.plan, **net.map)

    jacobian = torch.autograd.functional.jacobian(lambda v: call(v)[0], x)
    position = torch.tensor(order)
    later = position[None, :] > position[:, None]
    assert (jacobian[later] == 0).all()  # exact zeros
    torch.testing.assert_close(call(x)[1], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("placement", PLACEMENTS)
@ON_TRANSFORMS
def test_lanes_beyond_the_batch_stay_out_of_the_gradients(case: Case, kernels: str, placement: str) -> None:
    """A map that is harmless at the data and overflows at zero, where an empty lane might stand."""
    masks = [torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0]])]
    sign = 1.0 if placement == "standardize" else -1.0
    like: Any = {"dtype": torch.float64, "device": device_of(kernels)}
    weights = [torch.tensor([[0.0, 0], [0, 0], [0, 0], [sign, 0]], **like).requires_grad_()]
    biases = [torch.tensor([0.0, 0, 0, -1000 * sign], **like).requires_grad_()]
    plan = fk.AutoregressivePlan(masks)
    x = torch.randn(9, 2, **like) + torch.tensor([1000.0, 0], **like)
    with using(kernels):
        z, log_det = case.operator(x, weights, biases, plan, placement=placement)
    (z.sum() + log_det.sum()).backward()
    assert torch.isfinite(z).all()
    assert all(torch.isfinite(t.grad).all() for t in (*weights, *biases))
    with fk.backend("reference"):
        torch.testing.assert_close(case.operator(x, weights, biases, plan, placement=placement), (z, log_det))


@OPERATOR
def test_addends_broadcast_against_the_rows(operator: str) -> None:
    net = network(6, (24, 24), addends=(0,))
    options = {} if operator == "masked_mlp" else net.map
    x, addend = torch.randn(4, 1, 6, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)

    def call(x: torch.Tensor, addend: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return outputs_of(getattr(fk.ops, operator)(x, net.weights, net.biases, net.plan, addends=[addend], **options))

    torch.testing.assert_close(call(x, addend), call(x.expand(4, 3, 6), addend.expand(4, 3, 24)))


# -- packed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@OPERATOR
def test_packed_weights_are_read_in_place_of_the_weights(operator: str, grad: bool) -> None:
    net, x = network(6, (24, 24)), torch.randn(5, 6, dtype=torch.float64, requires_grad=grad)
    options = {} if operator == "masked_mlp" else net.map
    packed = fk.ops.pack(net.plan, net.weights, net.biases)
    nothing = [torch.full_like(w, float("nan")) for w in net.weights]
    with torch.set_grad_enabled(grad):
        expected = getattr(fk.ops, operator)(x, net.weights, net.biases, net.plan, **options)
        found = getattr(fk.ops, operator)(x, nothing, net.biases, net.plan, packed=packed, **options)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(found), outputs_of(expected), strict=True))


def test_opcheck_of_pack() -> None:
    net = network(4, (8, 6))
    recorder = Recorder()
    with recorder:
        fk.ops.pack(net.plan, [w.float() for w in net.weights], [b.float() for b in net.biases])
    ((operator, args, kwargs),) = recorder.calls
    torch.library.opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def test_pack_checks_what_it_is_given() -> None:
    net = network(4, (8,))
    for weights, biases, error in (
        (net.weights, [], ValueError),
        (net.weights[:1], net.biases, ValueError),
        ([w.bfloat16() for w in net.weights], [b.bfloat16() for b in net.biases], TypeError),
        ([w.long() for w in net.weights], [b.long() for b in net.biases], TypeError),
        ([w.to("meta") for w in net.weights], [b.to("meta") for b in net.biases], RuntimeError),
    ):
        with pytest.raises(error):
            fk.ops.pack(net.plan, weights, biases)


# -- products under autocast ------------------------------------------------------------------------------------------


def test_autocast_uses_the_same_weights_both_ways() -> None:
    net = network(6, (24, 24))
    x = torch.randn(40, 6)
    weights, biases = [w.float() for w in net.weights], [b.float() for b in net.biases]
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = fk.ops.autoregressive(x, weights, biases, net.plan)
        back, _ = fk.ops.autoregressive_inverse(z, weights, biases, net.plan)
    exact, _ = fk.ops.autoregressive(x, weights, biases, net.plan)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    assert 1e-4 < (z - exact).abs().max() < 0.1  # the weights were rounded


def test_autocast_leaves_float64_alone_and_takes_low_inputs() -> None:
    net, x = network(6, (24, 24), addends=(0,)), torch.randn(40, 6)
    addend = torch.randn(40, 24)
    weights, biases = [w.float() for w in net.weights], [b.float() for b in net.biases]
    with torch.autocast("cpu", torch.bfloat16):
        low = fk.ops.autoregressive(x.bfloat16(), weights, biases, net.plan, addends=[addend.bfloat16()])
        double = fk.ops.autoregressive(x.double(), net.weights, net.biases, net.plan, addends=[addend.double()])
        x.requires_grad_()
        z, _ = fk.ops.autoregressive(x, weights, biases, net.plan, addends=[addend])
        once = torch.autograd.grad(z.sin().sum(), x, retain_graph=True)
        graphed = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        with fk.backend("reference"):
            torch.testing.assert_close(fk.ops.autoregressive(x, weights, biases, net.plan, addends=[addend])[0], z)
    assert low[0].dtype == torch.float32
    exact = fk.ops.autoregressive(x.double(), net.weights, net.biases, net.plan, addends=[addend.double()])
    torch.testing.assert_close(double, exact)
    torch.testing.assert_close(once, graphed)


# -- surroundings -----------------------------------------------------------------------------------------------------


@OPERATOR
def test_inputs_made_in_inference_mode_take_part_in_training(operator: str) -> None:
    net = network(6, (24, 24), activation="tanh")
    weights, biases = net.leaves(torch.float32)
    options = {} if operator == "masked_mlp" else net.map
    with torch.inference_mode():
        inside = torch.randn(5, 6)
    found = []
    for x in (inside, inside.clone()):
        outputs = outputs_of(getattr(fk.ops, operator)(x, weights, biases, net.plan, **options))
        found.append(torch.autograd.grad(sum(o.sum() for o in outputs), weights))
    torch.testing.assert_close(*found)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [fk.flows.MAF, fk.flows.IAF])
def test_the_first_call_of_a_flow_may_be_a_compiled_one(kind: type[fk.flows.Flow]) -> None:
    device = device_of("triton")
    flow, x = kind(5, 2, (16, 16)).to(device), torch.randn(7, 5, device=device)

    def call(rows: torch.Tensor) -> torch.Tensor:
        return flow.log_prob(rows) if kind is fk.flows.MAF else flow.transform.inverse(rows)[0]

    with fk.backend("triton"):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(compiled, call(x))
        compiled.sum().backward()
