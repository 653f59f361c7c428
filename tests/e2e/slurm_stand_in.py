"""Slurm's batch scripts without Slurm: `job` is the environment that sbatch gives one, with stand-ins for the two
commands that the scripts call. What they set is what Slurm 22.05 sets; tests/launch/test_slurm.py has the real one."""

from __future__ import annotations

import os
from pathlib import Path

from commands import ROOT, environment

JOB = 31234

# As many tasks as the job has, on this machine; it passes signals on and returns the highest exit code.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_TASKS_PER_NODE=$SLURM_NTASKS
export SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
  while kill -0 "$task" 2> /dev/null; do wait "$task"; done
  wait "$task" || worst=$(($? > worst ? $? : worst))
done
exit "$worst"
"""

SCONTROL = """#!/bin/bash
[[ $1 == show ]] && exec echo localhost
echo "$@" >> "$(dirname "$0")/scontrol.txt"
"""


def put_stand_ins(folder: Path) -> Path:
    """srun and scontrol in a folder for PATH; what scontrol is told besides `show` is in its scontrol.txt."""
    folder.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def put_checkout(folder: Path) -> Path:
    """What the scripts find in the folder where sbatch is called."""
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def job(place: Path, stand_ins: Path, tasks: int = 1, **more: str) -> dict[str, str]:
    """The environment of a batch script: of one node, `tasks` tasks, submitted from `place`."""
    slurm = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NAME": "ds_rag", "SLURM_JOB_NODELIST": "localhost"}
    slurm |= {"SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_TASKS_PER_NODE": str(tasks)}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_PER_TASK": "1"}
    env = environment(**{**slurm, "SLURM_SUBMIT_DIR": str(place), **more})
    return env | {"PATH": f"{stand_ins}{os.pathsep}{env['PATH']}"}
