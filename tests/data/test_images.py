"""Images from files: what is understood, and what is refused."""

from __future__ import annotations

import gzip
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import idx

from flowkern.data import DataError, Dataset, Rows, encoding, load, names

DRAW = np.random.default_rng(0)


def every(rows: Rows) -> torch.Tensor:
    return rows[torch.arange(len(rows))]


def sizes(data: Dataset) -> list[int]:
    return [len(part) for part in (data.train, data.validation, data.test)]


def source(data: Dataset) -> np.ndarray:
    """All images of the part that others are drawn from."""
    return data.train.source.numpy()


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_names_give_what_they_say(name: str) -> None:
    pytest.importorskip("sklearn")
    data = load(name, seed=3)
    total = int(names()[name].split(" ")[0].replace(",", ""))
    assert data.name == name
    assert sum(sizes(data)) == total
    assert sizes(data)[1:] == [total // 10] * 2
    assert encoding(data).encode(every(data.train)).isfinite().all()
    if data.columns is not None:
        assert data.event_shape == (len(data.columns),)
    assert torch.equal(every(load(name, seed=3).train), every(data.train))
    assert not torch.equal(every(load(name, seed=4).train), every(data.train))


def test_digits_are_levels() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    data = load("digits")
    assert data.levels == 17
    assert data.train.source.dtype is torch.uint8
    assert np.array_equal(source(data)[:, 0], sklearn.load_digits().images)


def test_a_name_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot read digist: No such file or directory; did you mean digits or iris\?"):
        load("digist")
    with pytest.raises(DataError, match=r"cannot read x/y: No such file.*; there are the data sets digits, moons, iris"):
        load("x/y")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    for path in ("./iris", Path("iris")):
        with pytest.raises(DataError, match="iris: holds nothing"):
            load(path)


# -- IDX --------------------------------------------------------------------------------------------------------------

TRAIN, TEST = (DRAW.integers(0, 256, (rows, 5, 4), dtype=np.uint8) for rows in (40, 9))


def test_a_folder_like_that_of_mnist(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(TRAIN)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(TEST))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(40, dtype=np.uint8))))
    data = load(tmp_path)
    assert sizes(data) == [36, 4, 9]
    assert (data.event_shape, data.levels, data.images) == ((1, 5, 4), 256, True)
    assert np.array_equal(source(data)[:, 0], TRAIN)
    assert np.array_equal(every(data.test)[:, 0], TEST)
    both = torch.cat([every(data.train), every(data.validation)])
    assert sorted(both.flatten(1).tolist()) == sorted(TRAIN.reshape(40, -1).tolist())
    alone = load(tmp_path / "train-images-idx3-ubyte.gz")
    assert sizes(alone) == [32, 4, 4]
    assert np.array_equal(source(alone)[:, 0], TRAIN)


GOOD = idx(TRAIN)
ZIPPED = gzip.compress(GOOD)
BAD_IDX = {
    "empty": ("", b"", "begin with the bytes 00000803, got nothing"),
    "empty, zipped": (".gz", b"", "begin with the bytes 00000803, got nothing|ended before"),
    "labels": ("", idx(np.zeros(40, dtype=np.uint8)), "got 00000801"),
    "floats": ("", b"\0\0\x0d\x03" + GOOD[4:], "got 00000d03"),
    "not zipped": (".gz", GOOD, "Not a gzipped file"),
    "zipped": ("", ZIPPED, "got 1f8b08"),
    "a short header": ("", GOOD[:11], "ends within its header, after 11 bytes"),
    "a short file": ("", GOOD[:-7], "expected 40 images of 5 x 4 pixels, as its header says; the file has 793 bytes"),
    "a long file": ("", GOOD + b"1", "as its header says; the file has more"),
    "cut while zipped": (".gz", ZIPPED[:-20], "ended before the end-of-stream"),
    "damaged": (".gz", ZIPPED[:300] + b"\xff" * 100 + ZIPPED[400:], "cannot read"),
    "a wrong sum": (".gz", ZIPPED[:-8] + bytes(8), "CRC check failed"),
    "no pixels": ("", GOOD[:8] + bytes(8), "expected images, its header says 40 images of 0 x 0 pixels"),
    "few": ("", idx(TRAIN[:19]), "expected at least 20 images for train, got 19"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_idx_files_that_are_refused(case: str, tmp_path: Path) -> None:
    suffix, content, message = BAD_IDX[case]
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_a_header_claims_is_not_allocated(suffix: str, tmp_path: Path) -> None:
    content = GOOD[:4] + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1) + GOOD[16:]
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"expected 4294967295 images .* the file has 800 bytes"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_parts_of_other_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(TEST.reshape(9, 4, 5)))
    with pytest.raises(DataError, match=r"images for test have shape \(1, 4, 5\), those for training \(1, 5, 4\)"):
        load(tmp_path)


# -- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar(images: np.ndarray, labels: int) -> bytes:
    return b"".join(bytes([7] * labels) + image.tobytes() for image in images)


