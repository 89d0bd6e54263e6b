"""accelerate(memory="reversible"): the gradients of the libraries' own models, from what a few tensors keep."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kept import Kept
from models import MODELS
from test_models import assert_same, outcome
from torch import Tensor, nn

import flowkern as fk
from flowkern.adapters import state
from flowkern.nn import reversible


def rows(model: Any) -> list[str]:
    """What explain says of the containers whose layers rebuild their inputs."""
    return [status for _, _, status in fk.explain(model).rows if status.startswith("reversible")]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of layers of every reversible stack that runs inside."""
    found: list[int] = []
    run = reversible.run

    def counted(guard: Any, layers: Any, *args: Any) -> Any:
        found.append(len(layers))
        return run(guard, layers, *args)

    monkeypatch.setattr(reversible, "run", counted)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_and_all_that_people_call_on_them(name: str, passes: list[int]) -> None:
    pytest.importorskip(name.split(":")[0])
    torch.manual_seed(0)
    model = MODELS[name]
    twin = model.make()
    accelerated = fk.accelerate(copy.deepcopy(twin), memory="reversible")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "flowkern")  # no layer keeps its input
        for use in model.uses:
            passes.clear()
            assert_same(outcome(model, use, accelerated), outcome(model, use, twin))
            assert max(passes) > 2
    passes.clear()
    assert_same(outcome(model, use, accelerated, grads=False), outcome(model, use, twin, grads=False))
    assert not passes
    fk.restore(accelerated)
    assert type(accelerated) is type(twin)
    assert vars(accelerated).keys() == vars(twin).keys()


# -- models with conditioners, and images -----------------------------------------------------------------------------

WIDTH = 16


def network(inputs: int, outputs: int, *middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.Tanh(), *middle, nn.Linear(WIDTH, outputs))


def nflows_couplings(depth: int, *middle: Callable[[], nn.Module]) -> Any:
    transforms = pytest.importorskip("nflows.transforms")

    class Net(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.net = network(inputs, outputs, *(make() for make in middle))

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.net(x)

    masks = [[1, -1] * 3, [-1, 1] * 3]
    kinds = [transforms.AffineCouplingTransform, transforms.PiecewiseRationalQuadraticCouplingTransform]
    layers = [kinds[i % 2](masks[i // 2 % 2], Net, **({"tails": "linear"} if i % 2 else {})) for i in range(depth)]
    return transforms.CompositeTransform(layers)


def normflows_glow(depth: int) -> Any:
    """Two levels, whose act norms take their numbers from the first batch."""
    nf = pytest.importorskip("normflows")
    sizes = [24, 12]
    flows = [[*(nf.flows.GlowBlock(n, 8, init_zeros=False) for _ in range(depth)), nf.flows.Squeeze()] for n in sizes]
    bases = [nf.distributions.DiagGaussian((24, 2, 2)), nf.distributions.DiagGaussian((6, 4, 4))]
    return nf.MultiscaleFlow(bases, flows, [nf.flows.Merge()], class_cond=False)


def freia_sequence(depth: int) -> Any:
    framework, modules = pytest.importorskip("FrEIA.framework"), pytest.importorskip("FrEIA.modules")
    inn = framework.SequenceINN(6)
    for i in range(depth):
        options = [{}, {"reverse_permutation": True}, {"learned_householder_permutation": 2}, {"gin_block": True}][i % 4]
        cond = {"cond": i % 2, "cond_shape": (2,)} if i % 3 else {}
        inn.append(modules.AllInOneBlock, subnet_constructor=network, **cond, **options)
        if i % 3 == 1:
            inn.append(modules.ActNorm)
            inn.append(modules.GLOWCouplingBlock, subnet_constructor=network)
    return inn


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.Tanh(), nn.Conv2d(WIDTH, outputs, 1))


def freia_graph(depth: int) -> Any:
    """Wavelets, couplings of every kind with a condition, a half of the channels that leaves early."""
    f, m = pytest.importorskip("FrEIA.framework"), pytest.importorskip("FrEIA.modules")
    nodes = [f.InputNode(1, 4, 4), f.ConditionNode(2, 2, 2)]
    nodes.append(f.Node(nodes[0], m.HaarDownsampling, {}))
    kinds = [m.GLOWCouplingBlock, m.RNVPCouplingBlock, m.NICECouplingBlock, m.AffineCouplingOneSided]

    def stack(node: Any, conditions: Any) -> Any:
        for i in range(depth):
            options = {"subnet_constructor": convolution, **({} if kinds[i % 4] is m.NICECouplingBlock else {"clamp": 0.5})}
            node = f.Node(node, kinds[i % 4], options, conditions=conditions if i % 2 else [])
            nodes.append(node)
            node = f.Node(node, m.PermuteRandom, {"seed": i})
            nodes.append(node)
        return node

    split = f.Node(stack(nodes[-1], nodes[1]), m.Split, {})
    nodes.append(split)
    first, second = stack(split.out0, []), f.Node(split.out1, m.Flatten, {})
    return f.GraphINN([*nodes, second, f.OutputNode(first), f.OutputNode(second)])


def zuko_spline_couplings(depth: int) -> Any:
    """NSF, and couplings by splines, which have no operator; a layer that is neither."""
    zuko = pytest.importorskip("zuko")
    spline = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(5,), (5,), (4,)]}
    masks = [torch.arange(6) % 2 == i for i in range(2)]
    layers = [zuko.flows.GeneralCouplingTransform(6, 2, masks[i % 2], **spline, hidden_features=(8,)) for i in range(depth)]
    layers.insert(2, zuko.flows.UnconditionalTransform(zuko.transforms.SoftclipTransform, bound=20.0))
    return zuko.flows.Flow(
        layers, zuko.flows.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(6), torch.ones(6))
    )


