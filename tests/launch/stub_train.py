"""Stands where launch/train.py does, for what the batch scripts do around it. Each rank writes its flags to
RUN/rankN.json, then does as `--then` says: `end`, `fail`, `stop` (exit code 75), `file` (RUN/exit.json asks for a
requeue), or `wait` for USR1 and then stop, which a second start does not."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", type=Path)
parser.add_argument("--then", default="end")
known, _ = parser.parse_known_args()
run, rank = known.output_dir, os.environ["SLURM_PROCID"]
run.mkdir(parents=True, exist_ok=True)
told: list[int] = []
signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
names = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
(run / f"rank{rank}.json").write_text(json.dumps({"flags": sys.argv[1:], **{n: os.environ[n] for n in names}}))
with (run / f"starts{rank}.txt").open("a") as starts:
    starts.write("start\n")
if known.then == "fail":
    sys.exit(3)
if known.then == "stop":
    sys.exit(75)
if known.then == "file" and rank == "0":
    (run / "exit.json").write_text(json.dumps({"reason": "time", "requeue": True}, indent=1))
if known.then in ("file", "wait") and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    deadline = time.monotonic() + 60
    while known.then == "wait" and not told and time.monotonic() < deadline:
        time.sleep(0.05)
    (run / f"signal{rank}.txt").write_text(str(told))
    sys.exit(75 if known.then == "wait" else 1)
