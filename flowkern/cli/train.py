"""``flowkern train``: fit any model to any data, alone or in several processes, and continue a run that was ended."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import OutputFolder, output_folder

if TYPE_CHECKING:  # torch takes more than a second, which --help need not wait for
    from torch import Tensor

    from flowkern.cli.configuration import Configuration
    from flowkern.data import Dataset, Encoding
    from flowkern.model import Model
    from flowkern.models import Encoded
    from flowkern.training import History, Processes, Training

SAMPLES, SOUNDS = 1000, 8  # rows that are drawn at the end, and those of audio
METRICS_EVERY = 5.0  # seconds
STATUS = {"SIGINT": 130, "SIGTERM": 143}
FILES = (
    "run.json",
    "metrics.csv",
    "model.safetensors",
    "config.json",
    "learning_curve.png",
    "samples.csv",
    "samples.npy",
    "samples.wav",
    "samples.png",
    "density.png",
    "latents.png",
    "temperatures.png",
    "interpolations.png",
    "throughput.png",
    "results.json",
)  # what a run may leave, besides checkpoints and TensorBoard's folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one of those that `flowkern list` names")
    add_run_arguments(parser, "a data set that `flowkern list` names, a file, or a folder of files, images or recordings")
    parser.set_defaults(run=run)


def add_run_arguments(parser: argparse.ArgumentParser, data: str) -> None:
    """Adds the options of a run, of this command or of another one that trains; ``data``: what --data is."""
    parser.add_argument("--data", help=data)
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where the model and all else of the run go")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", help="options, see below")
    parser.add_argument("--config", metavar="FILE", help="start from the options in the run.json of another run")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder from its last checkpoint")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU where torch sees one)")


def details(options: argparse.Namespace) -> str:
    """What --help says besides: the options that --set takes, of a model where one is named."""
    from flowkern.cli.configuration import describe

    return describe(getattr(options, "model", None))


def run(options: argparse.Namespace) -> int:
    """Trains, and writes the model, metrics, pictures and results."""
    return carry_out(options, "train")


def carry_out(options: argparse.Namespace, command: str) -> int:
    """A run of this command or of `flowkern distill`."""
    require(("numpy", "matplotlib", "rich"), "train")
    from flowkern.cli.processes import first_does, joined

    with joined(options.device) as here, ExitStack() as stack:
        folder = first_does(here, lambda: stack.enter_context(output_folder(options.output)))
        made = _configuration(options, command, here)
        return Run.build(made, folder, here).train(options.resume)


def _configuration(options: argparse.Namespace, command: str, here: Processes) -> Configuration:
    """The one to carry out: that of the command line, or of the run in the folder, where it is to be continued."""
    from flowkern.cli import configuration as conf
    from flowkern.cli.processes import all_do, first_does

    path = Path(options.output) / "run.json"

    def look() -> None:
        if options.resume and not path.exists():
            raise CommandError(f"--resume: {options.output!r} holds no run")
        if path.exists() and not options.resume:
            raise CommandError(f"--output: {options.output!r} holds another run; --resume continues it, or name another folder")
        if not options.resume:
            check_free(Path(options.output))

    first_does(here, look)
    if options.resume and options.config:
        raise CommandError("--config: a run that is continued has its own; leave it out with --resume")

    def read() -> Configuration:
        held = conf.read(path, "--resume") if options.resume else None
        start = conf.read(options.config, "--config") if options.config else held
        made = conf.configuration(options, start, command)
        if held is not None:
            made.check_continues(held)
            made.digest = held.digest
        return made

    made = all_do(here, read)
    _check_same(here, made)
    return made


def _check_same(here: Processes, made: Configuration) -> None:
    """Raises if a process was started with another configuration than the first one."""
    all_made = here.gather(made)
    for rank, other in enumerate(all_made):
        found = other.difference(all_made[0])
        if found is not None:
            key, theirs, first = found
            raise CommandError(f"rank {rank} was started with {key} = {theirs!r}, rank 0 with {first!r}")


@dataclass
class Run:
    """A configuration with all that it names: to be trained once, or to be continued."""

    made: Configuration
    model: Model
    dataset: Dataset
    encoding: Encoding
    context_encoding: Encoding | None  # of what the rows are given
    folder: OutputFolder | None  # in the first process
    path: Path
    here: Processes

    @classmethod
    def build(cls, made: Configuration, folder: OutputFolder | None, here: Processes) -> Run:
        """Loads the data, and makes the model for their shape."""
        from flowkern.cli.processes import all_do

        dataset, model, encoding, context_encoding = all_do(here, lambda: _parts(made))
        other = next((rank for rank, digest in enumerate(here.gather(made.digest)) if digest != made.digest), None)
        if other is not None:
            raise CommandError(f"--data: rank {other} has other data than rank {here.rank}")
        path = here.gather(folder and folder.path)[0]
        return cls(made, model, dataset, encoding, context_encoding, folder, path, here)

    def train(self, resume: bool) -> int:
        """Trains, or goes on, and writes all into the folder. Returns the exit status."""
        from flowkern.cli.processes import first_does, say
        from flowkern.data import conditioned
        from flowkern.training import Checkpoints, Progress, Training, TrainingError

        if resume and (self.path / "results.json").exists():
            say(self.here, f"the run in {self.path}/ has ended; nothing is left to do")
            return 0
        first_does(self.here, lambda: self._write("run.json", self.made.json()))
        for line in (*self.dataset.notes, self._introduction()):
            say(self.here, line)
        checkpoints, settings = Checkpoints(self.path, self.here), self.made.settings()
        rows = conditioned(self.dataset.train, self.context_encoding)
        held = conditioned(self.dataset.validation, self.context_encoding)
        with Progress(settings, self._unit if self.here.first else None) as progress:
            watch = _Recorder(self.folder, progress) if self.folder is not None else None
            try:
                training = Training(self.model, rows, held, self.encoding, settings, self.here, checkpoints, watch)
                newest = checkpoints.newest() if resume else None
                if newest is not None:
                    training.resume(newest)
                history = training.run()
            except TrainingError as error:
                raise CommandError(str(error), status=1) from None
        return self._finish(training, history)

    def _introduction(self) -> str:
        parts = ", ".join(f"{len(getattr(self.dataset, part)):,} {part}" for part in ("train", "validation", "test"))
        shape = " x ".join(map(str, self.dataset.event_shape))
        if self.dataset.rate is not None:
            shape += f" samples at {self.dataset.rate:,} Hz"
        numbers = sum(p.numel() for p in self.model.parameters())
        where = f"{self.here.device}" + (f", {self.here.count} processes" if self.here.count > 1 else "")
        return f"{self.dataset.name}: {parts} rows of {shape}; {self.made.model}: {numbers:,} parameters on {where}"

    @property
    def _continue(self) -> str:
        command = "distill" if self.made.teacher else "train"
        return f"continue with: flowkern {command} --resume --output {self.path}"

    @property
    def _unit(self) -> str:
        return "nats per sample, of the distillation" if self.made.teacher else f"nats per row, {self.encoding.space} units"

    def _finish(self, training: Training, history: History) -> int:
        """Writes the model; where the run has come to its end, also what it is worth, and pictures."""
        from flowkern.cli.processes import first_does, say
        from flowkern.training import Checkpoints

        status = STATUS.get(history.ended, 0)
        if history.best < 0:
            say(self.here, f"{history.ended} in the first epoch; {self._continue}")
            return status
        model = assembled(training, self.encoding, self.context_encoding)
        first_does(self.here, lambda: self._save(model))
        first_does(self.here, lambda: self._write("metrics.csv", history.table()))
        if status:
            say(
                self.here,
                f"{history.ended}: the model of epoch {history.best + 1}, the best, is written; {self._continue}",
            )
            return status
        self._judge(model, history)
        if self.folder is not None:
            Checkpoints(self.path, self.here).remove()
        return 0

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        self.folder.write(name, text.encode())

    def _save(self, model: Encoded) -> None:
        try:
            model.save_pretrained(self.path)
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot write the model: {error}; the checkpoint is kept", status=1) from None

    def _judge(self, model: Encoded, history: History) -> None:
        """Scores the test rows, draws samples and pictures."""
        from flowkern.cli import pictures, report

        value, numbers, words = self._score(model)
        samples = self._samples(model)
        if self.folder is None:
            return
        curve = pictures.learning_curve(history.train, history.validation, history.best, self._unit)
        self.folder.write("learning_curve.png", curve)
        if not math.isfinite(value):
            raise CommandError(f"the log-likelihood of the test rows is {value}; the model is written", status=1)
        report.check_finite(samples, "the model is written")
        self._keep(samples)
        numbers |= report.round_trip(model, self.dataset)
        for name, picture in report.portraits(model, self.dataset, samples, self.made.training["seed"]).items():
            self.folder.write(name, picture)
        self.folder.write("results.json", (json.dumps(self._results(history, numbers), indent=2) + "\n").encode())
        print(f"best epoch {history.best + 1} of {len(history.train)}, {history.seconds[-1]:.1f} s")
        print(f"test: {words}")
        print(f"the model, samples, pictures, metrics.csv and results.json are in {self.path}/")

    def _score(self, model: Encoded) -> tuple[float, dict[str, Any], str]:
        """What the model is worth on the test rows: a number that is finite or the run has failed, all of them, and words.

        The density of a student would take a pass for each sample: it is worth what its teacher thinks of it.
        """
        from flowkern.cli import report
        from flowkern.data import conditioned
        from flowkern.models import VAE
        from flowkern.training import evaluate, mean_terms

        if self.made.teacher:
            test = conditioned(self.dataset.test, self.context_encoding)
            terms = mean_terms(self.model, test, self.encoding, self.here)
            return terms["loss"], terms, report.distance(terms)
        score, _ = evaluate(model, self.dataset.test, self.here)
        numbers, words = asdict(score), report.verdict(score, model)
        if isinstance(self.model, VAE):
            bound, _ = evaluate(model, self.dataset.test, self.here, density="elbo")
            numbers["elbo"] = bound.nats
            words += f"; evidence lower bound {bound.nats:.3f} +- {bound.error:.3f} nats"
        return score.nats, numbers, words

    def _samples(self, model: Encoded) -> Tensor:
        """Rows that the model draws, given what test rows are given; a vocoder's from the spectrograms of these."""
        import torch

        from flowkern.cli import report
        from flowkern.training import sample

        seed, test, audio = self.made.training["seed"], self.dataset.test, self.dataset.rate is not None
        chosen = report.spread(test, SOUNDS) if audio else torch.arange(SAMPLES) % len(test)
        context = None if test.context is None else test.context[chosen]
        if audio and bool(getattr(model.model, "mels", 0)):
            vocoder: Any = model.model.to(self.here.device)
            generator = torch.Generator(self.here.device).manual_seed(seed)
            local = vocoder.log_mel(test[chosen].to(self.here.device))
            return vocoder.sample((), model.encode_context(context), local=local, generator=generator).cpu()
        n = len(chosen) if context is not None or not audio else SOUNDS
        return sample(model, n, self.here, seed, context)

    def _keep(self, samples: Tensor) -> None:
        """Writes them."""
        from flowkern.cli import tables, waves

        assert self.folder is not None
        if self.dataset.rate is not None:
            self.folder.write("samples.wav", waves.content(samples, self.dataset.rate))
        else:
            tables.write(str(self.path / f"samples.{'npy' if self.dataset.images else 'csv'}"), samples, self.made.columns)

    def _results(self, history: History, test: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.made.model,
            "data": self.dataset.name,
            "epochs": len(history.train),
            "best_epoch": history.best + 1,
            "ended": history.ended,
            "seconds": round(history.seconds[-1], 2),
            "validation_loss": history.validation[history.best],
            "test": test,
        }