def both_ways(inn: Any, x: Tensor, c: list[Tensor]) -> tuple[Tensor, ...]:
    z, j = inn(x, c=c)
    y, k = inn([t + 0.1 for t in z] if isinstance(z, tuple) else z + 0.1, c=c, rev=True)
    return *(z if isinstance(z, tuple) else (z,)), y, j, k


def glow(model: Any, x: Tensor, c: list[Tensor]) -> tuple[Tensor, ...]:
    z, log_det = model.inverse_and_log_det(x)
    y, other = model.forward_and_log_det([t + 0.1 for t in z])
    return model.log_prob(x, None), *z, log_det, y, other


# A maker of a depth, the shapes of x and of contexts, and a use.
STACKS: dict[str, tuple[Callable[[int], Any], list[tuple[int, ...]], Callable[..., tuple[Tensor, ...]]]] = {
    "nflows": (nflows_couplings, [(6,)], lambda m, x, c: (*m(x), *m.inverse(x))),
    "nflows, dropout": (lambda n: nflows_couplings(n, lambda: nn.Dropout(0.5)), [(6,)], lambda m, x, c: m(x)),
    "nflows, batch norm": (lambda n: nflows_couplings(n, lambda: nn.BatchNorm1d(WIDTH)), [(6,)], lambda m, x, c: m(x)),
    "normflows": (normflows_glow, [(3, 8, 8)], glow),
    "FrEIA sequence": (freia_sequence, [(6,), (2,), (2,)], both_ways),
    "FrEIA graph": (freia_graph, [(1, 4, 4), (2, 2, 2)], both_ways),
    "zuko": (
        zuko_spline_couplings,
        [(6,), (2,)],
        lambda m, x, c: (m(c[0]).log_prob(x), *m(c[0]).transform.inv.call_and_ladj(x)),
    ),
}
EACH = pytest.mark.parametrize("name", STACKS)


def results(model: Any, name: str, rows: int = 9) -> list[Tensor]:
    """Values and all gradients, and the next random number."""
    torch.manual_seed(3)
    _, shapes, use = STACKS[name]
    x, *c = (torch.randn(rows, *shape).double().requires_grad_() for shape in shapes)
    values = use(model, x, c)
    wanted = [x, *c, *(p for p in model.parameters() if p.requires_grad)]
    loss = sum((v.sin() * (i + 1)).sum() for i, v in enumerate(values))
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return [*(v.detach() for v in values), *grads, torch.rand(())]


