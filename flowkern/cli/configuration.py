"""The whole configuration of a run: what it is repeated from."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flowkern._checks import whole_number
from flowkern._version import __version__
from flowkern.cli import options as opt
from flowkern.cli.errors import CommandError
from flowkern.cli.registry import distillation_class, model_class
from flowkern.data import names
from flowkern.training import Settings

CONDITIONS = ("context", "mels", "upsample")  # options of a student that are its teacher's
PARTS = ("model_options", "distillation", "data_options", "training")


@dataclass
class DataOptions:
    """How data become what a model sees.

    Args:
        margin: of dequantised images, the papers' lambda: keeps the logit of the first and the last level finite. 1e-6 for
            MNIST in the papers, 0.05 for colour; none: 0.05.
        features: of audio, samples of a row, the stretch that a model sees at once in training; none: 8192, for a student its
            teacher's.
        rate: of audio, samples a second, to which recordings are resampled; none: their own, for a student its teacher's.
        given: what each row is given, for a model of the rows given it: columns of a table, which are then no part of the rows;
            label, the class of an image; or speaker, of recordings in a folder for each.
    """

    margin: float | None = None
    features: int | None = None
    rate: int | None = None
    given: Sequence[str] = ()


@dataclass
class Configuration:
    """A run: the model and the data by their names, and every option of both and of the training.

    That of a student has its teacher, by the name of a folder, and options of the distillation.
    """

    model: str
    data: str
    teacher: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    columns: list[str] | None = None  # names of a table's, once it was read
    class_names: list[str] | None = None  # of the labels that are given, once they were read
    digest: str | None = None  # of the data, once they were read
    command: str = "train"  # which made the run: a demo may be overwritten

    def settings(self) -> Settings:
        """The training's."""
        try:
            return Settings(**self.training)
        except ValueError as error:
            raise CommandError(f"--set {error}") from None

    def loading(self) -> dict[str, Any]:
        """The options of :func:`flowkern.data.load`."""
        options = self.data_options
        try:
            numbers = {n: whole_number(n, options[n], 1) for n in ("features", "rate") if options[n] is not None}
        except ValueError as error:
            raise CommandError(f"--set {error}") from None
        return {**numbers, "given": options["given"]}

    def json(self) -> str:
        """As run.json holds it."""
        return json.dumps({"flowkern": __version__, **asdict(self)}, indent=2) + "\n"

    def check_continues(self, other: Configuration) -> None:
        """Raises unless this is the configuration of the run that is to be continued."""
        found = self.difference(other)
        if found is not None:
            key, mine, theirs = found
            raise CommandError(f"--resume: the run has {key} = {theirs!r}, not {mine!r}; it goes on with its own")

    def difference(self, other: Configuration) -> tuple[str, Any, Any] | None:
        """The first of the names and options that is another one in another configuration, here and there."""
        mine, theirs = self._flat(), other._flat()
        return next(((key, mine.get(key), value) for key, value in theirs.items() if mine.get(key) != value), None)

    def _flat(self) -> dict[str, Any]:
        """All of it; options have one name only, whatever part they are of."""
        names = {"model": self.model, "data": self.data, "teacher": self.teacher}
        return {**names, **self.model_options, **self.distillation, **self.data_options, **self.training}


def options_of(model: str, command: str = "train") -> dict[str, dict[str, opt.Option]]:
    """The options of a model, of the data, and of the training, by the part of the configuration that they belong to."""
    of_data = opt.options_of(DataOptions)
    # What has no default is the shape of the data, and what the data or the teacher have is not the model's to choose.
    chosen = {*of_data, *(CONDITIONS if command == "distill" else ())}
    cls = model_class(model)
    of_model, of_training = opt.options_of(cls).items(), opt.options_of(Settings).items()
    return {
        "model_options": {n: o for n, o in of_model if o.default is not opt.REQUIRED and n not in chosen},
        "distillation": opt.options_of(distillation_class()) if command == "distill" else {},
        "data_options": of_data,
        "training": {n: replace(o, default=cls.settings.get(n, o.default)) for n, o in of_training},
    }


