"""The Triton kernels compile for every architecture, without spills, within its limits, with its instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("compiled.py")


@pytest.mark.slow
def test_every_kernel_compiles_with_every_choice_without_a_fault(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, SCRIPT, "--cover", "1", "--json"], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["faults"] == []
    seen = {(f["facts"]["kernel"], f["architecture"]) for f in report["findings"]}
    kernels = {kernel for kernel, _ in seen}
    assert kernels == {
        "affine_forward", "affine_backward", "row_sum", "pack_kernel", "weight_gradient_kernel", "unpack_kernel",
        "actnorm_forward", "actnorm_backward", "actnorm_sums", "triangular_solve",
        "masked_mlp_forward", "masked_mlp_backward", "autoregressive_forward", "autoregressive_backward",
        "autoregressive_chain_forward", "autoregressive_chain_backward",
        "logistic_mixture_kernel", "logistic_mixture_sample_kernel", "spline_forward", "spline_backward",
        "wavenet_gates", "wavenet_gates_backward", "channel_products",
    }  # fmt: skip
    assert len(seen) == 5 * len(kernels)
    faulty = {"stack": 8, "shared": 1 << 20, "matrix": {}, "wide": 0}
    facts = {"kernel": "autoregressive_forward", "dtype": "tf32", "family": "network"}
    assert check_faults({**report["findings"][0], **faulty, "facts": facts}) == 3
    assert check_faults({**report["findings"][0], "wide": 0, "facts": {**ROWS, "dtype": "float32"}}) == 1


ROWS = {"kernel": "affine_forward", "family": "rows", "aligned": "yes", "gathered": "no"}


def check_faults(finding: dict) -> int:
    """How many faults the script finds in a finding."""
    program = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import json, compiled; " + (
        "print(len(compiled.faults(compiled.Finding(**json.load(sys.stdin)))))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    return int(subprocess.run(command, input=json.dumps(finding), env=environment, capture_output=True, text=True).stdout)