@EACH
def test_conditioners_run_as_in_the_library(name: str, passes: list[int]) -> None:
    """In train mode, from the first batch on: masks of dropout, statistics and what an act norm takes are the library's."""
    torch.manual_seed(0)
    twin = STACKS[name][0](4).double()
    accelerated = fk.accelerate(copy.deepcopy(twin), memory="reversible")
    for _ in range(2):
        torch.testing.assert_close(results(accelerated, name), results(twin, name), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(dict(accelerated.state_dict()), dict(twin.state_dict()))
    assert max(passes) >= 4
    assert "keeps" not in str(rows(accelerated))


@EACH
def test_what_is_kept_does_not_grow_with_depth(name: str) -> None:
    found, full = {}, {}
    for depth in (3, 9):
        model = STACKS[name][0](depth).double()
        forward(model, name)
        full[depth] = Kept(model).of(lambda model=model: forward(model, name))
        fk.accelerate(model, memory="reversible")
        forward(model, name)
        found[depth] = Kept(model).of(lambda model=model: forward(model, name))
    assert found[9] < 1.2 * found[3]
    assert full[9] > 4 * found[9]


def forward(model: Any, name: str) -> Any:
    _, shapes, use = STACKS[name]
    torch.manual_seed(1)
    x, *c = (torch.randn(100, *shape).double() for shape in shapes)
    return use(model, x, c)


def test_conditioners_run_once_on_the_way_back() -> None:
    model = fk.accelerate(nflows_couplings(4).double(), memory="reversible")
    results(model, "nflows")
    calls: list[int] = []
    for layer in model._transforms:
        layer.transform_net.net.register_forward_hook(lambda *_: calls.append(1))
    z, _ = model(torch.randn(5, 6).double())
    assert len(calls) == 4
    z.sum().backward()
    assert len(calls) == 8
    assert all("forward" not in vars(m) for m in model.modules())


# -- layers that cannot ----------------------------------------------------------------------------------------------


def with_layer(layer: Any) -> Any:
    model = nflows_couplings(4)
    model._transforms.insert(2, layer)
    return model.double()


def layer_class(**methods: Any) -> Any:
    base = pytest.importorskip("nflows.transforms").Transform
    return type("Layer", (base,), {"forward": lambda self, x, context=None: (x * 2, x.new_zeros(len(x))), **methods})


def test_layers_that_cannot_rebuild_their_input_keep_it() -> None:
    wrong = layer_class(inverse=lambda self, z, context=None: (z / 2.1, z.new_zeros(len(z))))
    hidden = torch.randn(6, requires_grad=True)
    reads = layer_class(forward=lambda self, x, context=None: (x * hidden.to(x), x.new_zeros(len(x))))
    cases = {
        "layer 2 (Layer) keeps its input: it cannot go back": (layer_class()(), "it cannot go back"),
        "layer 2 (Layer) keeps its input: its round trip has an error of 4": (wrong(), "its round trip has an error of"),
        "layer 2 (Layer) keeps its activations: it reads tensors that are not its parameters": (reads(), None),
    }
    for said, (layer, warning) in cases.items():
        twin = with_layer(layer)
        model = fk.accelerate(copy.deepcopy(twin), memory="reversible")
        given = torch.randn(5, 6).double().requires_grad_()

        def outcome_of(model: Any, given: Tensor = given) -> list[Tensor]:
            z, log_det = model(given)
            return list(torch.autograd.grad(z.sin().sum() + log_det.sum(), [given, *model.parameters()]))

        expected = outcome_of(twin)
        if warning is None:
            found = outcome_of(model)
        else:
            with pytest.warns(RuntimeWarning, match=rf"layer 2 \(Layer\) keeps its input from now on: {warning}"):
                found = outcome_of(model)
        torch.testing.assert_close(found, expected)
        (row,) = rows(model)
        assert row.startswith("reversible, 4 of 5 layers; ")
        assert said in row


def test_tensors_in_the_places_of_parameters_get_their_gradients() -> None:
    """They are gone when the gradient is asked for; so is a forward that reads others, which is met after a first pass."""
    twin = nflows_couplings(3).double()
    model = fk.accelerate(copy.deepcopy(twin), memory="reversible")
    x, factor = torch.randn(5, 6).double(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    found = []
    for each in (model, twin):
        each(x)
        others = {name: (p.detach() * factor) for name, p in each.named_parameters()}
        loss = torch.func.functional_call(each, others, (x,))[1].sum()
        net = each._transforms[1].transform_net
        net.forward = lambda x, context=None, net=net: type(net).forward(net, x) * factor
        loss = loss + each(x)[1].sum()
        del net.forward
        found.append(torch.autograd.grad(loss, factor)[0])
    torch.testing.assert_close(*found)


def test_an_inverse_of_many_passes_is_not_asked_for() -> None:
    nflows = pytest.importorskip("nflows.transforms")
    layers = [nflows.MaskedPiecewiseQuadraticAutoregressiveTransform(6, 12, tails="linear") for _ in range(3)]
    model = fk.accelerate(nflows.CompositeTransform(layers), memory="reversible")
    z, log_det = model(torch.randn(5, 6))
    calls: list[int] = []
    layers[1].autoregressive_net.register_forward_hook(lambda *_: calls.append(1))
    (z.sum() + log_det.sum()).backward()
    assert len(calls) == 1
    assert (
        "layer 1 (MaskedPiecewiseQuadraticAutoregressiveTransform) keeps its input: its inverse takes more passes"
        in rows(model)[0]
    )


# -- the option ------------------------------------------------------------------------------------------------------


def test_copies_pickles_and_the_last_word() -> None:
    zuko = pytest.importorskip("zuko")
    plain = zuko.flows.MAF(4, 0, transforms=3, hidden_features=[8])
    model = fk.accelerate(copy.deepcopy(plain), memory="reversible")
    x = torch.randn(300, 4)
    sizes = {}
    for each, made in {
        "itself": model,
        "copy": copy.deepcopy(model),
        "again": fk.accelerate(model, memory="reversible"),
    }.items():
        made().log_prob(x)
        assert rows(made) == ["reversible, 3 of 3 layers"]
        sizes[each] = Kept(made).of(lambda made=made: made().log_prob(x))
    assert len(set(sizes.values())) == 1
    stored = pickle.loads(pickle.dumps(model))
    assert type(stored) is type(plain)
    assert not state.is_accelerated(stored.transform)
    assert fk.accelerate(model) is model
    assert rows(model) == []
    assert Kept(model).of(lambda: model().log_prob(x)) > 2 * sizes["itself"]
    with pytest.raises(ValueError, match=r"^memory: expected one of full, reversible, got 'small'$"):
        fk.accelerate(model, memory="small")  # type: ignore[arg-type]


def test_a_library_whose_layers_have_no_operator() -> None:
    framework, modules = pytest.importorskip("FrEIA.framework"), pytest.importorskip("FrEIA.modules")
    inn = framework.SequenceINN(6)
    inn.append(modules.GINCouplingBlock, subnet_constructor=network)  # its scales depend on each other
    kept = type(inn)
    fk.accelerate(inn, memory="reversible")
    assert type(inn) is not kept
    assert rows(inn) == ["reversible"]
    with pytest.warns(RuntimeWarning, match="found nothing to accelerate"):
        fk.accelerate(inn)
    assert type(inn) is kept


def test_second_derivatives_are_refused() -> None:
    model = fk.accelerate(nflows_couplings(3), memory="reversible")
    x = torch.randn(5, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"memory='reversible' has no graph for second derivatives; set memory='full'"):
        torch.autograd.grad(model(x)[1].sum(), x, create_graph=True)
