"""Tables from files: what is understood, what is refused and where it is said to be, and what float32 keeps of it."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flowkern.data import DataError, Dataset, Rows, Standardised, encoding, load, split
from flowkern.data.files import read
from flowkern.data.tables import Table

NUMBERS = [[1.5, -2.0], [3e-4, 4.0], [-0.25, 1e6]]
LINES = ["1.5,-2", "3e-4,4", " -.25 , 1E6 "]
PLAIN = "\n".join(LINES)
TEXTS: dict[str, tuple[str, bytes]] = {
    "commas": ("t.csv", PLAIN.encode()),
    "a header": ("t.csv", b"a,b\n" + PLAIN.encode()),
    "twice the same name": ("t.csv", b"a,a\n" + PLAIN.encode()),
    "capitals": ("T.CSV", PLAIN.encode()),
    "semicolons": ("t.csv", b"a, or so;b\n" + PLAIN.replace(",", ";").encode()),
    "tabs": ("t.tsv", b"a b\tc\n" + PLAIN.replace(",", "\t").encode()),
    "spaces": ("t.txt", b"1.5 -2\n  3e-4   4\n-.25 1E6  \n"),
    "numpy.savetxt": ("t.dat", b"# a b\n1.5 -2\n3e-4 4\n# the last:\n-.25 1E6\n"),
    "quotes": ("t.csv", b'"a ""1""\nof two lines","b"\n"1.5","-2"\n"3e-4",4\n-.25,"1E6"\n'),
    "a byte-order mark": ("t.csv", PLAIN.encode("utf-8-sig")),
    "UTF-16": ("t.csv", ("größe\tb\n" + PLAIN.replace(",", "\t")).encode("utf-16")),
    "carriage returns": ("t.csv", PLAIN.replace("\n", "\r").encode()),
    "Windows": ("t.csv", PLAIN.replace("\n", "\r\n\r\n").encode()),
}


def normal(rows: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=rows)


def normal_rows() -> np.ndarray:
    return normal(60).reshape(30, 2)


def read_table(path: Path) -> Table:
    """The one table of a file, unchecked."""
    tables = read(path)
    assert tables.keys() == {"train"}
    return tables["train"]


def every(rows: Rows) -> torch.Tensor:
    return rows[torch.arange(len(rows))]


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(kind: str, tmp_path: Path) -> None:
    values = read_table(written(tmp_path, *TEXTS[kind])).values
    assert values.dtype is torch.float64
    assert values.tolist() == NUMBERS


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", ">i4", "uint8", "bool", "longdouble"])
def test_arrays(dtype: str, tmp_path: Path) -> None:
    expected = np.asfortranarray(np.arange(12).reshape(4, 3)).astype(dtype)
    np.save(tmp_path / "t.NPY", expected)
    os.rename(tmp_path / "t.NPY.npy", tmp_path / "t.NPY")
    assert read_table(tmp_path / "t.NPY").values.tolist() == expected.astype(float).tolist()


def test_one_column_with_spaces_in_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", b"my own column\n1\n\n2\n")
    found = read_table(path)
    assert found.values.tolist() == [[1.0], [2.0]]
    assert found.place(1, 0) == f"{path}: line 4, column 1"


BODY = b"a,b\n\n" + b"1,2\n" * 30  # 32 lines, the numbers begin in line 3
BAD_TEXTS: dict[str, tuple[str, bytes, str]] = {
    "a word": ("t.csv", BODY + b"3,four\n", r"line 33, column 2 is no number: 'four'"),
    "no header": ("t.csv", b"a,1\n" + BODY, r"line 1, column 1 is no number: 'a'"),
    "a gap": ("t.csv", BODY + b"# more\n3,\n", r"line 34, column 2 is missing"),
    "not finite": ("t.csv", BODY + b"1,2\nnan,2\n1,inf\n", r"line 34, column 1 is missing or not finite \(2 such values\)"),
    "a short line": ("t.csv", BODY + b"3\n", r"line 33 has 1 columns, line 1 has 2"),
    "a second header": ("t.csv", BODY + BODY, r"line 33, column 1 is no number: 'a'"),
    "decimal commas": ("t.csv", BODY.replace(b",", b";") + b"1,5;2\n", r"line 33, column 1 .*'1,5'; expected a decimal point"),
    "thousands": ("t.csv", BODY + b"1_000,2\n", r"line 33, column 1 is no number: '1_000'"),
    "an open quote": ("t.csv", BODY + b'"3,4\n5,6\n', r"line 33: unexpected end of data"),
    "Latin-1": ("t.csv", "größe,b\n".encode("latin-1") + BODY, r"not text in UTF-8.*at byte 2"),
    "UTF-16 without a mark": ("t.csv", BODY.decode().encode("utf-16-le"), r"holds zero bytes"),
    "another format": ("t.xlsx", BODY, r"expected a table \(\.npy, \.npz, \.csv, .*\.parquet\), images in IDX format"),
    "no array": ("t.npy", b"hello", r"cannot read .*magic string"),
    "an empty array file": ("t.npy", b"", r"cannot read"),
    "a pickle": ("t.npy", b"\x80\x04N.", r"cannot read .*magic string"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_files_that_are_refused(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_TEXTS[case]
    with pytest.raises(DataError, match=message) as error:
        load(written(tmp_path, name, content))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


HOLES = np.ones((30, 2))
HOLES[4, 1] = np.nan
BAD_ARRAYS = {
    "words": (np.array([["a", "b"]] * 30), r"expected real numbers \(rows, columns\), got <U1 of shape \(30, 2\)"),
    "complex": (np.ones((30, 2)) + 1j, r"got complex128"),
    "dates": (np.array([["2020", "2021"]] * 30, dtype="datetime64[Y]"), r"got datetime64"),
    "fields": (np.zeros(30, dtype=[("a", "f8")]), r"expected real numbers"),
    "objects": (np.array([[1, "a"]] * 30, dtype=object), r"Python objects in dtype"),
    "no dimension": (np.float64(3), r"of shape \(\)"),
    "one dimension": (np.zeros(30), r"of shape \(30,\)"),
    "three dimensions": (np.zeros((30, 2, 2)), r"of shape \(30, 2, 2\)"),
    "not finite": (HOLES, r"row 5 of 30, column 2 is missing or not finite"),
    "beyond float64": (np.full((30, 1), np.longdouble("1e4000")), r"row 1 of 30, column 1 is missing or not finite"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_refused(case: str, tmp_path: Path) -> None:
    array, message = BAD_ARRAYS[case]
    if case == "beyond float64" and not np.isfinite(array).all():
        pytest.skip("longdouble is float64 here")
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "t.npy")


def test_an_array_shorter_than_it_says_and_one_longer_than_the_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((30, 2)))
    content = (tmp_path / "t.npy").read_bytes()
    claims = content.replace(b"(30, 2), }" + b" " * 14, b"(99999999999999, 2), }  ")
    assert len(claims) == len(content)
    for changed, fault in ((content[:-8], "buffer is"), (claims, "buffer is"), (content.replace(b"2)", b"2("), "EOF")):
        with pytest.raises(DataError, match=r"cannot read .*t.npy: "):
            load(written(tmp_path, "t.npy", changed))
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
            file.writestr("a.npy", changed)
        with pytest.raises(DataError, match=rf"cannot read .*t.npz: train: .*{fault}"):
            load(tmp_path / "t.npz")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")  # opening it would wait for a writer
    with pytest.raises(DataError, match="expected a regular file or a folder, got a pipe"):
        load(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"expected the name of a data set, a file or a folder, got ''"):
        load("")
    with pytest.raises(DataError, match=r"cannot read .*none.csv: No such file"):
        load(tmp_path / "none.csv")


def test_what_a_format_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra in (("numpy", "train"), ("pyarrow", "parquet")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DataError, match=rf"pip install 'flowkern\[{extra}\]'"):
            load(written(tmp_path, "t.npy" if name == "numpy" else "t.parquet", b""))
    assert read_table(written(tmp_path, "t.csv", PLAIN.encode())).values.tolist() == NUMBERS


# -- formats with parts, and folders ----------------------------------------------------------------------------------


def values_of(data: Dataset) -> list[list[list[float]]]:
    return [every(part).tolist() for part in (data.train, data.validation, data.test)]


def three_parts() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {name: draw.normal(size=(rows, 3)) for name, rows in (("train", 40), ("validation", 7), ("test", 9))}


def test_parts_are_those_of_an_npz_or_a_folder(tmp_path: Path) -> None:
    parts = three_parts()
    np.savez_compressed(tmp_path / "t.npz", **parts)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savetxt(folder / "train.csv", parts["train"], delimiter=",", header="a,b,c", comments="", fmt="%.18e")
    np.save(folder / "validation.npy", np.asfortranarray(parts["validation"]))
    np.savetxt(folder / "Test.TSV", parts["test"], delimiter="\t")
    (folder / "notes.md").write_text("")
    expected = [part.tolist() for part in parts.values()]
    assert values_of(load(tmp_path / "t.npz")) == expected
    assert values_of(load(folder)) == expected
    assert load(folder).columns == ["a", "b", "c"]


def test_parts_that_are_missing_come_from_training(tmp_path: Path) -> None:
    parts = three_parts()
    np.savez(tmp_path / "t.npz", train=parts["train"], test=parts["test"])
    data = load(tmp_path / "t.npz", seed=3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 4, 9]
    assert every(data.test).tolist() == parts["test"].tolist()
    assert sorted(values_of(data)[0] + values_of(data)[1]) == sorted(parts["train"].tolist())
    assert values_of(load(tmp_path / "t.npz", seed=4))[1] != values_of(data)[1]
    np.savez(tmp_path / "one.npz", whatever=parts["train"])
    np.save(tmp_path / "one.npy", parts["train"])
    assert values_of(load(tmp_path / "one.npz")) == values_of(load(tmp_path / "one.npy"))


def test_parquet_is_what_pyarrow_wrote(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"a": [float(i) / 3 for i in range(30)], "b": list(range(-5, 25)), "c": [i % 3 == 0 for i in range(30)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    assert found.columns == ["a", "b", "c"]
    assert found.values.tolist() == [list(map(float, row)) for row in zip(*columns.values(), strict=True)]
    content = (tmp_path / "t.parquet").read_bytes()
    for changed in (b"", b"PAR1", content[: len(content) // 2], content[:200] + b"x" * 50 + content[250:]):
        with pytest.raises(DataError, match=r"cannot read .*t.parquet"):
            load(written(tmp_path, "t.parquet", changed))
    parquet.write_table(pyarrow.table({**columns, "c": ["word"] * 30}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"cannot read .*t.parquet: .*word"):
        load(tmp_path / "t.parquet")
    parquet.write_table(pyarrow.table({"a": columns["a"], "b": [None, *range(29)]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 1 of 30, column 2 is missing or not finite \(1 such"):
        load(tmp_path / "t.parquet")


def zipped(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


WHOLE = zipped(train=np.random.default_rng(0).normal(size=(30, 2)))
BAD_ZIPS = {
    "nothing": (b"", r"cannot read .*t\.npz: File is not a zip file"),
    "no zip": (b"hello", r"cannot read .*t\.npz: File is not a zip file"),
    "truncated": (WHOLE[:-30], r"cannot read .*t\.npz: File is not a zip file"),
    "damaged": (WHOLE[:200] + bytes(50) + WHOLE[250:], r"cannot read .*t\.npz"),
    "other names": (zipped(x=HOLES, y=HOLES), r"expected one array, or arrays named train, validation, test, got x, y"),
    "another one": (zipped(train=HOLES, labels=HOLES), r"got train, labels"),
    "no training": (zipped(validation=HOLES, test=HOLES), r"got validation, test"),
    "a hole": (zipped(train=normal_rows(), test=HOLES), r"t\.npz: test: row 5 of 30, column 2 is missing"),
    "other columns": (zipped(train=normal_rows(), test=np.ones((3, 4))), r"t\.npz: test: has 4 columns, .*train has 2"),
    "an empty part": (zipped(train=normal_rows(), test=np.ones((0, 2))), r"test: expected at least one row .*got 0 of 2"),
    "objects": (zipped(train=np.array([[1, "a"]] * 30, dtype=object)), r"t\.npz: train"),
}


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_archives_that_are_refused(case: str, tmp_path: Path) -> None:
    content, message = BAD_ZIPS[case]
    with pytest.raises(DataError, match=message):
        load(written(tmp_path, "t.npz", content))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds nothing that can be used; looked for tables train.*; IDX .*; CIFAR.*; pictures"
    ):
        load(tmp_path)
    written(tmp_path, "train.csv", BODY)
    written(tmp_path, "train.npz", zipped(train=normal_rows(), test=normal_rows()))
    with pytest.raises(DataError, match=r"expected one table named train\.\*, got train.csv and train.npz"):
        load(tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train.npz: expected one array.*got train, test"):
        load(tmp_path)


# -- tables larger than memory ----------------------------------------------------------------------------------------

LARGE = """
import resource, sys, torch
from flowkern.data import encoding, load

