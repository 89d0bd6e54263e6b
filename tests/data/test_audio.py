"""Audio from files: what is understood, how it is cut and held out, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import file_size_limit

from flowkern.data import DataError, Dataset, Rows, Waveform, audio, encoding, load

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")

RATE = 8000


def noise(length: int, seed: int = 0, loudness: float = 0.3) -> np.ndarray:
    """Samples that a file of 16 bits holds exactly, as loud at both ends as inside."""
    draw = np.random.default_rng(seed).uniform(-loudness, loudness, length)
    draw[[0, -1]] = loudness
    return (draw * 32768).round().astype(np.float32) / 32768


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def every(rows: Rows) -> torch.Tensor:
    return rows[torch.arange(len(rows))]


def sizes(data: Dataset) -> list[int]:
    return [len(part) for part in (data.train, data.validation, data.test)]


def amplitudes(folder: Path, count: int, length: int = 64) -> Path:
    """Files each of one loudness of its own, which tells its rows from those of others."""
    for i in range(count):
        write(folder / f"{i:03}.wav", np.tile([1, -1], length // 2) * (i + 1) / 128)
    return folder


def told(rows: Rows) -> list[int]:
    """The files of :func:`amplitudes` that rows are of."""
    values = (every(rows).abs() * 128 - 1).round()
    assert (values == values[:, :1]).all()
    return values[:, 0].int().tolist()


# -- what a row is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one.wav", "one.FLAC"])
def test_rows_are_the_samples_of_a_file(name: str, tmp_path: Path) -> None:
    samples = noise(1000)
    soundfile.write(tmp_path / "file", samples, RATE, format=name[-4:].lstrip("."), subtype="PCM_16")
    (tmp_path / "file").rename(tmp_path / name)
    data = load(tmp_path / name, None, features=100)
    assert (data.event_shape, data.rate, data.levels, data.images, list(data.notes)) == ((100,), RATE, None, False, [])
    assert every(data.train).dtype is torch.float32
    assert np.array_equal(every(data.train), samples.reshape(10, 100))
    assert sizes(data) == [10, 0, 0]


@pytest.mark.parametrize("length", [100, 101, 199, 200, 950])
def test_all_of_a_file_is_in_some_row(length: int, tmp_path: Path) -> None:
    samples = noise(length)
    rows = every(load(write(tmp_path / "a.wav", samples), None, features=100).train)
    assert len(rows) == -(-length // 100)
    assert np.array_equal(rows[0], samples[:100])
    assert np.array_equal(rows[-1], samples[-100:])
    assert set(np.unique(samples)) <= set(rows.unique().tolist())


def test_defaults(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.wav", noise(100_000)))
    assert data.event_shape == (8192,)
    assert sizes(data) == [10, 2, 2]


@pytest.mark.parametrize("wanted", [RATE // 2, 11_025, 3 * RATE])
@pytest.mark.parametrize("block", [1000, 2**18])
def test_resampling_is_that_of_the_whole_file(wanted: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK", block)
    samples = noise(4567)
    data = load(write(tmp_path / "a.wav", samples), None, features=50, rate=wanted)
    expected = soxr.resample(samples, RATE, wanted)
    rows = every(data.train).numpy()
    assert data.rate == wanted
    assert np.abs(rows[0] - expected[:50]).max() < 1e-6
    assert np.abs(rows[-1] - expected[-50:]).max() < 1e-6
    assert data.notes == [f"resampled to {wanted:,} Hz: {tmp_path / 'a.wav'} (from 8,000 Hz)"]


def test_channels_are_mixed(tmp_path: Path) -> None:
    both = np.stack([noise(300, 0), noise(300, 1)], 1)
    data = load(write(tmp_path / "a.wav", both), None, features=100)
    assert np.abs(every(data.train).numpy().flatten() - both.mean(1)).max() < 1e-7
    assert data.notes == [f"mixed to one channel: {tmp_path / 'a.wav'} (2 channels)"]


def test_silence_at_the_ends_is_left_out_and_inside_stays(tmp_path: Path) -> None:
    quiet, loud = noise(4000, 0, 0.001), noise(1000, 1)
    data = load(write(tmp_path / "a.wav", np.concatenate([quiet, loud, quiet, loud, quiet])), None, features=10)
    samples = np.unique(every(data.train))
    assert set(np.unique(loud)) <= set(samples)
    kept = data.train.index[-1] + 10 - data.train.index[0]
    assert kept == 6000 + 2 * 0.05 * RATE
    margin = quiet[-int(0.05 * RATE) :]
    assert np.array_equal(every(data.train)[:3].flatten(), margin[:30])


def test_audio_lies_in_a_file_and_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is read of it, though a row could begin anywhere."""
    monkeypatch.setattr(audio, "BLOCK", 2**12)
    path = write(tmp_path / "a.wav", noise(2**20))
    tracemalloc.start()
    data = load(path, features=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of four bytes for each sample
    assert data.train.source.untyped_storage().nbytes() == 4 * 2**20
    assert data.test.source.data_ptr() == data.train.source.data_ptr()


# -- which files are held out -----------------------------------------------------------------------------------------


def test_whole_files_are_held_out_by_the_seed(tmp_path: Path) -> None:
    amplitudes(tmp_path, 30)
    drawn = []
    for seed in (0, 0, 1):
        data = load(tmp_path, seed, features=16)
        parts = [told(part) for part in (data.train, data.validation, data.test)]
        assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(4 * list(range(30)))
        assert [len(set(part)) for part in parts] == [24, 3, 3]
        drawn.append(parts)
    assert drawn[0] == drawn[1] != drawn[2]
    assert told(load(tmp_path, None, features=16).train) == sorted(4 * list(range(30)))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_files_are_cut(count: int, tmp_path: Path) -> None:
    for i in range(count):
        write(tmp_path / f"{i}.wav", noise(1000, i))
    data = load(tmp_path, features=20)
    assert sizes(data) == [40 * count, 5 * count, 5 * count]
    expected = noise(1000).reshape(50, 20)
    assert np.array_equal(every(data.train)[:40], expected[:40])
    assert np.array_equal(every(data.validation)[:5], expected[40:45])
    assert np.array_equal(every(data.test)[:5], expected[45:])


@pytest.mark.parametrize("given", [("train",), ("train", "test"), ("train", "validation"), ("train", "validation", "test")])
def test_folders_that_are_parts(given: tuple[str, ...], tmp_path: Path) -> None:
    for part in given:
        amplitudes(tmp_path / part / "deeper", {"train": 20, "validation": 3, "test": 2}[part])
    data = load(tmp_path, features=64)
    held = {part: 0 if part in given else 2 for part in ("validation", "test")}
    assert sizes(data) == [20 - sum(held.values()), held["validation"] or 3, held["test"] or 2]
    assert len(load(tmp_path, None, features=64).train) == 20


def test_the_layout_of_ljspeech(tmp_path: Path) -> None:
    amplitudes(tmp_path / "wavs", 6)
    (tmp_path / "metadata.csv").write_text('001|Mr. "A"|Mister "A"\n003|b|b\n004|c|c\n003|d|d\n', encoding="utf-8")
    assert told(load(tmp_path, None, features=64).train) == [1, 3, 4]
    (tmp_path / "metadata.csv").write_text("001|a|a\n007|b|b\n")
    with pytest.raises(DataError, match=r"metadata.csv: names '007', but there is no .*wavs/007.wav$"):
        load(tmp_path)
    (tmp_path / "metadata.csv").write_text("\n")
    with pytest.raises(DataError, match=r"metadata.csv: names no recordings$"):
        load(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"00\xff|a")
    with pytest.raises(DataError, match=r"metadata.csv: not text in UTF-8: .* at byte 2"):
        load(tmp_path)


def test_a_folder_like_that_of_asterisk(tmp_path: Path) -> None:
    """Prompts in folders, some very short, others silent on purpose; beside other files."""
    for i in range(12):
        write(tmp_path / "digits" / f"{i}.wav", noise(300 + i, i))
    write(tmp_path / "silence" / "1.wav", np.zeros(1000))
    write(tmp_path / "beep.wav", noise(50))
    write(tmp_path / ".hidden.wav", np.zeros(5))
    (tmp_path / "LICENSE.txt").write_text("free")
    data = load(tmp_path, features=150)
    assert sum(sizes(data)) == 12 * 3 - 1  # the first has two rows
    assert data.notes == [
        f"left out, silent: 1 of 14 files, such as {tmp_path / 'silence' / '1.wav'}",
        "left out, shorter than a row of 150 samples: 1 of 14 files, such as "
        f"{tmp_path / 'beep.wav'} (50 samples without silence at its ends)",
    ]


# -- who is heard -----------------------------------------------------------------------------------------------------


def voices(folder: Path, **files: int) -> Path:
    """So many files of each speaker, at several depths, each of one loudness of its own; ``told`` counts them in this order."""
    count = 0
    for speaker, n in files.items():
        for i in range(n):
            depth = folder / speaker / ("chapter" if i % 2 else "")
            write(depth / f"{i}.wav", np.tile([1, -1], 32) * (count + 1) / 128)
            count += 1
    return folder


def speakers_of(rows: Rows) -> list[int]:
    assert rows.context is not None
    return rows.context[torch.arange(len(rows))][:, 0].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_given_their_speaker_and_each_is_in_training(seed: int, tmp_path: Path) -> None:
    """The files are held out that would be without speakers, but for the last ones of theirs."""
    data = load(voices(tmp_path, p9=1, p10=14, p11=14, p12=1), seed, features=16, given=("speaker",))
    assert (data.given, data.classes, data.class_names) == (("speaker",), 4, ["p10", "p11", "p12", "p9"])
    owner = [3, *14 * [0], *14 * [1], 2]
    for part, files in ((data.train, 24), (data.validation, 3), (data.test, 3)):
        assert speakers_of(part) == [owner[file] for file in told(part)]
        assert len(set(told(part))) == files
    assert {0, 29} <= set(told(data.train))
    assert data.notes == ["4 speakers, from p10 to p9"]
    free = load(tmp_path, seed, features=16)
    assert set(told(free.test)) - {0, 29} <= set(told(data.test))


def test_speakers_with_few_files(tmp_path: Path) -> None:
    data = load(voices(tmp_path / "a", **{f"s{i:02}": 1 + (i < 2) for i in range(28)}), features=16, given=("speaker",))
    assert sizes(data) == [28 * 4, 4, 4]  # two files of thirty can be spared
    assert set(speakers_of(data.train)) == set(range(28))
    for i, length in enumerate((1000, 400, 60, 30)):
        write(tmp_path / "b" / str(i) / "it.wav", noise(length, i))
    data = load(tmp_path / "b", features=40, given=("speaker",))
    assert sizes(data) == [20 + 8 + 2, 3 + 1, 3 + 1]  # one file of each: those of ten rows are cut
    assert set(speakers_of(data.train)) == {0, 1, 2}
    assert set(speakers_of(data.test)) == {0, 1}
    assert data.class_names == ["0", "1", "2"]  # the last has no row


def test_speakers_of_folders_that_are_parts(tmp_path: Path) -> None:
    voices(tmp_path / "train", a=2, b=2)
    voices(tmp_path / "test", b=1)
    assert speakers_of(load(tmp_path, features=16, given=("speaker",)).test) == 4 * [1]
    voices(tmp_path / "test", c=1)
    with pytest.raises(DataError, match=r"c/0\.wav: given: speaker: expected it in one of the folders of a speaker, a, b$"):
        load(tmp_path, features=16, given=("speaker",))


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("flat", "speaker", "flat/000.wav: given: speaker: expected it in one of the folders of a speaker; there are none"),
        ("flat/000.wav", "speaker", "flat/000.wav: given: speaker: expected a folder with one for each speaker, got a file"),
        ("beside", "speaker", "beside/000.wav: given: speaker: expected it in one of the folders of a speaker, a, b"),
        ("ljspeech", "speaker", r"ljspeech: given: speaker: LJSpeech's layout \(wavs, metadata.csv\) is of one speaker"),
        ("single", "speaker", "single: given: speaker: expected folders of two speakers or more, got a alone"),
        ("beside", "label", "beside: given: expected speaker, who is heard in each recording, got label"),
        ("tones", "speaker", "tones: given: its sounds are synthesised, and given nothing, got speaker"),
    ],
)
def test_recordings_without_speakers(
    source: str, given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is decoded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audio, "_decode", lambda *_: pytest.fail("was decoded"))
    for folder in ("flat", "beside", "ljspeech/wavs"):
        amplitudes(Path(folder), 3)
    voices(Path("beside"), a=1, b=1)
    voices(Path("single"), a=5)
    Path("ljspeech/metadata.csv").write_text("000|a|a\n")
    with pytest.raises(DataError, match=f"^{message}$"):
        load(source, features=16, given=(given,))


