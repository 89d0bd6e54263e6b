"""Models from files that anybody may have made: an error that says what is wrong, or the model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import CONFIG, WEIGHTS, bits, flow
from torch import Tensor, nn

import flowkern as fk
from flowkern.flows import MAF

pytest.importorskip("safetensors", reason="the environment of a GPU machine may lack it")
from safetensors.torch import load, save

from flowkern.pretrained import PretrainedError, document
from flowkern.pretrained.bounded import bounded


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
