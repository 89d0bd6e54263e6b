"""``flowkern sample``: samples of a trained model, in the units of its data."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from flowkern.cli.waves import Meter, WaveFile
    from flowkern.models import Encoded
    from flowkern.training import Processes

PICTURED = 64
ROWS, SECONDS = 1000, 5.0  # where nothing is asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("folder", metavar="FOLDER", help="of a run of `flowkern train`, or of a model that was saved")
    parser.add_argument("-n", type=int, metavar="N", help=f"how many ({ROWS}); of a --given table for each of its rows (1)")
    parser.add_argument(
        "--given",
        metavar="VALUES",
        help="what they are given, where the model was trained so: numbers like 0.5,2, a class or speaker; or a table of them",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"of audio: how long, written while it is drawn ({SECONDS:g})"
    )
    parser.add_argument("--like", metavar="FILE", help="of a vocoder: the recording (.wav, .flac) whose spectrogram it speaks")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of flows, pixelcnn, pixelrnn and audio: below 1 samples are calmer than the data (1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another gives other samples (0)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=".csv, .npy or .parquet (FOLDER/samples.csv; of images samples.npy and a picture); of audio .wav, with a picture",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU where torch sees one)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draws samples and writes them."""
    require(("numpy",), "train")
    from flowkern.cli.processes import first_does, joined
    from flowkern.cli.trained import model_from

    if options.n is not None and options.n < 1:
        raise CommandError(f"-n: expected a whole number of at least 1, got {options.n}")
    with joined(options.device) as here:
        model = model_from(options.folder)
        _check_like(options, model)
        if _streams(model) and options.n is None:
            first_does(here, lambda: _sound(options, model, here))
        else:
            _rows(options, model, here)
    return 0


def _check_like(options: argparse.Namespace, model: Encoded) -> None:
    """Raises unless a vocoder, and no other model, has a recording to speak like."""
    vocoder = bool(getattr(model.model, "mels", 0))
    if not vocoder and options.like is not None:
        of = "only of models that speak from spectrograms, such as wavenet with --set mels=80"
        raise CommandError(f"--like: {of}; got {options.like!r}")
    if vocoder and (options.like is None or options.n is not None):
        why = "--like names the recording" if options.like is None else "it draws one sound, without -n"
        raise CommandError(f"FOLDER: the model in {options.folder} speaks from the spectrogram of a recording: {why}")


def _streams(model: Encoded) -> bool:
    """Whether it draws sounds of any length."""
    return model.encoding.rate is not None and hasattr(model.model, "stream")


def _rows(options: argparse.Namespace, model: Encoded, here: Processes) -> None:
    """Rows in a table, and a picture where they are images."""
    from flowkern.cli import tables
    from flowkern.cli.given import context_of
    from flowkern.cli.processes import first_does, say
    from flowkern.cli.report import check_finite
    from flowkern.cli.trained import run_of
    from flowkern.training import sample

    takes = {"seconds": False, "temperature": "temperature" in signature(model.model.sample).parameters}
    for name, known in takes.items():
        if getattr(options, name) is not None and not known:
            rows = "leave it out with -n, which draws rows as long as in training"
            others = "flows, pixelcnn, pixelrnn and " if name == "temperature" else ""
            why = rows if _streams(model) else f"only of {others}models that draw sounds of any length, such as wavenet"
            raise CommandError(f"--{name}: {why}; got {getattr(options, name):g}")
    made = run_of(options.folder)
    given = context_of(options.given, model.context_encoding, made, options.folder)
    images, each = len(model.event_shape) == 3, options.n or (ROWS if given is None or len(given) == 1 else 1)
    n = each if given is None else each * len(given)
    single = images or model.encoding.rate is not None
    output = options.output or str(Path(options.folder) / ("samples.npy" if single else "samples.csv"))
    tables.check(output)
    context = None if given is None else given.repeat_interleave(each, 0)
    temperature = _temperature(options)
    if temperature != 1 and getattr(model.model, "circular", False):
        raise CommandError(f"--temperature: the noise of circular features is uniform and has none, got {temperature:g}")
    samples = sample(model, n, here, options.seed, context, temperature)
    check_finite(samples, "nothing was written")
    first_does(here, lambda: tables.write(output, samples, made.columns if made else None))
    say(here, f"{n:,} samples are in {output}")
    if images:
        picture = str(Path(output).with_suffix(".png"))
        first_does(here, lambda: _picture(model, samples, picture))
        say(here, f"the first {min(PICTURED, n)} of them are in {picture}")


