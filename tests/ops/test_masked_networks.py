"""masked_mlp, autoregressive and autoregressive_inverse against their float64 oracle, gradients included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accuracy import Pool, check_rule, device_of, using
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network, away_from_kinks, network, run

import flowkern as fk
from flowkern.plan import ACTIVATIONS
from flowkern.univariate import PLACEMENTS, SCALES

OPERATORS = ("masked_mlp", "autoregressive", "autoregressive_inverse")
OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
# Each operator with each of its kernels.
GPU = [pytest.param(*pair, marks=pytest.mark.gpu) for pair in zip(OPERATORS, ("triton", "triton", "cuda"), strict=True)]
ON_A_GPU = pytest.mark.parametrize(("operator", "kernels"), GPU)
KERNELS = pytest.mark.parametrize(("operator", "kernels"), [*((name, "native") for name in OPERATORS), *GPU])
TRANSFORMS = pytest.mark.parametrize(("operator", "kernels"), [*((name, "native") for name in OPERATORS[1:]), *GPU[1:]])


def check(
    operator: str, make: Callable[[int], Network], batch: int, dtype: torch.dtype, kernels: str = "native", **options: Any
) -> None:
    """The rule for networks ``make(seed)``, as many as it takes to pool enough elements."""

    def cases() -> Iterator[tuple[Network, torch.Tensor, list[torch.Tensor]]]:
        for seed in range(300):
            net = make(seed)
            x = torch.randn(batch, net.plan.features, dtype=torch.float64)
            added = [0.3 * torch.randn(batch, w, dtype=torch.float64) for w in net.plan.addend_widths]
            clear = away_from_kinks(operator, net, x, added)
            yield net, x[clear], [a[clear] for a in added]

    def evaluate(case: Any, dtype: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
        net, x, added = case
        return run(operator, net, x, dtype, backend, addends=added, **options)

    check_rule(cases(), evaluate, dtype, kernels)


STRUCTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one hidden layer": {"hidden": (40,)},
    "no hidden layer": {"hidden": ()},
    "uneven layers": {"hidden": (70, 9, 33)},
    "fewer units than features": {"features": 20, "hidden": (5, 7)},
    "many units per level": {"features": 3, "hidden": (70, 70)},
    "one feature": {"features": 1, "hidden": (4,)},
    "wide": {"features": 70, "hidden": (96, 96)},
    "residual": {"hidden": (24, 24, 24), "residual": True, "activation": "silu"},
    "residual, identity between": {
        "hidden": (24, 24, 24),
        "residual": True,
        "activation": "silu",
        "activated": [False, True, False],
    },
    "skip": {"skip": True},
    "skip only": {"hidden": (), "skip": True},
    "graph": {"features": 12, "hidden": (30, 30), "masks": "dag"},
    "graph, deep": {"features": 9, "hidden": (20, 20, 20, 20), "masks": "dag"},
    "reversed": {"features": 7, "order": list(range(7))[::-1]},
    "parameter major": {"layout": "parameter_major"},
    "scale first": {"parameter_order": (1, 0)},
    "no biases": {"biases": [False, False, False]},
}


@KERNELS
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_structures(operator: str, kernels: str, structure: dict[str, Any], dtype: torch.dtype) -> None:
    check(operator, lambda seed: network(**structure, seed=seed), 75, dtype, kernels)


@KERNELS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(operator: str, kernels: str, activation: str, dtype: torch.dtype) -> None:
    check(operator, lambda seed: network(6, (24, 24), activation=activation, seed=seed), 70, dtype, kernels)


@TRANSFORMS
@pytest.mark.parametrize(("scale", "placement"), list(itertools.product(SCALES, PLACEMENTS)))
def test_univariate_maps(operator: str, kernels: str, scale: str, placement: str, dtype: torch.dtype) -> None:
    check(operator, lambda seed: network(6, (24,), scale=scale, placement=placement, seed=seed), 70, dtype, kernels)


@OPERATOR
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 15, 16, 31, 32, 33, 64, 100])
def test_batches_with_and_without_gradient(operator: str, batch: int, dtype: torch.dtype) -> None:
    for grads in (True, False):
        check(operator, lambda seed: network(11, (40, 40), seed=seed), batch, dtype, grads=grads)


@KERNELS
@pytest.mark.parametrize("how", ["transposed", "sliced"])
def test_strides(operator: str, kernels: str, how: str, dtype: torch.dtype) -> None:
    check(operator, lambda seed: network(11, (40, 40), seed=seed), 50, dtype, kernels, how=how)


@KERNELS
@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (2, 0)])
def test_addends(operator: str, kernels: str, layers: tuple[int, ...], dtype: torch.dtype) -> None:
    for masks in ("made", "dag"):
        check(operator, lambda seed, m=masks: network(7, (24, 20), addends=layers, masks=m, seed=seed), 50, dtype, kernels)


@KERNELS
@pytest.mark.parametrize(("gates", "addends"), [((0,), ()), ((1,), (1,)), ((2, 0), (0, 3)), ((2,), (0,))])
@pytest.mark.parametrize("residual", [False, True])
def test_gates(
    operator: str, kernels: str, residual: bool, gates: tuple[int, ...], addends: tuple[int, ...], dtype: torch.dtype
) -> None:
    structure = {"masks": "made" if residual else "dag", "residual": residual, "activation": "silu"}
    for grads in (True, False):
        check(
            operator,
            lambda seed: network(7, (24, 24, 24), gates=gates, addends=addends, seed=seed, **structure),
            37,
            dtype,
            kernels,
            grads=grads,
        )


@OPERATOR
def test_second_derivatives_of_gates(operator: str) -> None:
    net = network(3, (6, 6), gates=(1,), addends=(0,), activation="tanh")
    x, added = torch.randn(4, 3, dtype=torch.float64), [torch.randn(4, 6, dtype=torch.float64) for _ in range(2)]
    leaves = [t.clone().requires_grad_() for t in (x, *added)]

    def function(x: torch.Tensor, *added: torch.Tensor) -> Any:
        options = {} if operator == "masked_mlp" else net.map
        return getattr(fk.ops, operator)(x, net.weights, net.biases, net.plan, addends=added, **options)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@OPERATOR
@settings(max_examples=24)  # each pools a thousand elements
@given(data=st.data())
def test_any_network(operator: str, data: st.DataObject) -> None:
    any_network(operator, "native", data.draw)


@ON_A_GPU
@settings(max_examples=8)  # each costs compilations on a GPU, and time in the interpreter
@given(data=st.data())
def test_any_network_on_a_gpu(operator: str, kernels: str, data: st.DataObject) -> None:
    any_network(operator, kernels, data.draw)


def any_network(operator: str, kernels: str, draw: Callable[..., Any]) -> None:
    hidden = draw(st.lists(st.integers(1, 40), max_size=3))
    residual = draw(st.booleans()) and len(hidden) == 3 and draw(st.booleans())
    masks = draw(st.sampled_from(["made", "dag"]))
    features = draw(st.integers(1, 24))
    structure = {
        "hidden": [hidden[0]] * 3 if residual else hidden,
        "masks": masks,
        "residual": residual and masks == "made",
        "skip": draw(st.booleans()),
        "order": draw(st.permutations(range(features))),
        "activation": "tanh" if residual else draw(st.sampled_from(ACTIVATIONS)),
        "scale": draw(st.sampled_from(SCALES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
        "layout": "feature_major" if masks == "dag" else draw(st.sampled_from(["feature_major", "parameter_major"])),
        "parameter_order": draw(st.sampled_from([None, (1, 0)])),
    }
    batch = draw(st.sampled_from([0, 1, 3, 17, 40, 65]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    how = draw(st.sampled_from(["contiguous", "transposed", "sliced"]))
    grads = draw(st.booleans())
    first = draw(st.integers(0, 1000))
    torch.manual_seed(first)  # an example is the same when it is run again
    check(operator, lambda seed: network(features, **structure, seed=first + seed), batch, dtype, kernels, how=how, grads=grads)


@OPERATOR
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_inputs_and_outputs(operator: str, low: torch.dtype) -> None:
    net = network(6, (24, 24), gain=0.5)
    net.weights = [w.to(low).double() for w in net.weights]
    net.biases = [b.to(low).double() for b in net.biases]
    x = torch.randn(50, 6).to(low).double()
    half, exact = run(operator, net, x, low, "native"), run(operator, net, x, torch.float64, "reference")
    for name, value in exact.items():
        bound = 2 * torch.finfo(low).eps * value.abs() + 1e-5
        assert ((half[name].double() - value).abs() <= bound).all(), name


@KERNELS
def test_no_rows(operator: str, kernels: str, dtype: torch.dtype) -> None:
    net = network()
    found = run(operator, net, torch.randn(0, 5), dtype, kernels)
    assert found["value"].shape[0] == 0
    weights, biases = net.leaves(dtype, device_of(kernels))
    options = {} if operator == "masked_mlp" else net.map
    with using(kernels):
        x = torch.randn(0, 5, dtype=dtype, device=device_of(kernels))
        out = getattr(fk.ops, operator)(x, weights, biases, net.plan, **options)
    first = out if isinstance(out, torch.Tensor) else out[0]
    first.sum().backward()
    assert all((w.grad == 0).all() for w in weights)


@OPERATOR
def test_leading_dimensions(operator: str, dtype: torch.dtype) -> None:
    net = network()
    x = torch.randn(2, 3, 5, dtype=dtype)
    options = {} if operator == "masked_mlp" else net.map
    weights, biases = [w.to(dtype) for w in net.weights], [b.to(dtype) for b in net.biases]

    def call(rows: torch.Tensor) -> Any:
        return getattr(fk.ops, operator)(rows, weights, biases, net.plan, **options)

    flat, shaped, single = call(x.reshape(6, 5)), call(x), call(x[0, 0])
    if operator == "masked_mlp":
        flat, shaped, single = (flat,), (shaped,), (single,)
    for a, b, c in zip(flat, shaped, single, strict=True):
        assert b.shape == (2, 3, *a.shape[1:])
        torch.testing.assert_close(b.reshape(a.shape), a)
        torch.testing.assert_close(c, a[0], rtol=1e-5, atol=1e-5)


# -- derivatives ----------------------------------------------------------------------------------------------------


def differentiable(operator: str, net: Network, kernels: str = "native") -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The operator as a function of x, all weights, all biases and the addend."""
    device = device_of(kernels)
    weights, biases = net.leaves(torch.float64, device)
    like: Any = {"dtype": torch.float64, "device": device, "requires_grad": True}
    x = torch.randn(3, net.plan.features, **like)
    addends = [torch.randn(3, w, **like) for w in net.plan.addend_widths]
    options = {} if operator == "masked_mlp" else net.map
    n, m = len(weights), len(weights) + len(biases)

    def function(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        with using(kernels):
            return getattr(fk.ops, operator)(x, rest[:n], rest[n:m], net.plan, addends=rest[m:], **options)

    return function, (x, *weights, *biases, *addends)


SMOOTH: list[dict[str, Any]] = [
    {"activation": "tanh", "addends": (0,)},
    {"activation": "softplus", "scale": "softplus", "placement": "scale_shift", "masks": "dag"},
    {"activation": "silu", "scale": "sigmoid", "placement": "gate", "skip": True},
    {"activation": "gelu", "scale": "soft_clipped_exp", "placement": "shift_scale", "hidden": (4, 4, 4), "residual": True},
    {"activation": "sigmoid", "scale": "none", "placement": "scale_shift"},
    {"activation": "elu", "scale": "tanh", "hidden": ()},
]


@KERNELS
@pytest.mark.parametrize("options", SMOOTH, ids=lambda o: o["activation"])
def test_gradcheck_and_gradgradcheck(operator: str, kernels: str, options: dict[str, Any]) -> None:
    function, inputs = differentiable(operator, network(**{"features": 3, "hidden": (5, 4), **options}), kernels)
    fast = kernels == "triton"  # random directions instead of every entry: the interpreter is slow
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


@OPERATOR
def test_third_derivatives_are_those_of_the_oracle(operator: str) -> None:
    net = network(3, (5,), activation="tanh")
    x = torch.randn(4, 3, dtype=torch.float64)
    weights, biases = net.leaves(torch.float64)
    options = {} if operator == "masked_mlp" else net.map

    def third(backend: str) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        with fk.backend(backend):
            out = getattr(fk.ops, operator)(leaf, weights, biases, net.plan, **options)
            y = out if isinstance(out, torch.Tensor) else out[0]
            for _ in range(3):
                (y,) = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
        return y

    torch.testing.assert_close(third("native"), third("reference"))


@KERNELS
def test_gradients_where_only_some_inputs_need_them(operator: str, kernels: str) -> None:
    function, inputs = differentiable(operator, network(4, (6, 5), addends=(1,)), kernels)

    def gradients(needed: list[int]) -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
        out = function(*leaves)
        y = out if isinstance(out, torch.Tensor) else out[0]
        return list(torch.autograd.grad(y.sum(), [leaves[i] for i in needed]))

    everything = gradients(list(range(len(inputs))))
    for i in range(len(inputs)):
        torch.testing.assert_close(gradients([i])[0], everything[i])


@pytest.mark.parametrize("operator", OPERATORS[1:])
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


def test_torch_func_transforms() -> None:
    net = network(4, (8,), activation="tanh")
    x = torch.randn(6, 4, dtype=torch.float64)
    for operator in OPERATORS[1:]:

        def call(v: torch.Tensor, operator: str = operator) -> torch.Tensor:
            return getattr(fk.ops, operator)(v, net.weights, net.biases, net.plan, **net.map)[0]

        expected = torch.stack([torch.autograd.functional.jacobian(call, row) for row in x])
        torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(call))(x), expected)
        torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(call))(x), expected)
        gradient = torch.func.grad(lambda v, f=call: f(v).sum())(x)
        torch.testing.assert_close(gradient, expected.sum(1))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(call(dual)).tangent
        torch.testing.assert_close(tangent, expected.sum(2))


