"""Which environment makes a rank of a process, and which does not. The SLURM_* are those that Slurm 22.05 sets."""

from __future__ import annotations

import os
import resource
import sys

import pytest

from ds_rag.commands import cli, train
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.launcher_env import (
    adopt_srun,
    allow_open_files,
    check_launch,
    from_srun,
    port_of_job,
    set_launch_defaults,
    tasks_per_node,
)

ALLOCATION = {"SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS": "3"}
ALLOCATION |= {"SLURM_TASKS_PER_NODE": "2,1"}
BATCH = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = ALLOCATION | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "3"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "2,1", "MASTER_ADDR": "n1", "MASTER_PORT": "20001"}
TASKS = [
    STEP | {"SLURM_PROCID": procid, "SLURM_LOCALID": localid, "SLURM_NODEID": nodeid}
    for procid, localid, nodeid in (("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"))
]
ONE_NODE = TASKS[1] | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def without_address(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if not k.startswith("MASTER_")}


@pytest.fixture
def environment(monkeypatch):
    """Makes the process's environment one of the above, and puts it back."""

    def put(env: dict[str, str]) -> None:
        for name in os.environ:
            if name.startswith("SLURM_") or name in OURS:
                monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        for name in OURS:  # what the test's subject sets is taken back too
            if name not in env:
                monkeypatch.setenv(name, "")
                monkeypatch.delenv(name)

    return put


