"""The package as it is installed: other instruction sets, sanitizers, no extension, a fresh clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from building import ROOT, build_extension, instruction_set, run

TESTS = ROOT / "tests"
KERNEL_TESTS = [str(TESTS / "ops")]
# A selection that meets every kernel at every kind of size, for builds that are slow or many.
SELECTION = (
    "(variations and (uneven or residual or deep or wide or softplus or 63 or tile or blocks or large)) "
    "or (variations and parts and row_lstm) "
    "or (batches and (1- or 32- or 33- or 64-)) or no_rows or strides or beyond_the_batch or update "
    "or turns or wavenet_generate"
)
SELECTED = ["-m", "not gpu", "-k", SELECTION]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_kernels_of_other_instruction_sets(isa: str) -> None:
    ask = "import flowkern._library as l; print(l._C.instruction_set())"
    if run([sys.executable, "-c", ask], FLOWKERN_ISA=isa).strip() != isa:
        pytest.skip(f"this processor does not run {isa}")
    run([sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *SELECTED, *KERNEL_TESTS], FLOWKERN_ISA=isa)


def test_no_code_of_a_wide_instruction_set_is_shared() -> None:
    """Functions that the linker merges must not come from a unit compiled for AVX: an older processor would run them."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    objects = [p for isa in ("avx2", "avx512") for p in (ROOT / "build").rglob(f"flowkern_{isa}.dir/**/*.o")]
    if not objects:
        pytest.skip("the build folder is not here")
    for path in objects:
        symbols = run(["nm", "-C", "--defined-only", str(path)]).splitlines()
        weak = [s for s in symbols if s.split()[1] in "WVu" and "flowkern::avx" not in s]
        assert not weak, f"{path.name}: {weak[:5]}"


