"""A run that is killed in its last save or later makes no further save: what the crash left must go all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import start
from small_run import lines, same

from ds_rag.commands.verify.command import findings_of
from ds_rag.run import export
from ds_rag.runtime import atomic_folders

LAST = "step-8"
FAULTS = {
    "in pruning": "prune:0:kill:2",  # two are kept: at the third and the fourth save
    "before LATEST": "before_latest:0:kill:4",
    "in the last save": "before_rename:0:kill:4",
    "between the models": "export_model:0:kill:1",
    "in the export": "index_written:0:kill:1",
    "on the way to the places": "exchange:0:kill:6",
}


# tests/unit/run/test_export.py has every point of an export, and test_crash_safety.py every point of a save.
SLOW = ("in the export", "on the way to the places", "in the last save", "before LATEST")
PLACES = [pytest.param(place, marks=[pytest.mark.slow] * (place in SLOW)) for place in FAULTS]


@pytest.mark.parametrize("place", PLACES)
def test_goes_on_and_leaves_nothing_behind(
    tmp_path: Path, flags: list[str], whole: dict[str, Path], place: str
) -> None:
    run = tmp_path / "run"
    assert start(["train", "--output_dir", run, *flags], 1, FAULTS[place]).wait() == [-9]
    (run / "checkpoints" / f"LATEST{atomic_folders.PARTIAL}1").touch()  # as by a kill in the writing of it
    if place in ("between the models", "in the export", "on the way to the places"):
        assert lines(run, "eval", "mrr@10")[-1][0] == 8, "the last evaluation was done, and will be again"
    for _ in range(2):  # the second finds a run that has ended
        again = start(["train", "--output_dir", run, *flags, "--resume", "auto"])
        assert again.wait() == [0], again.said()
        same(run, whole["1"])  # each evaluation once, too
        every = [f for f in (run / "checkpoints").iterdir() if f.name != "LATEST"]
        assert {"step-6", LAST} <= {f.name for f in every} and not any(map(atomic_folders.damages, every))
        assert (run / "checkpoints" / "LATEST").read_text() == LAST
        assert not list(run.rglob("*.tmp*")) and not (run / export.PENDING).exists()
        assert not any(finding.wrong for finding in findings_of(run))
