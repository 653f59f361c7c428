"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a mistyped path in a test asks no hub; hub_stand_in.py serves its own


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data beside the repository; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
