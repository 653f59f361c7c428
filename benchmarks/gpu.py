"""Everything that is open on one CUDA GPU, in one go and in order of worth: at most eight minutes, no network.

    python benchmarks/gpu.py                                   # writes gpu.json; a second call does what is missing
    python benchmarks/gpu.py --parts step_gpt2 encoding        # these alone; --skip leaves some out
    CUDA_VISIBLE_DEVICES= python benchmarks/gpu.py --tiny      # the same parts on a CPU, with tiny shapes

Each part is a process of its own with its own limit (gpu_parts.py); what it found, or its last lines if it failed or
ran out of time, is in the file before the next one begins. Models are made from configurations, with random weights.
What `ds-rag plan` predicts for the device stands beside what was measured.

Exit code 0: every part that was asked for is done. 1: some are not. 2: nothing could be begun.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from measure import table

from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("gpu_parts.py")
LINES = 30  # the last of a part that failed
LEAST_S = 5.0  # a part is not begun with less
DONE, FAILED, TIMED_OUT = "done", "failed", "out of time"
DEVICE = "device"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


@dataclass(frozen=True)
class Part:
    """limit: seconds."""

    limit: float
    shows: str


PARTS: dict[str, Part] = {
    "quickstart": Part(120, "the built-in run in bf16, against the CPU's curve"),
    "step_gpt2": Part(75, "a joint step of GPT-2 124M, bf16, by each way of attention"),
    "step_llama_1b": Part(90, "the same of a 1B Llama"),
    "exactness": Part(75, "gradients of the shared layout against plain sequences, fp32"),
    "scoring": Part(60, "cells per second with a 1B reader that is not trained"),
    "fp16": Part(60, "GPT-2 under a dynamic loss scale"),
    "offload_llama_1b": Part(90, "ZeRO-3, optimizer and weights on the host"),
    "lora_llama_8b": Part(90, "adapters on a frozen 8B base, activation checkpointing"),
    "encoding": Part(75, "a corpus, against sentence-transformers"),
}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    begin = time.monotonic()
    file = Path(args.json)
    try:
        found = open_results(file, args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = [name for name in PARTS if name in (args.parts or PARTS) and name not in args.skip]
    for name in wanted:
        if found["parts"].get(name, {}).get("state") == DONE and name not in args.again:
            print(f"{name}: done before", flush=True)
            continue
        left = args.budget_s - (time.monotonic() - begin)
        if left < LEAST_S:
            print(f"{name}: not begun, the budget of {args.budget_s:g} s is used", flush=True)
            continue
        print(f"{name}: {PARTS[name].shows} ...", flush=True)
        found["parts"][name] = outcome = run_part(name, min(PARTS[name].limit, left), args.tiny)
        write_complete(file, json.dumps(found, indent=1) + "\n")
        print(f"{name}: {outcome['state']} in {outcome['seconds']:.0f} s", flush=True)
        if outcome["state"] != DONE:
            print("\n".join(f"    {line}" for line in outcome["last_lines"]), flush=True)
    print(show(found))
    print(f"{time.monotonic() - begin:.0f} s in all")
    return 0 if all(found["parts"].get(name, {}).get("state") == DONE for name in wanted) else 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="these alone, in the order of worth")
    parser.add_argument("--skip", nargs="+", choices=list(PARTS), default=[], help="all but these")
    parser.add_argument("--again", nargs="+", choices=list(PARTS), default=[], help="measure these anew if done before")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a test of the script; on a CPU too")
    parser.add_argument("--budget_s", type=float, default=480, help="seconds for all parts together")
    parser.add_argument("--json", default="gpu.json", help="the results; those that are there are kept")
    return parser.parse_args(argv)


def open_results(file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the file holds, with the device of today. Raises UserError for a device that cannot be measured, or results
    of another."""
    outcome = run_part(DEVICE, 120, args.tiny)
    if outcome["state"] != DONE:
        lines = outcome["last_lines"][-1:]
        raise UserError("the device could not be looked at", found=f"{outcome['state']}: {' '.join(lines)}")
    device = outcome["found"].pop("device")
    if device["name"] == "cpu" and not args.tiny:
        raise UserError("no CUDA device", found="a CPU", fix="--tiny, which runs every part with tiny shapes")
    found: dict[str, Any] = {"device": device, "tiny": args.tiny, "parts": {}}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        here, there = [(d["device"]["name"], d["tiny"]) for d in (found, before)]
        if here != there:
            kinds = [f"{name}{', tiny' if tiny else ''}" for name, tiny in (there, here)]
            raise UserError(
                f"{file}: results of another device", found=kinds[0], expected=kinds[1], fix="another --json"
            )
        found["parts"] = before["parts"]
    found["parts"][DEVICE] = outcome
    file.parent.mkdir(parents=True, exist_ok=True)
    write_complete(file, json.dumps(found, indent=1) + "\n")
    return found


def run_part(name: str, limit: float, tiny: bool) -> dict[str, Any]:
    """One process, with all that it started ended after `limit` seconds. Never raises for what goes wrong in it."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ds_rag-gpu-") as folder:
        answer, log = Path(folder) / "found.json", Path(folder) / "log.txt"
        command = [sys.executable, str(CHILD), name, str(answer), *(["--tiny"] if tiny else [])]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        env = os.environ | OFFLINE | {"PYTHONPATH": path}
        with log.open("w") as stream:
            child = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
            )
            try:
                child.wait(limit)
                state = DONE if child.returncode == 0 and answer.exists() else FAILED
            except subprocess.TimeoutExpired:
                state = TIMED_OUT
            finally:  # by the keyboard too
                end_group(child)
        outcome: dict[str, Any] = {"state": state, "seconds": time.monotonic() - begin, "limit_s": limit}
        if state == DONE:
            return outcome | {"found": json.loads(answer.read_text(encoding="utf-8"))}
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return outcome | {"code": child.returncode, "last_lines": lines[-LINES:]}


def end_group(child: subprocess.Popen[bytes]) -> None:
    """The process and all that it has started and left."""
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def show(found: dict[str, Any]) -> str:
    """The table of all parts, in order of worth, and the parts without figures below it."""
    device = found["device"]
    versions = ", ".join(f"{key} {value}" for key, value in device.items() if key != "name")
    lines = []
    for name in (DEVICE, *PARTS):
        for row in rows_of(found, name):
            measured, beside = row["measured"], row["beside"]
            lines.append(
                {
                    "part": name,
                    "figure": row["figure"],
                    "measured": number(measured),
                    "beside": number(beside),
                    "of": row["source"] or "-",
                    "measured / beside": f"{measured / beside:.2f}" if beside else "-",
                    "unit": row["unit"] or "-",
                }
            )
    states = {name: found["parts"].get(name, {}).get("state", "not run") for name in PARTS}
    missing = [f"{name}: {state}" for name, state in states.items() if not rows_of(found, name)]
    heading = f"\n{device['name']}{' (tiny shapes)' if found['tiny'] else ''}: {versions}"
    return "\n".join([heading, table(lines), *(["", "without figures: " + "; ".join(missing)] if missing else [])])


def rows_of(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return found["parts"].get(name, {}).get("found", {}).get("rows", [])


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part is ended too
    sys.exit(main())