COLOURED = DRAW.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)


def test_cifar_10_and_100(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "ten", tmp_path / "hundred"
    for folder, files in (
        (ten, {"data_batch_1.bin": cifar(COLOURED[:20], 1), "data_batch_2.bin": cifar(COLOURED[20:], 1)}),
        (hundred, {"train.bin": cifar(COLOURED, 2), "test.bin": cifar(COLOURED[:6], 2)}),
    ):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        assert np.array_equal(source(load(folder)), COLOURED)
    (ten / "test_batch.bin").write_bytes(cifar(COLOURED[:5], 1))
    assert (sizes(load(ten)), sizes(load(hundred))) == ([36, 4, 5], [36, 4, 6])
    assert np.array_equal(every(load(ten).test), COLOURED[:5])
    assert np.array_equal(every(load(hundred).test), COLOURED[:6])


def test_cifar_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": COLOURED}))
    with pytest.raises(DataError, match="pickles that could run anything; take the binary version"):
        load(tmp_path)
    for content in (b"", cifar(COLOURED, 1)[:-1]):
        (tmp_path / "data_batch_1.bin").write_bytes(content)
        with pytest.raises(DataError, match=rf"data_batch_1.bin: expected a multiple of 3073 bytes .*, got {len(content)}"):
            load(tmp_path)


# -- pictures ---------------------------------------------------------------------------------------------------------


def draw(folder: Path, pixels: np.ndarray, names: list[str], mode: str | None = None) -> None:
    image = pytest.importorskip("PIL.Image")
    for array, name in zip(pixels, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = image.fromarray(array)
        (picture if mode is None else picture.convert(mode)).save(folder / name)


def test_pictures_of_a_folder_and_those_in_it(tmp_path: Path) -> None:
    draw(tmp_path, TRAIN, [f"{i % 3}/{i:02}.{('png', 'bmp', 'PGM', 'tiff')[i % 4]}" for i in range(40)])
    (tmp_path / "0" / "._00.png").write_text("the system's")
    (tmp_path / "notes.txt").write_text("no picture")
    data = load(tmp_path)
    assert (data.event_shape, data.levels) == ((1, 5, 4), 256)
    assert np.array_equal(source(data)[:, 0], np.concatenate([TRAIN[0::3], TRAIN[1::3], TRAIN[2::3]]))


def test_pictures_in_colour(tmp_path: Path) -> None:
    draw(tmp_path, COLOURED.transpose(0, 2, 3, 1), [f"{i:02}.png" for i in range(40)])
    assert np.array_equal(source(load(tmp_path)), COLOURED)


def test_black_and_white_and_palettes(tmp_path: Path) -> None:
    black = np.where(TRAIN > 99, 255, 0).astype(np.uint8)
    draw(tmp_path / "black", black, [f"{i:02}.png" for i in range(40)], "1")
    assert np.array_equal(source(load(tmp_path / "black"))[:, 0], black)
    few = (COLOURED // 128 * 255).transpose(0, 2, 3, 1)
    draw(tmp_path / "few", few, [f"{i:02}.png" for i in range(40)], "P")
    assert np.array_equal(source(load(tmp_path / "few")), few.transpose(0, 3, 1, 2))


def test_folders_named_like_parts_are_the_parts(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "cats", TRAIN, [f"{i:02}.png" for i in range(40)])
    draw(tmp_path / "test", TEST, [f"{i}.png" for i in range(9)])
    data = load(tmp_path)
    assert sizes(data) == [36, 4, 9]
    assert np.array_equal(every(data.test)[:, 0], TEST)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    pictures = [f"{i:02}.png" for i in range(40)]
    draw(tmp_path, TRAIN, pictures)
    whole = (tmp_path / "07.png").read_bytes()
    for content in (b"", b"hello", whole[:40], whole[:-30], whole[:50] + b"x" * 10 + whole[60:]):
        (tmp_path / "07.png").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*07\.png: ") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)
    draw(tmp_path, [TRAIN[7][:4]], ["07.png"])
    with pytest.raises(DataError, match=r"07\.png: expected 4 x 5 pixels in grey like .*00\.png, got 4 x 4 pixels in grey"):
        load(tmp_path)
    draw(tmp_path, [np.stack([TRAIN[7]] * 3, 2)], ["07.png"])
    with pytest.raises(DataError, match=r"07\.png: expected 4 x 5 pixels in grey like .*, got 4 x 5 pixels in RGB"):
        load(tmp_path)
    draw(tmp_path, [TRAIN[7]], ["07.png"], "RGBA")
    with pytest.raises(DataError, match=r"07\.png: expected a grey or RGB picture of 8 bits, got Pillow's mode RGBA"):
        load(tmp_path)
    few = tmp_path / "few"
    draw(few, TRAIN[:19], pictures[:19])
    with pytest.raises(DataError, match="few: expected at least 20 images for train, got 19"):
        load(few)
