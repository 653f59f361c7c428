"""Communication, memory and the index stage, counted or measured, and compared with the predictions of `ds-rag plan`.

    python benchmarks/scaling.py --json scaling.json              # several minutes on 2 cores
    python benchmarks/scaling.py --parts bytes --ranks 1 2        # one part, fewer ranks

    bytes   bytes that a rank sends in a step, counted where the collectives are called: with a pool per rank and with a
            pool of all ranks; nothing is timed
    plan    peak memory of training processes of several shapes, compared with the plan's prediction; and predictions
            for more ranks and larger corpora than there are here (planned_scaling.py)
    index   the fraction of training's time in which it waits for a refresh of the index, and whether a search in shards
            equals one in a single index (index_stage.py)

Each part has its own keys in the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import index_stage
import planned_scaling
from joint_runs import MEMORY_RUNS, TRAFFIC_RUN, Run, setup_of
from measure import table
from rank_children import run_on_ranks

from ds_rag.commands.plan.communication import plan_traffic
from ds_rag.commands.plan.memory import plan_memory

POOLS = ("rank", "world")
FURTHER = (8, 64, 512)  # numbers of ranks that are only predicted
MB = 2**20


def measure_bytes(args: argparse.Namespace) -> dict[str, Any]:
    """`bytes_per_step_by_ranks`: {ranks: bytes} for the pool of all ranks. `bytes_per_step`: counted and predicted
    bytes for both pools, predicted also for more ranks than there are here."""
    counted: dict[str, dict[str, float]] = {pool: {} for pool in POOLS}
    for world in args.ranks:
        found = run_on_ranks("bytes", [asdict(pooled(args.stage, pool)) for pool in POOLS], world)
        for pool, one in zip(POOLS, found, strict=True):
            counted[pool][str(world)] = one["bytes"]
    planned = {
        pool: {str(w): plan_traffic(setup_of(pooled(args.stage, pool), w)).total for w in (*args.ranks, *FURTHER)}
        for pool in POOLS
    }
    errors = [abs(planned[pool][w] / n - 1) for pool, by in counted.items() for w, n in by.items() if n > 0]
    return {
        "bytes_per_step_by_ranks": counted["world"],
        "bytes_per_step": {"counted": counted, "planned": planned},
        "bytes_error": max(errors, default=0.0),
        "bytes_stage": args.stage,
    }


def pooled(stage: int, pool: str) -> Run:
    return replace(TRAFFIC_RUN, stage=stage, flags=TRAFFIC_RUN.flags | {"pool": pool})


def measure_plan(args: argparse.Namespace) -> dict[str, Any]:
    """`plan_memory_error`: the largest relative error of the predicted peak over the measured runs."""
    rows = []
    for name, (world, run) in list(MEMORY_RUNS.items())[: args.runs]:
        measured = run_on_ranks("peak", asdict(run), world)["peak_mb"]
        plan = plan_memory(setup_of(run, world))
        error = plan.peak / MB / measured - 1
        rows.append({"run": name, "measured_mb": measured, "planned_mb": plan.peak / MB, "error": error})
        print(f"{name}: {measured:.0f} MB measured, {plan.peak / MB:.0f} planned", file=sys.stderr, flush=True)
    worst = max(abs(float(row["error"])) for row in rows)
    return {"plan_memory_error": worst, "plan_memory": rows, "planned": planned_scaling.everything()}


def measure_index(args: argparse.Namespace) -> dict[str, Any]:
    """`refresh_stall_fraction` (`async`, and `sync` for comparison) and `sharded_search_equal`."""
    stalls = index_stage.refresh_stall_fraction(args.steps, args.repeats)
    return {
        "refresh_stall_fraction": stalls["refresh_stall_fraction"],
        "refresh_stall_fraction_sync": stalls["sync"],
        "refresh_same_loss": stalls["same_loss"],
        "sharded_search_equal": index_stage.sharded_search_equal(),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bytes": measure_bytes,
    "plan": measure_plan,
    "index": measure_index,
}


def show(found: dict[str, Any]) -> None:
    if counted := found.get("bytes_per_step", {}).get("counted"):
        planned = found["bytes_per_step"]["planned"]
        rows = [
            {"pool": pool, "ranks": w, "counted MB": mega(counted[pool].get(w)), "planned MB": mega(planned[pool][w])}
            for pool in POOLS
            for w in planned[pool]
        ]
        print(table(rows), end="\n\n")
    if "plan_memory" in found:
        shown = [
            {k: v if isinstance(v, str) else f"{v:.3g}" if k == "error" else f"{v:.0f}" for k, v in row.items()}
            for row in found["plan_memory"]
        ]
        print(table(shown), end="\n\n")
    for key, value in found.items():
        if isinstance(value, (int, float)):
            print(f"{key}: {value:.4g}")


def mega(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="what to measure")
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2, 4], help="of the counted bytes")
    parser.add_argument("--stage", type=int, default=2, help="ZeRO stage of the counted bytes")
    parser.add_argument("--runs", type=int, default=len(MEMORY_RUNS), help="measure only the first N memory runs")
    parser.add_argument("--steps", type=int, default=75, help="of the runs whose waits for the index are measured")
    parser.add_argument("--repeats", type=int, default=3, help="of each of them")
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    begin = time.monotonic()
    found: dict[str, Any] = {}
    for part in args.parts:
        found |= PARTS[part](args)
    show(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{time.monotonic() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
