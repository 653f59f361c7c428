"""One rank's work for scaling.py: `scaling_child.py JOB JSON` under RANK, WORLD_SIZE and MASTER_*; prints JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import counted_collectives  # before DeepSpeed
from joint_parts import make_steps
from joint_runs import Run
from peak_memory import peak_of_training

from ds_rag.runtime import collectives


def count_bytes(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run: the bytes that a rank sends in one optimizer step (the mean over ranks), and by collective."""
    found = []
    for run in runs:
        steps = make_steps(Run(**run))
        steps.engines.train()
        steps.step(0)  # includes work that only the first step does
        counted_collectives.start_counting()
        steps.step(1)
        sent = counted_collectives.stop_counting()
        total = collectives.all_sum({"bytes": sum(sent.values())})["bytes"] / collectives.world()
        found.append({"bytes": total, "by": sent})
    return found


def peak_memory(run: dict[str, Any]) -> dict[str, float]:
    return peak_of_training(Run(**run))


JOBS: dict[str, Callable[[Any], Any]] = {"bytes": count_bytes, "peak": peak_memory}


def main() -> int:
    logging.disable(logging.WARNING)
    collectives.start()
    answer = JOBS[sys.argv[1]](json.loads(sys.argv[2]))
    collectives.barrier()
    if collectives.rank() == 0:
        print("\n" + json.dumps(answer))
    collectives.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