def _parts(made: Configuration) -> tuple[Dataset, Model, Encoding, Encoding | None]:
    """Data, model, encoding and that of what rows are given, of a configuration, which takes the data's names and digest."""
    from flowkern import data
    from flowkern.cli.trained import digest, with_classes_of

    teacher, taught = _teacher(made) if made.teacher else (None, None)
    try:
        dataset = data.load(made.data, made.training["seed"], **made.loading())
        found = digest(dataset)
        if teacher is None:
            context = data.context_encoding(dataset)
        else:
            dataset, context = with_classes_of(teacher, taught, dataset.name, dataset), teacher.context_encoding
        model = _built(made, dataset, teacher, context)
        keep = getattr(model, "circular", ())
        encoding = data.encoding(dataset, model.levels, made.data_options["margin"], keep)
    except data.DataError as error:
        raise CommandError(f"--data: {error}") from None
    if model.conditional and context is None:
        raise CommandError(
            "--set context: the rows are given nothing; leave it at 0, or name what they are given by --set given"
        )
    if made.digest not in (None, found):
        raise CommandError(f"--resume: {made.data} does not hold the data that the run began with")
    made.columns, made.digest = None if dataset.columns is None else list(dataset.columns), found
    made.data_options["given"] = tuple(dataset.given)
    made.class_names = None if dataset.class_names is None else list(dataset.class_names)
    return dataset, model, encoding, context