# -- numbers that are not finite ------------------------------------------------------------------------------------


@TRANSFORMS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("batch", [5, 40])
def test_a_row_that_is_not_finite_shows_it_and_touches_no_other(
    operator: str, kernels: str, bad: float, grads: bool, batch: int
) -> None:
    net = network(6, (20, 20))
    x = torch.randn(batch, 6)
    clean = run(operator, net, x, torch.float32, kernels, grads=grads)
    for feature in range(6):
        dirty = x.clone()
        dirty[2, feature] = bad
        found = run(operator, net, dirty, torch.float32, kernels, grads=False)
        others = torch.arange(batch) != 2
        assert not torch.isfinite(found["log_det"][2])
        torch.testing.assert_close(found["log_det"][others], clean["log_det"][others], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["value"][others], clean["value"][others], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", ["native", pytest.param("triton", marks=pytest.mark.gpu)])
def test_masked_weights_may_hold_anything(kernels: str) -> None:
    net = network(5, (16, 16))
    x = torch.randn(40, 5)
    before = run("autoregressive", net, x, torch.float32, kernels)
    net.weights = [torch.where(m, w, torch.nan) for m, w in zip(net.plan.masks, net.weights, strict=True)]
    after = run("autoregressive", net, x, torch.float32, kernels)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


# -- repeatability --------------------------------------------------------------------------------------------------


@OPERATOR
def test_results_do_not_depend_on_the_number_of_threads(operator: str, dtype: torch.dtype) -> None:
    net, x = network(20, (64, 48)), torch.randn(1200, 20)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(run(operator, net, x, dtype, "native"))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].items():
        assert all(torch.equal(value, other[name]) for other in results[1:]), name


