"""Recordings in .wav and .flac files, read by soundfile and resampled by soxr, as rows of so many samples."""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import whole_number
from flowkern._optional import optional
from flowkern.data import folders
from flowkern.data import labels as labels_of
from flowkern.data.dataset import PARTS, DataError, Dataset, Rows, printable, row_order
from flowkern.data.labels import SPEAKER

SUFFIXES = (".wav", ".flac")
WANTED_FILE = "a recording (.wav, .flac)"
WANTED_FOLDER = (
    "recordings (.wav, .flac), in folders train, validation and test or any others, or as in LJSpeech (wavs, metadata.csv)"
)
FEATURES = 8192  # samples of a row, where nothing else is asked for
BLOCK = 2**18  # samples that are decoded at once
FRAME = 0.01  # seconds, whose largest sample decides what is silence
SILENCE = 0.01  # of a file's largest sample: 40 dB below it
MARGIN = 0.05  # seconds of silence that stay before and after what is heard
LEAST = 1e-4  # a file with no larger sample is silent
FULL_SCALE = 32766 / 32768
CLIPPED = 3  # samples at full scale, one after another: a peak alone may reach it


@dataclass
class Recording:
    """Where the samples of a file lie among those of all files, and what was found in it.

    Args:
        path: the file.
        start, stop: its first sample that is kept, and the one after the last: silence at both ends is left out.
        rate: of the file, in Hz.
        channels: of the file; they were mixed.
        clipped: samples at full scale, among so many.
        speaker: the number of who is heard, where that is known.
    """

    path: Path
    start: int
    stop: int
    rate: int = 0
    channels: int = 1
    clipped: tuple[int, int] = (0, 0)
    speaker: int | None = None

    @property
    def length(self) -> int:
        """Samples that are kept."""
        return self.stop - self.start

    def rows(self, features: int) -> Tensor:
        """Where its rows begin, (rows,) of int64: spread from its start to its end; none of one shorter than a row."""
        count = -(-self.length // features) if self.length >= features else 0
        return self.start + torch.linspace(0, max(self.length - features, 0), count, dtype=torch.float64).round().long()

    def cut(self, start: float, stop: float) -> Recording:
        """The stretch of it between two fractions of its length."""
        return replace(self, start=self.start + int(start * self.length), stop=self.start + int(stop * self.length))


def found(path: Path) -> bool:
    """Whether there is a recording, or a folder with one somewhere in it."""
    return bool(next(folders.files(path, SUFFIXES), None)) if path.is_dir() else path.suffix.lower() in SUFFIXES


def load(path: Path, seed: int | None, features: int | None, rate: int | None, given: Sequence[str] = ()) -> Dataset:
    """The recordings of a file, or of a folder and those in it; folders named like the parts of a data set are its parts.

    They are decoded once, into a temporary file that is mapped into memory: four bytes for each sample.

    Args:
        path: the file or the folder.
        seed: draws the files that are held out, see :func:`audio_dataset`.
        features: samples of a row; ``None`` for 8,192.
        rate: in Hz, to which files are resampled; ``None`` for their own, which must then be one.
        given: ``speaker`` where each row is given who is heard: the folder directly below this one, or below the part's, in
            which its file lies, at any depth.

    Raises:
        DataError: for a file that is empty, truncated, damaged or of another format, holds numbers that are not finite, or is
            of another rate than the others where none is given; if all are silent or shorter than a row; where speakers are
            asked for and a file lies in the folder of none, or, for training, all in that of one.
    """
    features = FEATURES if features is None else whole_number("features", features, 1)
    rate = None if rate is None else whole_number("rate", rate, 1)
    parts = folders.parts(path) if path.is_dir() else {"train": path}
    files = {part: _files(folder) for part, folder in parts.items()}
    labels, speakers = _speakers(path, parts, files, seed) if labels_of.wanted(path, given, SPEAKER) else (None, None)
    decoded: dict[str, list[Recording]] = {part: [] for part in files}
    first: Recording | None = None
    with tempfile.TemporaryFile() as file:
        store = _Store(file)
        for part, paths in files.items():
            for i, each in enumerate(paths):
                decoded[part].append(_decode(each, rate, first, store))
                decoded[part][i].speaker = None if labels is None else labels[part][i]
                first = first or decoded[part][0]
        samples = store.mapped()
    assert first is not None
    made = audio_dataset(path, samples, decoded, seed, features, rate or first.rate, speakers)
    notes = list(_notes([r for those in decoded.values() for r in those], made.rate, features))
    if made.class_names is not None:
        notes.append(f"{len(made.class_names):,} speakers, from {made.class_names[0]} to {made.class_names[-1]}")
    return replace(made, notes=notes)


def recording(path: Path, rate: int) -> Tensor:
    """All samples (n,) of one file, mixed to one channel, at a rate in Hz.

    Raises:
        DataError: as of :func:`load`.
    """
    with tempfile.TemporaryFile() as file:
        store = _Store(file)
        _decode(path, rate, None, store)
        return store.mapped()


def _speakers(
    path: Path, parts: Mapping[str, Path], files: Mapping[str, Sequence[Path]], seed: int | None
) -> tuple[dict[str, list[int]], list[str]]:
    """The numbers of the speakers of each part's files, and their names: two at least, where a model is to tell them apart."""
    if not path.is_dir():
        raise DataError(f"{path}: given: {SPEAKER}: expected a folder with one for each speaker, got a file")
    single = next((folder for folder in parts.values() if _is_ljspeech(folder)), None)
    if single is not None:
        raise DataError(f"{single}: given: {SPEAKER}: LJSpeech's layout (wavs, metadata.csv) is of one speaker")
    labels, names = labels_of.of_folders(SPEAKER, parts, files)
    if seed is not None and len(names) < 2:
        raise DataError(f"{path}: given: {SPEAKER}: expected folders of two speakers or more, got {names[0]} alone")
    return labels, names


def _is_ljspeech(folder: Path) -> bool:
    return (folder / "metadata.csv").is_file() and (folder / "wavs").is_dir()


def _files(path: Path) -> list[Path]:
    """The file itself; of a folder those that LJSpeech's table names, where there is one, or all, by their names."""
    if not path.is_dir():
        return [path]
    files = _named_files(path) if _is_ljspeech(path) else sorted(folders.files(path, SUFFIXES))
    if not files:
        raise DataError(f"{path}: expected recordings (.wav, .flac), got none")
    return files


def _named_files(folder: Path) -> list[Path]:
    """The recordings that LJSpeech's table names, in its order."""
    table = folder / "metadata.csv"
    try:
        names = [line.partition("|")[0].strip() for line in table.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not text in UTF-8: {error.reason} at byte {error.start}") from None
    # Once each: a file that is named twice could be held out and be in training, too.
    files = [folder / "wavs" / f"{name}.wav" for name in dict.fromkeys(names) if name]
    if not files:
        raise DataError(f"{table}: names no recordings")
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{table}: names {missing.stem!r}, but there is no {missing}")
    return files


class _Store:
    """Samples one after another in a temporary file, which goes when nothing maps it any more."""

    def __init__(self, file: Any) -> None:
        self.file, self.length = file, 0

    def append(self, samples: Any) -> None:
        """Adds an array (n,) of float32."""
        try:
            self.file.write(samples.tobytes())
            self.file.flush()
        except OSError as error:
            where = f"{tempfile.gettempdir()} (the variable TMPDIR names another folder)"
            raise DataError(f"no room for decoded audio in {where}: {error.strerror or error}") from None
        self.length += len(samples)

    def mapped(self) -> Tensor:
        """All of them, (n,)."""
        numpy = optional("numpy", "audio")
        if self.length == 0:
            return torch.zeros(0)
        return torch.from_numpy(numpy.memmap(self.file, dtype=numpy.float32, mode="r+", shape=(self.length,)))


def _decode(path: Path, rate: int | None, first: Recording | None, store: _Store) -> Recording:
    """One file's samples, mixed and resampled, into the store."""
    numpy, soundfile = optional("numpy", "audio"), optional("soundfile", "audio")
    start = store.length
    starts, peaks = [numpy.zeros(0, int)], [numpy.zeros(0, numpy.float32)]  # of each frame: where, and its largest sample
    clipped = read = 0
    try:
        with path.open("rb") as opened, soundfile.SoundFile(opened) as file:
            if rate is None and first is not None and file.samplerate != first.rate:
                theirs = f"{first.path} has {first.rate:,}; resample all by --set rate={first.rate}"
                raise DataError(f"{path}: has {file.samplerate:,} samples a second, {theirs}")
            resample = _resampler(file.samplerate, rate or file.samplerate)
            frame = max(1, round(FRAME * (rate or file.samplerate)))
            more = True
            while more:
                block = file.read(BLOCK, dtype="float32", always_2d=True)
                more = len(block) > 0
                if not numpy.isfinite(block).all():
                    raise DataError(f"{path}: holds samples that are not finite")
                clipped += _count_clipped(abs(block).max(1))
                read += len(block)
                samples = resample(block.mean(1), not more).clip(-1, 1)
                starts.append(store.length + numpy.arange(0, len(samples), frame))
                peaks.append(numpy.maximum.reduceat(abs(samples), starts[-1] - store.length) if len(samples) else peaks[0])
                store.append(samples)
            found = Recording(path, start, store.length, file.samplerate, file.channels, (clipped, read))
            expected = file.frames
    except soundfile.LibsndfileError as error:
        reason = f"it is damaged, or neither .wav nor .flac ({error.error_string.rstrip('.')})"
        raise DataError(f"cannot read {path}: {'it is empty' if path.stat().st_size == 0 else reason}") from None
    if read == 0:
        raise DataError(f"{path}: holds no samples")
    if read < expected or _is_cut_off(path):
        raise DataError(f"{path}: is truncated, after {read:,} samples; its header says that there are more")
    _trim(found, numpy.concatenate(starts), numpy.concatenate(peaks), rate or found.rate)
    return found


def _resampler(given: int, wanted: int) -> Any:
    """A function of the next samples, and whether they are the last, which gives them at another rate."""
    if given == wanted:
        return lambda samples, last: samples
    return optional("soxr", "audio").ResampleStream(given, wanted, 1, "float32").resample_chunk


def _count_clipped(largest: Any) -> int:
    """Samples at full scale in the middle of some that are, of the largest of all channels (n,)."""
    full = largest >= FULL_SCALE
    return int((full[2:] & full[1:-1] & full[:-2]).sum()) if len(full) >= CLIPPED else 0


def _is_cut_off(path: Path) -> bool:
    """Whether a .wav file is shorter than its header says; 0 and 2^32 - 1 are of writers that could not know the length."""
    with path.open("rb") as file:
        header = file.read(8)
    if header[:4] != b"RIFF":
        return False
    (size,) = struct.unpack("<I", header[4:])
    return 0 < size < 2**32 - 1 and size + 8 > path.stat().st_size + 1  # some leave out the byte that makes it even


def _trim(recording: Recording, starts: Any, peaks: Any, rate: int) -> None:
    """Leaves out silence at both ends; nothing stays of a file that is silent."""
    if len(peaks) == 0 or peaks.max() < LEAST:
        recording.stop = recording.start
        return
    heard = starts[peaks >= SILENCE * peaks.max()]
    margin, frame = round(MARGIN * rate), max(1, round(FRAME * rate))
    recording.start, recording.stop = (
        max(recording.start, int(heard[0]) - margin),
        min(recording.stop, int(heard[-1]) + frame + margin),
    )


def _notes(recordings: Sequence[Recording], rate: int | None, features: int) -> Iterator[str]:
    """What a user should know of the files: a line for each kind of thing."""
    lengths = [r.length for r in recordings]
    short = [(r, n) for r, n in zip(recordings, lengths, strict=True) if 0 < n < features]
    found: dict[str, list[tuple[Recording, str]]] = {
        f"resampled to {rate:,} Hz": [(r, f" (from {r.rate:,} Hz)") for r in recordings if r.rate != rate],
        "mixed to one channel": [(r, f" ({r.channels} channels)") for r in recordings if r.channels > 1],
        "warning: clipped": [(r, " ({:,} of {:,} samples)".format(*r.clipped)) for r in recordings if r.clipped[0]],
        "left out, silent": [(r, "") for r, n in zip(recordings, lengths, strict=True) if n == 0],
        f"left out, shorter than a row of {features:,} samples": [
            (r, f" ({n:,} samples without silence at its ends)") for r, n in short
        ],
    }
    for what, those in found.items():
        if those:
            (first, detail), some = those[0], f"{len(those):,} of {len(recordings):,} files, such as "
            yield f"{what}: {some if len(recordings) > 1 else ''}{first.path}{detail}"


def audio_dataset(
    source: str | Path,
    samples: Tensor,
    given: Mapping[str, Sequence[Recording]],
    seed: int | None,
    features: int,
    rate: int,
    speakers: Sequence[str] | None = None,
) -> Dataset:
    """The data set of recordings, whose rows are stretches of them. Parts that are not given are drawn file by file.

    Rows of one file overlap as little as its length allows, so that all of it is in some row.

    Args:
        source: a name, or where they are from.
        samples: of all recordings, (n,), float32 in [-1, 1].
        given: ``train`` and perhaps ``validation`` and ``test``.
        seed: draws 10 % of the files for training for each other part that is not given, but of each speaker one stays.
            Where one or two files, or one of each speaker, are all that there is, those that are long enough are cut: 80 % of
            each, then 10 and 10 %. ``None``: nothing is held out.
        features: samples of a row.
        rate: in Hz.
        speakers: the names of those whose numbers the recordings have, which the rows are then given; of those without a row
            for training nothing is left.

    Raises:
        DataError: if a part holds no row, or one of a speaker who has none for training.
    """
    usable = {part: [r for r in those if r.length >= features] for part, those in given.items()}
    for part, those in usable.items():
        if not those:
            longest = max(given[part], key=lambda r: r.length)
            held = longest.length
            what = "it is silent" if held == 0 else f"{held:,} samples without silence at its ends"
            more = f"the longest file for {part} is {longest.path}" if len(given[part]) > 1 else str(longest.path)
            raise DataError(
                f"{source}: expected a file of at least one row of {features:,} samples (--set features), {more}: {what}"
            )
    parts = usable if seed is None else _divided(usable, seed, features)
    windows = samples.unfold(0, features, 1)  # a view: all rows that there could be
    rows = {part: _rows(windows, parts.get(part, ()), features) for part in PARTS}
    made = Dataset(printable(source), rows["train"], rows["validation"], rows["test"], rate=rate)
    return made if speakers is None else _given_speakers(made, parts, speakers, features)


def _rows(windows: Tensor, recordings: Sequence[Recording], features: int) -> Rows:
    return Rows(windows, torch.cat([torch.zeros(0, dtype=torch.int64), *(r.rows(features) for r in recordings)]))


def _given_speakers(dataset: Dataset, parts: Mapping[str, Sequence[Recording]], names: Sequence[str], features: int) -> Dataset:
    """The data set whose rows are given who is heard in them, of the speakers of the rows for training."""
    heard = sorted({r.speaker for r in parts["train"] if r.speaker is not None})
    number = {speaker: label for label, speaker in enumerate(heard)}
    given = {}
    for part in PARTS:
        labels = [torch.zeros(0, dtype=torch.int64)]
        for r in parts.get(part, ()):
            assert r.speaker is not None
            if r.speaker not in number:
                raise DataError(f"{r.path}: given: {SPEAKER}: {names[r.speaker]} has no row for training")
            labels.append(torch.full((len(r.rows(features)),), number[r.speaker]))
        given[part] = replace(getattr(dataset, part), context=torch.cat(labels).reshape(-1, 1))
    found = [names[speaker] for speaker in heard]
    return replace(dataset, **given, given=(SPEAKER,), classes=len(found), class_names=found)


def _divided(given: Mapping[str, list[Recording]], seed: int, features: int) -> dict[str, list[Recording]]:
    """All three parts."""
    parts, train = dict(given), given["train"]
    wanted = [part for part in ("test", "validation") if part not in given]
    left = Counter(r.speaker for r in train)  # files of each; where none is known, of one
    spare = len(train) - len(left)
    if len(train) > 2 and spare >= len(wanted):
        drawn, held = row_order(len(train), seed)
        order = drawn.tolist()
        for part in wanted:
            taken = _spared(train, order, left, min(held, spare // len(wanted)))
            parts[part], order = [train[i] for i in sorted(taken)], [i for i in order if i not in taken]
        parts["train"] = [train[i] for i in sorted(order)]
        return parts
    stop, least = 1.0, 10 * features  # samples of a file that is cut
    for part in wanted:
        parts[part] = [r.cut(stop - 0.1, stop) for r in train if r.length >= least]
        stop -= 0.1
    parts["train"] = [r.cut(0, stop) if r.length >= least else r for r in train]
    if any(not sum(len(r.rows(features)) for r in those) for those in parts.values()):
        raise DataError(
            f"{train[0].path}: expected at least {10 * features:,} samples without silence at its ends, a tenth of which is a "
            f"row of {features:,} (--set features), or more files; got {train[0].length:,}"
        )
    return parts


def _spared(train: Sequence[Recording], order: Sequence[int], left: Counter[int | None], count: int) -> set[int]:
    """The first files in an order that are not the last ones left of their speakers, so many of them."""
    taken: set[int] = set()
    for i in order:
        if len(taken) < count and left[train[i].speaker] > 1:
            left[train[i].speaker] -= 1
            taken.add(i)
    return taken
