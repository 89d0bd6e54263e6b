"""Models saved and loaded again: the same model, or an error that says what is wrong, whatever the files hold."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import resource
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
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
from safetensors.torch import load, load_file, save

from flowkern.pretrained import PretrainedError, document, folder
from flowkern.pretrained.bounded import bounded
from flowkern.pretrained.parts import classes

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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


# -- files of anyone's ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    flow(0).save_pretrained(tmp_path)
    return tmp_path


def flow(seed: int) -> MAF:
    torch.manual_seed(seed)
    return MAF(3, 1, (4,), standardize=fnn.Standardize(torch.randn(3), torch.ones(3)), map=Affine("exp")).eval()


def bits(model: Model) -> Any:
    """All that the model is."""
    parts = [(type(m), {k: v for k, v in m.config.items() if isinstance(v, (int, float, str))}) for m in model.modules()
             if hasattr(m, "config")]  # fmt: skip
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    return parts, model.log_prob(x).tolist(), {name: t.tolist() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_damage_is_an_error_or_changes_nothing(saved: Path, file: str) -> None:
    good, expected = (saved / file).read_bytes(), bits(flow(0))
    said: list[str] = []
    places = range(0, len(good), 3)
    damaged = [good[:place] for place in places]
    damaged += [good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :] for place in places]
    damaged += [good + b"\n", good + b"\0", good[:-2] + good[-1:], good * 2]
    for content in damaged:
        (saved / file).write_bytes(content)
        try:
            loaded = MAF.from_pretrained(saved)
        except PretrainedError as error:
            said.append(str(error))
        else:
            assert file == CONFIG
            assert bits(loaded) == expected
    assert len(said) > 0.9 * len(damaged)
    assert all(message.startswith(str(saved)) and "\n" not in message for message in said)
    (saved / file).write_bytes(good)
    assert bits(MAF.from_pretrained(saved)) == expected


def craft(path: Path, change: Callable[[dict], Any] = lambda d: None, tensors: dict[str, Tensor] | None = None) -> None:
    """Other entries or tensors, with checksums that fit: files that somebody made on purpose."""
    entries = json.loads((path / CONFIG).read_text())
    entries.pop("checksums")
    change(entries)
    if tensors is not None:
        (path / WEIGHTS).write_bytes(save(tensors))
    weights = document.checksum((path / WEIGHTS).read_bytes())
    own = document.checksum(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode())
    (path / CONFIG).write_text(json.dumps({**entries, "checksums": {CONFIG: own, WEIGHTS: weights}}))


def put(name: str, value: Any) -> Callable[[dict], Any]:
    *path, last = name.split("/")

    def change(entries: dict) -> None:
        for step in path:
            entries = entries[step]
        entries[last] = value

    return change


CRAFTED = {
    "format: newer": (put("format", 2), "format 2 is newer than format 1 of this flowkern .*: upgrade flowkern$"),
    "format: zero": (put("format", 0), "format: expected 1, got 0$"),
    "format: true": (put("format", True), "format: expected 1, got True$"),
    "format: text": (put("format", "1"), "format: expected 1, got '1'$"),
    "no format": (lambda d: d.pop("format"), "expected a model saved by flowkern, with the entries 'format' and 'flowkern'$"),
    "another entry": (put("code", "import os"), "expected the entries format, flowkern, .*, got .*'code', 'checksums'$"),
    "config: a list": (put("config", []), "config: expected dict, got list$"),
    "buffers: numbers": (put("buffers/base.like", 3), "buffers: expected strings$"),
    "class: near": (put("class", "flows.MFA"), "class: this flowkern has no 'flows.MFA'; did you mean flows.MAF"),
    "class: a path": (put("class", "os.system"), "class: this flowkern has no 'os.system'"),
    "class: private": (put("class", "flows.maf.MAF"), "class: this flowkern has no 'flows.maf.MAF'"),
    "class: no model": (put("class", "nn.Reverse"), "class: nn.Reverse is no model$"),
    "class: abstract": (put("class", "models.Model"), "models.Model cannot be built: .*argument"),
    "argument: unknown": (put("config/width", 3), "flows.MAF cannot be built: .*unexpected keyword argument 'width'$"),
    "argument: missing": (lambda d: d["config"].pop("features"), "flows.MAF cannot be built: .*missing .* 'features'$"),
    "argument: wrong": (put("config/order", "x" * 10**6), "flows.MAF cannot be built: order: expected one of .*xxx[.]{3}$"),
    "argument: list": (put("config/features", [3]), r"flows.MAF cannot be built: features: expected a whole number .*\[3\]$"),
    "argument: generator": (put("config/generator", "x"), "flows.MAF cannot be built: generator: expected a torch.Generator"),
    "part: class": (put("config/standardize/class", 3), "class: this flowkern has no '3'"),
    "part: config": (put("config/standardize/config", 3), "config: expected the arguments of nn.Standardize, got int$"),
    "part: values": (put("config/standardize/config/std", [1.0, 0.0, 1.0]), "nn.Standardize .*: std: expected positive"),
    "part: more": (put("config/standardize/code", 3), "config: expected 'class' and 'config', got 'class', 'config', 'code'$"),
    "part: name": (put("config/base", {"given": 3, "type": "x"}), "config: 'given' and 'type': expected strings$"),
    "width": (put("config/hidden", [5]), r"MADE: weight of shape \(5, 3\) is not in the weights$|Linear: .*"),
    "transforms": (put("config/transforms", 2), r"Linear: weight of shape \(4, 3\) is not in the weights$"),
    "fewer": (put("config/standardize", None), "standardize.*|.*transform.transforms.0.* is missing"),
    "shared": (put("shared", {"a": "b"}), ".* do not fit: shared: a and b are no parameters alike$"),
    "buffers: none": (put("buffers", {}), ".* do not fit: buffers: expected dtypes of base.like$"),
    "buffers: others": (put("buffers/base.like", "int64"), ".* do not fit: buffers: expected dtypes of base.like$"),
    "number": (put("config/features", 2**21), "2097152 is beyond 1048576, the most that weights of this size allow$"),
}  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_entries_that_fit_nothing(saved: Path, case: str) -> None:
    change, message = CRAFTED[case]
    craft(saved, change)
    with pytest.raises(PretrainedError, match=f"^{re.escape(str(saved / CONFIG))}: {message}") as error:
        fk.Model.from_pretrained(saved)
    assert len(str(error.value)) < 800


ODD = (
    None, True, -1, 0, 2, 1.5, 1e300, "", "x", [], [1], [2, 1], ["x"], [[0.5] * 3], {}, {"class": "nn.Reverse"},
    {"class": "nn.Reverse", "config": {"features": 3}}, {"class": "flows.MAF", "config": {"features": 3}},
    {"class": "nn.Compose", "config": {"transforms": {"class": "nn.Reverse", "config": {"features": 3}}}},
    {"class": "univariate.Affine", "config": {"constants": [0.5]}}, {"class": "univariate.UnivariateMap", "config": {}},
    {"class": "nn.Transform", "config": {}}, {"class": "nn.MaskedLinear", "config": {"mask": [[[True]]]}},
)  # fmt: skip


def test_arguments_of_every_wrong_kind(saved: Path) -> None:
    text, expected = (saved / CONFIG).read_bytes(), bits(flow(0))
    config = json.loads(text)["config"]
    places = [f"config/{name}" for name in config] + [f"config/standardize/config/{name}" for name in ("mean", "std")]
    refused = 0
    for place in places:
        for odd in ODD:
            (saved / CONFIG).write_bytes(text)
            craft(saved, put(place, odd))
            try:
                loaded = fk.Model.from_pretrained(saved)
            except PretrainedError:
                refused += 1
            else:
                assert loaded.state_dict().keys() == flow(0).state_dict().keys()
    assert refused > 0.7 * len(places) * len(ODD)
    (saved / CONFIG).write_bytes(text)
    assert bits(MAF.from_pretrained(saved)) == expected


TEXTS = {
    "empty": (b"", "Expecting value"),
    "a number": (b"3", "expected a model saved by flowkern"),
    "another library's": (b'{"model_type": "bert"}', "expected a model saved by flowkern"),
    "not UTF-8": (b'{"format": "\xff"}', "not what flowkern reads as JSON: 'utf-8' codec"),
    "twice": (b'{"format": 1, "format": 1}', "an object with the same name twice$"),
    "NaN": (b'{"format": NaN}', "NaN is no finite number$"),
    "infinity": (b'{"format": -Infinity}', "-Infinity is no finite number$"),
    "overflow": (b'{"format": 1e999}', "1e999 is no finite number$"),
    "digits": (b'{"format": ' + b"9" * 10**6 + b"}", "a whole number of 1000000 digits$"),
    "nested": (b"[" * 10**6, "more than 200 lists and objects inside of each other$"),
    "nested after a text": (b'["\\"]]]]", ' + b'{"a":' * 201, "more than 200 lists and objects inside of each other$"),
    "long": (b" " * (document.LARGEST + 1), "expected at most 16777216 bytes, got 16777217$"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_configuration(saved: Path, case: str) -> None:
    text, message = TEXTS[case]
    (saved / CONFIG).write_bytes(text)
    with pytest.raises(PretrainedError, match=f"^{re.escape(str(saved / CONFIG))}: .*{message}"):
        fk.Model.from_pretrained(saved)


def test_tensors_that_do_not_fit(saved: Path) -> None:
    state = load((saved / WEIGHTS).read_bytes())  # not load_file, whose tensors change with the file
    bias = "transform.transforms.1.network.layers.0.bias"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        craft(saved, tensors=tensors)
        with pytest.raises(PretrainedError, match=message):
            fk.Model.from_pretrained(saved)

    refused({}, r"Standardize: mean of shape \(3,\) is not in the weights$")
    refused({**state, "more": torch.zeros(2)}, "flows.MAF and its weights do not fit: more is unknown$")
    refused({**state, **{name: torch.zeros(2) for name in "abcd"}}, "a is unknown; b is unknown; c is unknown; and 1 more$")
    refused({**state, bias: state[bias].to(torch.int8)}, f"{bias}: expected dtype torch.float32, got torch.int8$")
    refused({**state, bias: state[bias].to(torch.float8_e5m2)}, f"{bias}: expected dtype torch.float32, got torch.float8")
    degrees = "transform.transforms.1.network.degrees"
    refused({**state, degrees: state[degrees].double()}, f"{degrees}: expected dtype torch.int64, got torch.float64$")
    refused(
        {**state, degrees: torch.full_like(state[degrees], 2**63 - 1)},
        "model.safetensors: does not fit flows.MAF: .*autoregressive",
    )
    last = bias.replace("layers.0", "layers.1")
    refused(
        {**state, bias: state[last], last: state[bias]}, rf"{bias}: expected shape \(4,\), got \(6,\); {last}: expected shape"
    )


def test_weights_that_are_no_safetensors(saved: Path) -> None:
    good = (saved / WEIGHTS).read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__"][:2]
    overlap = json.dumps({**header, first: header[second]}).encode()
    beyond = json.dumps({**header, first: {**header[first], "shape": [2**62, 2**62]}}).encode()
    for content in (
        b"", good[:4], good[:50], good[:-1], good + b"\0", b"\xff" * 8 + good[8:], (2**40).to_bytes(8, "little") + b"{}",
        *(len(h).to_bytes(8, "little") + h + good[8 + length :] for h in (overlap, beyond, b"[" * 10**5, b"{}", b"\xff")),
    ):  # fmt: skip
        (saved / WEIGHTS).write_bytes(content)
        craft(saved)
        with pytest.raises(PretrainedError, match=f"^{re.escape(str(saved / WEIGHTS))}: "):
            fk.Model.from_pretrained(saved)


LIMITED = """
import json, resource, sys, time, torch, flowkern as fk
from flowkern.pretrained import PretrainedError
fk.Model.from_pretrained(sys.argv[1])  # all imported, all threads started
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for path in sys.argv[2:]:
    start = time.perf_counter()
    try:
        fk.Model.from_pretrained(path)
    except PretrainedError as error:
        print(json.dumps([path, str(error), time.perf_counter() - start]))
