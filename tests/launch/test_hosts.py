"""Two hosts of one rank each are the same run as one host of two ranks: the same losses, by both launchers."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from commands import ROOT, environment, execute, files, free_port, launcher, losses
from hosts import LOOPBACK, Host, two_hosts

FEW = ["--max_steps", "3", "--max_eval_samples", "8", "--lm_warmup_steps", "0", "--save_steps", "0"]
FEW += ["--eval_answers", "false", "--refresh_index", "0"]
TORCHRUN, DEEPSPEED = (str(Path(sys.executable).with_name(name)) for name in ("torchrun", "deepspeed"))


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with two_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def one_host(tmp_path_factory) -> dict[int, float]:
    """The losses of two ranks on one host."""
    run = tmp_path_factory.mktemp("runs") / "one_host"
    execute([*launcher("torchrun", "--nproc_per_node", "2"), *FEW, "--output_dir", run])
    assert sorted(losses(run)) == [1, 2, 3]
    return losses(run)


def at_once(commands: Sequence[list[str]], envs: Sequence[dict[str, str]]) -> None:
    """All of them end with 0."""
    started = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, env in zip(commands, envs, strict=True)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.terminate()  # torchrun then ends its ranks; nothing, where it has ended
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(printed)[-6000:]


@pytest.mark.slow
def test_torchrun_on_each_of_two_hosts(hosts, one_host, tmp_path):
    commands, envs = [], []
    for n, host in enumerate(hosts):
        where = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(n), "--master_addr", hosts[0].address]
        commands.append([*host.enter, TORCHRUN, *where, "--master_port", "29400", "launch/train.py", *FEW])
        envs.append(environment(GLOO_SOCKET_IFNAME=host.card))
    if hosts is LOOPBACK:
        port = free_port()
        commands = [[port if word == "29400" else word for word in command] for command in commands]
    at_once([[*command, "--output_dir", str(tmp_path / "run")] for command in commands], envs)
    assert losses(tmp_path / "run") == one_host
    assert "run-rank1.log" in files(tmp_path / "run")


# As sshd would: nothing of the caller's environment, a shell that gets the words joined.
SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1
shift
case $host in
{cases}
*) echo "ssh: no host $host" >&2; exit 255 ;;
esac
exec "${{enter[@]}}" env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c "$*"
"""

# The words for each host, %n being its number among them; -S: the highest exit code.
PDSH = """#!/bin/bash
while [[ $1 == -* ]]; do
  [[ $1 == -w ]] && hosts=$2
  [[ $1 == -S ]] || shift
  shift
done
number=0
for host in ${hosts//,/ }; do
  words=$*
  ssh "$host" "${words//%n/$number}" &
  started+=($!)
  number=$((number + 1))
done
worst=0
for process in "${started[@]}"; do wait "$process" || worst=$(($? > worst ? $? : worst)); done
exit "$worst"
"""


@pytest.fixture
def reached_by_ssh(hosts, tmp_path) -> tuple[Path, dict[str, str]]:
    """A hostfile of the two, host1 and host2, and an environment whose ssh and pdsh reach them."""
    cases = [f"host{n}) enter=({shlex.join(host.enter)}) ;;" for n, host in enumerate(hosts, start=1)]
    (tmp_path / "bin").mkdir()
    for name, text in (("ssh", SSH.format(cases="\n".join(cases))), ("pdsh", PDSH)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "hostfile").write_text("host1 slots=1\nhost2 slots=1\n")
    env = environment()
    return tmp_path / "hostfile", env | {"PATH": f"{tmp_path / 'bin'}:{env['PATH']}"}


@pytest.mark.slow
def test_deepspeed_with_a_hostfile(hosts, one_host, reached_by_ssh, tmp_path):
    """It sends PYTHON*, NCCL* and the like along; the rest is in the file that DS_ENV_FILE names, by default
    .deepspeed_env."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("both hosts would give their rank this machine's first GPU")
    hostfile, env = reached_by_ssh
    (tmp_path / "sent_along").write_text(f"OMP_NUM_THREADS=1\nGLOO_SOCKET_IFNAME={hosts[0].card}\n")
    address = ["--master_addr", hosts[0].address] if hosts is LOOPBACK else []  # else host1 is asked for its own
    command = [DEEPSPEED, "--hostfile", hostfile, "--master_port", free_port(), *address, "launch/train.py", *FEW]
    env |= {"DS_ENV_FILE": str(tmp_path / "sent_along")}
    execute([*command, "--output_dir", tmp_path / "run"], env=env)
    assert losses(tmp_path / "run") == one_host
    assert "run-rank1.log" in files(tmp_path / "run")
