"""Every test runs with NaN in fresh memory and with torch's deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Iterator

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests that take minutes, so that no worker is left alone with them."""
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
