"""Rows 1 to 15 of the promises in docs/reliability.md: what a crash, a full disk, a damaged file or a signal may do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from forked import start
from small_run import lines, same

from ds_rag.index.store import hash_model, read_index
from ds_rag.run.checkpoint import checkpoints
from ds_rag.runtime import atomic_folders

Whole = dict[str, Path]


def steps(run: Path) -> list[int]:
    return [int(f.name[5:]) for f in checkpoints(run)]


def resume(run: Path, flags: list[str], world: int = 1, *more: str) -> str:
    """To the end; what was said."""
    ranks = start(["train", "--output_dir", run, *flags, "--resume", "auto", *more], world)
    codes = ranks.wait()
    assert codes == [0] * world, ranks.said()
    return ranks.said()


def slow(*values: Any) -> Any:
    """A case whose ground others cover, here or in tests/unit/run/test_checkpoint.py, test_atomic_folders.py and
    tests/distributed/test_engine_state.py: run by `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("victim", [slow(0), 1])
def test_row_1_one_of_two_ranks_killed_in_a_step(tmp_path: Path, flags: list[str], whole: Whole, victim: int) -> None:
    run, began = tmp_path / "run", time.monotonic()
    ranks = start(["train", "--output_dir", run, *flags], 2, f"micro_batch:{victim}:kill:6")
    codes = ranks.wait(60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, ranks.said()
    assert time.monotonic() - began < 60 and steps(run) == [2, 4]
    assert f"rank {1 - victim} waited in vain" in ranks.said() and "step 6" in ranks.said()
    resume(run, flags, 2)
    same(run, whole["2"])


POINTS = ["save_model", "before_latest"]
POINTS += map(slow, ("save_optimizer", "before_manifest", "before_rename", "after_latest"))


@pytest.mark.parametrize("point", POINTS)
def test_row_2_killed_at_each_point_of_a_save(tmp_path: Path, flags: list[str], whole: Whole, point: str) -> None:
    run = tmp_path / "run"
    assert start(["train", "--output_dir", run, *flags], 1, f"{point}:0:kill:2").wait() == [-signal.SIGKILL]
    renamed = point in ("before_latest", "after_latest")
    assert steps(run) == ([2, 4] if renamed else [2])
    assert (run / "checkpoints" / "LATEST").read_text() == ("step-4" if point == "after_latest" else "step-2")
    said = resume(run, flags)
    assert ("never finished" in said) == (not renamed) and f"at step {4 if renamed else 2}" in said
    assert not atomic_folders.partials(run / "checkpoints")
    same(run, whole["1"])


def test_row_3_latest_never_names_an_incomplete_step(tmp_path: Path, flags: list[str]) -> None:
    run, seen = tmp_path / "run", set()
    ranks = start(["train", "--output_dir", run, *flags], 2, "save_model:1:slow:1,save_model:1:slow:3")
    while any(p.exitcode is None for p in ranks.processes):
        if (run / "checkpoints" / "LATEST").exists():
            named = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text()
            wrong = atomic_folders.damages(named)
            assert not wrong or not named.exists(), wrong  # pruned while it was looked at
            seen.add(named.name)
        time.sleep(0.02)
    assert ranks.wait() == [0, 0] and len(seen) >= 2


@pytest.mark.parametrize("point", ["index_written", "before_rename"])
def test_row_4_killed_while_an_index_is_written(tmp_path: Path, whole: Whole, point: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["1"], run)
    before = (run / "index" / "vectors.npy").read_bytes()
    argv = ["index", "--run", run, "--index_factory", "hnsw"]
    assert start(argv, 1, f"{point}:0:kill", where=tmp_path).wait() == [-signal.SIGKILL]
    stored = read_index(run / "index", hash_model(run / "retriever"))
    assert stored.manifest.factory == "Flat" and (run / "index" / "vectors.npy").read_bytes() == before
    assert start(argv, 1, where=tmp_path).wait() == [0]
    assert read_index(run / "index", hash_model(run / "retriever")).manifest.factory == "hnsw"
    assert not atomic_folders.partials(run)


@pytest.mark.parametrize("victim", [slow(0), 1])
def test_row_5_one_rank_hangs(tmp_path: Path, flags: list[str], victim: int) -> None:
    run, other, fault = tmp_path / "run", 1 - victim, f"micro_batch:{victim}:stop:6"
    ranks = start(["train", "--output_dir", run, *flags, "--collective_timeout", "0.15"], 2, fault)
    ranks.processes[other].join(60)
    said = ranks.said()
    try:
        assert ranks.processes[other].exitcode == 1, said
        assert f"rank {other} waited in vain" in said and "step 6" in said and "--resume auto" in said
        assert ranks.processes[victim].exitcode is None  # only stopped: its launcher would end it
        stacks = (run / f"stacks-rank{other}.txt").read_text()
        assert "train_step" in stacks or "all_reduce" in stacks or "Timeout" in stacks
    finally:
        ranks.end()


@pytest.mark.parametrize("kind", [slow("1"), "accumulation"])
def test_row_6_cut_in_mid_epoch_and_mid_accumulation(tmp_path: Path, flags: list[str], whole: Whole, kind: str) -> None:
    """24 rows are 12 or 6 steps an epoch. A half-done accumulation window is done again."""
    run, more = tmp_path / "run", ["--gradient_accumulation_steps", "2"] * (kind == "accumulation")
    at = 6 if kind == "1" else 12  # the second micro-batch of step 6
    assert start(["train", "--output_dir", run, *flags, *more], 1, f"micro_batch:0:kill:{at}").wait() == [-9]
    resume(run, flags, 1, *more)
    same(run, whole[kind])


ELSEWHERE = [(2, 1, "ds_configs/zero3.json"), slow(1, 2, "ds_configs/zero0.json")]
ELSEWHERE += [slow(1, 2, "ds_configs/zero3.json"), slow(2, 1, "ds_configs/zero0.json")]


@pytest.mark.parametrize(("before", "after", "stage"), ELSEWHERE)
def test_row_7_goes_on_with_other_ranks_and_another_stage(
    tmp_path: Path, flags: list[str], whole: Whole, before: int, after: int, stage: str
) -> None:
    """The same rows in the same order: two micro-batches of two rows a step, on two ranks or one after the other."""
    run, both = tmp_path / "run", ["--gradient_accumulation_steps", "2"]
    more = both if before == 1 else []
    argv = ["train", "--output_dir", run, *flags, *more]
    ranks = start(argv, before, f"step:{before - 1}:term:5")
    assert ranks.wait() == [75] * before, ranks.said()
    said = resume(run, flags, after, "--deepspeed", stage)
    assert ("the same 4 rows" in said) == (after == 1), "accumulation follows where it must"
    found, wanted = (dict(lines(folder, "train", "loss")) for folder in (run, whole["2"]))
    assert found.keys() == wanted.keys() and found == pytest.approx(wanted, rel=1e-4)


def test_row_8_ranks_that_do_not_divide_the_global_batch(tmp_path: Path, flags: list[str], whole: Whole) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["2"], run)
    ranks = start(["train", "--output_dir", run, *flags, "--max_steps", "10", "--resume", "auto"], 3)
    assert ranks.wait() == [2, 2, 2]
    assert "a step of its run has 4 rows" in ranks.said() and "1 | 2 ranks" in ranks.said()


PLACES = {
    "in a step": "micro_batch:0:term:5",
    "in an evaluation": "evaluate:0:usr1:2",
    "in an index": "encode:0:usr1:7",
    "in the first index": "encode:0:term:2",
    "in a save": "save_model:0:usr1:2,save_optimizer:0:term:2",
    "on another rank": "step:1:usr1:5",
}


QUICK_PLACES = ("in an index", "in a save", "on another rank")  # the last is in a step, too


@pytest.mark.parametrize("place", [place if place in QUICK_PLACES else slow(place) for place in PLACES])
def test_row_10_a_signal_leaves_one_checkpoint_and_75(
    tmp_path: Path, flags: list[str], whole: Whole, place: str
) -> None:
    run, kind = tmp_path / "run", {"on another rank": "2", "in an evaluation": "answers"}.get(place, "1")
    world, more = 2 if kind == "2" else 1, ["--eval_answers", "true"] * (kind == "answers")
    ranks = start(["train", "--output_dir", run, *flags, *more], world, PLACES[place])
    assert ranks.wait() == [75] * world, ranks.said()
    word = json.loads((run / "exit.json").read_text())
    assert word["requeue"] is True and word["code"] == 75 and word["reason"] in ("SIGTERM", "SIGUSR1")
    assert steps(run)[-1:] == ([word["step"]] if word["step"] else [])
    assert (word["step"] is None) == (place == "in the first index")
    assert not atomic_folders.partials(run / "checkpoints")
    resume(run, flags, world, *more)
    same(run, whole[kind])
    assert not (run / "exit.json").exists()


def test_row_10_a_signal_at_the_start_leaves_no_checkpoint(tmp_path: Path, flags: list[str], whole: Whole) -> None:
    run = tmp_path / "run"
    assert start(["train", "--output_dir", run, *flags], 1, "start:0:term").wait() == [75]
    word = json.loads((run / "exit.json").read_text())
    assert word["step"] is None and word["requeue"] is True and steps(run) == []
    resume(run, flags)
    same(run, whole["1"])


def test_row_10_a_file_named_stop_is_a_signal_too(tmp_path: Path, flags: list[str]) -> None:
    run = tmp_path / "run"
    ranks = start(["train", "--output_dir", run, *flags, "--max_steps", "2000"], 2)
    while not (run / "metrics.jsonl").exists() or not lines(run, "train", "loss"):
        time.sleep(0.05)
    (run / "STOP").touch()
    assert ranks.wait() == [75, 75]
    assert json.loads((run / "exit.json").read_text())["reason"] == "the file STOP"
    assert not (run / "STOP").exists(), "or the next start would stop at once"


def test_row_10_a_rank_lost_while_the_others_stop_is_named_as_in_a_step(tmp_path: Path, flags: list[str]) -> None:
    run = tmp_path / "run"
    ranks = start(["train", "--output_dir", run, *flags], 2, "step:0:term:5,save_model:1:kill:3")
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.said()
    assert "rank 0 waited in vain" in ranks.said() and "saving the checkpoint of step 5" in ranks.said()
    assert "Traceback" not in ranks.said() and steps(run) == [2, 4]


BEST = ["--load_best_model_at_end", "true", "--learning_rate", "1e-12"]  # the first figures stay the best


@pytest.mark.parametrize(
    ("fault", "phase"),
    [("export:1:kill", "exporting the models"), slow("load:1:kill", "the evaluation of the best step, 0")],
)
def test_row_5_a_rank_lost_after_the_last_step_is_named_as_what_it_was_lost_in(
    tmp_path: Path, flags: list[str], fault: str, phase: str
) -> None:
    more = BEST if "load" in fault else []
    ranks = start(["train", "--output_dir", tmp_path / "run", *flags, "--max_steps", "2", *more], 2, fault)
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.said()
    assert f"rank 0 waited in vain for another rank, in: {phase}" in ranks.said()


def test_row_5_a_rank_lost_in_another_command_is_named_too(tmp_path: Path, whole: Whole) -> None:
    ranks = start(["evaluate", "--run", whole["1"]], 2, "encode:1:kill:1", where=tmp_path)
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.said()
    assert "rank 0 waited in vain for another rank, in: ds-rag evaluate" in ranks.said()
    assert "Traceback" not in ranks.said()


@pytest.mark.parametrize("rank", [slow(0), 1])
def test_row_12_a_full_disk_on_one_rank(tmp_path: Path, flags: list[str], rank: int, whole: Whole) -> None:
    run = tmp_path / "run"
    ranks = start(["train", "--output_dir", run, *flags], 2, f"save_optimizer:{rank}:full:2")
    assert ranks.wait() == [1, 1]
    assert "No space left on device" in ranks.said() and "could not be saved" in ranks.said()
    assert f"rank {rank}" in ranks.said()
    assert steps(run) == [2] and not atomic_folders.damages(run / "checkpoints" / "step-2")
    resume(run, flags, 2)
    same(run, whole["2"])


@pytest.mark.parametrize("point", [slow("begin"), "before_latest"])
def test_row_12_a_full_disk_where_rank_0_writes_alone(tmp_path: Path, flags: list[str], point: str) -> None:
    run = tmp_path / "run"
    ranks = start(["train", "--output_dir", run, *flags], 2, f"{point}:0:full:2")
    assert ranks.wait(60) == [1, 1], ranks.said()
    assert "could not be saved" in ranks.said() and "waited in vain" not in ranks.said()
    assert "No space left on device" in ranks.said() and "Traceback" not in ranks.said()
    assert steps(run) == ([2] if point == "begin" else [2, 4]) and not atomic_folders.partials(run / "checkpoints")
    assert all(not atomic_folders.damages(folder) for folder in checkpoints(run))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_row_12_a_disk_that_is_really_full(tmp_path: Path, flags: list[str]) -> None:
    run, disk = tmp_path / "run", tmp_path / "run" / "checkpoints"
    with small_disk(disk, "20m"):
        ranks = start(["train", "--output_dir", run, *flags, "--resume", "auto"], 1)
        assert ranks.wait() == [1], ranks.said()
        assert "could not be saved" in ranks.said() and "is complete" in ranks.said()
        assert steps(run) and all(not atomic_folders.damages(folder) for folder in checkpoints(run))
        assert not atomic_folders.partials(disk)


@pytest.mark.parametrize("size", ["4k", slow("64k"), "20m"])
def test_row_12_a_disk_of_the_run_that_is_really_full(tmp_path: Path, flags: list[str], size: str) -> None:
    """From the first file on, at some place, in the checkpoints: the log too has no room."""
    run = tmp_path / "run"
    with small_disk(run, size):
        ranks = start(["train", "--output_dir", run, *flags, "--resume", "auto"], 1)
        assert ranks.wait() == [1], ranks.said()
        assert "No space left on device" in ranks.said() and "Traceback" not in ranks.said()
        assert "to fix" in ranks.said() and str(run) in ranks.said()
        assert all(not atomic_folders.damages(folder) for folder in checkpoints(run))


@pytest.mark.parametrize("size", ["4k", "36k"])
def test_row_12_no_room_for_an_index(tmp_path: Path, whole: Whole, size: str) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, size):
        ranks = start(["index", "--run", whole["1"], "--out", disk / "index"], where=tmp_path)
        assert ranks.wait() == [1], ranks.said()
        assert "No space left on device" in ranks.said() and "Traceback" not in ranks.said()
        assert "to fix" in ranks.said() and not (disk / "index").exists() and not atomic_folders.partials(disk)


FILES = {
    "weights": "retriever/rank0000-0000.safetensors",
    "numbers": "generator/numbers.json",
    "state": "state.json",
    "random states": "random-rank0.safetensors",
    "manifest": "manifest.json",
}
HARM = {
    "flipped": lambda f: f.write_bytes(flip(f.read_bytes())),
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-9]),
    "deleted": lambda f: f.unlink(),
}


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


DAMAGED = [("weights", "flipped"), slow("manifest", "deleted"), slow("manifest", "flipped")]
DAMAGED += [slow("state", "truncated"), slow("numbers", "deleted"), slow("random states", "flipped")]


@pytest.mark.parametrize(("what", "how"), DAMAGED)
def test_row_13_a_damaged_checkpoint(tmp_path: Path, flags: list[str], whole: Whole, what: str, how: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["1"], run)
    file = run / "checkpoints" / "step-8" / FILES[what]
    HARM[how](file)
    verdict = start(["verify", run, "--json", tmp_path / "found.json"], where=tmp_path)
    assert verdict.wait() == [1] and FILES[what] in verdict.said() and "step-6" in verdict.said()
    assert json.loads((tmp_path / "found.json").read_text())["sound"] is False
    explicit = start(
        ["train", "--output_dir", tmp_path / "other", *flags, "--resume", file.parents[FILES[what].count("/")]]
    )
    assert explicit.wait() == [2]
    assert FILES[what] in explicit.said() and "expected" in explicit.said()
    assert what == "manifest" or "sha256" in explicit.said() or "bytes" in explicit.said()
    said = resume(run, flags)
    assert "damaged and passed over" in said and FILES[what] in said and "at step 6" in said
    same(run, whole["1"])


BAD_FILES = dict(zip(("index.faiss", "texts.jsonl", "manifest.json"), HARM, strict=True))  # the others are slow
BAD_PAIRS = [pair if pair in BAD_FILES.items() else slow(*pair) for pair in product(BAD_FILES, HARM)]


@pytest.mark.parametrize(("name", "how"), BAD_PAIRS)
def test_row_13_a_damaged_index(tmp_path: Path, whole: Whole, name: str, how: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["1"], run)
    HARM[how](run / "index" / name)
    asked = start(["ask", run, "who?"], where=tmp_path)
    assert asked.wait() == [2]
    assert name in asked.said() and "ds-rag index" in asked.said()


def test_row_28_a_damaged_faiss_file_is_not_read_and_can_be_made_again(tmp_path: Path, whole: Whole) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["1"], run)
    vectors = (run / "index" / "vectors.npy").read_bytes()
    file = run / "index" / "index.faiss"
    file.write_bytes(flip(file.read_bytes()))
    asked = start(["ask", run, "who?"], where=tmp_path)
    assert asked.wait() == [2] and "index.faiss: found sha256" in asked.said()
    assert start(["index", "--run", run], where=tmp_path).wait() == [0], "its passages are sound, and so is the model"
    assert (run / "index" / "vectors.npy").read_bytes() == vectors
    assert start(["ask", run, "who?"], where=tmp_path).wait() == [0]


def test_row_14_a_path_that_holds_none(tmp_path: Path, flags: list[str]) -> None:
    ranks = start(["train", "--output_dir", tmp_path / "run", *flags, "--resume", tmp_path])
    assert ranks.wait() == [2] and "no checkpoint there" in ranks.said()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


CHANGES: dict[str, list[str]] = {
    "settings": ["--candidates", "3"],
    "lengths": ["--max_passage_length", "16"],
    "objective": ["--objective", "rag_token"],
}


# Every field by itself: tests/unit/run/test_resume_rules.py.
@pytest.mark.parametrize("what", ["rows", *map(slow, ("settings", "lengths", "objective", "held-out rows"))])
def test_row_15_what_has_changed_since(tmp_path: Path, flags: list[str], whole: Whole, what: str) -> None:
    run, now = tmp_path / "run", [*flags, *CHANGES.get(what, [])]
    shutil.copytree(whole["1"], run)
    if what not in CHANGES:
        place = now.index("--train_data" if what == "rows" else "--eval_data") + 1
        other = tmp_path / "other.jsonl"
        other.write_text("".join(reversed(Path(now[place]).read_text().splitlines(keepends=True))))
        now[place] = str(other)
    argv: list[Any] = ["train", "--output_dir", run, *now, "--resume", "auto", "--max_steps", "9"]
    refused = start(argv)
    assert refused.wait() == [2]
    assert "the checkpoint of another run" in refused.said() and "--resume_changed" in refused.said()
    told = {"rows": "the token ids differ", "held-out rows": "held-out rows: they differ"}
    assert (told[what] if what in told else CHANGES[what][1]) in refused.said()
    forced = start([*argv, "--resume_changed", "true"])
    assert forced.wait() == [0] and "although the following has changed" in forced.said()
    assert "the learning rate follows it" in forced.said()


def test_row_15_the_weights_of_a_frozen_model_have_changed(tmp_path: Path, flags: list[str], whole: Whole) -> None:
    """No checkpoint holds those, so its files tell nothing."""
    from safetensors.torch import load_file, save_file

    run, folder = tmp_path / "run", tmp_path / "encoder"
    shutil.copytree(whole["1"] / "retriever", folder)
    argv = ["train", "--output_dir", run, *flags, "--retriever", folder, "--freeze", "retriever"]
    assert start(argv, 1, "step:0:term:3").wait() == [75]
    file = folder / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    refused = start([*argv, "--resume", "auto"])
    assert refused.wait() == [2] and "--retriever: the weights in that folder have changed" in refused.said()


def deepspeed_file(folder: Path, **values: int) -> list[str]:
    file = folder / "batch.json"
    file.write_text(json.dumps(json.loads(Path("ds_configs/zero2.json").read_text()) | values))
    return ["--deepspeed", str(file)]


def without(flags: list[str], name: str) -> list[str]:
    at = flags.index(name)
    return flags[:at] + flags[at + 2 :]


def test_row_7_what_a_deepspeed_file_says_of_the_batch_holds_when_it_goes_on(
    tmp_path: Path, flags: list[str], whole: Whole
) -> None:
    run = tmp_path / "run"
    flags = without(flags, "--per_device_train_batch_size")
    more = deepspeed_file(tmp_path, train_micro_batch_size_per_gpu=2)
    assert start(["train", "--output_dir", run, *flags, *more], 1, "step:0:term:5").wait() == [75]
    resume(run, flags, 1, *more)
    same(run, whole["1"])


def test_row_8_ranks_that_a_deepspeed_file_s_accumulation_does_not_allow(
    tmp_path: Path, flags: list[str], whole: Whole
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["2"], run)
    argv = ["train", "--output_dir", run, *flags, *deepspeed_file(tmp_path, gradient_accumulation_steps=1)]
    refused = start([*argv, "--max_steps", "10", "--resume", "auto"])
    assert refused.wait() == [2]
    assert "a step of its run has 4 rows" in refused.said() and "with 2 a rank, 2 ranks" in refused.said()


def test_a_run_that_stopped_early_does_not_go_on_when_it_is_resumed(tmp_path: Path, flags: list[str]) -> None:
    run = tmp_path / "run"
    flags = [*flags, "--early_stopping_patience", "1", "--refresh_index", "1", "--learning_rate", "1e-9"]
    assert start(["train", "--output_dir", run, *flags]).wait() == [0]
    before = lines(run, "train", "loss")
    assert len(before) < 8
    assert "stopped early" in resume(run, flags)
    assert lines(run, "train", "loss") == before


def test_a_run_that_goes_back_goes_on_from_there(tmp_path: Path, flags: list[str], whole: Whole) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["1"], run)
    (kept,) = {6, 8} & set(steps(run)) - {8}
    argv = ["train", "--output_dir", run, *flags, "--resume", run / "checkpoints" / f"step-{kept}"]
    ranks = start(argv, 1, "step:0:term:1")
    assert ranks.wait() == [75] and "is not what the run resumes from" in ranks.said()
    assert steps(run) == [kept, kept + 1]
    assert f"at step {kept + 1}" in resume(run, flags)
    same(run, whole["1"])


@pytest.mark.parametrize("how", ["flipped", slow("truncated"), slow("deleted")])
def test_row_13_a_damaged_best_checkpoint_is_not_exported(tmp_path: Path, flags: list[str], how: str) -> None:
    run = tmp_path / "run"
    # The figures before training are never beaten by a step that changes nothing: the best step is the first.
    flags = [*flags, "--load_best_model_at_end", "true", "--learning_rate", "1e-12"]
    assert start(["train", "--output_dir", run, *flags], 1, "step:0:term:5").wait() == [75]
    assert 0 in steps(run)
    HARM[how](run / "checkpoints" / "step-0" / FILES["weights"])
    ranks = start(["train", "--output_dir", run, *flags, "--resume", "auto"])
    assert ranks.wait() == [2], ranks.said()
    assert "step-0: damaged" in ranks.said() and "--load_best_model_at_end false" in ranks.said()
    assert not (run / "results.json").exists() and 8 in steps(run)
