"""The examples run, on small sizes, and say what they gained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "zuko_maf": "--features 5 --hidden 16 --batch 8",
    "nflows_maf": "--features 16 --hidden 64 --batch 256",
    "glasflow_maf": "--features 5 --hidden 16 --batch 8",
    "normflows_maf": "--features 5 --hidden 16 --batch 8",
    "pyro_iaf": "--features 5 --hidden 16 --batch 8",
    "pyro_vae_iaf": "--features 20 --latent 3 --hidden 16 --context 4 --batch 8",
    "sbi_npe": "--features 2 --simulations 100 --epochs 1 --samples 50",
}


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"timing", *SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_examples(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.split("_")[0])
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *SMALL[name].split()]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "times as fast" in done.stdout
    assert "accelerated" in done.stdout