# -- what is told or refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "clipped"), [(0.9, 0), (1.0, 500), (1.5, 500)])
def test_clipped_audio_is_told(peak: float, clipped: int, tmp_path: Path) -> None:
    samples = noise(1000, loudness=0.5)
    samples[100:602] = peak
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    data = load(path, None, features=100)
    assert every(data.train).max() == min(peak, 1)
    assert data.notes == ([f"warning: clipped: {path} ({clipped} of 1,000 samples)"] if clipped else [])


def test_one_sample_at_full_scale_is_not_clipped(tmp_path: Path) -> None:
    samples = noise(1000)
    samples[500:502] = 1
    assert not load(write(tmp_path / "a.wav", samples), None, features=100).notes


def test_files_of_several_rates(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(800))
    write(tmp_path / "b.wav", noise(800), rate=2 * RATE)
    with pytest.raises(DataError) as error:
        load(tmp_path, None, features=100)
    expected = f"b.wav: has 16,000 samples a second, {tmp_path / 'a.wav'} has 8,000; resample all by --set rate=8000"
    assert str(error.value).endswith(expected)
    data = load(tmp_path, None, features=100, rate=RATE)
    assert sizes(data)[0] == 8 + 4
    assert data.notes == [f"resampled to 8,000 Hz: 1 of 2 files, such as {tmp_path / 'b.wav'} (from 16,000 Hz)"]


