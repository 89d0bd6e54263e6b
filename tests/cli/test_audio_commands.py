"""Commands on audio: what is trained, drawn, written while it is drawn, pictured, scored and taught."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import file_size_limit, refused

import flowkern as fk
from flowkern.cli import main, pictures, waves
from flowkern.cli.configuration import options_of
from flowkern.cli.waves import Meter, WaveFile
from flowkern.data import load
from flowkern.models import ParallelWaveNet, WaveNet

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE, FEATURES = 4000, 200
SMALL = ["layers=2", "residual=8", "skip=8", "epochs=1"]
TEACHER = [*SMALL, "output=logistics", "components=2", f"features={FEATURES}"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.use_deterministic_algorithms(False)  # matplotlib is not under test


def folder_of_sounds(folder: Path, rate: int = RATE, files: int = 5) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(files):
        sound = 0.3 * np.sin(np.arange(1000) * (0.1 + 0.05 * i)) + 0.05 * draw.normal(size=1000)
        soundfile.write(folder / f"{i}.wav", sound, rate, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_sounds(tmp_path_factory.mktemp("audio") / "sounds")


@pytest.fixture(scope="module")
def run(sounds: Path) -> Path:
    """A trained teacher. No test writes into it."""
    output = sounds.parent / "run"
    assert main(["train", "wavenet", "--data", str(sounds), "--output", str(output), "--set", *TEACHER]) == 0
    return output


@pytest.fixture(scope="module")
def student(run: Path, sounds: Path) -> Path:
    """A trained student. No test writes into it."""
    output = sounds.parent / "student"
    options = ["layers=2,1", "residual=8", "skip=8", "epochs=2", "draws=3"]
    assert main(["distill", str(run), "--data", str(sounds), "--output", str(output), "--set", *options]) == 0
    return output


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_folder_of_a_run(run: Path) -> None:
    made = json.loads((run / "run.json").read_text())
    assert made["data_options"] == {"margin": None, "features": FEATURES, "rate": None, "given": []}
    assert made["training"]["batch_size"] == 8
    assert "rate" not in made["model_options"]
    kept = {"config.json", "model.safetensors", "run.json", "metrics.csv", "results.json", "learning_curve.png"}
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == kept | {"samples.wav", "samples.png"}
    assert is_picture(run / "samples.png")
    model = fk.Model.from_pretrained(run)
    assert (model.model.rate, model.encoding.rate, model.event_shape) == (RATE, RATE, (FEATURES,))
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["bits_per_dimension"] == pytest.approx(-results["test"]["nats"] / FEATURES / math.log(2))
    drawn, rate = soundfile.read(run / "samples.wav")
    assert rate == RATE
    assert drawn.shape == (8 * (FEATURES + 0.1 * RATE),)
    pauses = drawn.reshape(8, -1)[:, FEATURES:]
    assert not pauses.any()


def test_a_run_says_what_it_is_on_and_repeats(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its run.json alone. What had to be resampled is told."""
    options = ["--set", *TEACHER, f"rate={RATE // 2}", "batch_size=2"]
    assert main(["train", "wavenet", "--data", str(sounds), "--output", str(tmp_path / "first"), *options]) == 0
    text = capsys.readouterr().out
    assert f"resampled to 2,000 Hz: 5 of 5 files, such as {sounds / '0.wav'} (from 4,000 Hz)\n" in text
    assert "sounds: 9 train, 3 validation, 3 test rows of 200 samples at 2,000 Hz; wavenet: " in text
    assert "bits per sample" in text
    assert fk.Model.from_pretrained(tmp_path / "first").model.rate == 2000
    assert main(["train", "--config", str(tmp_path / "first" / "run.json"), "--output", str(tmp_path / "again")]) == 0
    first, again = ((tmp_path / name / "samples.wav").read_bytes() for name in ("first", "again"))
    assert first == again


