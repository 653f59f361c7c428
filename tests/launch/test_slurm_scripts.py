"""The batch scripts, run by stand-ins for srun and scontrol. test_slurm.py has the same under Slurm itself."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, execute, lines, results
from slurm_stand_in import JOB, job, put_checkout, put_stand_ins

from ds_rag.runtime.launcher_env import port_of_job

SCRIPTS = sorted((ROOT / "launch/slurm").iterdir())
FEW = ["--max_steps", "3", "--max_eval_samples", "8", "--lm_warmup_steps", "0", "--save_steps", "2"]


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck on PATH")
    assert len(SCRIPTS) == 5
    execute(["shellcheck", "--external-sources", *SCRIPTS])


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sbatch"], ids=lambda s: s.name)
def test_without_sbatch_a_script_says_so(script):
    assert "this is a script for sbatch" in execute(["bash", script], code=1).stderr


class Place:
    """A folder to submit from."""

    def __init__(self, folder: Path):
        self.folder, self.stand_ins = folder, put_stand_ins(folder / "bin")

    def submit(self, script: str, *flags: str | Path, code: int = 0, tasks: int = 2, **more: str) -> str:
        """What the job printed, errors included."""
        env = job(self.folder, self.stand_ins, tasks, **more)
        done = execute(["bash", ROOT / "launch/slurm" / script, *flags], code, self.folder, env=env)
        return done.stdout + done.stderr

    def seen(self, run: str, rank: int = 0) -> dict:
        return json.loads((self.folder / run / f"rank{rank}.json").read_text())

    @property
    def told(self) -> str:
        """What scontrol was told."""
        file = self.stand_ins / "scontrol.txt"
        return file.read_text() if file.exists() else ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Place, Path, str]:
    """The built-in run by train.sbatch on two ranks."""
    place = Place(put_checkout(tmp_path_factory.mktemp("place")))
    printed = place.submit("train.sbatch", *FEW)
    return place, place.folder / f"runs/ds_rag-{JOB}", printed


def test_two_ranks_train_together(trained):
    _, run, printed = trained
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert "x 2 queries (batch x accumulation x ranks)" in printed and printed.count("loading libraries") == 1
    assert (run / "run-rank1.log").exists() and (run / "checkpoints/step-2").is_dir()


@pytest.mark.slow
def test_a_job_that_starts_again_goes_on(trained):
    place, run, _ = trained
    assert "resumed from" in place.submit("train.sbatch", *FEW, "--max_steps", "5", SLURM_RESTART_COUNT="1")
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]


def test_two_ranks_evaluate_as_the_run_did(trained, tmp_path):
    place, run, _ = trained
    printed = place.submit("evaluate.sbatch", "--run", run, "--json", tmp_path / "scores.json")
    assert printed.count("8 queries against 1600 passages") == 1, "one rank speaks"
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["retrieval"] | found["answers"] == pytest.approx(results(run)["after"], abs=1e-6)


@pytest.mark.slow
def test_two_ranks_write_the_index_that_the_run_has(trained, tmp_path):
    place, run, _ = trained
    printed = place.submit("index.sbatch", "--run", run, "--out", tmp_path / "index")
    assert printed.count("1600 passages of") == 1, "one rank speaks"
    for name in ("ids.json", "manifest.json", "texts.jsonl"):
        assert (tmp_path / "index" / name).read_text() == (run / "index" / name).read_text()
    np.testing.assert_array_equal(np.load(tmp_path / "index/vectors.npy"), np.load(run / "index/vectors.npy"))


def test_a_mistake_is_told_once_and_not_retried(trained):
    place, _, _ = trained
    printed = place.submit("train.sbatch", "--max_stepps", "3", code=2)
    assert printed.count("did you mean --max_steps") == 1 and not place.told


@pytest.fixture
def stub(tmp_path) -> Place:
    """A place whose launch/train.py is stub_train.py."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/slurm").symlink_to(ROOT / "launch/slurm")
    (tmp_path / "launch/train.py").symlink_to(ROOT / "tests/launch/stub_train.py")
    return Place(tmp_path)


def test_what_the_script_tells_the_ranks(stub):
    stub.submit("train.sbatch", "--seed", "1", SLURM_CPUS_PER_TASK="6")
    run = f"runs/ds_rag-{JOB}"
    for rank in (0, 1):
        assert stub.seen(run, rank) == {
            "flags": ["--resume", "auto", "--output_dir", run, "--seed", "1"],
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port_of_job(JOB)),
            "OMP_NUM_THREADS": "6",
        }


@pytest.mark.parametrize("flags", [["--output_dir", "runs/my own"], ["--output_dir=runs/my own"]])
def test_the_users_folder_wins(stub, flags):
    stub.submit("train.sbatch", *flags, "--then", "file", code=1)
    assert stub.seen("runs/my own")["flags"][4:] == [*flags, "--then", "file"]
    assert stub.told == f"requeue {JOB}\n", "its exit.json is the one that is read"


