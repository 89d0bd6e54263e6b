"""autoregressive_chain: its steps one by one, packed weights, what its kernel does not trust, how a flow calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import Example
from cases.autoregressive_chain import CASE, CHAINS, FEATURES
from contract import Recorder
from networks import coupling_network, network

import flowkern as fk
from flowkern.chain import ChainPlan, LULinear, Network
from flowkern.univariate import Affine

DENSITY = CHAINS["density"]
ON_CHAINS = pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)


def arguments_of(example: Example, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return example.arguments(example.leaves(dtype, grads=False))


def takes_context(step: Any) -> bool:
    return isinstance(step, fk.ops.CouplingStep) and step.arguments["plan"].context > len(step.passing)


def one_by_one(
    x: torch.Tensor, steps: list[fk.ops.Step], context: torch.Tensor | None, normal: None
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x.new_zeros(x.shape[:-1])
    for step in steps:
        if isinstance(step, fk.ops.PermutationStep):
            x = x[..., step.order]
        elif isinstance(step, fk.ops.ElementwiseStep):
            x = (x - step.shift) / step.scale if step.inverse else x * step.scale + step.shift
            total = total + step.scale.abs().log().sum() * (1 - 2 * step.inverse)
        elif isinstance(step, (fk.ops.CouplingStep, fk.ops.LULinearStep)):
            x, term = fk.ops.autoregressive_chain(x, [step], context if takes_context(step) else None)
            total = total + term
        else:
            own = {"context": context} if step.arguments["plan"].context else {}
            operator = fk.ops.autoregressive_inverse if step.inverse else fk.ops.autoregressive
            x, term = operator(x, **step.arguments, **own)
            total = total + term
    return x, total


@ON_CHAINS
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 33, 100])
def test_it_equals_its_steps(layers: Any, batch: int) -> None:
    """The value bit by bit where no step without a network contracts product and sum; log-determinants are summed in double."""
    arguments = arguments_of(CASE.draw(batch, 0, layers=layers), torch.float32)
    with torch.no_grad():
        found, expected = fk.ops.autoregressive_chain(**arguments), one_by_one(**arguments)
    if any(layer in ("scale", "divide", "lu", "solve") for layer in layers):
        torch.testing.assert_close(found[0], expected[0])
    else:
        assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


@ON_CHAINS
def test_every_shape_of_the_batch_gives_the_same_bits(layers: Any) -> None:
    example = CASE.draw(12, 0, layers=layers)
    with torch.no_grad():
        z, log_det = fk.ops.autoregressive_chain(**arguments_of(example, torch.float32))
        for shape in [(3, 4), (1, 12), (2, 1, 6)]:
            shaped = example.with_rows(lambda t, shape=shape: t.reshape(*shape, t.shape[-1]))
            again, total = fk.ops.autoregressive_chain(**arguments_of(shaped, torch.float32))
            assert torch.equal(again, z.reshape(*shape, z.shape[-1]))
            assert torch.equal(total, log_det.reshape(shape))


@pytest.mark.parametrize("layers", ["both", "triangles"])
def test_half_precision_goes_step_by_step(layers: str) -> None:
    arguments = arguments_of(CASE.draw(5, 0, layers=CHAINS[layers]), torch.bfloat16)
    with torch.no_grad():
        found, expected = fk.ops.autoregressive_chain(**arguments), one_by_one(**arguments)
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize(("layers", "backend"), [("both", "inductor"), ("couplings", "eager"), ("triangles", "eager")])
def test_compiled_without_gradients(layers: str, backend: str) -> None:
    arguments = arguments_of(CASE.draw(5, 0, layers=CHAINS[layers]))
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(
            lambda x, c: fk.ops.autoregressive_chain(x, arguments["steps"], c), fullgraph=True, backend=backend
        )
        torch.testing.assert_close(compiled(arguments["x"], arguments["context"]), fk.ops.autoregressive_chain(**arguments))


def test_one_compiled_function_takes_several_chains() -> None:
    """To the compiler the numbers of the second one are symbols."""
    torch.compiler.reset()
    compiled = torch.compile(fk.ops.autoregressive_chain, fullgraph=True, backend="eager")
    for layers, seed in (("triangles", 0), ("triangles", 1), ("everything", 0)):
        arguments = arguments_of(CASE.draw(5, seed, layers=CHAINS[layers]))
        torch.testing.assert_close(compiled(**arguments), fk.ops.autoregressive_chain(**arguments))


@pytest.mark.parametrize("layers", ["context", "everything", "couplings"])
@pytest.mark.parametrize("batch", [1, 8, 9, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_one_context_for_all_rows(layers: str, batch: int, packed: bool) -> None:
    """What it contributes is computed once then."""
    arguments = arguments_of(CASE.draw(batch, 0, layers=CHAINS[layers]))
    if packed:
        for step in arguments["steps"]:
            if isinstance(step, (fk.ops.NetworkStep, fk.ops.CouplingStep)):
                a = step.arguments
                a["packed"] = fk.ops.pack(a["plan"], a["weights"], a["biases"])
    one = arguments.pop("context")[:1]
    with torch.no_grad():
        expected = fk.ops.autoregressive_chain(**arguments, context=one.repeat(batch, 1))
        for context in (one, one[0], one.expand(batch, -1)):
            torch.testing.assert_close(fk.ops.autoregressive_chain(**arguments, context=context), expected, rtol=0, atol=1e-11)
        nowhere = fk.ops.autoregressive_chain(**arguments, context=torch.full_like(one, float("inf")))[1]
        assert not nowhere.isfinite().any()


@pytest.mark.parametrize("name", CASE.bad)
def test_bad_arguments_are_named_where_steps_run_one_by_one(name: str) -> None:
    change, error, message = CASE.bad[name]
    arguments = arguments_of(CASE.draw(3, 0), torch.float32)
    with fk.backend("reference"), pytest.raises(error, match=message):
        fk.ops.autoregressive_chain(**{**arguments, **change(arguments)})


def test_a_network_that_reads_no_features_is_one_of_couplings() -> None:
    net = coupling_network(3, 5)
    for operator in (fk.ops.autoregressive, fk.ops.autoregressive_inverse):
        with pytest.raises(ValueError, match="plan: expected a network that reads features"):
            operator(torch.zeros(2, 5).double(), net.weights, net.biases, net.plan, context=torch.zeros(2, 3).double())


def test_lists_of_features_are_as_good_as_tuples() -> None:
    arguments = arguments_of(CASE.draw(3, 0, layers=CHAINS["couplings"]))
    lists = [s._replace(order=list(s.order)) if isinstance(s, fk.ops.PermutationStep) else s for s in arguments["steps"]]
    lists = [s._replace(passing=list(s.passing)) if isinstance(s, fk.ops.CouplingStep) else s for s in lists]
    expected = fk.ops.autoregressive_chain(**arguments)
    assert torch.equal(fk.ops.autoregressive_chain(**{**arguments, "steps": lists})[0], expected[0])


def test_the_work_of_a_chain_is_that_of_all_its_steps() -> None:
    """By which threads are woken; it counts the multiply-adds of a row."""
    net = Network(False, network(features=FEATURES).plan, Affine())
    with_linear, alone = (ChainPlan(steps).program[9].item() for steps in ([net, LULinear(False)], [net]))
    assert alone == net.plan.packed_size
    assert with_linear == alone + FEATURES * (FEATURES + 1)


# -- packed weights ---------------------------------------------------------------------------------------------------


def test_packed_weights_are_read_in_place_of_the_weights() -> None:
    arguments = arguments_of(CASE.draw(5, 0))
    x, steps = arguments["x"], arguments["steps"]
    packed = [fk.ops.NetworkStep(i, {**a, "packed": fk.ops.pack(a["plan"], a["weights"], a["biases"])}) for i, a in steps]
    with torch.no_grad():
        expected = fk.ops.autoregressive_chain(x, steps)
        for _, a in packed:
            a["weights"] = [torch.full_like(w, float("nan")) for w in a["weights"]]
        assert torch.equal(fk.ops.autoregressive_chain(x, packed)[0], expected[0])


@pytest.mark.parametrize("grad", [False, True])
def test_packed_weights_that_cannot_be_those_of_the_call(grad: bool) -> None:
    arguments = arguments_of(CASE.draw(5, 0))
    x, (_, step) = arguments["x"], arguments["steps"][0]
    good = fk.ops.pack(step["plan"], step["weights"], step["biases"])

    def call(packed: torch.Tensor) -> None:
        fk.ops.autoregressive_chain(x, [fk.ops.NetworkStep(False, {**step, "packed": packed})] * 2)

    with torch.set_grad_enabled(grad):
        call(good)
        for packed, error, message in (
            (good.to("meta"), ValueError, "packed: expected device cpu like x, got meta"),
            (good.float(), TypeError, "packed: expected dtype torch.float64 like x, got torch.float32"),
            (good[:-1], ValueError, rf"packed: expected shape \({len(good)},\) for this plan, got \({len(good) - 1},\)"),
        ):
            with pytest.raises(error, match=message):
                call(packed)


# -- what the kernel does not trust -----------------------------------------------------------------------------------


def test_the_kernel_trusts_no_list() -> None:
    """The registered operator itself, with every list of tensors in turn one too short or empty."""
    arguments = arguments_of(CASE.draw(5, 0))
    recorder = Recorder()
    with torch.no_grad(), recorder:
        fk.ops.autoregressive_chain(**arguments)
    ((operator, args, _),) = recorder.calls
    lists = [i for i, a in enumerate(args) if isinstance(a, (list, tuple)) and len(a)]
    assert len(lists) == 1  # the weights and biases; there are no addends here, and nothing packed
    for i in lists:
        for other in (args[i][:-1], [], args[i] + args[i][:1], args[i][::-1]):
            with pytest.raises(RuntimeError, match=r"do not belong to (these plans|this plan)"):
                operator(*args[:i], other, *args[i + 1 :])
    program = next(i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dtype == torch.int64)
    for other in (args[program][:-1], args[program].double(), args[program] + 1):
        with pytest.raises(RuntimeError, match="no chain"):
            operator(*args[:program], other, *args[program + 1 :])


def test_the_kernel_trusts_no_device_and_no_other_steps_tensors() -> None:
    arguments = arguments_of(CASE.draw(5, 0))
    x, (_, step) = arguments["x"], arguments["steps"][0]
    meta = [fk.ops.NetworkStep(False, {**step, "weights": [w.to("meta") for w in step["weights"]]})]
    with torch.no_grad(), pytest.raises(ValueError, match=r"expected device meta like weights\[0\], got cpu"):
        fk.ops.autoregressive_chain(x, meta)
    uneven = [
        fk.ops.NetworkStep(False, {**step, "weights": step["weights"] * 2, "biases": step["biases"] * 2}),
        fk.ops.NetworkStep(False, {**step, "weights": [], "biases": []}),
    ]
    with torch.no_grad(), pytest.raises(ValueError, match="weights: expected 3 tensors, got 6"):
        fk.ops.autoregressive_chain(x, uneven)


# -- flows ------------------------------------------------------------------------------------------------------------


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