def _built(made: Configuration, dataset: Dataset, teacher: Encoded | None, context: Encoding | None) -> Model:
    """The model; options that it does not take are the command line's."""
    try:
        return _model(made, dataset, teacher, context)
    except (TypeError, ValueError) as error:
        argument, _, rest = str(error).partition(": ")
        raise CommandError(f"TEACHER: {rest}" if argument == "teacher" else f"--set {error}") from None
    except (MemoryError, RuntimeError) as error:  # torch's, of a model larger than memory
        raise CommandError(f"cannot build {made.model}: {str(error).splitlines()[0]}", status=1) from None


def _teacher(made: Configuration) -> tuple[Encoded, Configuration | None]:
    """The teacher of a student, which is of audio, and its run; what follows from it becomes the configuration's."""
    from flowkern.cli.trained import model_from, run_of

    assert made.teacher is not None
    teacher = model_from(made.teacher, "TEACHER")
    if teacher.encoding.rate is None:
        raise CommandError(f"TEACHER: expected a model of audio, got a {type(teacher.model).__name__} of other data")
    options = made.data_options
    if options["rate"] not in (None, teacher.encoding.rate):
        raise CommandError(f"--set rate: expected {teacher.encoding.rate} like the teacher, got {options['rate']}")
    options["rate"] = teacher.encoding.rate
    options["features"] = options["features"] or teacher.event_shape.numel()
    run = run_of(made.teacher, "TEACHER") if teacher.conditional else None
    if teacher.conditional and run is None:
        raise CommandError(f"TEACHER: {made.teacher} has no run.json, which names what it is given")
    given = () if run is None else tuple(run.data_options["given"])
    if options["given"] not in ((), given):
        its = f"{', '.join(given) or 'nothing'} like the teacher"
        raise CommandError(f"--set given: expected {its}, got {', '.join(options['given'])}")
    options["given"] = given
    if made.training["strategy"] != "ddp":
        raise CommandError(f"--set strategy: expected ddp, which copies a student, got {made.training['strategy']}")
    return teacher, run


