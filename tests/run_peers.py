"""Runs the peers' own test suites, unmodified, without and with flowkern: ``make test-peers``.

The suites come from a folder named by FLOWKERN_PEER_SOURCES (one checkout per library, named like it), else from the
source distribution of the installed version; those of Pyro and wavenet_vocoder carry no tests. Both runs start every test
from the same seed, so that tests which depend on chance take the same course: a difference is flowkern's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

# What is left out of sbi's suite: files on networks and samplers without an autoregressive layer, plots and notebooks, and
# tests that take minutes: those that it marks as slow, comparisons of posteriors (c2st), Markov chains, zuko's UNAF.
SBI_FILES = (
    "abc",
    "bm",
    "linearGaussian_vector_field",
    "plot",
    "score_samplers",
    "tutorials",
    "vector_field_nets",
    "vf_estimator",
)
SBI = ["tests", "-m", "not slow and not gpu", "-k", "not c2st and not mcmc and not unaf"]

# Library: where its tests are in the sources, and pytest's options for them.
SUITES = {
    "zuko": ["tests"],
    "nflows": ["tests", "-o", "python_files=*_test.py"],
    "normflows": ["normflows", "-o", "python_files=*_test.py"],
    "pyro-ppl": ["tests/distributions/test_transforms.py", "tests/nn/test_autoregressive.py"],
    "sbi": [*SBI, *(f"--ignore=tests/{name}_test.py" for name in SBI_FILES)],
}
# The suite of this one is written for nose and np.int, which NumPy no longer has, and its repository is ahead of the index:
# flowkern's own tests run on a checkout.
CHECKOUTS = {"wavenet_vocoder": "tests/adapters/test_wavenet_vocoder.py"}
SEED = """
import pytest, random, numpy, torch
@pytest.fixture(autouse=True)
def _flowkern_seed():
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
"""


def sources(name: str, folder: Path) -> Path | None:
    """The folder with the library's sources, downloaded where no checkout was given."""
    given = os.environ.get("FLOWKERN_PEER_SOURCES")
    if given and (Path(given) / name).is_dir():
        return Path(given).resolve() / name
    wanted = f"{name}=={metadata.version(name)}"
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    if subprocess.run([*download, "-d", str(folder), wanted], check=False).returncode:
        return None
    archive = next(folder.glob(f"{name.replace('-', '_')}-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def run(suite: list[str], root: Path, folder: Path, *plugins: str) -> tuple[dict[str, str], str]:
    """Outcome of each test, and what the plugin said at the end."""
    report = folder / "report.xml"
    (folder / "flowkern_seed.py").write_text(SEED)
    options = ["-q", "-p", "no:cacheprovider", "-p", "flowkern_seed", f"--junitxml={report}"]
    for plugin in plugins:
        options += ["-p", plugin]
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    command = [sys.executable, "-m", "pytest", *options, *suite]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(done.stdout + done.stderr)
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    report.unlink()
    said = [line for line in done.stdout.splitlines() if line.startswith("flowkern accelerated")]
    return outcomes, said[0] if said else ""


def on_checkout(name: str) -> bool:
    """Whether flowkern's own tests of a library pass on a checkout of it, if there is one."""
    root = Path(os.environ.get("FLOWKERN_PEER_SOURCES", ".")).resolve() / name
    if not root.is_dir():
        print(f"{name}: put a checkout at $FLOWKERN_PEER_SOURCES/{name}")
        return True
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", CHECKOUTS[name]]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{name}, checkout: {done.stdout.strip().splitlines()[-1]}" if done.returncode == 0 else done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    """Prints one line per library; the exit status is 1 if a test passes without flowkern and not with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", choices=[[], *SUITES, *CHECKOUTS], help="all by default")
    folder = Path("build/peers").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in parser.parse_args().libraries or [*SUITES, *CHECKOUTS]:
        if name in CHECKOUTS:
            status |= not on_checkout(name)
            continue
        root = sources(name, folder)
        if root is None or not (root / SUITES[name][0]).exists():
            print(f"{name}: no tests in its source distribution; put a checkout at $FLOWKERN_PEER_SOURCES/{name}")
            continue
        plain, _ = run(SUITES[name], root, folder)
        fast, said = run(SUITES[name], root, folder, "flowkern.adapters.pytest_plugin")
        lost = [test for test, outcome in plain.items() if outcome == "passed" and fast.get(test) != "passed"]
        passed = [sum(o == "passed" for o in outcomes.values()) for outcomes in (plain, fast)]
        version = metadata.version(name)
        print(f"{name} {version}: {passed[0]} of {len(plain)} tests pass without flowkern, {passed[1]} with it; {said}")
        if not passed[0] or not said or " 0 passed" in said:
            status = 1
            print("  this proves nothing: no test passed, or no layer was accelerated")
        for test in lost:
            status = 1
            print(f"  fails with flowkern only: {test}")
    return status


if __name__ == "__main__":
    sys.exit(main())
