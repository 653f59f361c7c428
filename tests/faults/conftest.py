from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
for folder in ("e2e", "distributed", "unit"):  # commands.py; pair.py, ranks.py; small.py
    sys.path.append(str(TESTS / folder))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in run, two steps of it, finished. To be copied before it is changed."""
    from commands import train

    folder = tmp_path_factory.mktemp("runs") / "short"
    train(folder, "--max_steps", "2", "--refresh_index", "0", "--save_steps", "0", "--eval_answers", "false")
    return folder
