"""What the tests of saved models share."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved_models import flow


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the model ``flow(0)``."""
    flow(0).save_pretrained(tmp_path)
    return tmp_path