def test_each_task_of_a_step_is_a_rank():
    found = [from_srun(env) for env in TASKS]
    assert found == [
        {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ]


INHERITED = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
ALONE = {
    "no Slurm at all": {},
    "a batch script's shell": BATCH,
    "a shell of salloc": ALLOCATION,
    "a step of one task": TASKS[0] | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "an interactive step": BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
    "a batch script submitted from a step of another job": INHERITED,
}


@pytest.mark.parametrize("env", ALONE.values(), ids=ALONE)
def test_what_is_no_step_of_several_tasks_is_a_world_of_one(env, environment):
    assert from_srun(env) == {}
    environment(env)
    set_launch_defaults()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == list("0101")


def test_what_torchrun_starts_within_a_step_keeps_its_own_rank(environment):
    own = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert from_srun(TASKS[2] | own) == {}
    environment(TASKS[2] | own)
    set_launch_defaults()
    assert {name: os.environ[name] for name in own} == own


def test_a_world_of_one_does_not_wait_at_the_address_of_others(environment):
    """Steps of one task beside each other in one job have its MASTER_ADDR and MASTER_PORT in their environment."""
    environment(BATCH | {"MASTER_ADDR": "n1", "MASTER_PORT": "20001"})
    set_launch_defaults()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and os.environ["MASTER_PORT"] != "20001"


def test_the_ranks_of_a_job_meet_where_its_script_says(environment):
    environment(TASKS[2])
    adopt_srun()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("n1", "20001")


def test_the_ranks_of_one_node_need_no_script(environment):
    environment(without_address(ONE_NODE))
    adopt_srun()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", str(port_of_job(31234)))


def test_several_nodes_without_an_address_are_a_mistake_that_one_rank_tells(environment, capsys):
    for env in TASKS:
        environment(without_address(env))
        with pytest.raises(UserError, match="no address"):
            adopt_srun()
        environment(without_address(env))
        assert cli.main(["evaluate", "--run", "x"]) == 2
    told = capsys.readouterr().err
    assert told.count("no address") == told.count("n[1-2]") == told.count("export MASTER_ADDR=") == 1


def test_the_port_is_stable_and_differs_between_neighbouring_jobs():
    ports = [port_of_job(job) for job in (1, 2, 31234, 31234 + 1, 4_000_000)]
    assert len(set(ports)) == 5 and all(20000 <= port < 32000 for port in ports)
    assert port_of_job(31234) == ports[2]


@pytest.mark.parametrize(
    ("text", "counts"), [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,8(x2)", [4, 8, 8]), ("16(x12)", [16] * 12)]
)
def test_tasks_per_node_written_out(text, counts):
    assert tasks_per_node(text) == counts


def test_the_command_line_knows_its_rank_before_it_claims_a_folder(environment, monkeypatch, tmp_path):
    environment(TASKS[2])
    monkeypatch.chdir(tmp_path)
    seen = {}
    monkeypatch.setattr(train, "capture", lambda folder, rank: seen.update(rank=rank) or sys.exit(7))
    with pytest.raises(SystemExit):
        cli.main(["train", "--output_dir", "run"])
    assert seen == {"rank": 2} and not (tmp_path / "run").exists()


def test_of_the_ranks_under_srun_one_tells_the_user(environment, capsys):
    for env in TASKS:
        environment(env)
        assert cli.main(["evaluate", "--jason", "x"]) == 2
    assert capsys.readouterr().err.count("did you mean --json") == 1


@pytest.mark.parametrize(
    ("env", "processes"),
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun
        ({"WORLD_SIZE": "8", "LOCAL_SIZE": "2"}, 2),  # deepspeed --hostfile
        ({"WORLD_SIZE": "8"}, 8),
        ({}, 1),
    ],
)
def test_processes_on_this_host(env, processes, environment):
    environment(env)
    assert collectives.local_world() == processes


@pytest.mark.parametrize(
    ("local", "visible", "gpu"),
    [(0, 4, 0), (3, 4, 3), (1, 1, 0), (3, 1, 0)],
    ids=["first of all", "last of all", "sees only its own", "sees only its own, fourth task"],
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_it_sees(local, visible, gpu):
    assert collectives.own_gpu(local, visible) == gpu


HOME = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
PAIR = HOME | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
WRONG = [
    *(({**PAIR, name: text}, f"{name}={text!r}") for name in NUMBERS for text in ("x", "", "-1", "1.0", " 1", "٣")),
    ({**PAIR, "LOCAL_SIZE": "two"}, "LOCAL_SIZE='two'"),
    ({**PAIR, "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
    ({**PAIR, "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
    ({**PAIR, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below 2"),
    ({**PAIR, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 is more than WORLD_SIZE=2"),
    ({**PAIR, "MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port"),
    ({**PAIR, "MASTER_ADDR": ""}, "WORLD_SIZE=2 without MASTER_ADDR"),
    ({"RANK": "1"}, "RANK=1 without WORLD_SIZE"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT"),
    ({**STEP, "SLURM_PROCID": "0"}, "SLURM_NODEID"),
    ({**TASKS[0], "SLURM_NODEID": "one"}, "one"),
]


@pytest.mark.parametrize(("env", "named"), WRONG, ids=[named for _, named in WRONG])
def test_variables_that_cannot_be_right_are_named_by_each_that_has_them(env, named, environment, capsys):
    """Whatever its rank: which of them is the first is just what is not known."""
    environment(env)
    assert cli.main(["evaluate", "--run", "x"]) == 2
    told = capsys.readouterr().err
    assert named in told and "to fix" in told and "Traceback" not in told


RIGHT = {
    "nothing": {},
    "torchrun": PAIR,
    "deepspeed": HOME | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"},
    "by hand": HOME | {"RANK": "0", "WORLD_SIZE": "2"},
    "a world of one by hand": {"RANK": "0", "WORLD_SIZE": "1"},
    "an address of others": HOME,
    "more ranks on another host": HOME | {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("env", RIGHT.values(), ids=RIGHT)
def test_variables_as_launchers_set_them(env):
    check_launch(env)


def test_a_world_of_one_that_was_given_no_address_makes_its_own(environment):
    environment({"RANK": "0", "WORLD_SIZE": "1"})
    set_launch_defaults()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and int(os.environ["MASTER_PORT"]) > 0


UNLIMITED = resource.RLIM_INFINITY
LIMITS = [
    ((24, 24), "1", None),
    ((24, 50), "1", None),
    ((24, 100), "1", 100),
    ((256, 1 << 20), "1", 4096),
    ((256, UNLIMITED), "1", 4096),
    ((8192, 8192), "1", 8192),
    ((UNLIMITED, UNLIMITED), "1", UNLIMITED),
    ((24, 100), "8", None),
]


@pytest.mark.parametrize(("limits", "world", "wanted"), LIMITS)
def test_the_limit_on_open_files_is_raised_or_told(monkeypatch, limits, world, wanted):
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda which: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: now.append(pair))
    if wanted is None:
        with pytest.raises(UserError, match="too few files") as caught:
            allow_open_files({"WORLD_SIZE": world})
        assert "ulimit -n" in str(caught.value)
    else:
        allow_open_files({"WORLD_SIZE": world})
        assert now[-1] == (wanted, limits[1])


@pytest.mark.parametrize("argv", [["train"], ["evaluate", "--run", "x"], ["index", "--run", "x"]])
def test_too_few_open_files_are_told_before_the_work(argv, environment, capsys, monkeypatch, tmp_path):
    environment({})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (24, 24))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: None)
    assert cli.main(argv) == 2
    assert "`ulimit -n` is 24" in capsys.readouterr().err and not list(tmp_path.iterdir())
