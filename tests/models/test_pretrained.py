"""Models saved and loaded again are the same models."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import CONFIG, WEIGHTS, bits, flow
from test_protocol import batch, models
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.utils import prune

import flowkern as fk
from flowkern import nn as fnn
from flowkern.flows import IAF, MAF, Flow
from flowkern.models import MADE, Model
from flowkern.univariate import Affine

pytest.importorskip("safetensors", reason="the environment of a GPU machine may lack it")
from safetensors.torch import load_file

from flowkern.pretrained import PretrainedError, document
from flowkern.pretrained.parts import classes


def more() -> dict[str, Model]:
    """What the models of the protocol's tests leave out."""
    return {
        "bernoulli": MADE(4, "bernoulli", (8,)),
        "gaussian": MADE(4, "gaussian", (8,), order="random", degrees="random", masks=3),
        "without hidden layers": MAF(4, 1, (), skip=True),
        "one feature": MAF(1, 2, (4,)),
        "in a base": Flow([fnn.Reverse(4)], base=MAF(4, 1, (8,), base=MADE(4, "mixture", (8,)), map=Affine("sigmoid"))),
        "without parameters": Flow([fnn.Reshape((1, 2, 2)), fnn.Reverse(4)]),
        "without tensors": Flow([fnn.Reshape((1, 2, 2))]),
        "double constants": MAF(4, 1, (8,), standardize=fnn.Standardize(torch.randn(4).double(), torch.ones(4).double() / 3)),
    }


NAMES = pytest.mark.parametrize("name", [*models(), *more()])


def made(name: str) -> Model:
    return {**models(), **more()}[name]


def own_parts(name: str) -> dict[str, Any]:
    """Those that a file does not hold, made anew."""
    return {
        "MAF, all": {"embedding": nn.Linear(2, 3)},
        "IAF, base": {"base": Independent(Normal(torch.zeros(4), torch.ones(4)), 1)},
        "Flow, image": {"transforms_2_network": nn.Linear(10, 12)},
        "VAE, modules": {"encoder": nn.Linear(4, 6), "decoder": nn.Linear(2, 12)},
        "Flow, scales": {"transforms_0_levels_0_transforms_2_network": nn.Linear(10, 12)},
    }.get(name, {})


def drawn(model: Model, *context: Tensor) -> Tensor:
    torch.manual_seed(3)
    return model.sample((5,), *context)


def assert_same(loaded: Model, model: Model, *given: Tensor) -> None:
    """Every bit of it; ``model`` in evaluation mode."""
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].dtype is t.dtype and torch.equal(state[name], t.cpu()) for name, t in expected.items())
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == dict.fromkeys(
        (name for name, _ in model.named_parameters()), True
    )
    assert torch.equal(loaded.log_prob(*given), model.log_prob(*given))
    assert torch.equal(drawn(loaded, *given[1:]), drawn(model, *given[1:]))


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = made(name)
    given = batch(name, model)
    if name in ("IAF, base", "double constants") and dtype is not torch.float32:
        return  # the one has a base that is no module, the other must keep its dtypes
    if dtype is not torch.float32:
        model.to(dtype)
    with torch.no_grad():
        model(*(t.to(dtype) for t in given))  # in training: running statistics are no longer those of the start
    parts, before = own_parts(name), torch.get_rng_state()
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [CONFIG, WEIGHTS]
    loaded = fk.Model.from_pretrained(str(tmp_path / "new" / "folder"), **parts)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(loaded, model.eval(), *(t.to(dtype) for t in given))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for file in (CONFIG, WEIGHTS):
        assert (again / file).read_bytes() == (tmp_path / "new" / "folder" / file).read_bytes()


