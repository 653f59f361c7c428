"""The batch scripts under Slurm itself, on two nodes of one rank each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, two_nodes, until
from commands import ROOT, lines, results
from slurm_stand_in import put_checkout

from ds_rag.runtime.launcher_env import port_of_job

TRAIN = ("--nodes=2", "launch/slurm/train.sbatch")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def stub(tmp_path) -> Path:
    """A folder to submit from, whose launch/train.py is stub_train.py."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/slurm").symlink_to(ROOT / "launch/slurm")
    (tmp_path / "launch/train.py").symlink_to(ROOT / "tests/launch/stub_train.py")
    return tmp_path


def wait_for(*found: Path, seconds: float = 60) -> None:
    until(lambda: all(path.exists() for path in found), seconds, lambda: f"none of {found}")


def test_the_ranks_of_two_nodes_meet_on_the_first(slurm, stub):
    job = slurm.submit(stub, *TRAIN)
    slurm.wait(job, "COMPLETED")
    for rank in (0, 1):
        found = json.loads((stub / f"runs/ds_rag-{job}/rank{rank}.json").read_text())
        assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("n1", str(port_of_job(job)))


def test_a_signal_before_the_time_limit_ends_in_a_requeue(slurm, stub):
    """Slurm sends it to the batch script alone, as it does here."""
    job = slurm.submit(stub, *TRAIN, "--then", "wait")
    run = stub / f"runs/ds_rag-{job}"
    wait_for(run / "starts0.txt", run / "starts1.txt")
    slurm.call("scancel", "--batch", "--signal=USR1", str(job))
    slurm.start_now(job)
    slurm.wait(job, "COMPLETED")
    assert slurm.state(job) == ("COMPLETED", 1)
    assert (run / "starts0.txt").read_text() == (run / "starts1.txt").read_text() == "start\nstart\n"
    assert "[10" in (run / "signal0.txt").read_text(), "USR1 reached the ranks"
    printed = (stub / f"{job}.out").read_text()
    assert f"runs/ds_rag-{job}: requeued" in printed, "appended to, not begun again"


def test_a_job_that_is_cancelled_is_not_requeued(slurm, stub):
    job = slurm.submit(stub, *TRAIN, "--then", "wait")
    run = stub / f"runs/ds_rag-{job}"
    wait_for(run / "starts0.txt", run / "starts1.txt")
    slurm.call("scancel", str(job))
    slurm.wait(job, "CANCELLED")
    until(lambda: not slurm.call("squeue", "--noheader"), 30, lambda: slurm.call("squeue"))
    assert slurm.state(job) == ("CANCELLED", 0)


def test_a_rank_that_fails_fails_the_job(slurm, stub):
    job = slurm.submit(stub, *TRAIN, "--then", "fail")
    slurm.wait(job, "FAILED")
    assert slurm.state(job) == ("FAILED", 0)


def test_a_sweep_is_an_array(slurm, stub):
    (stub / "sweep.txt").write_text("--seed 1\n# not this one\n--seed 2\n")
    job = slurm.submit(stub, "--array=1-2", "launch/slurm/sweep.sbatch", "sweep.txt")
    found = [stub / f"runs/sweep-{job}-{task}/rank0.json" for task in (1, 2)]
    wait_for(*found)
    until(lambda: all(file.read_text() for file in found), 10, lambda: found)
    assert [json.loads(file.read_text())["flags"][-2:] for file in found] == [["--seed", "1"], ["--seed", "2"]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by the queue", "before the time limit"])
def test_a_run_that_is_requeued_goes_on_from_its_checkpoint(slurm, tmp_path, how):
    """The queue takes it away in the middle; or Slurm warns it of its time limit: it saves, stops and asks for more."""
    place = put_checkout(tmp_path)
    flags = ["--max_steps", "12", "--save_steps", "2", "--max_eval_samples", "8", "--lm_warmup_steps", "0"]
    job = slurm.submit(place, *TRAIN, *flags, "--eval_answers", "false", "--refresh_index", "0")
    run = place / f"runs/ds_rag-{job}"
    wait_for(run / "checkpoints/step-2", seconds=180)
    if how == "by the queue":
        slurm.call("scontrol", "requeue", str(job))
    else:
        slurm.call("scancel", "--signal=USR1", "--batch", str(job))
        wait_for(run / "exit.json", seconds=60)
        assert json.loads((run / "exit.json").read_text())["reason"] == "SIGUSR1"
    slurm.start_now(job)
    slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240)
    printed = (place / f"{job}.out").read_text()
    assert slurm.state(job) == ("COMPLETED", 1), printed
    assert printed.count("resumed from") == 1 and "x 2 queries (batch x accumulation x ranks)" in printed
    steps = [line["step"] for line in lines(run)]
    assert steps == list(range(1, 13)) and results(run)["steps"] == 12