torch.zeros(1).index_select(0, torch.tensor([0])).double().sort()
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 64 * 2**20,) * 2)
try:
    torch.ones(24 * 2**20)
except RuntimeError:
    data = load(sys.argv[1])
    scale = encoding(data)
    z = scale.encode(data.train[torch.arange(1000)])
    constants = float(scale.mean.sum()), float(scale.std.sum())
    print(len(data.train), len(data.test), data.levels, *constants, bool(z.isfinite().all()))
"""


def test_a_table_larger_than_memory(tmp_path: Path) -> None:
    """96 MiB where 64 MiB can be allocated: a file mapped for reading does not count."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    rows, columns = 3 * 2**17, 64
    values = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", "float32", (rows, columns))
    values[:] = np.arange(columns)
    values[::2] += 0.5
    values.flush()
    command = [sys.executable, "-c", LARGE, str(tmp_path / "t.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    train, test, levels, mean, std, finite = ran.stdout.split()
    assert (int(train), int(test), levels, finite) == (rows - 2 * (rows // 10), rows // 10, "None", "True")
    assert float(mean) == pytest.approx(columns * (columns - 1) / 2 + columns / 4, abs=0.1)
    assert float(std) == pytest.approx(columns / 4, rel=1e-3)


def test_rows_are_copies(tmp_path: Path) -> None:
    """Of a file that is mapped for reading; writing to it would end the process."""
    np.save(tmp_path / "t.npy", np.stack([normal(), normal()], 1))
    data = load(tmp_path / "t.npy")
    for rows in (every(data.train), next(data.train.chunks()), next(Rows(data.train.source).chunks())):
        rows.zero_()
    assert every(data.train).abs().min() > 0


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(101, 3, dtype=torch.float64) * 5 + 2
    x[50, 1], x[99, 2] = torch.nan, torch.inf
    monkeypatch.setattr("flowkern.data.dataset.CHUNK", 3 * chunk)
    rows = Rows(x, torch.randperm(101))
    torch.testing.assert_close(torch.cat(list(rows.chunks())), x, rtol=0, atol=0, equal_nan=True)
    assert Table("t", x).find(lambda x: ~x.isfinite()) == (50, 1, 2)
    rows = Rows(x, torch.tensor([5, 3, 98, 40, 41, 42, 60, 7]))
    scale, taken = Standardised.fit(rows), every(rows)
    torch.testing.assert_close(scale.mean, taken.mean(0))
    torch.testing.assert_close(scale.std, taken.std(0))
    assert torch.equal(torch.stack(rows.extremes), torch.stack(taken.aminmax(dim=0)))
    assert torch.equal(torch.cat(list(rows.chunks())), x[[3, 5, 7, 40, 41, 42, 60, 98]])


# -- splitting and standardising --------------------------------------------------------------------------------------


def saved(folder: Path, *columns: np.ndarray) -> Path:
    np.save(folder / "t.npy", np.stack(columns, 1))
    return folder / "t.npy"


def test_the_parts_hold_every_row_once(tmp_path: Path) -> None:
    path = saved(tmp_path, np.arange(55.0) + 0.5)
    parts = [part.squeeze(1) for part in map(every, (load(path, 1).train, load(path, 1).validation, load(path, 1).test))]
    assert [len(part) for part in parts] == [45, 5, 5]
    assert sorted(torch.cat(parts).tolist()) == [i + 0.5 for i in range(55)]
    assert [(part + 0.5).tolist() for part in split(55, 1)] == [part.tolist() for part in parts]
    assert every(load(path, seed=2).test).squeeze(1).tolist() != parts[2].tolist()


@pytest.mark.parametrize(("shift", "scale"), [(1.7e9, 60.0), (0.0, 1e302), (0.0, 1e-302), (-3.0, 1e-9)])
def test_standardising_loses_nothing_that_float32_can_hold(shift: float, scale: float, tmp_path: Path) -> None:
    """Times in seconds kept four different values; squares of 1e302 are not finite, those of 1e-302 are zero."""
    values = shift + scale * normal()
    data = load(saved(tmp_path, values, normal()[::-1]))
    standardised, train = encoding(data), every(data.train)
    z = standardised.encode(train)
    assert z.dtype is torch.float32
    assert len(z[:, 0].unique()) == len(data.train)
    assert z.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(z.std(0), torch.ones(2))
    back = standardised.decode(z)
    assert back.dtype is torch.float64
    assert (back - train)[:, 0].abs().max() <= 1e-6 * scale
    change = standardised.log_det(z)
    assert change.shape == (len(z),)
    deviations = (train / torch.tensor([scale, 1.0], dtype=torch.float64)).std(0)
    assert change[0].item() == pytest.approx(-math.log(scale) - deviations.log().sum().item())


def test_whole_numbers_have_levels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 4, size=(60, 3))
    for dtype in ("uint8", "float16", "float32", "int64", ">i4", "uint16"):
        data = load(saved(tmp_path, *x.T.astype(dtype)))
        assert data.levels == 4
        assert encoding(data, levels=4).encode(every(data.train)).tolist() == every(data.train).tolist()
        assert encoding(data).space == "standardised"
    assert load(saved(tmp_path, *(x.T > 1))).levels == 2  # of bool
    for other in (x - 1, x + 0.5, x * 100):
        assert load(saved(tmp_path, *other.T)).levels is None
    np.savez(tmp_path / "t.npz", train=x % 2, test=x)
    assert load(tmp_path / "t.npz").levels == 4  # of any part


def test_values_may_repeat(tmp_path: Path) -> None:
    data = load(saved(tmp_path, np.arange(60) % 2, np.arange(60) // 3 - 1))
    assert len(encoding(data).encode(every(data.train))[:, 0].unique()) == 2


HEAVY = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values",
    [
        HEAVY.standard_cauchy(2000),
        HEAVY.standard_t(1.5, 100_000),
        HEAVY.pareto(1.0, 100_000),
        np.exp(4 * HEAVY.normal(size=2000)),
        np.where(HEAVY.random(2000) < 0.95, 0, HEAVY.exponential(size=2000)),
        np.append(normal(), 1e6),
    ],
    ids=["Cauchy", "Student", "Pareto", "log-normal", "mostly zero", "an outlier"],
)
def test_heavy_tails_are_no_fault(values: np.ndarray, tmp_path: Path) -> None:
    data = load(saved(tmp_path, values))
    assert encoding(data).encode(every(data.train)).isfinite().all()


@pytest.mark.parametrize("others", [normal(60), np.arange(60) % 2, np.arange(60) % 3], ids=["normal", "binary", "three"])
@pytest.mark.parametrize("extreme", [1e30, -1e300])
def test_a_value_that_makes_the_others_equal_is_named(others: np.ndarray, extreme: float, tmp_path: Path) -> None:
    """Whatever part of the data the seed sends it to."""
    values = others.astype(float)
    values[7] = extreme
    path = saved(tmp_path, normal(60), values)
    for seed in range(12):
        with pytest.raises(DataError, match=r"row 8 of 60, column 2: .*e\+30+ is so far from the rest of its column"):
            load(path, seed)


def test_tables_without_a_density(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 2 is constant"):
        load(saved(tmp_path, normal(50), np.full(50, 0.1)))  # its deviation, computed, is not zero
    rare = np.zeros(50)
    rare[split(50, seed=0)[2][0]] = 0.5
    with pytest.raises(DataError, match=r"t\.npy: column 1 is constant in the rows for training"):
        load(saved(tmp_path, rare))
    data = load(saved(tmp_path, 2 * rare))  # whole numbers, which have a probability
    assert encoding(data, levels=2).levels == 2
    with pytest.raises(DataError, match=r"t\.npy: column 1 is constant in the rows for training"):
        encoding(data)
    for rows in (0, 1, 19):
        with pytest.raises(DataError, match=f"expected at least 20 rows of one or more columns, got {rows} of 2"):
            load(written(tmp_path, "t.csv", b"a,b\n" + b"1,2\n" * rows))
    with pytest.raises(DataError, match="got 0 of 0"):
        load(written(tmp_path, "t.csv", b""))
    np.save(tmp_path / "t.npy", np.zeros((30, 0)))
    with pytest.raises(DataError, match="got 30 of 0"):
        load(tmp_path / "t.npy")


def test_held_out_values_beyond_float32(tmp_path: Path) -> None:
    """The column keeps most of its steps, but its training part is 0 and 1, and by that the others are infinite."""
    values = np.arange(60) % 2 * 1.0
    _, validation, test = split(60, seed=0)
    held = torch.cat([validation, test]).numpy()
    values[held] = 1e40 * np.arange(1, 13)
    with pytest.raises(DataError, match=rf"row {held[-1] + 1} of 60, column 1: 1.2e\+41 is so far from the rest"):
        load(saved(tmp_path, values))


def test_standardised_agrees_with_plain_formulas() -> None:
    x = torch.randn(100, 3, dtype=torch.float64) * 5 + 2
    scale = Standardised.fit(Rows(x))
    torch.testing.assert_close(scale.mean, x.mean(0))
    torch.testing.assert_close(scale.std, x.std(0))