# -- contracts ------------------------------------------------------------------------------------------------------


def bad_calls() -> dict[str, tuple[Any, type[Exception], str]]:
    x = torch.randn(3, 5)

    def with_first(items: list[torch.Tensor], value: torch.Tensor) -> list[torch.Tensor]:
        return [value, *items[1:]]

    return {
        "features": (lambda w, b: (x[:, :4], w, b, ()), ValueError, r"expected shape \(..., 5\), got \(3, 4\)"),
        "integers": (lambda w, b: (x.long(), w, b, ()), TypeError, "float"),
        "dtype": (lambda w, b: (x.double(), w, b, ()), TypeError, r"expected dtype torch\.float32 like weights\[0\], got"),
        "dtype of a weight": (
            lambda w, b: (x, [w[0], w[1].double(), w[2]], b, ()),
            TypeError,
            r"weights\[1\]: expected dtype torch\.float32 like weights\[0\]",
        ),
        "dtype of a bias": (lambda w, b: (x, w, with_first(b, b[0].double()), ()), TypeError, r"biases\[0\]: expected dtype"),
        "shape of a weight": (lambda w, b: (x, with_first(w, w[0][:, 1:]), b, ()), ValueError, r"weights\[0\]: expected shape"),
        "shape of a bias": (lambda w, b: (x, w, with_first(b, b[0][1:]), ()), ValueError, r"biases\[0\]: expected shape"),
        "too few weights": (lambda w, b: (x, w[1:], b, ()), ValueError, "weights: expected 3 tensors, got 2"),
        "an unexpected addend": (lambda w, b: (x, w, b, (x,)), ValueError, "addends: the plan takes 0, got 1"),
        "device": (
            lambda w, b: (x, [w[0], w[1].to("meta"), w[2]], b, ()),
            ValueError,
            r"weights\[1\]: expected device cpu like weights\[0\]",
        ),
    }


