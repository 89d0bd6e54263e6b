"""Models in folders: saved so that they can be built and loaded again, here or from the Hugging Face hub.

A folder holds two files. ``model.safetensors`` is the state dict, all of it, as safetensors has it. ``config.json`` is this
object::

    {
      "format": 1,
      "flowkern": "0.1.0",                       version that saved it
      "class": "flows.MAF",                      found in flowkern.flows, models, nn, univariate or data, nowhere else
      "config": {"features": 3, ...},            arguments of the class
      "shared": {"b.weight": "a.weight"},        tensors that are one tensor under two names
      "buffers": {"base.like": "float32"},       dtypes of buffers that are no part of the state
      "checksums": {"config.json": "...", "model.safetensors": "..."}
    }

A part, such as a base, is ``{"class": ..., "config": ...}`` again. A part that is no class of flowkern's is
``{"given": "embedding", "type": "Linear"}``: its parameters are saved with the others, and whoever loads the model gives the
object. Checksums are SHA-256; that of ``config.json`` is of all other entries, as ``json.dumps`` writes them with
``sort_keys=True, separators=(",", ":")``.

Nothing in these files is run or unpickled, whoever wrote them: classes are looked up by name, no file but these two is opened,
and no more is built than the weights hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import TensorSpec, serialize
from safetensors.torch import load
from torch import Tensor, nn

from flowkern._checks import FLOATS
from flowkern.model import Model
from flowkern.pretrained import document, folder
from flowkern.pretrained.bounded import bounded, largest_size
from flowkern.pretrained.document import CONFIG, WEIGHTS
from flowkern.pretrained.errors import PretrainedError, short
from flowkern.pretrained.parts import Builder, Written, check_given, class_named

__all__ = ["PretrainedError", "from_pretrained", "save_pretrained"]

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
_Model = TypeVar("_Model", bound=Model)


def save_pretrained(model: Model, into: str | os.PathLike[str]) -> None:
    """What :meth:`flowkern.models.Model.save_pretrained` does."""
    written = Written(model)
    tensors = {name: _plain(name, value) for name, value in model.state_dict().items()}
    entries = {"class": written.name, "config": written.config, "shared": _shared(model), "buffers": _buffers(model)}
    _build(entries, tensors, written.given, type(model).__qualname__)  # what could not be loaded is not saved
    specs = {
        name: TensorSpec(dtype=_dtype(t), shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.nbytes)
        for name, t in tensors.items()
    }
    weights = serialize(specs, metadata={"format": "pt"})
    folder.write(Path(into), document.to_text(entries, weights), weights)


def from_pretrained(cls: type[_Model], source: str | os.PathLike[str], revision: str | None, given: dict[str, Any]) -> _Model:
    """What :meth:`flowkern.models.Model.from_pretrained` does."""
    path = _local(source, revision)
    entries, weights = folder.read(path)
    config = str(path / CONFIG)
    found = class_named(entries["class"], config)
    if not issubclass(found, Model):
        raise PretrainedError(f"{config}: class: {entries['class']} is no model")
    if not issubclass(found, cls):
        name = found.__name__
        raise TypeError(
            f"{path}: expected a {cls.__name__}, holds a {name}; load it by {name}.from_pretrained, or by "
            "flowkern.Model.from_pretrained, which takes any model"
        )
    check_given(entries["config"], given, config)
    try:
        tensors = load(weights)
    except Exception as error:  # of the library, of torch: whatever they make of a damaged header
        raise PretrainedError(f"{path / WEIGHTS}: {short(error)}") from error
    model = _build(entries, tensors, given, config)
    try:
        model.load_state_dict(tensors, assign=True)
    except Exception as error:  # masks, for instance, that are of no autoregressive network
        raise PretrainedError(f"{path / WEIGHTS}: does not fit {entries['class']}: {short(error)}") from error
    _share(model, entries["shared"])
    for name, dtype in entries["buffers"].items():
        _set(model, name, _get(model, name).to(_DTYPES[dtype]))
    return model.to("cpu").eval()


def _local(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder: of that name, or fetched from the hub."""
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision: {path} is a folder, only models of the hub have revisions")
        return path
    if not isinstance(source, str) or not _HUB.fullmatch(source):
        raise FileNotFoundError(f"{path}: no such folder, and no name of a model on the Hugging Face hub, such as owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{path}: no such folder; if it is a model of the Hugging Face hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{source}: no such folder, and not to be had from the hub: {short(error)}") from error


def _build(entries: dict[str, Any], tensors: Mapping[str, Tensor], given: Mapping[str, Any], source: str) -> Any:
    """The model of a config, which these tensors fit, but without them."""
    with bounded(tensors, source):
        model = Builder(given, largest_size(tensors), source).build(entries["class"], entries["config"])
    problems = [*_misfits(model.state_dict(), tensors), *_misnamed(entries, model, tensors)]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise PretrainedError(f"{source}: {entries['class']} and its weights do not fit: {'; '.join(problems[:3])}{more}")
    return model


def _misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in expected if name not in tensors)
    yield from (f"{name} is unknown" for name in sorted(tensors) if name not in expected)
    for name, want in expected.items():
        have = tensors.get(name, want)
        if have.shape != want.shape:
            yield f"{name}: expected shape {tuple(want.shape)}, got {tuple(have.shape)}"
        elif have.dtype is not want.dtype and not {have.dtype, want.dtype} <= set(FLOATS):
            yield f"{name}: expected dtype {want.dtype}, got {have.dtype}"


def _misnamed(entries: dict[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} & tensors.keys()
    for pair in entries["shared"].items():
        if not parameters.issuperset(pair) or len({(tensors[name].shape, tensors[name].dtype) for name in pair}) > 1:
            yield f"shared: {pair[0]} and {pair[1]} are no parameters alike"
    buffers = entries["buffers"]
    if buffers.keys() != _buffers(model).keys() or not set(buffers.values()) <= _DTYPES.keys():
        yield f"buffers: expected dtypes of {', '.join(_buffers(model)) or 'none'}"


def _plain(name: str, value: Any) -> Tensor:
    """A state's tensor as one block of memory on the CPU."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
        raise PretrainedError(f"{name}: expected a tensor with values, got {getattr(value, 'device', type(value).__name__)}")
    plain = value.detach().cpu().contiguous()
    if type(plain) is not Tensor:
        raise PretrainedError(f"{name}: expected a plain tensor, got {type(plain).__name__}")
    return plain


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _buffers(model: nn.Module) -> dict[str, str]:
    """Dtypes of the floating-point buffers that are no part of the state, which follow those of the model."""
    state = model.state_dict()
    return {name: _dtype(b) for name, b in model.named_buffers() if name not in state and b.is_floating_point()}


def _shared(model: nn.Module) -> dict[str, str]:
    """The names of a parameter after its first one, and that."""
    first: dict[nn.Parameter, str] = {}
    names = {name: first.setdefault(p, name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: other for name, other in names.items() if name != other}


def _share(model: nn.Module, shared: Mapping[str, str]) -> None:
    for name, other in shared.items():
        _set(model, name, _get(model, other))


def _get(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _set(model: nn.Module, name: str, value: Any) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)
