"""Tables from files: what is understood, what is refused and where it is said to be, and what float32 keeps of it."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowkern.data import DataError, Standardised, read_table, split, table

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
    "another format": ("t.xlsx", BODY, r"expected a file that ends in \.npy, \.csv, \.tsv, \.txt or \.dat"),
    "no array": ("t.npy", b"hello", r"cannot read .*magic string"),
    "an empty array file": ("t.npy", b"", r"cannot read"),
    "a pickle": ("t.npy", b"\x80\x04N.", r"cannot read .*magic string"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_files_that_are_refused(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_TEXTS[case]
    with pytest.raises(DataError, match=message) as error:
        read_table(written(tmp_path, name, content))
    assert name in str(error.value)


HOLES = np.ones((30, 2))
HOLES[4, 1] = np.nan
BAD_ARRAYS = {
    "words": (np.array([["a", "b"]] * 30), r"expected real numbers \(rows, columns\), got <U1 of shape \(30, 2\)"),
    "complex": (np.ones((30, 2)) + 1j, r"got complex128"),
    "dates": (np.array([["2020", "2021"]] * 30, dtype="datetime64[Y]"), r"got datetime64"),
    "fields": (np.zeros(30, dtype=[("a", "f8")]), r"expected real numbers"),
    "objects": (np.array([[1, "a"]] * 30, dtype=object), r"Object arrays cannot be loaded"),
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
        read_table(tmp_path / "t.npy")


def test_an_array_shorter_than_it_says_and_one_longer_than_the_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((30, 2)))
    content = (tmp_path / "t.npy").read_bytes()
    for changed in (content[:-8], content.replace(b"(30, 2)", b"(99999999999999, 2)")):
        with pytest.raises(DataError, match="cannot read"):
            read_table(written(tmp_path, "t.npy", changed))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")  # opening it would wait for a writer
    with pytest.raises(DataError, match="expected a regular file, got a pipe"):
        read_table(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="expected a regular file, got a folder"):
        read_table(tmp_path)
    with pytest.raises(DataError, match=r"expected the name of a file, got ''"):
        read_table("")
    with pytest.raises(DataError, match=r"cannot read .*No such file"):
        read_table(tmp_path / "none.csv")


def test_numpy_is_needed_for_arrays_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert read_table(written(tmp_path, "t.csv", PLAIN.encode())).values.tolist() == NUMBERS
    with pytest.raises(ImportError, match=r"pip install 'flowkern\[demo\]'"):
        read_table(written(tmp_path, "t.npy", b""))


# -- splitting and standardising --------------------------------------------------------------------------------------


def saved(folder: Path, *columns: np.ndarray) -> Path:
    np.save(folder / "t.npy", np.stack(columns, 1))
    return folder / "t.npy"


def normal(rows: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=rows)


def test_the_parts_hold_every_row_once(tmp_path: Path) -> None:
    data = table(saved(tmp_path, np.arange(55.0)), seed=1)
    parts = data.train, data.validation, data.test
    assert [len(part) for part in parts] == [45, 5, 5]
    assert sorted(torch.cat(parts).squeeze(1).tolist()) == list(range(55))
    assert [part.tolist() for part in split(55, 1)] == [part.squeeze(1).tolist() for part in parts]
    assert not torch.equal(table(tmp_path / "t.npy", seed=2).test, data.test)


@pytest.mark.parametrize(("shift", "scale"), [(1.7e9, 60.0), (0.0, 1e302), (0.0, 1e-302), (-3.0, 1e-9)])
def test_standardising_loses_nothing_that_float32_can_hold(shift: float, scale: float, tmp_path: Path) -> None:
    """Times in seconds kept four different values; squares of 1e302 are not finite, those of 1e-302 are zero."""
    values = shift + scale * normal()
    data = table(saved(tmp_path, values, normal()[::-1]), seed=0)
    z = data.encoding.encode(data.train)
    assert z.dtype is torch.float32
    assert len(z[:, 0].unique()) == len(data.train)
    assert z.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(z.std(0), torch.ones(2))
    back = data.encoding.decode(z)
    assert back.dtype is torch.float64
    assert (back - data.train)[:, 0].abs().max() <= 1e-6 * scale
    change = data.encoding.log_det(z)
    assert change.shape == (len(z),)
    assert change[0].item() == pytest.approx(-sum(math.log(s) for s in data.encoding.constants()["std"].tolist()))


def test_values_may_repeat(tmp_path: Path) -> None:
    data = table(saved(tmp_path, np.arange(60) % 2, np.arange(60) // 3), seed=0)
    assert len(data.encoding.encode(data.train)[:, 0].unique()) == 2


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
    data = table(saved(tmp_path, values), seed=0)
    assert data.encoding.encode(data.train).isfinite().all()


@pytest.mark.parametrize("others", [normal(60), np.arange(60) % 2, np.arange(60) % 3], ids=["normal", "binary", "three"])
@pytest.mark.parametrize("extreme", [1e30, -1e300])
def test_a_value_that_makes_the_others_equal_is_named(others: np.ndarray, extreme: float, tmp_path: Path) -> None:
    """Whatever part of the data the seed sends it to."""
    values = others.astype(float)
    values[7] = extreme
    path = saved(tmp_path, normal(60), values)
    for seed in range(12):
        with pytest.raises(DataError, match=r"row 8 of 60, column 2: .*e\+30+ is so far from the rest of its column"):
            table(path, seed)


def test_tables_without_a_density(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 2 is constant"):
        table(saved(tmp_path, normal(50), np.full(50, 0.1)), seed=0)  # its deviation, computed, is not zero
    rare = np.zeros(50)
    rare[split(50, seed=0)[2][0]] = 1.0
    with pytest.raises(DataError, match="column 1 is constant in the rows for training"):
        table(saved(tmp_path, rare), seed=0)
    for rows in (0, 1, 19):
        with pytest.raises(DataError, match=f"expected at least 20 rows of one or more columns, got {rows} of 2"):
            table(written(tmp_path, "t.csv", b"a,b\n" + b"1,2\n" * rows), seed=0)
    with pytest.raises(DataError, match="got 0 of 0"):
        table(written(tmp_path, "t.csv", b""), seed=0)
    np.save(tmp_path / "t.npy", np.zeros((30, 0)))
    with pytest.raises(DataError, match="got 30 of 0"):
        table(tmp_path / "t.npy", seed=0)


def test_held_out_values_beyond_float32(tmp_path: Path) -> None:
    """The column keeps most of its steps, but its training part is 0 and 1, and by that the others are infinite."""
    values = np.arange(60) % 2 * 1.0
    _, validation, test = split(60, seed=0)
    held = torch.cat([validation, test]).numpy()
    values[held] = 1e40 * np.arange(1, 13)
    with pytest.raises(DataError, match=rf"row {held[-1] + 1} of 60, column 1: 1.2e\+41 is so far from the rest"):
        table(saved(tmp_path, values), seed=0)


def test_standardised_agrees_with_plain_formulas() -> None:
    x = torch.randn(100, 3, dtype=torch.float64) * 5 + 2
    scale = Standardised.fit(x)
    torch.testing.assert_close(scale.mean, x.mean(0))
    torch.testing.assert_close(scale.std, x.std(0))
