"""``flowkern evaluate``: how probable data are under a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkern.cli.errors import CommandError, require

if TYPE_CHECKING:
    from flowkern.cli.configuration import Configuration
    from flowkern.data import Rows
    from flowkern.model import Model
    from flowkern.models import Encoded

PARTS = ("test", "validation", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("folder", metavar="FOLDER", help="of a run of `flowkern train`, or of a model that was saved")
    parser.add_argument("--data", help="whose rows to evaluate (the run's own)")
    parser.add_argument("--part", choices=PARTS, help="of the run's own data (test); of other data all rows are evaluated")
    parser.add_argument("--output", metavar="FILE", help="write the log-density of each row: .csv, .npy or .parquet")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that images are given (0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU where torch sees one)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the mean log-likelihood, and writes that of each row where asked."""
    require(("numpy",), "train")
    from flowkern.cli import tables
    from flowkern.cli.processes import first_does, joined, say
    from flowkern.cli.report import distance, verdict
    from flowkern.cli.trained import model_from, run_of
    from flowkern.data import conditioned
    from flowkern.training import evaluate, mean_terms

    if options.output:
        tables.check(options.output)
    made = run_of(options.folder)
    if made is not None and made.teacher and options.output:
        raise CommandError("--output: of rows of audio a student has no log-densities in a reasonable time; leave it out")
    with joined(options.device) as here:
        model = model_from(options.folder)
        name, rows, notes = _rows(options, model, made)
        for note in notes:
            say(here, note)
        if made is not None and made.teacher:
            terms = mean_terms(
                _teaching(made, model), conditioned(rows, model.context_encoding), model.encoding, here, options.seed
            )
            say(here, f"{name}: {distance(terms)}")
            return 0
        score, nats = evaluate(model, rows, here, options.seed)
        say(here, f"{name}: {verdict(score, model)}")
        if options.output:
            first_does(here, lambda: tables.write(options.output, nats[:, None], ["log_prob"]))
            say(here, f"the log-density of each row is in {options.output}")
    return 0


def _teaching(made: Configuration, student: Encoded) -> Model:
    """What tells a student's worth, by its teacher: its own density would take a pass for each sample."""
    from flowkern.cli.registry import distillation_class
    from flowkern.cli.trained import model_from

    assert made.teacher is not None
    teacher: Any = model_from(made.teacher, "FOLDER: its teacher")
    return distillation_class()(student.model, teacher.model, **made.distillation)


def _rows(options: argparse.Namespace, model: Encoded, made: Configuration | None) -> tuple[str, Rows, Sequence[str]]:
    """What to call the rows, the rows, and what is to be said of how they were read."""
    from flowkern.cli.trained import check_columns, check_levels, dataset_of, digest, rows_of, with_classes_of

    if options.data:
        if options.part:
            raise CommandError("--part: only of the run's own data, whose parts are known; leave out --data")
        rate = model.encoding.rate  # to which audio is resampled
        loading: dict[str, Any] = {} if rate is None else {"features": model.event_shape.numel(), "rate": rate}
        if model.conditional:
            if made is None:
                raise CommandError(f"FOLDER: {options.folder} has no run.json, which names the columns that the rows are given")
            loading["given"] = made.data_options["given"]
        name, part, dataset = Path(options.data).name, None, dataset_of(options.data, None, loading)
    else:
        if made is None:
            raise CommandError(f"--data: expected some, since {options.folder} is of no run that has its own")
        part = options.part or "test"
        dataset = dataset_of(made.data, made.training["seed"], made.loading())
        if made.digest not in (None, digest(dataset)):
            raise CommandError(f"FOLDER: {made.data} does not hold the run's data any more; name some by --data")
        name = f"{dataset.name}, {part} part"
    dataset = with_classes_of(model, made, name, dataset)
    rows = rows_of(dataset) if part is None else getattr(dataset, part)
    if rows.event_shape != model.event_shape:
        shapes = " x ".join(map(str, model.event_shape)), " x ".join(map(str, rows.event_shape))
        raise CommandError(f"--data: {name}: the model takes rows of {shapes[0]}, got rows of {shapes[1]}")
    check_columns(name, dataset, made)
    check_levels(name, rows, model.encoding.data_levels)
    return name, rows, dataset.notes
