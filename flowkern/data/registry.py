"""What can be loaded: names, files, folders. A kind of data is a module, and its line here."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from flowkern._checks import meant
from flowkern.data import audio, cifar, files, idx, named, pictures, tones
from flowkern.data.dataset import DataError, Dataset, reading

KINDS = (files, idx, cifar, audio, pictures)  # in the order in which a folder is searched for them


def names() -> dict[str, str]:
    """The data sets that have a name, and what each of them is.

    Example:
        >>> names()["digits"]
        '1,797 handwritten digits of 8 x 8 pixels with 17 levels'
    """
    return {**named.DESCRIPTIONS, tones.NAME: tones.DESCRIPTION}


def load(
    source: str | os.PathLike[str],
    seed: int | None = 0,
    *,
    features: int | None = None,
    rate: int | None = None,
    given: Sequence[str] = (),
) -> Dataset:
    """A data set by its name, or from a file or a folder.

    Args:
        source: one of

            - a name, see :func:`names`; a file of that name is ``./digits``;
            - a table of real numbers (rows, columns): .npy, which is mapped into memory and may be larger; .npz with the arrays
              ``train``, ``validation`` and ``test``, or with one; text (.csv, .tsv, .txt, .dat), see :mod:`flowkern.data.text`;
              .parquet, which needs pyarrow;
            - a folder with tables ``train.*`` and perhaps ``validation.*`` and ``test.*``;
            - images in an IDX file, or in a folder of them as MNIST and Fashion-MNIST have them;
            - a folder with CIFAR-10 or CIFAR-100, binary version;
            - a recording (.wav, .flac), or a folder of them, see :mod:`flowkern.data.audio`, which needs soundfile and soxr; as
              LJSpeech has them, too;
            - a folder of pictures of one size, grey or RGB.

            Of pictures and recordings other folders in a folder are searched too. Where there is one named ``train``, it and
            ``validation`` and ``test`` are the parts.
        seed: draws what is held out of the rows for training: 10 % for each other part that is not given, from 0 to 2^64 - 1.
            ``None`` for rows that are not to be trained on: nothing is held out, all are in their own order, and it does not
            matter how few they are, or whether a column is constant. Recordings are held out by files.
        features: of audio, samples of a row; ``None`` for 8,192.
        rate: of audio, Hz to which recordings are resampled; ``None`` for their own.
        given: what each row is given, its context, for a model of the rows given it: names of a table's columns, or their
            numbers from 1 on, which are then no part of the rows; or ``label``, the class of each image, or of each row of the
            data sets that have a name: of IDX files, those beside them (train-labels-idx1-ubyte), of CIFAR its own, of pictures
            the folders that they lie in; or ``speaker``, who is heard in each recording, by the folders that these lie in.

    Returns:
        The parts, whose rows have shape (columns,), (channels, height, width) or (samples,). A table whose values are all
        whole numbers, from 0 to 255 at most, has ``levels`` as images have; audio has a ``rate``.

    Raises:
        DataError: if there is no such thing, if it is damaged, or cannot be used, as
            :func:`flowkern.data.tables.table_dataset`, :func:`flowkern.data.images.image_dataset` and
            :func:`flowkern.data.audio.load` say. The message names the file, the place in it, and what was expected.
        ValueError: for ``features`` or a ``rate`` that is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     print("length;weight", *(f"{i};{i * i}" for i in range(50)), sep="\\n", file=file, flush=True)
        ...     data = load(file.name)
        >>> len(data.train), len(data.validation), len(data.test), data.event_shape, data.columns
        (40, 5, 5, torch.Size([2]), ['length', 'weight'])
    """
    if not os.fspath(source):
        raise DataError("expected the name of a data set, a file or a folder, got ''")
    with reading(source):
        try:
            return _found(source, seed, features, rate, given)
        except FileNotFoundError as error:
            missing = f"cannot read {error.filename or source}: {error.strerror}"
            raise DataError(f"{missing}; {meant(str(source), 'data sets', names())}") from None


def _found(
    source: str | os.PathLike[str], seed: int | None, features: int | None, rate: int | None, given: Sequence[str]
) -> Dataset:
    path = Path(source)
    named_one = isinstance(source, str) and source in named.DESCRIPTIONS
    kind = named if named_one else tones if source == tones.NAME else _kind(path)
    if kind in (tones, audio):
        if kind is audio:
            return audio.load(path, seed, features, rate, given)
        if given:
            raise DataError(f"{source}: given: its sounds are synthesised, and given nothing, got {', '.join(given)}")
        return tones.load(seed, features, rate)
    if (features, rate) != (None, None):
        raise DataError(f"{source}: expected audio, of which alone features and rate are options")
    return named.load(str(source), seed, given) if kind is named else kind.load(path, seed, given)


def _kind(path: Path) -> ModuleType:
    """The module that reads a file or a folder."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{path}: expected a regular file or a folder, got a pipe or a device")
    for kind in KINDS:
        if kind.found(path):
            return kind
    if stat.S_ISDIR(mode):
        wanted = "; ".join(kind.WANTED_FOLDER for kind in KINDS)
        raise DataError(f"{path}: holds nothing that can be used; looked for {wanted}")
    raise DataError(f"{path}: expected {files.WANTED_FILE}, {idx.WANTED_FILE}, {audio.WANTED_FILE}, or a folder")
