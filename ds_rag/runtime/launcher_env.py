"""The environment variables of the launcher: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

torchrun and the `deepspeed` launcher set them. Under Slurm's `srun` they are read from SLURM_*, and without any of
these the world is this one process. Imports no torch: the command line needs its rank before it loads the libraries.
"""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Mapping

from ds_rag.runtime.errors import LaunchError, UserError

# The variables that are numbers, with the least value of each.
NUMBERS = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 1}
FILES, FILES_PER_RANK = 64, 8  # open at once: 35 were seen in a process alone; ranks have connections to each other
COMFORT = 4096  # the limit is raised to this where allowed
PORTS = range(20000, 32000)  # services are below, the ports that outgoing connections take begin at 32768


def set_launch_defaults() -> None:
    """Fills in what a launcher would have set, so that plain `python launch/train.py` is a world of one.

    A world of one needs no address: one in its environment, as in a batch job, is for other processes.
    """
    adopt_srun()
    given = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if given and (os.environ["WORLD_SIZE"] != "1" or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()):
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in single.items()} | {"MASTER_ADDR": "127.0.0.1"})


def check_launch(env: Mapping[str, str]) -> None:
    """Raises LaunchError if these variables are not numbers, or contradict each other. To be called before any of them
    is used."""
    number, wrong = {}, []
    for name, least in NUMBERS.items():
        if name in env and re.fullmatch("[0-9]{1,9}", env[name]) and int(env[name]) >= least:
            number[name] = int(env[name])
        elif name in env:
            wrong.append(f"{name}={env[name]!r} is no whole number from {least} on")
    world, rank = number.get("WORLD_SIZE", 1), number.get("RANK")
    here = number.get("LOCAL_WORLD_SIZE", number.get("LOCAL_SIZE", world))
    if not wrong:
        if "WORLD_SIZE" not in env and rank:
            wrong.append(f"RANK={rank} without WORLD_SIZE")
        elif rank is not None and rank >= world:
            wrong.append(f"RANK={rank} is not below WORLD_SIZE={world}")
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
        if world > 1 and missing:
            wrong.append(f"WORLD_SIZE={world} without {', '.join(missing)}")
        if here > world:
            wrong.append(f"LOCAL_WORLD_SIZE={here} is more than WORLD_SIZE={world}")
        if rank is not None and number.get("LOCAL_RANK", 0) >= here:
            wrong.append(f"LOCAL_RANK={number['LOCAL_RANK']} is not below {here}, the ranks of this host")
        if number.get("MASTER_PORT", 1) > 65535:
            wrong.append(f"MASTER_PORT={number['MASTER_PORT']} is no port")
    if wrong:
        raise LaunchError(
            "the variables by which a launcher tells a process its rank cannot be right",
            found="; ".join(wrong),
            expected="all of them as torchrun, deepspeed or srun set them, or none",
            fix=f"start by one of these; for a single process: unset {' '.join([*NUMBERS, 'MASTER_ADDR'])}",
        )


def allow_open_files(env: Mapping[str, str]) -> None:
    """Raises the soft limit on open files as far as the hard limit allows. Raises UserError if that is too low: the
    later errors seldom name the cause."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < COMFORT:
        soft = COMFORT if hard == resource.RLIM_INFINITY else max(soft, min(COMFORT, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    least = FILES + FILES_PER_RANK * int(env.get("WORLD_SIZE", 1))
    if soft != resource.RLIM_INFINITY and soft < least:
        raise UserError(
            "too few files may be open at once",
            found=f"`ulimit -n` is {soft}, and may not be raised",
            expected=f"{least} or more",
            fix=f"ulimit -Hn {COMFORT} before the command, in a shell that may; or ask who set the limit",
        )


def adopt_srun() -> None:
    """Makes one of several tasks of `srun` a rank. Raises UserError if the tasks have no address at which to meet."""
    try:
        ranks = from_srun(os.environ)
    except (KeyError, ValueError, IndexError) as error:
        raise LaunchError("Slurm's variables of this step are not whole", found=repr(error), fix="srun ...") from None
    os.environ.update(ranks)  # first, so that only one of the ranks reports a mistake
    if ranks:
        os.environ.update(meeting_point(os.environ))


def from_srun(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would have set, for one of several tasks that `srun` started; else empty.

    Only a step has several ranks. A batch script's own shell also has SLURM_PROCID (0) and SLURM_NTASKS (the job's),
    and a shell of salloc has SLURM_NTASKS, but neither is in a step: they have no SLURM_STEP_ID. A job submitted from
    within another job's step inherits that step's SLURM_STEP_*; SLURM_NTASKS is its own, so the two differ. What
    torchrun or deepspeed start within a step has a RANK of its own.
    """
    world = env.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" not in env or world == "1" or env.get("SLURM_NTASKS", world) != world:
        return {}
    if "RANK" in env and "WORLD_SIZE" in env:
        return {}
    here = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
    found = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": world}
    return found | {"LOCAL_RANK": env["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": str(here)}


def meeting_point(env: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for the ranks of a step, if launch/slurm/common.sh has not set them. The address is
    known here only for a single node. Raises UserError."""
    found = {}
    if "MASTER_ADDR" not in env:
        if env["LOCAL_WORLD_SIZE"] != env["WORLD_SIZE"]:
            raise UserError(
                "no address for ranks on several nodes to meet at",
                found=f"{env['WORLD_SIZE']} tasks on {env.get('SLURM_STEP_NODELIST')}, and no MASTER_ADDR",
                expected="MASTER_ADDR: the first node's name",
                fix='export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1), or launch/slurm/',
            )
        found["MASTER_ADDR"] = "127.0.0.1"
    if "MASTER_PORT" not in env:
        found["MASTER_PORT"] = str(port_of_job(int(env["SLURM_JOB_ID"])))
    return found


def tasks_per_node(text: str) -> list[int]:
    """Expands Slurm's short form: '2(x3),1' is [2, 2, 2, 1]."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


def port_of_job(job: int) -> int:
    """A port that is the same on every rank and after a requeue, and differs between jobs; launch/slurm/common.sh
    computes the same."""
    return PORTS[job % len(PORTS)]