def _model(made: Configuration, dataset: Dataset, teacher: Encoded | None, context: Encoding | None) -> Model:
    """The model for the shape and the rate of the data; where there is a teacher, with what trains it."""
    import inspect

    import torch

    from flowkern.cli.configuration import CONDITIONS
    from flowkern.cli.distill import STUDENT
    from flowkern.cli.registry import distillation_class, model_class

    cls = model_class(made.model)
    if made.model == STUDENT and teacher is None and dataset.rate is not None:
        raise CommandError(
            f"MODEL: a {STUDENT} learns audio from a teacher, since its own density takes a pass for each sample: "
            "train a wavenet with --set output=logistics, then use flowkern distill"
        )
    given = dict(made.model_options)
    if dataset.rate is not None and "rate" in inspect.signature(cls).parameters:
        given["rate"] = dataset.rate
    if teacher is not None:
        given |= {name: teacher.model.config[name] for name in CONDITIONS}
    elif context is not None:
        if "context" not in given:
            raise CommandError(f"--set given: {made.model} takes no context; leave it out")
        if given["context"] not in (0, context.features):
            raise CommandError(f"--set given: {context.features} numbers are given; leave context out")
        given["context"] = context.features
    torch.manual_seed(made.training["seed"])
    model = for_data(cls, dataset, given)
    return model if teacher is None else distillation_class()(model, teacher.model, **made.distillation)