WIDEST = {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4 -mprefer-vector-width=512"}  # as in CMakeLists.txt


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    """AddressSanitizer and UBSan over the kernel tests, scratch memory filled with NaN."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    package = tmp_path / "flowkern"
    shutil.copytree(ROOT / "flowkern", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # The baseline alone, made for the vectors of this processor: compiling both would take another four minutes.
    options = ["-DFLOWKERN_SANITIZERS=address,undefined", "-DFLOWKERN_POISON=ON", "-DCMAKE_CXX_COMPILER=g++"]
    options += ["-DFLOWKERN_ISAS=", f"-DCMAKE_CXX_FLAGS={WIDEST.get(instruction_set(), '')}"]
    build_extension(ROOT, tmp_path, *options)
    runtime = [run(["g++", f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    environment = {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0,alloc_dealloc_mismatch=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "PYTHONPATH": str(tmp_path),
        "FLOWKERN_FEW_CASES": "1",  # one case shows what touches memory that it must not; accuracy is for other tests
    }
    ask = "import flowkern._library as l; print(l._C.build_info()['sanitizers'])"
    assert run([sys.executable, "-c", ask], tmp_path, **environment).strip() == "address,undefined"
    pytest_command = [sys.executable, "-P", "-m", "pytest", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    run([*pytest_command, "--rootdir", str(ROOT), *SELECTED, *KERNEL_TESTS], tmp_path, **environment)


HIDE = "import sys; sys.modules['flowkern._C'] = None\n"


def test_without_the_extension_it_works_and_warns_once() -> None:
    program = (
        HIDE
        + """
import warnings, torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import flowkern as fk
    flow = fk.flows.MAF(4, 2, (8,))
    x = flow.sample((5,))
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
ours = [w for w in seen if "flowkern" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in ours]
assert "pip install" in str(ours[0].message)
with fk.backend("reference"):
    torch.testing.assert_close(flow.log_prob(x), log_prob)
try:
    with fk.backend("native"):
        flow.log_prob(x)
except RuntimeError as error:
    assert "was forced, but the extension is missing" in str(error), error
else:
    raise AssertionError("forcing what cannot run must fail")
from flowkern.cli import main
raise SystemExit(0 if main(["doctor"]) == 1 else "doctor")
"""
    )
    text = run([sys.executable, "-c", program])
    assert "CPU kernels            no:" in text
    assert "pip install --no-build-isolation -e ." in text


def test_environment_variable_forces_a_backend() -> None:
    ask = "import flowkern.backends as b, torch; print(b.kernels_for(torch.ones(1), 'affine').backend)"
    assert run([sys.executable, "-c", ask], FLOWKERN_BACKEND="reference").strip() == "reference"
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, "FLOWKERN_BACKEND": "fast"}, capture_output=True, text=True, check=False
    )
    assert "FLOWKERN_BACKEND: expected one of auto, native, triton, reference, got 'fast'" in done.stderr


def test_backends_by_name_and_device() -> None:
    import torch

    from flowkern.backends import backend, kernels_for

    with pytest.raises(ValueError, match="backend: expected one of"), backend("gpu"):
        pass
    with backend("native"), pytest.raises(RuntimeError, match="no native kernel for device 'meta'"):
        kernels_for(torch.ones(1, device="meta"), "affine")
    with backend("reference"):
        assert kernels_for(torch.ones(1), "affine").backend == "reference"
        with backend("auto"):
            assert kernels_for(torch.ones(1), "affine").backend == "native"
        assert kernels_for(torch.ones(1), "affine").backend == "reference"
    assert kernels_for(torch.ones(1), "affine").backend == "native"


# -- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the checkout, without what was built in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    built = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "*.cubin", "_build_error.txt", "output", ".*_cache")
    return Path(shutil.copytree(ROOT, tmp_path / "sources", ignore=built))


def build(hook: str, sources: Path, folder: Path, **environment: str) -> Path:
    """What pip builds, by the hook that it calls for that; without isolation, and without CUDA."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"from setuptools import build_meta; print(build_meta.{hook}({str(folder)!r}))"
    text = run([sys.executable, "-c", program], sources, **{"FLOWKERN_BUILD_CUDA": "0", **environment})
    return folder / text.splitlines()[-1]


def files(wheel: Path) -> dict[str, str]:
    """The files of a wheel, with the text of those that are short."""
    with zipfile.ZipFile(wheel) as archive:
        return {i.filename: archive.read(i).decode() if i.file_size < 4000 else "" for i in archive.infolist()}


NO_COMPILER = {"CXX": "/nonexistent"}
RECORD = "flowkern/_build_error.txt"
# An editable install beside it would lend its extension to what lies elsewhere.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__]\n"


def test_a_source_distribution_without_a_compiler_becomes_a_wheel_that_says_so(sources: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", sources, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    wheel = build("build_wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel", **NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    packed = files(wheel)
    for folder in ("flowkern", "kernels", "csrc/cuda", "csrc/include"):
        place = folder if folder == "flowkern" else f"flowkern/{folder}"
        of_use = [f for f in (sources / folder).rglob("*") if f.suffix in (".py", ".cu", ".h", ".typed")]
        assert {f"{place}/{f.relative_to(sources / folder)}" for f in of_use} <= packed.keys()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    use = """
import warnings, torch
import flowkern as fk
from flowkern.cli import main
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    fk.flows.MAF(4, 2, (8,)).sample((5,))
assert "(no C++ compiler was found); install one" in str(seen[0].message), seen[0].message
raise SystemExit(main(["doctor"]) - 1)
"""
    text = run([sys.executable, "-c", ALONE + use], tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert "CPU kernels            no: the extension is missing (no C++ compiler was found); install one" in text
    assert "then run `pip install --no-build-isolation .` in the sources of flowkern" in text
    assert "    $ cmake -G Ninja" in text
    assert "/nonexistent" in text


@pytest.fixture
def cmake(tmp_path: Path) -> dict[str, str]:
    """The environment of builds with a CMake that takes no time: it leaves an empty extension, or fails where FAIL is set."""
    tool, target = tmp_path / "bin" / "cmake", tmp_path / "target"
    tool.parent.mkdir()
    tool.write_text(
        f"""#!/bin/sh
for argument; do case $argument in -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=*) echo "${{argument#*=}}" > {target};; esac; done
test "$1" = --build || exit 0
test -z "$FAIL" || {{ echo "error: no such instruction"; exit 3; }}
touch "$(cat {target})/_C{sysconfig.get_config_var("EXT_SUFFIX")}"
"""
    )
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}


def test_each_build_leaves_its_own_outcome_and_nothing_of_the_one_before(
    sources: Path, tmp_path: Path, cmake: dict[str, str]
) -> None:
    extension = f"flowkern/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    for environment, reason in (
        ({"FLOWKERN_BUILD_EXT": "0"}, "FLOWKERN_BUILD_EXT=0 was set when it was installed\nunset it\n"),
        (cmake, None),
        ({**cmake, "FAIL": "1"}, "compiling failed with exit status 3\nmend what its last lines complain of\n$ cmake --build"),
    ):
        wheel = build("build_wheel", sources, tmp_path / "wheels", **environment)
        found = files(wheel)
        assert (extension in found) == (reason is None)
        assert wheel.name.endswith("-py3-none-any.whl") == (reason is not None)
        assert (RECORD in found) == (reason is not None)
        assert found.get(RECORD, "").startswith(reason or "")
    assert "error: no such instruction" in found[RECORD]

    build("build_editable", sources, tmp_path / "editable", **cmake)
    assert (sources / extension).exists()
    build("build_editable", sources, tmp_path / "editable", **NO_COMPILER)
    assert (sources / RECORD).read_text().startswith("no C++ compiler was found\n")
    assert not (sources / extension).exists()
    with tarfile.open(build("build_sdist", sources, tmp_path / "sdist")) as archive:
        assert not [name for name in archive.getnames() if name.endswith(RECORD)]
    build("build_editable", sources, tmp_path / "editable", **cmake)
    assert (sources / extension).exists()
    assert not (sources / RECORD).exists()

    with pytest.raises(AssertionError, match="the extension could not be built: no C\\+\\+ compiler was found; install one"):
        build("build_wheel", sources, tmp_path / "wheels", **NO_COMPILER, FLOWKERN_BUILD_EXT="1")


def test_why_an_extension_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flowkern import _library

    monkeypatch.setattr(_library, "_HERE", tmp_path)

    def said(error: str = "No module named 'flowkern._C'") -> str:
        return str(_library._build_error(ImportError(error)))

    assert "(it was never built); run `pip install --no-build-isolation -e .`" in said()
    (tmp_path / "_C.cpython-39-other.so").touch()
    assert "(it was built for another Python: _C.cpython-39-other.so); run `pip install" in said()
    (tmp_path / "_build_error.txt").write_text("FLOWKERN_BUILD_EXT=0 was set when it was installed\nunset it\n")
    assert "(FLOWKERN_BUILD_EXT=0 was set when it was installed); unset it, then run `pip install" in said()
    (tmp_path / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    text = said("undefined symbol: aoti_torch_new")
    assert "(it does not load: undefined symbol: aoti_torch_new); build it again, for this torch: `pip install" in text


@pytest.mark.slow
def test_the_commands_of_the_readme_in_a_fresh_clone(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists() or "FLOWKERN_IN_CLONE" in os.environ:
        pytest.skip("not a checkout, or already in a clone")
    clone = tmp_path / "clone"
    run(["git", "clone", "-q", str(ROOT), str(clone)])
    assert "make demo" in (clone / "README.md").read_text()
    clean = {"FLOWKERN_IN_CLONE": "1", "PYTHON": sys.executable, "MAKEFLAGS": "", "MFLAGS": ""}
    clean["FLOWKERN_BUILD_CUDA"] = "0"  # minutes; the build that runs this test made them
    text = run(["make", "demo", "ARGS=--epochs 3"], clone, **clean)
    assert "log-likelihood of" in text
    assert (clone / "output" / "samples.png").exists()
    # The whole suite is what runs this test; here the command itself, on a part of it.
    assert "passed" in run(["make", "test", "ARGS=tests/test_plan.py"], clone, **clean)
