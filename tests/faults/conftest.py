from __future__ import annotations

import sys
from pathlib import Path

import pytest
from forked import start
from small_run import SMALL, write_rows

TESTS = Path(__file__).resolve().parents[1]
for part in ("e2e", "distributed", "unit"):  # commands.py; pair.py, ranks.py; small.py
    sys.path.append(str(TESTS / part))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in run, two steps of it, finished. To be copied before it is changed."""
    from commands import train

    folder = tmp_path_factory.mktemp("runs") / "short"
    train(folder, "--max_steps", "2", "--refresh_index", "0", "--save_steps", "0", "--eval_answers", "false")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name small files: labelled rows, held-out rows, a corpus."""
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def flags(data: list[str]) -> list[str]:
    """Of a run of eight steps, a checkpoint at each second, an index at the fourth."""
    return [*SMALL.split(), *data]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> dict[str, Path]:
    """Uninterrupted runs by the number of ranks, with answers evaluated, and with accumulation; made when asked for."""
    folder = tmp_path_factory.mktemp("whole")
    kinds: dict[str, tuple[int, list[str]]] = {
        "1": (1, []),
        "2": (2, []),
        "answers": (1, ["--eval_answers", "true"]),
        "accumulation": (1, ["--gradient_accumulation_steps", "2"]),
    }

    class Lazy(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            world, more = kinds[kind]
            codes = start(["train", "--output_dir", folder / kind, *flags, *more], world).wait()
            assert codes == [0] * world
            self[kind] = folder / kind
            return self[kind]

    return Lazy()
