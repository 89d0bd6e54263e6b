"""Accelerated layers among threads, modes, tracers, optimisers, pickles, and code that walks through everything."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import PEERS, Peer

import flowkern as fk
from flowkern.adapters import calls, library

zuko = pytest.importorskip("zuko")
nflows_autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
pytest.importorskip("pyro")
pytest.importorskip("normflows")

EACH = pytest.mark.parametrize(
    "name", ["zuko: context", "nflows: context", "normflows: context", "pyro: context", "pyro: default"]
)


def nflows_layer(**options: Any) -> Any:
    return nflows_autoregressive.MaskedAffineAutoregressiveTransform(5, 16, **options)


def zuko_flow() -> Any:
    return zuko.flows.MAF(5, transforms=2, hidden_features=[16])


def status(layer: Any) -> str:
    return fk.explain(layer).rows[0][2]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def arguments_of(peer: Peer) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.randn(4, peer.features), torch.randn(4, peer.context) if peer.context else None


# -- threads ----------------------------------------------------------------------------------------------------------


def test_a_check_leaves_the_global_generator_to_the_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nflows_layer()
    drawn = []

    def evaluate(*args: Any) -> Any:
        drawn.append(torch.rand(3))  # as another thread would, while the check is at work
        return original(*args)

    original = library._libraries["nflows"].layers[library.class_path(type(layer))].evaluate
    fk.accelerate(layer)
    state = layer.__dict__["_flowkern"]
    state.layer = library.Layer(state.layer.read, evaluate, state.layer.methods)
    layer(torch.randn(2, 5))
    drawn.append(torch.rand(3))
    assert len(drawn) == 3
    assert status(layer) == "accelerated"
    assert len({tuple(d.tolist()) for d in drawn}) == 3, "the check put the generator back"


def test_accelerate_and_restore_while_other_threads_call() -> None:
    layers = {"nflows": nflows_layer(), "pyro": PEERS["pyro: stable"].make(), "zuko": zuko_flow()}
    x = torch.randn(4, 5)
    calls: dict[str, Callable[[Any], Any]] = {
        "nflows": lambda m: m.inverse(x)[0],
        "pyro": lambda m: m._call(torch.cat([x, x[:, :1]], 1)),
        "zuko": lambda m: m().log_prob(x),
    }
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for name, layer in layers.items():
            expected, stop = calls[name](layer), []

            def call(layer: Any = layer, name: str = name, stop: list = stop) -> list[Any]:
                found = []
                with torch.no_grad():
                    while not stop:
                        found = [*found[-200:], calls[name](layer)]
                return found

            futures = [pool.submit(call) for _ in range(3)]
            for _ in range(40):
                fk.accelerate(layer)
                calls[name](layer)
                fk.restore(layer)
            stop.append(True)
            for future in futures:
                for found in future.result():
                    assert_same(found, expected)


def test_threads_update_one_model() -> None:
    flow = fk.accelerate(zuko_flow())
    optimizer = torch.optim.SGD(flow.parameters(), 1e-4)
    flow().log_prob(torch.randn(2, 5))

    def train(seed: int) -> None:
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
        for _ in range(20):
            gradients = torch.autograd.grad(-flow().log_prob(x).sum(), list(flow.parameters()))
            for p, g in zip(flow.parameters(), gradients, strict=True):
                p.grad = g
            optimizer.step()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(train, range(8)))


# -- optimisers -------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_step_between_forward_and_backward(name: str, direction: str) -> None:
    peer = PEERS[name]
    layer = peer.make()
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    x, c = arguments_of(peer)
    found = []
    for model in (layer, twin):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        a, b = (getattr(peer, direction)(model, x.clone(), c) for _ in range(2))
        a[1].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        (b[0].sum() + b[1].sum()).backward()
        found.append([p.grad for p in model.parameters()])
    assert_same(*found)
    assert status(layer) == "accelerated"


def test_second_derivatives_after_a_step_are_an_error_that_says_so() -> None:
    layer = fk.accelerate(nflows_layer())
    x = torch.randn(4, 5, requires_grad=True)
    y, log_det = layer(x)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(0.5)
    with pytest.raises(RuntimeError, match=r"autoregressive: second derivatives .* need the weights and inputs"):
        torch.autograd.grad(y.sum() + log_det.sum(), x, create_graph=True)


# -- inference mode ---------------------------------------------------------------------------------------------------


def test_accelerated_in_inference_mode_and_differentiated_outside() -> None:
    layer, other = nflows_layer(), nflows_layer()
    twin, x = copy.deepcopy(layer), torch.randn(3, 5)
    with torch.inference_mode():
        fk.accelerate(layer)
        layer(x)
        noise = torch.randn(3, 5)
    fk.accelerate(other)  # its masks are the same, and so is its plan
    for model in (layer, other):
        plan = model.__dict__["_flowkern"].network.plan
        assert not any(t.is_inference() for t in (*plan.masks, plan.meta, plan.mask_bytes, plan.feature_order))
        model(x)
        assert status(model) == "accelerated"
    results = []
    for model in (layer, twin):
        y = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(y)[0].square().sum(), y, create_graph=True)
        second = torch.autograd.grad(g.square().sum(), y)
        _, tangent = torch.func.jvp(lambda v, m=model: m(v)[0], (x,), (torch.ones_like(x),))
        rows = torch.func.vmap(lambda row, m=model: m(row[None])[0][0])(x)
        z, log_det = model.inverse(noise)
        weights = torch.autograd.grad(z.sum() + log_det.sum(), list(model.parameters()))
        results.append((g, second, tangent, rows, z, weights))
    assert_same(*results)


# -- tracers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("how", ["export", "export, strict", "trace", "trace, inverse"])
def test_exporters_see_the_librarys_own_code(how: str, first: bool) -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    if not first:
        layer(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch.jit
        if how.startswith("export"):
            program = torch.export.export(layer, (x,), strict="strict" in how)
            names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
            assert_same(program.module()(x), twin(x))
        else:
            method = "inverse" if "inverse" in how else "forward"
            program = torch.jit.trace_module(layer, {method: (x,)}, check_trace=False)
            graph = program.inlined_graph if method == "forward" else getattr(program, method).inlined_graph
            names = [node.kind() for node in graph.nodes()]
            assert_same(getattr(program, method)(x), getattr(twin, method)(x))
    assert names
    assert not any("flowkern" in n or "PythonOp" in n for n in names)
    assert_same(layer(x), twin(x))
    assert status(layer) == "accelerated"


def test_the_first_use_with_tensors_without_values() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = fk.accelerate(nflows_layer())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.randn(4, 5))[0].shape == (4, 5)
    x = torch.randn(4, 5)
    assert_same(layer(x), fk.restore(copy.deepcopy(layer))(x))
    assert status(layer) == "accelerated"


def test_a_check_that_cannot_run_now_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = fk.accelerate(nflows_layer())
    twin = fk.restore(copy.deepcopy(layer))

    def fails(*_: Any) -> None:
        raise RuntimeError("a tensor without values")

    with monkeypatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(calls, "self_check", fails)
        assert layer(torch.randn(4, 5))[0].shape == (4, 5)
    assert status(layer) == "accelerated, to be checked at the first call"
    x = torch.randn(4, 5)
    assert_same(layer(x), twin(x))
    assert status(layer) == "accelerated"


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_zuko_compiled_whole_before_any_call(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowkern.adapters import zuko as adapter

    monkeypatch.setattr(adapter, "_classes", {})  # as in a process in which zuko was not accelerated yet
    layer = PEERS["zuko: context"].make()
    twin, x, c = copy.deepcopy(layer), torch.randn(4, 6), torch.randn(4, 3)
    fk.accelerate(layer)

    def call(model: Any, x: torch.Tensor) -> Any:
        return model(c).call_and_ladj(x) if direction == "forward" else model(c).inv(x)

    compiled = torch.compile(lambda x: call(layer, x), fullgraph=True)
    assert_same(compiled(x), call(twin, x))
    assert status(layer) == "accelerated"
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["normflows: coupling", "normflows: masked"])
def test_couplings_compiled_whole_before_any_call(name: str) -> None:
    pytest.importorskip("normflows")
    layer, x = PEERS[name].make(), torch.randn(4, 5)
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    assert_same(torch.compile(lambda x: layer.inverse(x), fullgraph=True, backend="eager")(x), twin.inverse(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("change", ["first use", "masks touched", "structure"])
def test_what_must_be_read_or_checked_under_a_transform_is_put_off(change: str) -> None:
    layer, x = fk.accelerate(nflows_layer()), torch.randn(4, 5)
    if change != "first use":
        layer(x)
    if change == "masks touched":
        layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    if change == "structure":
        layer._epsilon = 0.3
    twin = fk.restore(copy.deepcopy(layer))
    found, expected = (torch.func.jacrev(lambda r, m=m: m(r)[0])(x) for m in (layer, twin))
    assert_same(found, expected)
    rows = (torch.func.vmap(lambda r, m=m: m(r[None])[1][0], randomness="error")(x) for m in (layer, twin))
    assert_same(*rows)
    assert_same(layer(x), twin(x))
    assert status(layer) == "accelerated"


def test_a_mode_of_the_caller_does_not_reach_the_check() -> None:
    class Doubled(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is torch.nn.functional.linear else result

    layer, x = fk.accelerate(nflows_layer()), torch.randn(4, 5)
    twin = fk.restore(copy.deepcopy(layer))
    with Doubled():
        layer(x)
    assert_same(layer(x), twin(x))
    assert status(layer) == "accelerated"


# -- wrappers ---------------------------------------------------------------------------------------------------------


def test_sharded_and_replicated_in_several_processes() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = [nflows_layer() for _ in range(2)]
    twins, x = copy.deepcopy(layers), torch.randn(4, 5)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        models = [
            torch.nn.parallel.DistributedDataParallel(fk.accelerate(layers[0])),
            fully_shard(fk.accelerate(layers[1]), mesh=mesh),
        ]
        for model, layer, twin in zip(models, layers, twins, strict=True):
            y, log_det = model(x)
            assert_same((y, log_det), twin(x))
            (y.sum() + log_det.sum()).backward()
            sum(t.sum() for t in twin(x)).backward()  # type: ignore[union-attr]
            for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
                assert_same(p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad, q.grad)
            assert status(layer) == "accelerated"
    finally:
        dist.destroy_process_group()


# -- pickles and walkers ----------------------------------------------------------------------------------------------


@EACH
def test_whole_models_load_with_an_allow_list_of_the_librarys_classes(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    plain, x_c = peer.make(), arguments_of(peer)
    layer = fk.accelerate(copy.deepcopy(plain))
    files = [tmp_path / "plain.pt", tmp_path / "layer.pt"]
    with torch.no_grad():
        peer.forward(layer, *x_c)
    for model, file in zip((plain, layer), files, strict=True):
        torch.save(model, file)
    needed = [sorted(torch.serialization.get_unsafe_globals_in_checkpoint(f)) for f in files]  # given in any order
    assert needed[0] == needed[1]
    assert layer.__class__ is type(layer), "only pickle is told the library's class"
    parts = [n.rpartition(".") for n in needed[0]]
    with torch.serialization.safe_globals([getattr(__import__(m, fromlist=["_"]), n) for m, _, n in parts]), torch.no_grad():
        loaded = [load(f) for f in files]
    assert type(loaded[1]) is type(loaded[0])
    if isinstance(loaded[0], str):  # a library whose own object does not load so
        assert loaded[0] == loaded[1]
    else:
        assert_same(peer.forward(loaded[1], *x_c), peer.forward(plain, *x_c))


def load(file: Path) -> Any:
    try:
        return torch.load(file, weights_only=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_the_state_is_out_of_reach_of_who_walks_and_assigns() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    fk.accelerate(layer)
    expected = layer(x)
    seen: list[Any] = []

    def walk(obj: Any, depth: int = 0) -> None:
        if depth > 6 or isinstance(obj, (type, torch.Tensor)) or any(obj is o for o in seen):
            return
        seen.append(obj)
        for key, value in list(getattr(obj, "__dict__", {}).items()):
            setattr(obj, key, value)
            walk(value, depth + 1)
        if isinstance(obj, (list, tuple, dict)):
            for value in list(obj.values() if isinstance(obj, dict) else obj):
                walk(value, depth + 1)

    walk(layer)
    assert not any(type(o).__module__.startswith("flowkern") and hasattr(o, "__dict__") for o in seen)
    assert_same(layer(x), expected)
    assert status(layer) == "accelerated"


def test_a_copy_of_the_dictionary_is_no_accelerated_layer() -> None:
    """DataParallel makes its replicas so."""
    layer, x = fk.accelerate(nflows_layer()), torch.randn(4, 5)
    layer(x)
    replica = layer._replicate_for_data_parallel()
    replica.autoregressive_net = copy.deepcopy(layer.autoregressive_net)
    for p in replica.autoregressive_net.parameters():
        p.data.mul_(0.5)
    twin = fk.restore(copy.deepcopy(layer))
    twin.autoregressive_net = replica.autoregressive_net
    assert_same(replica(x), twin(x))


@pytest.mark.parametrize("name", ["zuko: context", "nflows: context", "normflows: context", "pyro: default"])
def test_arguments_that_are_no_tensors_or_have_no_values(name: str) -> None:
    peer = PEERS[name]
    x, c = arguments_of(peer)
    bad: list[tuple[Any, Any]] = [(x.tolist(), c), (x.numpy(), c), (3, c), (x.to("meta"), c), (None, c)]
    if c is not None:
        bad += [(x, c.tolist()), (x, c.numpy()), (x, c.to("meta")), (x, 3), (x, c.double())]
    for arguments in bad:
        outcomes = []
        for accelerated in (False, True):
            torch.manual_seed(0)
            layer = peer.make()
            if accelerated:
                fk.accelerate(layer)
            try:
                outcomes.append(str([t.shape for t in peer.forward(layer, *arguments)]))
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        assert outcomes[0] == outcomes[1]


def test_an_accelerated_layer_is_freed_with_its_last_reference() -> None:
    for make in (nflows_layer, zuko_flow):
        layer = fk.accelerate(make())
        with torch.no_grad():
            layer(torch.randn(2, 5)) if make is nflows_layer else layer().log_prob(torch.randn(2, 5))
        seen = [weakref.ref(m) for m in layer.modules()]
        gc.collect()
        gc.disable()
        try:
            del layer
            assert not any(r() is not None for r in seen)
        finally:
            gc.enable()


def test_objects_of_an_accelerated_class() -> None:
    layer, x = fk.accelerate(nflows_layer()), torch.randn(4, 5)

    class Sub(type(layer)):  # type: ignore[misc]
        pass

    for made in (type(layer)(5, 16), Sub(5, 16), copy.copy(layer)):
        expected = made(x)
        assert status(made) == "can be accelerated"
        fk.restore(made)
        fk.accelerate(made)
        assert isinstance(made, Sub) == (type(made).__qualname__ == Sub.__qualname__)
        assert_same(made(x), expected)
        assert status(made) == "accelerated"
        fk.restore(made)
        assert status(made) == "can be accelerated"


def test_a_copy_or_an_old_pickle_keeps_nothing_alive() -> None:
    layer = fk.accelerate(nflows_layer())
    copy.copy(layer)
    layer.__reduce_ex__(4)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


def test_rows_narrower_than_the_weights_are_the_librarys() -> None:
    peer = PEERS["normflows: spline coupling, mixed"]
    normflows = pytest.importorskip("normflows")
    base = normflows.distributions.DiagGaussian(peer.features)
    twin = normflows.NormalizingFlow(base, [peer.make(), peer.make()]).double()
    found = fk.accelerate(copy.deepcopy(twin)).log_prob(torch.ones(3, peer.features))
    assert torch.equal(found, twin.log_prob(torch.ones(3, peer.features)))
    assert found.dtype is torch.float32


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_results_may_be_written_to(direction: str) -> None:
    layer, found = nflows_layer(), []
    twin = copy.deepcopy(layer)
    fk.accelerate(layer)
    x = torch.randn(4, 5)
    for model in (layer, twin):
        noise = x.clone()
        y, log_det = getattr(model, direction)(noise)
        y.mul_(2)
        if direction == "inverse":  # the density's gradient needs its input, also in the library
            noise.mul_(2)
        (y.sum() + log_det.sum()).backward()
        found.append([p.grad for p in model.parameters()])
    assert_same(*found)


def test_kept_losses_keep_no_weights() -> None:
    layer, x = nflows_layer(), torch.randn(4, 5)
    for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
        torch.nn.utils.parametrizations.weight_norm(linear)
    fk.accelerate(layer)
    layer(x)
    seen: list[Any] = []
    original = fk.ops.autoregressive

    def watched(x: Any, weights: Any, **rest: Any) -> Any:
        seen.extend(weakref.ref(w) for w in weights)
        return original(x, weights, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.ops, "autoregressive", watched)
        loss = layer(x)[1].sum()
    loss.backward()
    assert seen
    assert not any(r() is not None for r in seen), "the loss keeps computed weights alive"


def test_pickles_survive_an_interrupted_one() -> None:
    layer = fk.accelerate(nflows_layer())
    layer.lock = (i for i in ())
    with pytest.raises(TypeError):
        torch.save(layer, io.BytesIO())
    assert layer.__class__ is type(layer)
    del layer.lock
    torch.save(layer, io.BytesIO())