def _picture(model: Encoded, samples: Tensor, path: str) -> None:
    require(("matplotlib",), "train")
    from flowkern.cli import pictures

    write_whole(Path(path), pictures.image_grids({"samples": samples}, model.encoding.data_levels or 256))


def _sound(options: argparse.Namespace, model: Encoded, here: Processes) -> None:
    """Audio in a .wav file while it is drawn, and a picture of it."""
    require(("matplotlib", "rich"), "train")
    import torch

    from flowkern.cli.given import context_of
    from flowkern.cli.trained import run_of
    from flowkern.cli.waves import Meter, WaveFile

    rate = model.encoding.rate
    assert rate is not None
    given = context_of(options.given, model.context_encoding, run_of(options.folder), options.folder)
    if given is not None and len(given) > 1:
        raise CommandError(f"--given: one sound is drawn, without -n: expected one row, got {len(given)} in {options.given}")
    recording = None if options.like is None else _recording(options.like, rate)
    total, temperature, path = _asked(options, rate, recording)
    picture = path.with_suffix(".png")
    generator = torch.Generator(here.device).manual_seed(options.seed)
    streaming: Any = model.model.to(here.device)
    spectrogram = None if recording is None else streaming.log_mel(recording.to(here.device))
    conditions = {"context": model.encode_context(given), "local": spectrogram}
    stretches = streaming.stream(total, **conditions, temperature=temperature, generator=generator)
    file, meter = WaveFile(path, rate), Meter(total, rate)
    try:
        with torch.no_grad(), file, meter:
            with suppress(OSError):
                picture.unlink()  # of an earlier sound, which the file has just lost
            for stretch in stretches:
                if not stretch.isfinite().all():
                    raise CommandError(f"the model draws samples that are not finite{file.kept}", status=1)
                file.write(stretch[0])
                meter(stretch.shape[1])
    except KeyboardInterrupt:
        _show(file, meter, picture)
        raise
    _show(file, meter, picture)


def _show(file: WaveFile, meter: Meter, picture: Path) -> None:
    """Draws what was written, and tells of it."""
    from flowkern.cli import pictures

    if file.length:
        write_whole(picture, pictures.recordings({file.path.name: [file.read()]}, file.rate))
        print(f"{file.held}, a picture of it in {picture}; {meter.speed}", flush=True)


def _recording(path: str, rate: int) -> Tensor:
    """What a vocoder is to speak like, (n,), at its rate."""
    require(("soundfile", "soxr"), "audio")
    from flowkern.data import DataError, audio
    from flowkern.data.dataset import reading

    try:
        with reading(path):
            return audio.recording(Path(path), rate)
    except DataError as error:
        raise CommandError(f"--like: {error}") from None


def _temperature(options: argparse.Namespace) -> float:
    temperature = 1.0 if options.temperature is None else options.temperature
    if not 0 <= temperature < math.inf:
        raise CommandError(f"--temperature: expected a number of at least 0, got {temperature:g}")
    return float(temperature)


def _asked(options: argparse.Namespace, rate: int, recording: Tensor | None) -> tuple[int, float, Path]:
    """Samples, temperature and file that a command line asks for; no more samples than of a recording to speak like."""
    from flowkern.cli.tables import check_folder
    from flowkern.cli.waves import LARGEST

    usual = SECONDS if recording is None else len(recording) / rate
    seconds = usual if options.seconds is None else options.seconds
    temperature = _temperature(options)
    longest = LARGEST // 2 // rate
    if not 1 / rate <= seconds <= longest:  # and no NaN
        raise CommandError(
            f"--seconds: expected a number from {1 / rate:g} to {longest:,}, what a .wav file holds; got {seconds:g}"
        )
    if recording is not None and round(seconds * rate) > len(recording):
        raise CommandError(f"--seconds: expected at most the {usual:g} of {options.like}; got {seconds:g}")
    path = Path(options.output or Path(options.folder) / "samples.wav")
    if path.suffix.lower() != ".wav":
        raise CommandError(f"--output: expected a name that ends in .wav, as the model is one of audio, got {options.output!r}")
    check_folder(path)
    return round(seconds * rate), temperature, path