def damaged(folder: Path, kind: str) -> Path:
    """A file that cannot be used."""
    whole = write(folder / "whole" / "a.wav", noise(1000)).read_bytes()
    flac = folder / "whole" / "a.flac"
    soundfile.write(flac, noise(20_000), RATE)
    samples = {"silent": np.zeros(1000), "short": noise(99), "infinite": noise(1000), "none": noise(2)[:0]}
    samples["infinite"][77] = np.inf
    if kind in samples:
        return write(folder / f"{kind}.wav", samples[kind], subtype="FLOAT")
    content = {
        "empty": b"",
        "a header": whole[:30],
        "truncated": whole[:-500],
        "text": b"hello, world" * 100,
        "truncated flac": flac.read_bytes()[: flac.stat().st_size // 2],
    }
    path = folder / f"{kind}.{'flac' if 'flac' in kind else 'wav'}"
    path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("silent", "expected a file of at least one row of 100 samples .*silent.wav: it is silent$"),
        ("short", "expected a file of at least one row of 100 samples .*short.wav: 99 samples without silence"),
        ("infinite", "infinite.wav: holds samples that are not finite$"),
        ("none", "none.wav: holds no samples$"),
        ("empty", "cannot read .*empty.wav: it is empty$"),
        ("a header", "cannot read .*a header.wav: it is damaged, or neither .wav nor .flac"),
        ("truncated", "truncated.wav: is truncated, after 750 samples; its header says that there are more$"),
        ("text", "cannot read .*text.wav: it is damaged, or neither .wav nor .flac .Format not recognised.$"),
        ("truncated flac", "truncated flac.flac: "),
    ],
)
def test_files_that_cannot_be_used(kind: str, message: str, tmp_path: Path) -> None:
    """Named, alone or among others."""
    path = damaged(tmp_path, kind)
    with pytest.raises(DataError, match=message) as error:
        load(path, features=100)
    assert "\n" not in str(error.value)
    if kind not in ("silent", "short"):  # which are only left out
        for i in range(3):
            write(tmp_path / f"{i}.wav", noise(1000, i))
        with pytest.raises(DataError, match=message):
            load(tmp_path, features=100)