"""


def test_what_asks_for_more_than_the_weights_hold_is_refused_before_it_is_made(saved: Path, tmp_path: Path) -> None:
    """In half a gigabyte more than the library itself takes; each in a moment, where building would take minutes."""
    image = {"class": "nn.Reshape", "config": {"event_shape": [3]}}
    huge = {
        "widths": {"hidden": [10**6, 10**6]},
        "square": {"hidden": [4000, 4000]},
        "features": {"features": 10**6},
        "more features": {"features": 10**9},
        "outputs": {"features": 10**6, "hidden": []},
        "transforms": {"transforms": 10**6},
        "many transforms": {"transforms": 10**9},
        "context": {"context": 10**6},
        "layers": {"hidden": [4] * 10**6},
        "residual": {"hidden": [10**6], "residual": True},
        "reversed": {"standardize": {"class": "nn.Reverse", "config": {"features": 10**6}}},
        "coupled": {"standardize": {"class": "nn.AffineCoupling", "config": {"features": 10**6, "hidden": [10**6]}}},
        "normalised": {"standardize": {"class": "nn.BatchNorm", "config": {"features": 10**6}}},
        "masks": {"base": {"class": "models.MADE", "config": {"features": 3, "hidden": [4], "masks": 10**6}}},
        "few masks": {"base": {"class": "nn.MADE", "config": {"features": 3, "hidden": [4], "masks": 10**4}}},
        "categories": {"base": {"class": "models.MADE", "config": {"features": 3, "head": "categorical", "categories": 10**6}}},
        "components": {"base": {"class": "models.MADE", "config": {"features": 3, "head": "mixture", "components": 10**6}}},
        "order": {"base": {"class": "nn.MADE", "config": {"features": 10**6, "order": "random", "hidden": [1]}}},
        "shapes": {"standardize": {"class": "nn.Reshape", "config": {"event_shape": [10**6] * 100}}},
        "compositions": {"standardize": {"class": "nn.Compose", "config": {"transforms": [image] * 10**4}}},
    }
    for i, (case, arguments) in enumerate(huge.items()):
        path = tmp_path / f"{i} {case}"
        flow(0).save_pretrained(path)
        craft(path, lambda entries, arguments=arguments: entries["config"].update(arguments))
    paths = [str(tmp_path / f"{i} {case}") for i, case in enumerate(huge)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(saved), *paths], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused = {path: (message, seconds) for path, message, seconds in map(json.loads, done.stdout.splitlines())}
    assert refused.keys() == set(paths)
    for path, (message, seconds) in refused.items():
        assert message.startswith(path + os.sep + CONFIG), message
        assert "memory" not in message, message  # which an allocation that failed would say
        assert seconds < 30, path


def test_the_watch_is_over_its_own_thread_and_time_only() -> None:
    built: list[nn.Module] = []
    worker = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
    with bounded({}, "x"):
        worker.start()
        worker.join()
        assert len(built) == 1
        with pytest.raises(PretrainedError, match=r"^x: Linear: weight of shape \(2, 2\) is not in the weights$"):
            nn.Linear(2, 2)
        with pytest.raises(
            PretrainedError, match=r"^x: asks for a tensor of shape \(1048577,\), larger than any in the weights$"
        ):
            torch.zeros(2**20 + 1)
    nn.Linear(2, 2)
    torch.zeros(2**20 + 1)


def test_every_part_can_be_found_by_its_name() -> None:
    found = set(classes().values())
    assert found >= {type(m) for name in (*models(), *more()) for m in made(name).modules() if hasattr(m, "config")}
    assert not found & {nn.Linear, fk.AutoregressivePlan}


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_the_old_model_or_the_new_whenever_saving_stops(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(BaseException):
        pass

    rename, models_seen = folder._rename, []
    for steps in (0, 1, 2, 3):
        flow(0).save_pretrained(saved)
        assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]
        for again in range(2):  # a second save that stops at the same place must lose no more
            left = iter(range(steps))

            def some(path: Path, name: Path, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise Stop
                rename(path, name)

            monkeypatch.setattr(folder, "_rename", some)
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(Stop))
            with pytest.raises(Stop):
                flow(1).save_pretrained(saved)
            monkeypatch.undo()
            loaded = bits(MAF.from_pretrained(saved))
            assert loaded in (bits(flow(0)), bits(flow(1)))
            models_seen.append((steps, again, loaded == bits(flow(1))))
        flow(2).save_pretrained(saved)
        assert bits(MAF.from_pretrained(saved)) == bits(flow(2))
        assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]
    assert {new for *_, new in models_seen} == {False, True}
    assert not models_seen[0][2]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_cannot_be_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    message = rf"^\[Errno \d+\] {saved}: the model could not be saved, the folder holds what it held: "

    def nothing_changed() -> None:
        assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before

    with pytest.raises(OSError, match=message + "File too large$"), files_of_at_most(100):
        flow(1).save_pretrained(saved)
    nothing_changed()
    for call in ("fsync", "mkdir"):

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, full)
        with pytest.raises(OSError, match=message + "No space left on device$"):
            flow(1).save_pretrained(saved)
        monkeypatch.undo()
        nothing_changed()
    file = saved / CONFIG
    for path in (file, file / "folder"):
        with pytest.raises(OSError, match="the model could not be saved, the folder holds what it held: "):
            flow(1).save_pretrained(path)
    nothing_changed()


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    for name, content, message in (
        (CONFIG, b'{"model_type": "bert"}', "expected a model saved by flowkern; it would be overwritten"),
        (CONFIG, b"no JSON", "not what flowkern reads as JSON: .*; it would be overwritten"),
        (WEIGHTS, b"weights", "is there without a config.json, and would be overwritten; remove it first"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PretrainedError, match=f"^{tmp_path / name}: {message}"):
            flow(0).save_pretrained(tmp_path)
        assert (tmp_path / name).read_bytes() == content
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(PretrainedError, match="expected a file"):
        flow(0).save_pretrained(tmp_path)


def test_folders_that_hold_no_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/none: no such folder, and no name of a model on the Hugging Face hub"):
        MAF.from_pretrained(tmp_path / "none")
    os.makedirs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty/config.json: cannot be read: No such file or directory$"):
        MAF.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^revision: .* is a folder, only models of the hub have revisions$"):
        MAF.from_pretrained(saved, revision="main")
    weights = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).unlink()
    with pytest.raises(PretrainedError, match=r"model.safetensors: no such file; config.json beside it needs it$"):
        MAF.from_pretrained(saved)
    os.mkfifo(saved / WEIGHTS)  # which would wait for a writer
    with pytest.raises(PretrainedError, match=r"model.safetensors: expected a file$"):
        MAF.from_pretrained(saved)
    os.unlink(saved / WEIGHTS)
    (tmp_path / "blob").write_bytes(weights)
    (saved / WEIGHTS).symlink_to(tmp_path / "blob")  # as in a cache of the hub
    assert bits(MAF.from_pretrained(saved)) == bits(flow(0))
    flow(1).save_pretrained(saved)
    assert (tmp_path / "blob").read_bytes() == weights


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