def test_any_model_takes_audio(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that cannot draw sounds of any length draws rows."""
    output = tmp_path / "run"
    options = ["features=4", "hidden=8", "transforms=1", "epochs=1"]
    assert main(["train", "maf", "--data", str(sounds), "--output", str(output), "--set", *options]) == 0
    assert fk.Model.from_pretrained(output).encoding.rate == RATE
    assert soundfile.info(output / "samples.wav").frames == 8 * (4 + 0.1 * RATE)
    assert main(["sample", str(output), "-n", "7"]) == 0
    assert np.load(output / "samples.npy").shape == (7, 4)
    text = refused(capsys, "sample", str(output), "--seconds", "2")
    assert text == "--seconds: only of models that draw sounds of any length, such as wavenet; got 2"


def test_a_student_without_a_teacher(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own density it would take all memory, and days."""
    output = str(tmp_path / "run")
    text = refused(capsys, "train", "parallelwavenet", "--data", str(sounds), "--output", output, "--set", "features=100")
    assert text.startswith("MODEL: a parallelwavenet learns audio from a teacher")
    assert text.endswith("then use flowkern distill")


def test_a_vocoder(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard on test rows, and shown beside them; `sample` speaks like a recording."""
    shown: list[Any] = []
    spoken: list[Any] = []
    draw, sample = pictures.recordings, WaveNet.sample

    def drawn(sounds: Any, rate: int) -> bytes:
        shown.append(sounds["data"])
        return draw(sounds, rate)

    def sampled(self: WaveNet, *args: Any, **options: Any) -> torch.Tensor:
        spoken.append(options["local"])
        return sample(self, *args, **options)

    monkeypatch.setattr(pictures, "recordings", drawn)
    monkeypatch.setattr(WaveNet, "sample", sampled)
    output = tmp_path / "run"
    options = [*TEACHER, "mels=4", "upsample=4,5"]
    assert main(["train", "wavenet", "--data", str(sounds), "--output", str(output), "--set", *options]) == 0
    assert soundfile.info(output / "samples.wav").frames == 5 * (FEATURES + 0.1 * RATE)  # the rows of the test part
    vocoder = fk.Model.from_pretrained(output).model
    assert torch.equal(vocoder.log_mel(torch.stack(shown[0])), spoken[0][:3])
    monkeypatch.undo()
    like = ["sample", str(output), "--like"]
    assert main([*like, str(sounds / "1.wav"), "--output", str(tmp_path / "whole.wav")]) == 0
    heard = torch.from_numpy(soundfile.read(sounds / "1.wav", dtype="float32")[0])
    expected = vocoder.generate(1000, local=vocoder.log_mel(heard), generator=torch.Generator().manual_seed(0))[0]
    found = torch.from_numpy(soundfile.read(tmp_path / "whole.wav", dtype="float32")[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    soundfile.write(tmp_path / "stereo.flac", np.stack([heard.numpy()] * 2, 1), 2 * RATE)
    assert main([*like, str(tmp_path / "stereo.flac"), "--output", str(tmp_path / "part.wav"), "--seconds", "0.1"]) == 0
    assert soundfile.info(tmp_path / "part.wav").frames == 0.1 * RATE
    of = f"FOLDER: the model in {output} speaks from the spectrogram of a recording:"
    first, none = str(sounds / "1.wav"), str(tmp_path / "none.wav")
    for arguments, message in (
        ([*like, first, "--seconds", "0.3"], f"--seconds: expected at most the 0.25 of {first}; got 0.3"),
        ([*like, first, "-n", "3"], f"{of} it draws one sound, without -n"),
        (["sample", str(output)], f"{of} --like names the recording"),
        ([*like, none], f"--like: cannot read {none}: No such"),
        ([*like, str(output / "run.json")], "--like: cannot read "),
    ):
        assert refused(capsys, *arguments).startswith(message)


def test_only_a_vocoder_speaks_like_a_recording(run: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "sample", str(run), "--like", str(sounds / "1.wav"))
    assert text.startswith("--like: only of models that speak from spectrograms")


def test_help_shows_the_options_of_audio(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "wavenet", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "features=none of audio, samples of a row" in text
    assert text.count(" rate=none of audio, samples a second") == 1
    assert " rate=16000" not in text
    assert "batch_size=8 " in text
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name}" in text for name in ("draws=10", "power=1.0", "layers=10,10,10,30", "epochs=200"))
    assert "\n  mels=" not in text  # which is the teacher's
    assert main(["list"]) == 0
    assert "\n  tones " in capsys.readouterr().out


def test_options_of_a_student_have_different_names() -> None:
    parts = list(options_of("parallelwavenet", "distill").values())
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert all(option.help for options in parts for option in options.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["features=0"], "--set features: expected a whole number of at least 1, got 0"),
        (["rate=0"], "--set rate: expected a whole number of at least 1, got 0"),
        (["features=5000"], "--data: {sounds}: expected a file of at least one row of 5,000 samples (--set features)"),
        (["features=200", "margin=0.1"], "--data: margin: only images"),
        (["features=200", "context=2"], "--set context: the rows are given nothing; leave it at 0"),
    ],
)
def test_mistakes_of_a_run(
    options: list[str], message: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    text = refused(capsys, "train", "wavenet", "--data", str(sounds), "--output", str(output), "--set", *SMALL, *options)
    assert text.startswith(message.format(sounds=sounds))
    assert not list(output.iterdir())


# -- scoring ----------------------------------------------------------------------------------------------------------


def test_evaluate_in_nats_and_bits_per_sample(run: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    test = load(sounds, features=FEATURES).test
    with torch.no_grad():
        nats = fk.Model.from_pretrained(run).log_prob(test[torch.arange(len(test))]).mean().item()
    expected = f"{-nats / FEATURES:.3f} nats or {-nats / FEATURES / math.log(2):.3f} bits per sample\n"
    assert capsys.readouterr().out.endswith(expected)


def test_evaluate_resamples_and_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of folders that are parts all rows are scored."""
    folder = tmp_path / "other"
    folder.mkdir()
    folder_of_sounds(folder / "train", 2 * RATE, files=3)
    folder_of_sounds(folder / "test", RATE, files=1)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(folder)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"resampled to 4,000 Hz: 3 of 4 files, such as {folder / 'train' / '0.wav'} (from 8,000 Hz)"
    assert last.startswith("other: log-likelihood of 14 rows: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("moons", "--data: moons: expected audio, of which alone features and rate are options"),
        ("silent.wav", "--data: silent.wav: expected a file of at least one row of 200 samples (--set features), "),
        ("empty.flac", "--data: cannot read empty.flac: it is empty"),
    ],
)
def test_data_that_cannot_be_scored(
    data: str, message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("silent.wav", np.zeros(1000), RATE)
    Path("empty.flac").write_bytes(b"")
    assert refused(capsys, "evaluate", str(run), "--data", data).startswith(message)


# -- sounds while they are drawn --------------------------------------------------------------------------------------


def test_sample_writes_what_the_model_streams(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a.wav"
    capsys.readouterr()
    arguments = ["sample", str(run), "--seconds", "0.05", "--temperature", "0.5", "--seed", "3", "--output", str(output)]
    assert main(arguments) == 0
    generator = torch.Generator().manual_seed(3)
    expected = fk.Model.from_pretrained(run).model.generate(200, temperature=0.5, generator=generator)[0]
    drawn, rate = soundfile.read(output)
    assert rate == RATE
    assert drawn.shape == (200,)
    assert np.abs(drawn - expected.numpy()).max() < 1e-4
    assert is_picture(tmp_path / "a.png")
    text = capsys.readouterr().out
    assert text.startswith(f"0.05 s (200 samples) are in {output}, a picture of it in {tmp_path / 'a.png'}; ")
    assert re.search(r"; [\d,]+ samples per second, \d+\.\d\d times real time\n$", text)


def test_defaults_and_a_model_that_no_run_made(tmp_path: Path) -> None:
    WaveNet(FEATURES, "gaussian", layers=1, residual=4, skip=4, rate=50).save_pretrained(tmp_path / "model")
    assert main(["sample", str(tmp_path / "model")]) == 0
    info = soundfile.info(tmp_path / "model" / "samples.wav")
    assert (info.samplerate, info.frames, info.channels, info.subtype) == (50, 250, 1, "PCM_16")
    assert main(["sample", str(tmp_path / "model"), "-n", "3"]) == 0
    assert np.load(tmp_path / "model" / "samples.npy").shape == (3, FEATURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds: expected a number from 0.00025 to 536,870, what a .wav file holds; got 0"),
        (["--seconds", "nan"], "--seconds: expected a number from 0.00025 to 536,870, what a .wav file holds; got nan"),
        (["--seconds", "1e9"], "--seconds: expected a number from 0.00025 to 536,870, what a .wav file holds; got 1e+09"),
        (["--temperature", "-1"], "--temperature: expected a number of at least 0, got -1"),
        (["--temperature", "inf"], "--temperature: expected a number of at least 0, got inf"),
        (["--output", "a.mp3"], "--output: expected a name that ends in .wav, as the model is one of audio, got 'a.mp3'"),
        (["--output", "no/a.wav"], "--output: there is no folder 'no'"),
        (["--output", "folder.wav"], "cannot write folder.wav: Is a directory"),
        (
            ["-n", "3", "--seconds", "2"],
            "--seconds: leave it out with -n, which draws rows as long as in training; got 2",
        ),
        (["-n", "0"], "-n: expected a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_of_sample(
    arguments: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.wav").mkdir()
    status = 1 if "cannot" in message else 2
    assert refused(capsys, "sample", str(run), *arguments, status=status) == message
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


Stream = Callable[..., Iterator[torch.Tensor]]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stream], None]:
    """Gives WaveNet another stream."""
    return lambda stream: monkeypatch.setattr(WaveNet, "stream", stream)


def test_a_sound_can_be_played_while_it_is_drawn(run: Path, tmp_path: Path, streamed: Any) -> None:
    """After each stretch, as if the process had been killed there."""
    heard, output = [], tmp_path / "a.wav"

    def stream(self: Any, time: int, **options: Any) -> Iterator[torch.Tensor]:
        for _ in range(4):
            yield torch.full((1, 100), 0.25)
            heard.append(soundfile.read(output)[0])

    streamed(stream)
    assert main(["sample", str(run), "--seconds", "0.1", "--output", str(output)]) == 0
    assert [len(sound) for sound in heard] == [100, 200, 300, 400]
    assert all(np.abs(sound - 0.25).max() < 1e-4 for sound in heard)


def endless(then: BaseException | None) -> Stream:
    def stream(self: Any, time: int, **options: Any) -> Iterator[torch.Tensor]:
        for _ in range(2):
            yield torch.full((1, 1000), 0.25)
        if then is not None:
            raise then
        while True:
            yield torch.full((1, 1000), math.nan)

    return stream


def test_ctrl_c_leaves_what_was_drawn(run: Path, tmp_path: Path, streamed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    streamed(endless(KeyboardInterrupt()))
    output = tmp_path / "a.wav"
    capsys.readouterr()
    assert main(["sample", str(run), "--seconds", "9", "--output", str(output)]) == 130
    out, err = capsys.readouterr()
    assert err == "flowkern: interrupted\n"
    assert out.startswith(f"0.50 s (2,000 samples) are in {output}, a picture of it in ")
    assert soundfile.info(output).frames == 2000
    assert is_picture(tmp_path / "a.png")


def test_samples_that_are_not_finite(run: Path, tmp_path: Path, streamed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    streamed(endless(None))
    output = tmp_path / "a.wav"
    text = refused(capsys, "sample", str(run), "--seconds", "9", "--output", str(output), status=1)
    assert text == f"the model draws samples that are not finite; 0.50 s (2,000 samples) are in {output}"
    assert soundfile.info(output).frames == 2000


def test_a_disk_that_fills_up(run: Path, tmp_path: Path, streamed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture of an earlier sound does not stay beside the new one."""
    streamed(endless(None))
    output = tmp_path / "a.wav"
    (tmp_path / "a.png").write_text("of an earlier sound")
    with file_size_limit(3000):
        text = refused(capsys, "sample", str(run), "--seconds", "9", "--output", str(output), status=1)
    assert text == f"cannot write {output}: File too large; 0.25 s (1,000 samples) are in {output}"
    played, _ = soundfile.read(output)
    assert len(played) == 1000
    assert np.abs(played - 0.25).max() < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_meter_tells_how_fast_samples_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 4.0, 8.0])  # not read again: the speed is of the sampling, not of the picture that is drawn after it
    monkeypatch.setattr(waves.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(waves, "EVERY", 1.0)
    with Meter(2000, 100) as meter:
        meter(800)
        assert capsys.readouterr().out == "8.0 of 20.0 s: 200 samples per second, 2.00 times real time\n"
        meter(1200)
        assert capsys.readouterr().out == ""
        assert meter.speed == "250 samples per second, 2.50 times real time"


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waves, "draws", lambda: True)
    with Meter(2000, 100) as meter:
        meter(2000)
        (task,) = meter.bar.tasks
        assert (task.completed, task.total) == (2000, 2000)
        assert re.fullmatch(r"[\d,]+ samples per second, [\d.]+ times real time", task.fields["speed"])


def test_sounds_that_are_too_loud(tmp_path: Path) -> None:
    samples = torch.tensor([0.0, 1.0, -1.0, 1.5, -7.0, 0.5])
    with WaveFile(tmp_path / "a.wav", RATE) as file:
        file.write(samples[:2])
        file.write(samples[2:])
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [0, 32767, -32767, 32767, -32767, 16384]
    assert file.read().tolist() == [0, 32767, -32767, 32767, -32767, 16384]


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    drawn: list[Any] = []
    png = pictures._png
    monkeypatch.setattr(pictures, "_png", lambda figure: (drawn.append(figure), png(figure))[1])
    return drawn


@pytest.mark.parametrize("kind", ["float", "int16"])
@pytest.mark.parametrize("length", [4000, 100_000])
def test_a_tone_in_a_spectrogram(kind: str, length: int, figures: list[Any]) -> None:
    sound = 0.5 * torch.sin(2 * math.pi * 1000 / 8000 * torch.arange(length))
    given = (sound * 32768).round().to(torch.int16) if kind == "int16" else sound
    pictures.recordings({"a tone": [given]}, rate=8000)
    wave, spectrum, *_ = figures[0].axes
    (image,) = spectrum.images
    values, (left, right, low, high) = np.asarray(image.get_array()), image.get_extent()
    assert (left, right, low, high) == (0, length / 8000, 0, 4)
    assert values.shape[1] <= 800
    kilohertz = values.argmax(0) / (len(values) - 1) * 4
    assert np.abs(kilohertz - 1).max() < 0.05
    assert values.max() == pytest.approx(0, abs=1e-6)
    assert wave.get_ylim()[1] == pytest.approx(1.05 * 0.5, rel=0.01)
    assert wave.get_xlim() == (0, length / 8000)


def test_samples_beside_data(figures: list[Any]) -> None:
    """On one scale; the quieter is darker."""
    loud, quiet = 0.5 * torch.randn(3, 2000), 0.005 * torch.randn(2, 2000)
    pictures.recordings({"data": list(loud), "samples": list(quiet)}, rate=8000)
    shown = [axis for axis in figures[0].axes if axis.axison]
    titles = [axis.get_title() for axis in shown if axis.get_title()]
    assert titles == ["data", "samples"]
    spectra = [axis.images[0] for axis in shown if axis.images]
    assert len(spectra) == 5
    assert {image.get_clim() for image in spectra} == {(-80.0, 0.0)}
    peaks = sorted(float(image.get_array().max()) for image in spectra)
    assert peaks[-1] == pytest.approx(0, abs=1e-6)
    assert max(peaks[:2]) < -30 < min(peaks[2:])


@pytest.mark.parametrize("length", [1, 7, 10_000])
def test_silence_and_shreds_can_be_drawn(length: int) -> None:
    for sound in (torch.zeros(length), torch.ones(length, dtype=torch.int16)):
        assert pictures.recordings({"it": [sound]}, rate=16_000).startswith(b"\x89PNG")


# -- speakers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def choir(sounds: Path) -> Path:
    """A model of two speakers, of whom one is loud. No test writes into its folder."""
    data = sounds.parent / "choir"
    for i, (speaker, loudness) in enumerate(4 * [("p1", 0.5), ("p2", 0.05)]):
        (data / speaker / "chapter").mkdir(parents=True, exist_ok=True)
        sound = loudness * np.random.default_rng(i).uniform(-1, 1, 1000)
        soundfile.write(data / speaker / "chapter" / f"{i}.wav", sound, RATE, subtype="PCM_16")
    output = sounds.parent / "choir run"
    options = ["output=gaussian", "layers=1", "residual=8", "skip=8", f"features={FEATURES}", "given=speaker"]
    learning = ["epochs=60", "learning_rate=0.03", "batch_size=8"]
    assert main(["train", "wavenet", "--data", str(data), "--output", str(output), "--set", *options, *learning]) == 0
    return output


def drawn_by(folder: Path, speaker: str, output: Path) -> np.ndarray:
    assert main(["sample", str(folder), "--given", speaker, "--seconds", "0.2", "--output", str(output)]) == 0
    return soundfile.read(output)[0]


def test_voices_by_the_names_of_their_speakers(choir: Path, tmp_path: Path) -> None:
    made = json.loads((choir / "run.json").read_text())
    assert (made["data_options"]["given"], made["class_names"]) == (["speaker"], ["p1", "p2"])
    model = fk.Model.from_pretrained(choir)
    assert model.model.context == 2
    assert soundfile.info(choir / "samples.wav").frames == 5 * (FEATURES + 0.1 * RATE)  # a voice for each test row
    loud, quiet = (drawn_by(choir, speaker, tmp_path / "a.wav") for speaker in ("p1", "p2"))
    assert loud.std() > 3 * quiet.std()
    generator, second = torch.Generator().manual_seed(0), model.encode_context(torch.tensor([[1]]))
    expected = model.model.generate(800, second, generator=generator)[0].numpy()
    assert np.abs(quiet - expected).max() < 1e-4
    assert main(["sample", str(choir), "--given", "p2", "-n", "3", "--output", str(tmp_path / "rows.npy")]) == 0
    rows = np.load(tmp_path / "rows.npy")
    assert rows.shape == (3, FEATURES)
    assert rows.std() < loud.std() / 3


def test_speakers_of_other_data_are_found_by_their_names(
    choir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them alone has another number there."""
    shutil.copytree(choir.parent / "choir" / "p2", tmp_path / "p2")
    model, rows = fk.Model.from_pretrained(choir), load(tmp_path, None, features=FEATURES, rate=RATE).train
    with torch.no_grad():
        nats = model.log_prob(rows[torch.arange(len(rows))], torch.ones(len(rows), 1)).mean().item()
    capsys.readouterr()
    assert main(["evaluate", str(choir), "--data", str(tmp_path)]) == 0
    assert f": log-likelihood of {len(rows)} rows: {nats:.3f} +- " in capsys.readouterr().out
    shutil.copytree(tmp_path / "p2", tmp_path / "p3")
    text = refused(capsys, "evaluate", str(choir), "--data", str(tmp_path))
    assert text == f"--data: {tmp_path.name}: the model is given the speakers p1, p2, got p3"


def test_a_student_of_speakers(choir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the voices of its teacher, whatever --data says."""
    data, student = str(choir.parent / "choir"), tmp_path / "student"
    options = ["layers=1", "residual=8", "skip=8", "epochs=1", "contrastive=0.1", "noise=gaussian"]
    assert main(["distill", str(choir), "--data", data, "--output", str(student), "--set", *options]) == 0
    made = json.loads((student / "run.json").read_text())
    assert (made["data_options"]["given"], made["class_names"]) == (["speaker"], ["p1", "p2"])
    model = fk.Model.from_pretrained(student)
    assert model.model.context == 2
    results = json.loads((student / "results.json").read_text())["test"]
    capsys.readouterr()
    assert main(["evaluate", str(student)]) == 0
    assert f"KL divergence from the teacher {results['kl']:.4g} nats" in capsys.readouterr().out
    heard = drawn_by(student, "p2", tmp_path / "a.wav")
    generator, second = torch.Generator().manual_seed(0), model.encode_context(torch.tensor([[1]]))
    assert np.abs(heard - model.model.generate(800, second, generator=generator)[0].numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "{run}"], "--given: expected a speaker (p1, p2), which the model in {run} is given"),
        (["sample", "{run}", "--given", "p3"], "--given: expected a speaker (p1, p2), got 'p3'"),
        (["sample", "{run}", "--given", "1", "-n", "2"], "--given: expected a speaker (p1, p2), got '1'"),
        (["evaluate", "{run}", "--data", "{flat}"], "--data: {flat}/0.wav: given: speaker: expected it in one of the folders"),
        (["distill", "{run}", "--data", "{flat}"], "--data: {flat}/0.wav: given: speaker: expected it in one of the folders"),
        (
            ["distill", "{run}", "--data", "{data}", "--set", "given=label"],
            "--set given: expected speaker like the teacher, got label",
        ),
        (
            ["distill", "{plain}", "--data", "{data}", "--set", "given=speaker"],
            "--set given: expected nothing like the teacher, got speaker",
        ),
        (["distill", "{bare}", "--data", "{data}"], "TEACHER: {bare} has no run.json, which names what it is given"),
    ],
)
def test_mistakes_with_speakers(
    arguments: list[str], message: str, choir: Path, run: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    fk.Model.from_pretrained(choir).save_pretrained(bare)
    places = {"run": choir, "flat": sounds, "data": choir.parent / "choir", "plain": run, "bare": bare}
    output = ["--output", str(tmp_path / "out")] if arguments[0] == "distill" else []
    text = refused(capsys, *(argument.format(**places) for argument in arguments), *output)
    assert text.startswith(message.format(**places))


# -- students ---------------------------------------------------------------------------------------------------------


def test_the_folder_of_a_student(student: Path, run: Path) -> None:
    made = json.loads((student / "run.json").read_text())
    assert (made["command"], made["model"], made["teacher"]) == ("distill", "parallelwavenet", str(run))
    assert made["distillation"] == {"draws": 3, "power": 1.0, "contrastive": 0.0}
    assert made["data_options"] == {"margin": None, "features": FEATURES, "rate": RATE, "given": []}
    model = fk.Model.from_pretrained(student)
    assert isinstance(model.model, ParallelWaveNet)
    assert (model.model.rate, model.encoding.rate, model.event_shape) == (RATE, RATE, (FEATURES,))
    results = json.loads((student / "results.json").read_text())
    assert results["test"].keys() == {"loss", "kl", "cross_entropy", "entropy", "power"}
    assert results["test"]["kl"] == pytest.approx(results["test"]["cross_entropy"] - results["test"]["entropy"])
    assert soundfile.info(student / "samples.wav").frames == 8 * (FEATURES + 0.1 * RATE)
    assert is_picture(student / "samples.png")
    assert is_picture(student / "learning_curve.png")


def test_a_student_draws_and_is_scored_by_its_teacher(
    student: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(student), "--seconds", "1", "--output", str(tmp_path / "a.wav")]) == 0
    assert soundfile.info(tmp_path / "a.wav").frames == RATE
    results = json.loads((student / "results.json").read_text())["test"]
    capsys.readouterr()
    assert main(["evaluate", str(student)]) == 0
    expected = (
        f"sounds, test part: KL divergence from the teacher {results['kl']:.4g} nats per sample, loss {results['loss']:.4g} ("
    )
    assert capsys.readouterr().out.startswith(expected)
    assert main(["evaluate", str(student), "--data", str(sounds)]) == 0
    assert "sounds: KL divergence from the teacher " in capsys.readouterr().out
    text = refused(capsys, "evaluate", str(student), "--output", str(tmp_path / "p.csv"))
    assert text == "--output: of rows of audio a student has no log-densities in a reasonable time; leave it out"


def test_a_student_goes_on(student: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From a checkpoint, as if it had not been broken."""
    from flowkern.training import Training

    look = Training._look

    def broken(self: Any) -> None:
        self.signal = 15 if self.step == 3 else 0  # of 4, 2 in an epoch
        look(self)
        self.look_every = 1

    monkeypatch.setattr(Training, "_look", broken)
    output = tmp_path / "broken"
    assert main(["distill", "--config", str(student / "run.json"), "--output", str(output)]) == 143
    assert f"continue with: flowkern distill --resume --output {output}\n" in capsys.readouterr().out
    text = refused(capsys, "train", "--resume", "--output", str(output))
    assert text == "--resume: expected a run of `flowkern train`, got one of `flowkern distill`"
    text = refused(capsys, "distill", "elsewhere", "--resume", "--output", str(output))
    assert text == f"--resume: the run has teacher = {str(run)!r}, not 'elsewhere'; it goes on with its own"
    assert main(["distill", "--resume", "--output", str(output)]) == 0
    for name in ("samples.wav", "model.safetensors"):
        assert (student / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected TEACHER, or --config with the run.json of an earlier run"),
        (["missing"], "TEACHER: missing: no such folder"),
        (["table"], "TEACHER: expected a model of audio, got a MAF of other data"),
        (["classes"], "TEACHER: expected an output with a density, logistics or gaussian, got categorical"),
        (["run", "--data", "moons"], "--data: moons: expected audio"),
        (["run", "--set", "rate=8000"], "--set rate: expected 4000 like the teacher, got 8000"),
        (["run", "--set", "draws=0"], "--set draws: expected a whole number of at least 1, got 0"),
        (["run", "--set", "contrastive=0.3"], "--set contrastive: the term compares conditions"),
        (["run", "--set", "strategy=fsdp"], "--set strategy: expected ddp, which copies a student, got fsdp"),
        (["run", "--set", "mels=80"], "--set mels: a student has that of its teacher; leave it out"),
        (["--config", "run/run.json"], "--config: expected a run of `flowkern distill`, got one of `flowkern train`"),
    ],
)
def test_mistakes_of_distill(
    arguments: list[str],
    message: str,
    run: Path,
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    fk.flows.MAF(2, 1, (8,)).save_pretrained("table")
    WaveNet(50, layers=1, residual=4, skip=4, rate=RATE).save_pretrained("classes")
    given = [] if "--data" in arguments else ["--data", str(sounds)]
    assert refused(capsys, "distill", *arguments, *given, "--output", "out").startswith(message)
    assert not list(Path("out").glob("*"))