def describe(model: str | None, command: str = "train") -> str:
    """The options that --set takes, with their defaults."""
    if model is None:
        text = opt.describe(opt.options_of(Settings))
        return f"training, --set:\n{text}\n\n`flowkern train MODEL --help` shows a model's options\n"
    titles = {"model_options": model, "distillation": "distillation", "data_options": "data", "training": "training"}
    known = options_of(model, command).items()
    return "\n".join(f"{titles[part]}, --set:\n{opt.describe(options)}\n" for part, options in known if options)


def configuration(options: argparse.Namespace, base: Configuration | None = None, command: str = "train") -> Configuration:
    """The configuration that a command line asks for, on top of another one or of the defaults."""
    distilled = command == "distill"
    model = options.model or (base and base.model)
    data = options.data or (base and base.data) or (model and not distilled and model_class(model).default_data)
    teacher = getattr(options, "teacher", None) or (base and base.teacher)
    if base is not None and distilled != (base.command == "distill"):
        start = "--resume" if options.resume else "--config"
        raise CommandError(f"{start}: expected a run of `flowkern {command}`, got one of `flowkern {base.command}`")
    if not model or not data or (distilled and not teacher):
        missing = "MODEL" if not model else "--data DATA" if not data else "TEACHER"
        raise CommandError(f"expected {missing}, or --config with the run.json of an earlier run")
    parts = {} if base is None else {part: getattr(base, part) for part in PARTS}
    if base is not None and base.model != model:
        del parts["model_options"]
    made = whole(model, located(data), parts, command)
    known = options_of(model, command)
    made.teacher = located(teacher) if teacher else None
    given = opt.assignments(options.set or [])
    condition = next((name for name in given if name in CONDITIONS), None)
    if distilled and condition:
        raise CommandError(f"--set {condition}: a student has that of its teacher; leave it out")
    opt.check_names(given, {name: option for of_part in known.values() for name, option in of_part.items()}, "--set")
    for name, text in given.items():
        part = next(part for part, of_part in known.items() if name in of_part)
        getattr(made, part)[name] = opt.parse(known[part][name], text)
    made.settings()
    return made


def whole(model: str, data: str, given: Mapping[str, Any], command: str = "train") -> Configuration:
    """A configuration with all options: those that are given by part, and the defaults of the others."""
    known = options_of(model, command)
    made = Configuration(model, data, command=command)
    for part in PARTS:
        defaults = {name: option.default for name, option in known[part].items()}
        setattr(made, part, {**defaults, **given.get(part, {})})
    return made


def located(data: str) -> str:
    """A file or folder by a name that holds from everywhere; other names are those of data sets."""
    return os.path.abspath(data) if data not in names() and os.path.exists(data) else data


def read(path: str | os.PathLike[str], name: str) -> Configuration:
    """The configuration in a file, with the defaults of what it leaves out; ``name`` is what the user gave it by."""
    try:
        with Path(path).open() as file:
            content = json.loads(file.read(1_000_000))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"{name}: cannot read {os.fspath(path)}: {reason}") from None
    if not isinstance(content, dict) or not {"model", "data"} <= content.keys():
        raise CommandError(f"{name}: {os.fspath(path)} is no configuration of a run, such as the run.json in its folder")
    command = content.get("command", "train")
    for key in ("model", "data", *(["teacher"] if command == "distill" else [])):
        if not isinstance(content.get(key), str):
            raise CommandError(f"{name}: {os.fspath(path)}: {key}: expected a name, got {content.get(key)!r}")
    known, given = options_of(content["model"], command), {}
    for part in PARTS:
        values = content.get(part, {})
        if not isinstance(values, dict):
            raise CommandError(f"{name}: {os.fspath(path)}: {part}: expected options, got {values!r}")
        try:
            opt.check_names(values, known[part], part)
            given[part] = {key: opt.check(known[part][key], value) for key, value in values.items()}
        except CommandError as error:
            raise CommandError(f"{name}: {os.fspath(path)}: {error}") from None
    made = whole(content["model"], content["data"], given, command)
    made.teacher = content.get("teacher")
    for key in ("columns", "class_names"):
        names = content.get(key)
        if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
            raise CommandError(f"{name}: {os.fspath(path)}: {key}: expected names, got {names!r}")
        setattr(made, key, names)
    made.digest = content.get("digest")
    return made