def test_what_is_written(tmp_path: Path) -> None:
    flow = MAF(2, 1, (3,), standardize=fnn.Standardize([0.1, 0.2], [1.0, 2.0]), map=Affine("exp"), embedding=nn.Identity())
    flow.save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    checksums = written.pop("checksums")
    assert written == {
        "format": 1,
        "flowkern": fk.__version__,
        "class": "flows.MAF",
        "config": {
            **{name: value for name, value in flow.config.items() if name not in ("standardize", "map", "embedding")},
            "standardize": {"class": "nn.Standardize", "config": flow.config["standardize"].config},
            "map": {"class": "univariate.Affine", "config": {"scale": "exp", "placement": "standardize", "constants": []}},
            "embedding": {"given": "embedding", "type": "Identity"},
        },
        "shared": {},
        "buffers": {"base.like": "float32"},
    }
    assert checksums[WEIGHTS] == subprocess.check_output(["sha256sum", tmp_path / WEIGHTS], text=True).split()[0]
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert checksums[CONFIG] == document.checksum(canonical.encode())
    state = load_file(tmp_path / WEIGHTS)  # as whoever knows nothing of flowkern reads it
    twin = MAF(2, 1, (3,), standardize=fnn.Standardize(torch.zeros(2), torch.ones(2)), map=Affine("exp"))
    twin.load_state_dict(state)
    assert os.stat(tmp_path / WEIGHTS).st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    layer = fnn.MaskedAutoregressive(4, (8,))
    flow = Flow([layer, fnn.Reverse(4), layer], embedding=nn.Linear(3, 3))
    layers = layer.network.layers
    layers[0].weight = nn.Parameter(torch.randn(4, 8).t())  # not contiguous
    both = torch.randn(24)
    layers[0].bias, layers[1].bias = nn.Parameter(both[:8]), nn.Parameter(both[4:12])  # in one storage
    flow.embedding.weight = nn.Parameter(torch.randn(()).expand(3, 3), requires_grad=False)
    flow.embedding.double()
    flow.eval().save_pretrained(tmp_path)
    loaded = Flow.from_pretrained(tmp_path, embedding=nn.Linear(3, 3))
    x, context = torch.randn(5, 4), torch.randn(5, 3).double()
    assert torch.equal(loaded.embedding(context), flow.embedding(context))
    assert torch.equal(loaded.transform(x)[0], flow.transform(x)[0])
    first, _, last = loaded.transform.transforms
    assert [p.data_ptr() for p in first.parameters()] == [p.data_ptr() for p in last.parameters()]
    assert len(list(loaded.parameters())) == len(list(flow.parameters()))
    assert all(t.is_contiguous() for t in loaded.state_dict().values())
    assert "transform.transforms.2.network.layers.0.weight" in load_file(tmp_path / WEIGHTS)


def test_parts_of_ones_own(tmp_path: Path) -> None:
    net = nn.Linear(3, 3)
    base = Flow([fnn.Reverse(4)], embedding=net)
    Flow([fnn.Reverse(4)], base=base, embedding=net).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=rf"^{tmp_path}/config.json: the model has parts of your own, which from_pretrained "
                                        r"must be given: base_embedding=... \(a Linear when it was saved\)$"):  # fmt: skip
        Flow.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"^embedding: from_pretrained takes the parts that .* does not hold: base_embedding$"):
        Flow.from_pretrained(tmp_path, base_embedding=nn.Linear(3, 3), embedding=nn.Linear(3, 3))
    loaded = Flow.from_pretrained(tmp_path, base_embedding=nn.Linear(3, 3))
    assert loaded.embedding is loaded.base.embedding
    assert torch.equal(loaded.embedding.weight, net.weight)
    before = copy.deepcopy((wrong := nn.Linear(2, 3)).state_dict())
    with pytest.raises(PretrainedError, match=r"embedding.weight: expected shape \(3, 2\), got \(3, 3\)"):
        Flow.from_pretrained(tmp_path, base_embedding=wrong)
    assert all(torch.equal(t, before[name]) for name, t in wrong.state_dict().items())
    MAF(4, 1, (8,)).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"^embedding: from_pretrained takes the parts that .* does not hold: none$"):
        Flow.from_pretrained(tmp_path, embedding=net)


def test_classes(tmp_path: Path) -> None:
    MADE(4, "bernoulli", (8,)).save_pretrained(tmp_path)
    message = (
        rf"^{tmp_path}: expected a MAF, holds a MADE; load it by MADE.from_pretrained, or by flowkern.Model.from_pretrained"
    )
    with pytest.raises(TypeError, match=message):
        MAF.from_pretrained(tmp_path)
    assert type(MADE.from_pretrained(tmp_path)) is type(fk.Model.from_pretrained(tmp_path)) is MADE
    IAF(4, 1, (8,)).save_pretrained(tmp_path)
    assert type(Flow.from_pretrained(tmp_path)) is IAF  # which is a flow
    assert fk.Model is Model


