"""The folder of a saved model: whole whenever saving stops, never that of somebody else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import file_size_limit
from saved_models import CONFIG, WEIGHTS, bits, flow

from flowkern.flows import MAF

pytest.importorskip("safetensors", reason="the environment of a GPU machine may lack it")

from flowkern.pretrained import PretrainedError, folder


def test_a_folder_is_the_old_model_or_the_new_whenever_saving_stops(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(BaseException):
        pass

    rename, models_seen = folder._rename, []
    for steps in (0, 1, 2, 3):
        flow(0).save_pretrained(saved)
        assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]
        for again in range(2):  # a second save that stops at the same place must lose no more
            left = iter(range(steps))

            def some(path: Path, name: Path, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise Stop
                rename(path, name)

            monkeypatch.setattr(folder, "_rename", some)
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(Stop))
            with pytest.raises(Stop):
                flow(1).save_pretrained(saved)
            monkeypatch.undo()
            loaded = bits(MAF.from_pretrained(saved))
            assert loaded in (bits(flow(0)), bits(flow(1)))
            models_seen.append((steps, again, loaded == bits(flow(1))))
        flow(2).save_pretrained(saved)
        assert bits(MAF.from_pretrained(saved)) == bits(flow(2))
        assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]
    assert {new for *_, new in models_seen} == {False, True}
    assert not models_seen[0][2]


def test_files_that_cannot_be_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    message = rf"^\[Errno \d+\] {saved}: the model could not be saved, the folder holds what it held: "

    def nothing_changed() -> None:
        assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before

    with pytest.raises(OSError, match=message + "File too large$"), file_size_limit(100):
        flow(1).save_pretrained(saved)
    nothing_changed()
    for call in ("fsync", "mkdir"):

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, full)
        with pytest.raises(OSError, match=message + "No space left on device$"):
            flow(1).save_pretrained(saved)
        monkeypatch.undo()
        nothing_changed()
    file = saved / CONFIG
    for path in (file, file / "folder"):
        with pytest.raises(OSError, match="the model could not be saved, the folder holds what it held: "):
            flow(1).save_pretrained(path)
    nothing_changed()


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    for name, content, message in (
        (CONFIG, b'{"model_type": "bert"}', "expected a model saved by flowkern; it would be overwritten"),
        (CONFIG, b"no JSON", "not what flowkern reads as JSON: .*; it would be overwritten"),
        (WEIGHTS, b"weights", "is there without a config.json, and would be overwritten; remove it first"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PretrainedError, match=f"^{tmp_path / name}: {message}"):
            flow(0).save_pretrained(tmp_path)
        assert (tmp_path / name).read_bytes() == content
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(PretrainedError, match="expected a file"):
        flow(0).save_pretrained(tmp_path)


def test_folders_that_hold_no_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/none: no such folder, and no name of a model on the Hugging Face hub"):
        MAF.from_pretrained(tmp_path / "none")
    os.makedirs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty/config.json: cannot be read: No such file or directory$"):
        MAF.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^revision: .* is a folder, only models of the hub have revisions$"):
        MAF.from_pretrained(saved, revision="main")
    weights = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).unlink()
    with pytest.raises(PretrainedError, match=r"model.safetensors: no such file; config.json beside it needs it$"):
        MAF.from_pretrained(saved)
    os.mkfifo(saved / WEIGHTS)  # which would wait for a writer
    with pytest.raises(PretrainedError, match=r"model.safetensors: expected a file$"):
        MAF.from_pretrained(saved)
    os.unlink(saved / WEIGHTS)
    (tmp_path / "blob").write_bytes(weights)
    (saved / WEIGHTS).symlink_to(tmp_path / "blob")  # as in a cache of the hub
    assert bits(MAF.from_pretrained(saved)) == bits(flow(0))
    flow(1).save_pretrained(saved)
    assert (tmp_path / "blob").read_bytes() == weights