@OPERATOR
@pytest.mark.parametrize("case", bad_calls().values(), ids=bad_calls())
def test_bad_arguments_are_named(operator: str, case: Any) -> None:
    make, error, message = case
    net = network()
    x, w, b, addends = make([t.float() for t in net.weights], [t.float() for t in net.biases])
    with pytest.raises(error, match=message):
        getattr(fk.ops, operator)(x, w, b, net.plan, addends=addends)


def test_unknown_maps_are_named() -> None:
    net = network()
    x = torch.randn(2, 5, dtype=torch.float64)
    for options, message in (
        ({"scale": "cube"}, "scale: expected one of"),
        ({"placement": "left"}, "placement: expected one of"),
        ({"scale": "softplus", "constants": (1.0, 2.0)}, "takes 1, got 2"),
        ({"scale": "none"}, "takes 1 parameters per feature, the plan has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            fk.ops.autoregressive(x, net.weights, net.biases, net.plan, **options)


def test_opcheck() -> None:
    net = network(4, (8, 6), addends=(0,))
    plan = net.plan
    x, addend = torch.randn(5, 4), torch.randn(5, 8)
    weights, biases = [w.float() for w in net.weights], [b.float() for b in net.biases]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops, network_args = torch.ops.flowkern, (weights, biases, [addend], None, plan.meta, plan.mask_bytes)
    sizes, numbers = (plan.packed_size, plan.saved_rows), (1, 1, 0.0, 0.0)
    torch.library.opcheck(ops.pack, (weights, biases, plan.meta, plan.mask_bytes, plan.packed_size), test_utils=checks)
    torch.library.opcheck(ops.masked_mlp, (x, *network_args, 8, *sizes, True), test_utils=checks)
    packed = fk.ops.pack(plan, weights, biases)
    for name in OPERATORS[1:]:
        op, backward = getattr(ops, name), getattr(ops, name + "_backward")
        for save in (True, False):
            torch.library.opcheck(op, (x, *network_args, *sizes, *numbers, save), test_utils=checks)
        *_, saved = op(x, *network_args, *sizes, *numbers, True)
        rest = (x, packed, saved, plan.meta, plan.mask_bytes, weights, biases, [addend], *numbers)
        for parameters in (True, False):
            torch.library.opcheck(backward, (torch.randn(5, 4), torch.randn(5), *rest, parameters), test_utils=checks)


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


@KERNELS
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks(operator: str, kernels: str, compiler: str) -> None:
    if kernels == "triton" and compiler == "inductor" and device_of(kernels).type == "cpu":
        pytest.skip("the interpreter cannot run inside Inductor's code")
    torch._dynamo.reset()  # one code object, more cases than it may be compiled for
    net, device = network(6, (24, 24), addends=(0,)), device_of(kernels)
    weights, biases = net.leaves(torch.float32, device)
    x, addend = (torch.randn(40, n, device=device, requires_grad=True) for n in (6, 24))
    options = {} if operator == "masked_mlp" else net.map

    def call(x: torch.Tensor) -> torch.Tensor:
        out = getattr(fk.ops, operator)(x * 2, weights, biases, net.plan, addends=[addend.tanh()], **options)
        return out.square().mean() if isinstance(out, torch.Tensor) else out[0].square().mean() + out[1].mean()

    leaves = [x, addend, *weights, *biases]
    with using(kernels):
        expected, eager = call(x), torch.autograd.grad(call(x), leaves)
        compiled = torch.compile(call, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(torch.autograd.grad(compiled(x), leaves), eager)


@ON_A_GPU
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "structure", [{}, {"hidden": (24, 24, 24), "residual": True}, {"gates": (1,), "addends": (0,)}], ids=str
)
def test_low_precision_is_as_exact_as_its_oracle(
    operator: str, kernels: str, low: torch.dtype, structure: dict[str, Any]
) -> None:
    """GPU kernels multiply in the low precision itself, so the rule compares with an oracle of that precision."""
    pools: dict[str, Pool] = {}
    for seed in range(3 if device_of(kernels).type == "cpu" else 60):
        net = network(6, **{"hidden": (24, 24), "activation": "tanh", "gain": 0.5, "seed": seed, **structure})
        net.weights, net.biases = ([t.to(low).double() for t in part] for part in (net.weights, net.biases))
        x = torch.randn(50, 6).to(low).double()
        added = [(0.5 * torch.randn(50, w)).to(low).double() for w in net.plan.addend_widths]
        found = (run(operator, net, x, *how, addends=added) for how in ((low, kernels), (low, "reference")))
        kernel, oracle = found
        exact = run(operator, net, x, torch.float64, "reference", addends=added)
        for name, value in exact.items():
            pools.setdefault(name, Pool()).add(kernel[name], oracle[name], value)
    for name, pool in pools.items():
        bound = 2 * pool.oracle + 4 * torch.finfo(low).eps * pool.largest
        assert pool.kernel <= bound, f"{name}: error {pool.kernel:.3g}, bound {bound:.3g}"


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


@ON_A_GPU
def test_autocast_multiplies_in_its_dtype_and_keeps_the_maps_exact(operator: str, kernels: str) -> None:
    device = device_of(kernels)
    net = network(6, (24, 24), addends=(0,), activation="tanh")
    x = torch.randn(50, 6, device=device, requires_grad=True)
    addend = torch.randn(50, 24, device=device, requires_grad=True)
    options = {} if operator == "masked_mlp" else net.map
    found = {}
    for backend in (kernels, "reference"):
        weights, biases = net.leaves(torch.float32, device)
        with using(backend), torch.autocast(device.type, torch.bfloat16):
            out = getattr(fk.ops, operator)(x, weights, biases, net.plan, addends=[addend], **options)
        outputs = out if isinstance(out, tuple) else (out,)
        assert all(o.dtype == torch.float32 for o in outputs)
        with using(backend):
            grads = torch.autograd.grad(sum(o.sin().sum() for o in outputs), [x, addend, *weights, *biases])
        assert all(g.dtype == torch.float32 for g in grads)
        found[backend] = [*outputs, *grads]
    for kernel, oracle in zip(found[kernels], found["reference"], strict=True):
        torch.testing.assert_close(kernel, oracle, rtol=0.05, atol=0.02 * float(oracle.detach().abs().max()))
    weights, biases = net.leaves(torch.float32, device)
    with using(kernels), torch.autocast(device.type, torch.bfloat16):
        out = getattr(fk.ops, operator)(x, weights, biases, net.plan, addends=[addend], **options)
    first = out[0] if isinstance(out, tuple) else out
    (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(second.square().sum(), x)[0]).all()


# -- what a review found once ---------------------------------------------------------------------------------------


@OPERATOR
def test_parameters_of_any_stride(operator: str) -> None:
    net, x = network(6, (20, 20)), torch.randn(40, 6)
    expected = run(operator, net, x, torch.float32, "native")
    weights = [w.float().t().contiguous().t().requires_grad_() for w in net.weights]
    biases = [torch.stack([b.float(), torch.full_like(b.float(), torch.nan)], 1)[:, 0].requires_grad_() for b in net.biases]
    options = {} if operator == "masked_mlp" else net.map
    out = getattr(fk.ops, operator)(x, weights, biases, net.plan, **options)
    torch.testing.assert_close(out if operator == "masked_mlp" else out[0], expected["value"])
    shared = [torch.zeros(1).expand(len(b)) for b in net.biases]
    plain = [torch.zeros(len(b)) for b in net.biases]
    call = [getattr(fk.ops, operator)(x, weights, b, net.plan, **options) for b in (shared, plain)]
    torch.testing.assert_close(*call)


@pytest.mark.parametrize("placement", PLACEMENTS)
@TRANSFORMS
def test_lanes_beyond_the_batch_stay_out_of_the_gradients(operator: str, kernels: str, placement: str) -> None:
    """A map that is harmless at the data and overflows at zero, where an empty lane might stand."""
    masks = [torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0]])]
    sign = 1.0 if placement == "standardize" else -1.0
    like: Any = {"dtype": torch.float64, "device": device_of(kernels)}
    weights = [torch.tensor([[0.0, 0], [0, 0], [0, 0], [sign, 0]], **like).requires_grad_()]
    biases = [torch.tensor([0.0, 0, 0, -1000 * sign], **like).requires_grad_()]
    plan = fk.AutoregressivePlan(masks)
    x = torch.randn(9, 2, **like) + torch.tensor([1000.0, 0], **like)
    with using(kernels):
        z, log_det = getattr(fk.ops, operator)(x, weights, biases, plan, placement=placement)
    (z.sum() + log_det.sum()).backward()
    assert torch.isfinite(z).all()
    assert all(torch.isfinite(t.grad).all() for t in (*weights, *biases))
    with fk.backend("reference"):
        torch.testing.assert_close(getattr(fk.ops, operator)(x, weights, biases, plan, placement=placement), (z, log_det))


@OPERATOR
def test_batched_cotangents(operator: str) -> None:
    net = network(4, (8,), activation="tanh")
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    options = {} if operator == "masked_mlp" else net.map

    def call(v: torch.Tensor) -> torch.Tensor:
        out = getattr(fk.ops, operator)(v, net.weights, net.biases, net.plan, **options)
        return out if operator == "masked_mlp" else out[0]

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(call, x, vectorize=True), jacobian(call, x))


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


def test_native_under_a_transform_is_an_error_where_it_was_forced() -> None:
    net = network(4, (8,))
    x = torch.randn(5, 4, dtype=torch.float64)

    def call(v: torch.Tensor) -> torch.Tensor:
        return fk.ops.autoregressive(v, net.weights, net.biases, net.plan)[0]

    with fk.backend("native"), pytest.raises(RuntimeError, match=r"torch\.func transforms have rules for plain PyTorch only"):
        torch.func.vmap(call)(x)


def test_a_forced_backend_compiles() -> None:
    net, x = network(4, (8,)), torch.randn(5, 4, dtype=torch.float64)

    def call(v: torch.Tensor) -> torch.Tensor:
        return fk.ops.autoregressive(v, net.weights, net.biases, net.plan)[0]

    with fk.backend("reference"):
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