def for_data(cls: type[Model], dataset: Dataset, options: dict[str, Any]) -> Model:
    """A model for rows of a data set's shape, those of images as images where it takes them."""
    shape = tuple(dataset.event_shape)
    made: Any = cls  # every model of the registry takes features
    return made(shape if cls.takes_shapes and len(shape) == 3 else math.prod(shape), **options)


def check_free(path: Path) -> None:
    """Raises if a folder that holds no run has files that one would replace."""
    taken = next((name for name in FILES if (path / name).exists()), None)
    if taken is not None:
        raise CommandError(f"--output: {str(path)!r} holds {taken}, which a run would replace; name another folder")


def clear(folder: OutputFolder) -> None:
    """Removes what an earlier run has left in a folder."""
    from flowkern.training import Checkpoints, Processes

    folder.clear(FILES)
    shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
    Checkpoints(folder.path, Processes()).remove()


def assembled(training: Training, encoding: Encoding, context_encoding: Encoding | None) -> Encoded:
    """The trained model, or the student, in the data's units, in every process, put together where it was sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from flowkern.models import Encoded

    model = training.model
    if training.processes.count > 1 and training.settings.strategy == "fsdp":
        state = get_model_state_dict(training.bare, options=StateDictOptions(full_state_dict=True))
        model = type(model)(**model.config).to(training.processes.device)
        model.load_state_dict({name.removeprefix("model."): t for name, t in state.items()})
    return Encoded(getattr(model.eval(), "student", model), encoding, context_encoding)


class _Recorder:
    """What watches a run: the progress, metrics.csv now and then, and TensorBoard where it is installed."""

    def __init__(self, folder: OutputFolder, progress: Callable[[History, float], None]) -> None:
        self.folder, self.progress = folder, progress
        self.written, self.at = 0, 0.0  # epochs; seconds
        self.board: Any = None

    def __call__(self, history: History, part: float) -> None:
        self.progress(history, part)
        new = range(self.written, len(history.train))
        if new and (history.ended or time.monotonic() - self.at >= METRICS_EVERY):
            self.folder.write("metrics.csv", history.table().encode())
            self._scalars(history, new)
            self.written, self.at = len(history.train), time.monotonic()

    def _scalars(self, history: History, epochs: range) -> None:
        if self.board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(self.folder.path / "tensorboard"))
            except Exception:  # it is missing, does not fit other packages, or takes no such name: each has its own error
                return
        for epoch in epochs:
            self.board.add_scalar("loss/train", history.train[epoch], epoch + 1)
            self.board.add_scalar("loss/validation", history.validation[epoch], epoch + 1)
            self.board.add_scalar("learning rate", history.learning_rate[epoch], epoch + 1)
        self.board.flush()
