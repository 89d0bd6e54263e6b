"""config.json: text in, checked entries out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from flowkern._version import __version__
from flowkern.pretrained.errors import PretrainedError, short

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
LARGEST = 16 * 2**20  # bytes
DEEPEST = 200  # lists and objects inside of each other
LONGEST = 19  # digits of a whole number

_ENTRIES = {"format": int, "flowkern": str, "class": str, "config": dict, "shared": dict, "buffers": dict, "checksums": dict}
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def to_text(entries: dict[str, Any], weights: bytes) -> bytes:
    """The document of a model: ``entries`` are its class, config, shared tensors and buffers."""
    document = {"format": FORMAT, "flowkern": __version__, **entries}
    document["checksums"] = {CONFIG: checksum(_canonical(document)), WEIGHTS: checksum(weights)}
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    from_text(text, CONFIG)  # what could not be read is not written
    return text


def from_text(text: bytes, source: str) -> dict[str, Any]:
    """The entries of a document, all of them of their types and as they were written.

    Raises:
        PretrainedError: for anything else; ``source`` names the file.
    """
    document = _parse(text, source)
    if not is_ours(document):
        raise PretrainedError(f"{source}: expected a model saved by flowkern, with the entries 'format' and 'flowkern'")
    found = document["format"]
    if type(found) is int and found > FORMAT:
        raise PretrainedError(
            f"{source}: format {found} is newer than format {FORMAT} of this flowkern {__version__}: upgrade flowkern"
        )
    if type(found) is not int or found != FORMAT:
        raise PretrainedError(f"{source}: format: expected {FORMAT}, got {found!r}")
    if document.keys() != _ENTRIES.keys():
        raise PretrainedError(f"{source}: expected the entries {', '.join(_ENTRIES)}, got {', '.join(map(repr, document))}")
    for name, kind in _ENTRIES.items():
        if type(document[name]) is not kind:
            raise PretrainedError(f"{source}: {name}: expected {kind.__name__}, got {type(document[name]).__name__}")
    for name in ("shared", "buffers", "checksums"):
        if not all(isinstance(value, str) for value in document[name].values()):
            raise PretrainedError(f"{source}: {name}: expected strings")
    if document["checksums"].keys() != {CONFIG, WEIGHTS}:
        raise PretrainedError(f"{source}: checksums: expected those of {CONFIG} and {WEIGHTS}")
    if document["checksums"][CONFIG] != checksum(_canonical(document)):
        raise PretrainedError(f"{source}: its checksum is not that of its entries: it is damaged, or was changed by hand")
    return document


def saved_weights(text: bytes, source: str) -> str | None:
    """The checksum of the weights that a document names, if it is one of flowkern's, of whatever format."""
    document = _parse(text, source)
    if not is_ours(document):
        raise PretrainedError(f"{source}: expected a model saved by flowkern")
    checksums = document.get("checksums")
    return checksums.get(WEIGHTS) if isinstance(checksums, dict) else None


def is_ours(document: Any) -> bool:
    return isinstance(document, dict) and {"format", "flowkern"} <= document.keys()


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical(document: dict[str, Any]) -> bytes:
    """The entries but for the checksums, in the one way of writing them."""
    rest = {name: value for name, value in document.items() if name != "checksums"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parse(text: bytes, source: str) -> Any:
    """What JSON says, without what only Python's reading of it allows, and no more of it than is sane."""
    if len(text) > LARGEST:
        raise PretrainedError(f"{source}: expected at most {LARGEST} bytes, got {len(text)}")
    try:
        decoded = text.decode()
        _check_depth(decoded)
        return json.loads(
            decoded, parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_repetition
        )
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{source}: not what flowkern reads as JSON: {short(error)}") from None


def _check_depth(text: str) -> None:
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and objects inside of each other")


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object with the same name twice")
    return entries
