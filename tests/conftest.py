"""Every test runs with NaN in fresh memory and with torch's deterministic algorithms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

# Where there is no GPU, Triton's interpreter runs the kernels. Read by Triton and flowkern when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import host_run
import hypothesis
import pytest

import flowkern.cuda.launch

flowkern.cuda.launch.machine = host_run.machine  # type: ignore[assignment]

hypothesis.settings.register_profile(
    "flowkern", deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("flowkern")


SAMPLE = 12  # one case in so many of the GPU kernels' stand-ins is run by `make test`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves most cases of GPU kernels that run on the CPU to `make test-all`; the longest tests come first.

    Of every proof of an operator's contract one case stays for each of its kernels. Triton's interpreter and the CUDA
    sources on the host take a hundred times as long as a kernel; who changes one runs all.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        kernels = parameters.get("kernels", "native")
        if kernels != "native" and not torch.cuda.is_available():
            proof = item.nodeid.partition("[")[0], kernels, getattr(parameters.get("case"), "name", "")
            if seen[proof] % SAMPLE:
                item.add_marker(pytest.mark.slow)
            seen[proof] += 1
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _strict_torch() -> Iterator[None]:
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the model ``saved_models.flow(0)``; a conftest.py in tests/models would hide that of tests/maps."""
    from saved_models import flow

    flow(0).save_pretrained(tmp_path)
    return tmp_path