def test_the_name_of_a_job_is_no_path(stub):
    stub.submit("train.sbatch", SLURM_JOB_NAME="../a b")
    assert (stub.folder / f"runs/.._a_b-{JOB}/rank1.json").exists()


def test_gpus_without_a_task_are_noticed(stub):
    assert "sbatch --ntasks-per-node 4" in stub.submit("train.sbatch", SLURM_GPUS_ON_NODE="4")
    assert "note" not in stub.submit("train.sbatch", SLURM_GPUS_ON_NODE="2")


@pytest.mark.parametrize(
    ("then", "code", "starts", "told"),
    [
        ("end", 0, "0", ""),
        ("fail", 3, "0", ""),
        ("stop", 75, "0", f"requeue {JOB}\n"),
        ("stop", 75, "4", f"requeue {JOB}\n"),
        ("stop", 75, "5", ""),
        ("file", 1, "0", f"requeue {JOB}\n"),
    ],
)
def test_a_job_goes_back_into_the_queue_where_the_run_wants_it_and_not_for_ever(stub, then, code, starts, told):
    printed = stub.submit("train.sbatch", "--then", then, code=code, SLURM_RESTART_COUNT=starts)
    assert stub.told == told
    assert ("requeued" in printed) == bool(told) and ("after 6 starts" in printed) == (starts == "5")


def test_the_users_bound_on_requeueing(stub):
    stub.submit("train.sbatch", "--then", "stop", code=75, DS_RAG_MAX_REQUEUES="0")
    assert stub.told == ""


def test_the_exit_file_of_an_earlier_start_counts_no_more(stub):
    run = stub.folder / f"runs/ds_rag-{JOB}"
    run.mkdir(parents=True)
    (run / "exit.json").write_text('{"requeue": true}')
    stub.submit("train.sbatch", "--then", "fail", code=3)
    assert stub.told == ""


@pytest.mark.parametrize(("sent", "told"), [("USR1", f"requeue {JOB}\n"), ("TERM", "")])
def test_a_signal_to_the_script_reaches_the_ranks(stub, sent, told):
    """USR1 comes before the time limit: the run goes on later. Who sends TERM has decided on that."""
    command = ["bash", "launch/slurm/train.sbatch", "--then", "wait"]
    env = job(stub.folder, stub.stand_ins, 2)
    batch = subprocess.Popen(command, cwd=stub.folder, env=env, stdout=subprocess.PIPE, text=True)
    run = stub.folder / f"runs/ds_rag-{JOB}"
    wait_for(*(run / f"starts{rank}.txt" for rank in (0, 1)))
    batch.send_signal(getattr(signal, f"SIG{sent}"))
    printed, _ = batch.communicate(timeout=60)
    assert batch.returncode == 75 and stub.told == told, printed
    assert [(run / f"signal{rank}.txt").read_text() for rank in (0, 1)] == [f"[{signal.SIGUSR1.value}]"] * 2


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.05)


SWEEP = """# learning rates
--learning_rate 1e-4 --seed 1

--prompt_template "{query} of 'it': " --seed 2
"""


def array(task: int) -> dict[str, str]:
    ids = {"SLURM_ARRAY_JOB_ID": "31200", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(31200 + task)}
    return {"SLURM_JOB_NAME": "sweep", **ids}


def test_each_task_of_a_sweep_trains_one_line_of_the_file(stub):
    (stub.folder / "sweep.txt").write_text(SWEEP)
    lines_of = {1: ["--learning_rate", "1e-4", "--seed", "1"]}
    lines_of[2] = ["--prompt_template", "{query} of 'it': ", "--seed", "2"]
    for task, flags in lines_of.items():
        stub.submit("sweep.sbatch", "sweep.txt", "--seed", "9", **array(task))
        run = f"runs/sweep-31200-{task}"
        found = stub.seen(run, rank=1)
        assert found["flags"] == ["--resume", "auto", "--output_dir", run, "--seed", "9", *flags]
        assert found["MASTER_PORT"] == str(port_of_job(31200 + task)), "tasks on one node do not meet"


@pytest.mark.parametrize(
    ("file", "task", "says", "code"),
    [
        (SWEEP, 3, "has no line 3; sbatch --array=1-2", 2),
        ('--seed "1', 1, "unmatched double quote", 1),
        (None, 1, "sweep.txt", 2),
    ],
    ids=["no such line", "a quote without its other half", "no file"],
)
def test_a_mistake_in_a_sweep(stub, file, task, says, code):
    if file:
        (stub.folder / "sweep.txt").write_text(file)
    assert says in stub.submit("sweep.sbatch", "sweep.txt", code=code, **array(task))
    assert not (stub.folder / "runs").exists()