def test_a_stream_whose_header_knows_no_length(tmp_path: Path) -> None:
    """As programs write it into a pipe."""
    path = write(tmp_path / "a.wav", noise(1000))
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert np.array_equal(every(load(path, None, features=1000).train)[0], noise(1000))


def test_other_data_are_not_read_where_options_of_audio_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.csv").write_text("1,2\n")
    monkeypatch.setattr("flowkern.data.files.load", lambda *_: pytest.fail("was read"))
    with pytest.raises(DataError, match=r"table\.csv: expected audio"):
        load(tmp_path / "table.csv", rate=10)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "a.wav",
            {"features": 300},
            "a.wav: expected at least 3,000 samples .* a tenth of which is a row of 300 .* got 1,000$",
        ),
        ("a.wav", {"features": 2000}, "expected a file of at least one row of 2,000 samples"),
        ("moons", {"features": 10}, "moons: expected audio, of which alone features and rate are options"),
        ("moons", {"rate": 10}, "moons: expected audio"),
        ("train", {}, "train: holds nothing that can be used; looked for .*recordings"),
        ("song.mp3", {}, "song.mp3: expected a table .*, images .*, a recording .*, or a folder"),
        ("parts", {"features": 10}, "test: expected recordings .*, got none"),
    ],
)
def test_mistakes(source: str, options: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.wav"), noise(1000))
    write(Path("parts/train/a.wav"), noise(1000))
    Path("parts/test").mkdir()
    Path("train").mkdir()
    Path("song.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=message):
        load(source, **options)


def test_one_sample_that_resampling_leaves_nothing_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.wav: it is silent$"):
        load(write(tmp_path / "a.wav", noise(2)), features=1, rate=1)


@pytest.mark.parametrize("options", [{"features": 0}, {"rate": 0}, {"features": 1.5}])
@pytest.mark.parametrize("source", ["tones", "a.wav"])
def test_numbers_that_are_none(source: str, options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.wav"), noise(1000))
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected a whole number of at least 1, got"):
        load(source, **options)


def test_no_room_for_decoded_audio(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(100_000))
    expected = r"no room for decoded audio in .* \(the variable TMPDIR names another folder\): "
    with pytest.raises(DataError, match=expected), file_size_limit(10_000):
        load(path)


# -- what is made ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "rate"), [(None, None), (7, 8000), (4096, 44_100)])
def test_tones(features: int | None, rate: int | None) -> None:
    """Loud and quiet, of 16 bits, the same each time, and other recordings in each part."""
    data = load("tones", features=features, rate=rate)
    assert (data.event_shape, data.rate) == ((features or 8192,), rate or 16_000)
    assert sizes(data) == [160, 20, 20]
    rows = every(data.train)
    assert rows.dtype is torch.float32
    assert 0.2 < rows.abs().max() < 1
    assert torch.equal(rows, (rows * 32768).round() / 32768)
    assert torch.equal(every(load("tones", features=features, rate=rate).train), rows)
    begins = [set(part.index.tolist()) for part in (data.train, data.validation, data.test)]
    assert not begins[0] & begins[1] | begins[1] & begins[2] | begins[0] & begins[2]


def test_tones_have_pitches_noise_and_silences() -> None:
    """By the flatness of the spectra: the ratio of geometric to arithmetic mean is 0 for tones and 0.56 for noise."""
    rows = every(load("tones", None).train).reshape(-1, 1024)
    loud = rows[rows.std(1) > 0.02]
    power = torch.fft.rfft(loud * torch.hann_window(1024)).abs().square()[:, 1:]
    flat = power.log().mean(1).exp() / power.mean(1)
    assert (flat < 0.05).float().mean() > 0.3
    assert (flat > 0.3).float().mean() > 0.1
    assert (rows.std(1) < 0.002).float().mean() > 0.15


def test_the_encoding_of_audio() -> None:
    data = load("tones")
    made = encoding(data)
    assert isinstance(made, Waveform)
    assert (made.rate, made.event_shape, made.levels, made.space) == (16_000, (8192,), None, "data")
    rows = data.test[torch.arange(3)]
    assert torch.equal(made.encode(rows), rows)
    assert torch.equal(made.decode(rows * 1e3).abs(), (rows * 1e3).clamp(-1, 1).abs())
    assert torch.equal(made.log_det(rows), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(DataError, match="tones: has real numbers, the model takes whole numbers of 256 levels"):
        encoding(data, levels=256)
    with pytest.raises(DataError, match="margin: only images"):
        encoding(data, margin=0.1)
