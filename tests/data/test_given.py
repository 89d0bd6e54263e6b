"""What rows are given: columns of tables, and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import idx

from flowkern.data import DataError, Dataset, OneHot, Standardised, context_encoding, load, tables

DRAW = np.random.default_rng(0)
PARTS = ("train", "validation", "test")


def pairs(data: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of each part, and what they are given."""
    parts = [getattr(data, part) for part in PARTS]
    index = [torch.arange(len(part)) for part in parts]
    return [(part[i].numpy(), part.context[i].numpy()) for part, i in zip(parts, index, strict=True)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Of four columns, of which the second is twice the last."""
    values = DRAW.normal(size=(60, 4))
    values[:, 1] = 2 * values[:, 3]
    np.savetxt(tmp_path / "rows.csv", values, delimiter=",", header="a,b,c,d", comments="")
    np.save(tmp_path / "rows.npy", values)
    return tmp_path / "rows.csv"


@pytest.mark.parametrize("given", [("b",), ("2",)])
def test_columns_of_a_table_are_given(table: Path, given: tuple[str, ...]) -> None:
    data = load(table if given == ("b",) else table.with_suffix(".npy"), given=given)
    assert data.event_shape == (3,)
    assert data.given == given
    assert data.columns == (["a", "c", "d"] if given == ("b",) else None)
    for rows, context in pairs(data):
        np.testing.assert_allclose(context[:, 0], 2 * rows[:, 2], rtol=1e-12)
    encoding, train = context_encoding(data), pairs(data)[0][1]
    assert isinstance(encoding, Standardised)
    np.testing.assert_allclose(encoding.mean.numpy(), train.mean(0), rtol=1e-12, atol=1e-12)
    whole = load(table)
    assert torch.equal(whole.test.index, data.test.index)  # the same rows are held out


def test_given_columns_come_in_the_order_of_their_names(table: Path) -> None:
    (rows, context), *_ = pairs(load(table, given=("d", "a")))
    assert rows.shape[1] == context.shape[1] == 2
    np.testing.assert_allclose(rows[:, 0], 2 * context[:, 0], rtol=1e-12)


def test_levels_are_those_of_the_rows(tmp_path: Path) -> None:
    values = np.stack([DRAW.integers(0, 3, 50), DRAW.normal(size=50)], 1)
    np.save(tmp_path / "rows.npy", values)
    assert load(tmp_path / "rows.npy").levels is None
    assert load(tmp_path / "rows.npy", given=("2",)).levels == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("bb",), r"no column is called 'bb'; did you mean b\?"),
        (("5",), "no column is called '5'"),
        (("a", "1"), "expected each column once, got '1' twice"),
        (("a", "b", "c", "d"), "all 4 columns; none is left"),
    ],
)
def test_columns_that_cannot_be_given(table: Path, given: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(table, given=given)


def test_columns_of_one_name_are_told_apart_by_their_numbers(table: Path) -> None:
    rows = tables.Table("rows", torch.from_numpy(np.load(table.with_suffix(".npy"))), ["a", "b", "b", "d"])
    with pytest.raises(DataError, match="2 columns are called 'b'; name one by its number"):
        tables.table_dataset("rows", {"train": rows}, 0, ("b",))
    assert tables.table_dataset("rows", {"train": rows}, 0, ("3", "1")).given == ("3", "a")
    assert torch.equal(tables.given_columns(rows, ("3", "a")), rows.values[:, [2, 0]])


@pytest.mark.parametrize("name", ["digits", "iris"])
def test_names_have_labels(name: str) -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    found = getattr(sklearn, f"load_{name}")()
    data = load(name, given=("label",))
    assert data.given == ("label",)
    for part in PARTS:
        rows = getattr(data, part)
        assert np.array_equal(rows.context[torch.arange(len(rows))][:, 0].numpy(), found.target[rows.index.numpy()])
    encoding = context_encoding(data)
    assert isinstance(encoding, OneHot)
    assert encoding.features == len(found.target_names)


def of_idx(folder: Path, labels: np.ndarray) -> None:
    """The label of an image is its first pixel."""
    images = np.repeat(labels, 4).reshape(-1, 2, 2)
    for part, n in (("train", 30), ("t10k", 20)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:n]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[:n]))


def of_cifar(folder: Path, labels: np.ndarray, coarse: bool = False) -> None:
    before = [labels * 0, labels] if coarse else [labels]
    records = np.concatenate([*(b[:, None] for b in before), np.repeat(labels, 3072).reshape(-1, 3072)], 1).astype(np.uint8)
    names = ("train.bin", "test.bin") if coarse else ("data_batch_1.bin", "test_batch.bin")
    for name, n in zip(names, (30, 20), strict=True):
        (folder / name).write_bytes(records[:n].tobytes())


def of_pictures(folder: Path, labels: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, label in enumerate(labels):
        (folder / f"class {label}").mkdir(exist_ok=True)
        image.fromarray(np.full((2, 2), label, np.uint8)).save(folder / f"class {label}" / f"{i}.png")


@pytest.mark.parametrize("write", [of_idx, of_cifar, lambda *a: of_cifar(*a, coarse=True), of_pictures])
def test_images_have_labels(write: object, tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    write(tmp_path, labels)  # type: ignore[operator]
    data = load(tmp_path, given=("label",))
    assert data.classes == 3
    assert data.class_names == (["class 0", "class 1", "class 2"] if write is of_pictures else None)
    for images, context in pairs(data):
        assert np.array_equal(images[:, 0, 0, 0], context[:, 0])
        assert len({*context[:, 0]}) > 1
    assert load(tmp_path).train.context is None


def test_labels_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    of_idx(tmp_path, np.arange(30) % 3)
    with pytest.raises(DataError, match="given: expected label, the class of each row, got digit"):
        load(tmp_path, given=("digit",))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 3)))
    with pytest.raises(DataError, match="a row for test has label 3; those for training have up to 2"):
        load(tmp_path, given=("label",))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19)))
    with pytest.raises(DataError, match="expected 20 labels for test, one for each row, got 19"):
        load(tmp_path, given=("label",))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="expected a file t10k-labels-idx1-ubyte beside it"):
        load(tmp_path, given=("label",))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros((30, 2, 2))))
    with pytest.raises(DataError, match="expected IDX labels, which begin with the bytes 00000801, got 00000803"):
        load(tmp_path, given=("label",))


def test_a_label_of_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows: expected labels from 0 to 2, got 1\.5"):
        OneHot(3).encode(torch.tensor([[0], [1.5]]))