class Mine(MAF):
    """Of a user."""


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    def changed(change: Callable[[MAF], Any]) -> MAF:
        flow = MAF(3, 1, (8,), base=MADE(3, "gaussian", (8,)))
        change(flow)
        return flow

    def exchange_base(flow: MAF) -> None:
        flow.base = MADE(3, "gaussian", (8,))

    def more_parameters(flow: MAF) -> None:
        flow.extra = nn.Parameter(torch.zeros(2))

    class Special(Tensor):
        pass

    layer = "transform.transforms.0.network.layers.0"
    for model, message in {
        Mine(3, 1, (8,)): r"^Mine: only flowkern's own models can be saved",
        changed(exchange_base): r"^base: the model no longer has the module that it was built with$",
        changed(more_parameters): r"^MAF: flows.MAF and its weights do not fit: extra is unknown$",
        changed(lambda flow: prune.random_unstructured(flow.get_submodule(layer), "weight", 0.5)): rf"{layer}.weight",
        changed(
            lambda flow: flow.register_buffer("x", torch.zeros(2).as_subclass(Special))
        ): "^x: expected a plain tensor, got Spec",
        changed(lambda flow: flow.config.update(hidden=[7])): r"^MAF: Linear: weight of shape \(7, 3\) is not in the weights$",
        changed(lambda flow: flow.to("meta")): r": expected a tensor with values, got meta$",
        MAF(3, 1, (8,), map=Affine("clamped_exp", constants=(-torch.inf, 3))): r"^map_constants_0: -inf cannot be written",
    }.items():
        with pytest.raises(PretrainedError, match=message):
            model.save_pretrained(tmp_path)
    assert not os.listdir(tmp_path)


def test_every_part_can_be_found_by_its_name() -> None:
    found = set(classes().values())
    assert found >= {type(m) for name in (*models(), *more()) for m in made(name).modules() if hasattr(m, "config")}
    assert not found & {nn.Linear, fk.AutoregressivePlan}


def test_models_of_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"^owner/name: no such folder; .* pip install huggingface_hub$"):
        MAF.from_pretrained("owner/name")
    hub: Any = types.ModuleType("huggingface_hub")
    calls = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append((repo_id, options))
        if repo_id == "owner/none":
            raise OSError("404 Client Error\nmore of it")
        return str(saved)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert bits(MAF.from_pretrained("owner/name", revision="v1")) == bits(flow(0))
    assert calls == [("owner/name", {"revision": "v1", "allow_patterns": [CONFIG, WEIGHTS]})]
    with pytest.raises(
        PretrainedError, match=r"^owner/none: no such folder, and not to be had from the hub: 404 Client Error$"
    ):
        MAF.from_pretrained("owner/none")
    for wrong in ("owner", "a/b/c", "../name/x", "/owner/name"):
        with pytest.raises(FileNotFoundError, match=r"no such folder, and no name of a model"):
            MAF.from_pretrained(wrong)
    (tmp_path / "owner").mkdir()
    saved.joinpath(CONFIG)
    flow(2).save_pretrained("owner/name")  # a folder comes first
    assert bits(MAF.from_pretrained("owner/name")) == bits(flow(2))
    assert len(calls) == 2


def test_without_numpy(tmp_path: Path) -> None:
    program = f"""
import sys, warnings
sys.modules["numpy"] = sys.modules["huggingface_hub"] = None
warnings.simplefilter("ignore")
import torch, flowkern as fk
flow = fk.flows.MAF(4, 2, (8,)).eval().bfloat16()
flow.save_pretrained({str(tmp_path)!r})
twin = fk.Model.from_pretrained({str(tmp_path)!r})
x = torch.randn(3, 4).bfloat16()
raise SystemExit(not torch.equal(twin.log_prob(x), flow.log_prob(x)))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu(tmp_path: Path) -> None:
    model = flow(0).cuda()
    model.save_pretrained(tmp_path)
    assert_same(MAF.from_pretrained(tmp_path), model.cpu(), torch.randn(5, 3))
