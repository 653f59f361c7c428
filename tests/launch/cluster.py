"""A Slurm cluster of two nodes on this machine: slurmctld and two slurmd, as root, with Debian's packages.

Each slurmd is in namespaces of its own: of host names, so that it is another node; of mounts, for an /etc/hosts that
has the nodes' addresses; of processes, so that with it everything ends that it has started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import environment, free_port

NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.env = folder, environment(SLURM_CONF=str(folder / "slurm.conf"))

    def call(self, *words: str | Path, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=cwd, env=self.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, place: Path, *words: str | Path) -> int:
        """The job's number. Without GPUs, a core a task; its output is in JOB.out of the place."""
        flags = ["--gpus-per-node=0", "--cpus-per-task=1", "--output=%j.out"]
        return int(self.call("sbatch", "--parsable", *flags, *words, cwd=place))

    def state(self, job: int) -> tuple[str, int]:
        """Its state, and how often it was requeued."""
        shown = self.call("scontrol", "show", "job", str(job), "--oneliner")
        return re.findall(r"JobState=(\w+)", shown)[0], int(re.findall(r"Restarts=(\d+)", shown)[0])

    def wait(self, job: int, *states: str, seconds: float = 60) -> None:
        until(lambda: self.state(job)[0] in states, seconds, lambda: f"job {job}: {self.state(job)}")

    def start_now(self, job: int) -> None:
        """Slurm lets a requeued job wait for two minutes."""
        self.wait(job, "PENDING")
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def until(true: Callable[[], object], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def require() -> None:
    """Skips the test where the cluster cannot be made."""
    programs = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
    if missing := [name for name in programs if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: slurm-wlm)")
    if os.geteuid() != 0:
        pytest.skip("slurmd and its namespaces want root")
    spaces = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if spaces.returncode:
        pytest.skip(f"no namespaces here: {spaces.stderr.strip()}")


def configure(folder: Path) -> None:
    (folder / "state").mkdir()
    nodes = [f"NodeName={name} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 State=UNKNOWN" for name in NODES]
    text = CONFIGURATION.format(host=os.uname().nodename, port=free_port(), folder=folder, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    old = tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (23, 11)  # which cannot do without
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if old else 'disabled'}\n")
    (folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename} {' '.join(NODES)}\n")


def daemons(folder: Path) -> dict[str, Sequence[str | Path]]:
    conf = folder / "slurm.conf"
    found: dict[str, Sequence[str | Path]] = {"slurmctld": ["slurmctld", "-D", "-c", "-f", conf]}
    spaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    for name in NODES:
        (folder / f"spool-{name}").mkdir()
        inside = f"hostname {name}; mount --bind {folder}/hosts /etc/hosts; exec slurmd -D -c -f {conf}"
        found[name] = [*spaces, "bash", "-c", inside]
    return found


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    require()
    configure(folder)
    cluster, started = Cluster(folder), []

    def idle() -> bool:
        command = ["sinfo", "--noheader", "--format=%D %t"]
        done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=60)
        return done.stdout.split() == ["2", "idle"]

    try:
        for name, command in daemons(folder).items():
            log = (folder / f"{name}.log").open("w")
            started.append(subprocess.Popen(command, env=cluster.env, stdout=log, stderr=log))
        try:
            until(idle, 40, lambda: "")
        except AssertionError:
            said = [line for name in folder.glob("*.log") for line in name.read_text().splitlines()]
            errors = [line for line in said if re.search("fatal|error", line) and "pmix" not in line.lower()]
            pytest.skip(f"Slurm's daemons do not come up here: {errors[-3:]}")
        yield cluster
    finally:
        for process in started:
            process.kill()  # and with a slurmd all that is in its namespace
            process.wait()
