"""Kills runs at random and resumes them until they end: their results must equal those of an uninterrupted run.

    python benchmarks/soak.py --kills 200 --json soak.json     # about 20 minutes on 2 cores

Each run is the small one of tests/faults on two ranks. SIGKILL is sent to one rank or to all, at a random moment of the
run's duration or shortly after an event (a step, a save, an index); then `--resume auto` continues the run. Some starts
use `torchrun` and `deepspeed`, where the launcher itself may be killed. In the JSON these counts must be 0:

    lost_checkpoints   a kill destroyed a finished checkpoint, or more steps than there are between two checkpoints
    mismatches         a run that ended has other models, index, losses or figures than the uninterrupted one, or a
                       start failed that was not killed
    orphans            processes that did not end by themselves after others of their run were killed
    leftovers          incomplete files in a run that has ended
    wrong_exits        a launcher that reported success although its run was killed
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from measure import table
from soak_looks import BRIEF, PLACES, Look, committed, leftovers, lost
from soak_starts import WORLD, Forked, Launched, Started, wait_for_end

from ds_rag.runtime.console import Console, Meter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))

from small_run import SMALL, STEPS, differences, write_rows

PATIENCE = 60.0  # seconds within which ranks must notice that other ranks, or their launcher, are gone
UNMET = 8.0  # seconds; during start-up ranks wait for the others: a launcher would end them, here the benchmark does
MUST_BE_0 = ("lost_checkpoints", "mismatches", "orphans", "leftovers", "wrong_exits")


@dataclass
class Tally:
    """The content of the JSON."""

    seed: int = 0
    kills: int = 0
    lost_checkpoints: int = 0
    mismatches: int = 0
    orphans: int = 0
    leftovers: int = 0
    wrong_exits: int = 0
    runs: int = 0
    launcher_kills: int = 0
    seconds: float = 0.0
    kills_by_place: dict[str, int] = field(default_factory=dict)
    kills_by_victim: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def blame(self, key: str, where: str, found: list[str]) -> None:
        """Adds problems to the count `key`, one of MUST_BE_0."""
        setattr(self, key, getattr(self, key) + len(found))
        self.problems += [f"{key}, {where}: {text}" for text in found]


class Soak:
    """The benchmark. kills: in total; launched: how many of them under a launcher, spread evenly."""

    def __init__(self, kills: int, launched: int, seed: int, scratch: Path, console: Console, json_file: str | None):
        self.kills, self.scratch, self.console, self.json_file = kills, scratch, console, json_file
        self.rng, self.tally, self.began = random.Random(seed), Tally(seed), time.monotonic()
        self.by_launcher = {int((n + 0.5) * kills / launched) for n in range(launched)} if launched else set()
        self.flags = [*SMALL.split(), *write_rows(scratch)]
        self.reference, self.duration = scratch / "reference", 0.0  # seconds
        self.start_up: dict[str, float] = {}  # seconds that each launcher takes, once known

    def run_all(self) -> None:
        """Starts, kills and resumes runs until all kills are done and the last run has ended."""
        self.make_reference()
        with self.console.progress(self.kills, "kill", unit="") as meter:
            while self.tally.kills < self.kills:
                self.one_run(meter)

    def make_reference(self) -> None:
        """Makes the uninterrupted run, which the others must equal, and measures its duration."""
        for _ in range(2):  # the first also waits for imports
            shutil.rmtree(self.reference, ignore_errors=True)
            began = time.monotonic()
            started = Forked(["train", "--output_dir", self.reference, *self.flags], self.scratch)
            try:
                wait_for_end(started, 600)
                self.duration = time.monotonic() - began
                assert started.good(), started.said()
            finally:
                started.end()

    def one_run(self, meter: Meter) -> None:
        self.tally.runs += 1
        run = self.scratch / f"run-{self.tally.runs}"
        while self.attempt(run):
            meter.advance(1, ", ".join(f"{getattr(self.tally, key)} {key}" for key in MUST_BE_0))
            self.write()
        ended = (run / "results.json").exists()
        self.tally.blame("mismatches", run.name, differences(run, self.reference) if ended else ["did not end"])
        self.tally.blame("leftovers", run.name, leftovers(run) if ended else [])
        self.write()
        if not any(run.name in text for text in self.tally.problems):
            shutil.rmtree(run)  # otherwise it is kept for inspection
        for file in self.scratch.glob("console-*"):
            file.unlink()

    def attempt(self, run: Path) -> bool:
        """Starts or resumes the run once; returns True if it was killed, False if it ended by itself."""
        number = self.tally.kills
        look, started, name = Look(run, time.time()), *self.start(run, number)
        where = f"{run.name}, start after kill {number}" + f" by {name}" * bool(name)
        try:
            if number >= self.kills or not self.wait(started, look, name):
                return self.ended(started, where)
            before, done, place = committed(run), look.done() if look.started() else 0, look.place()
            victim = started.kill(self.rng)
            if victim is None:  # the run has just ended
                return self.ended(started, where)
            self.book(place, victim, bool(name))
            self.see_it_end(started, victim, place, where)
            if "launcher" in victim and done < STEPS and (run / "results.json").exists():
                self.tally.blame("orphans", where, [f"went on to the end without its {victim}"])
            self.tally.blame("lost_checkpoints", f"{where}, {victim} in {place}", lost(run, before, done))
            return True
        finally:
            started.end()

    def ended(self, started: Started, where: str) -> bool:
        """Waits for a run that is not killed, and checks that it succeeded. Returns False, for `attempt`."""
        wait_for_end(started, 10 * PATIENCE)
        if not started.good():
            self.tally.blame("mismatches", where, [f"failed without being killed: {started.said()[-1500:]}"])
        return False

    def start(self, run: Path, number: int) -> tuple[Started, str | None]:
        argv = ["--output_dir", run, *self.flags, "--resume", "auto"]
        if number in self.by_launcher:
            name = ("torchrun", "deepspeed")[sorted(self.by_launcher).index(number) % 2]
            return Launched(name, argv, self.scratch), name
        return Forked(["train", *argv], self.scratch), None

    def wait(self, started: Started, look: Look, name: str | None) -> bool:
        """Waits for the moment of the kill, drawn at random; returns False if the run has ended before."""
        signs = look.signs()
        sign = self.rng.choice([*sorted(signs), *[""] * len(signs)])
        if name and name not in self.start_up:
            sign = "started"  # to measure the launcher's start-up first
        begun = time.monotonic()
        delay = self.rng.uniform(0, self.duration + self.start_up.get(name or "", 0.0))
        if sign:
            while started.running() and not signs[sign]():
                time.sleep(0.005 if name is None else 0.05)
            delay = self.rng.uniform(0, 0.1 if sign in BRIEF else 0.3)
            if name:
                self.start_up.setdefault(name, time.monotonic() - begun)
        until = time.monotonic() + delay
        while started.running() and time.monotonic() < until:
            time.sleep(0.005)
        return started.running()

    def book(self, place: str, victim: str, launched: bool) -> None:
        tally = self.tally
        tally.kills += 1
        tally.launcher_kills += launched
        tally.kills_by_place[place] = tally.kills_by_place.get(place, 0) + 1
        tally.kills_by_victim[victim] = tally.kills_by_victim.get(victim, 0) + 1

    def see_it_end(self, started: Started, victim: str, place: str, where: str) -> None:
        """Checks that all processes that were not killed end too."""
        waits_for_others = isinstance(started, Forked) and place == "start-up"
        left = wait_for_end(started, UNMET if waits_for_others else PATIENCE)
        if left and not waits_for_others:
            found = [f"{' '.join(process.cmdline()[-3:])[:200]} ({process.pid})" for process in left]
            self.tally.blame("orphans", f"{where}, {victim} in {place}", found)
        if isinstance(started, Launched) and started.good():
            self.tally.blame("wrong_exits", f"{where}, {victim} in {place}", ["0"])

    def write(self) -> None:
        self.tally.seconds = round(time.monotonic() - self.began, 1)
        if self.json_file:
            part = Path(f"{self.json_file}.part")
            part.write_text(json.dumps(asdict(self.tally), indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.json_file)

    def show(self) -> None:
        tally, say = self.tally, self.console.say
        kills = {place: tally.kills_by_place.get(place, 0) for place in PLACES}
        say(table([{"killed in": place, "kills": count} for place, count in kills.items()]) + "\n")
        victims = sorted(tally.kills_by_victim.items()) or [("nothing", 0)]
        say(table([{"killed": victim, "kills": n} for victim, n in victims]) + "\n")
        for problem in tally.problems:
            say(problem)
        say(f"{tally.kills} kills of {tally.runs} runs on {WORLD} ranks, {tally.launcher_kills} under a launcher")
        say(", ".join(f"{getattr(tally, key)} {key}" for key in MUST_BE_0) + f", {tally.seconds:.0f} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--launched", type=int, default=12, help="of the kills, under torchrun and deepspeed in turn")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed and when (timing varies all the same)")
    parser.add_argument("--folder", help="keep the runs that show a fault here (default: nowhere)")
    parser.add_argument("--json", help="write every figure to this file, after each kill")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scratch = Path(args.folder or tempfile.mkdtemp(prefix="soak-")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    soak = Soak(args.kills, min(args.launched, args.kills), args.seed, scratch, Console(), args.json)
    try:
        soak.run_all()
    except KeyboardInterrupt:
        soak.console.say("interrupted")
    finally:
        soak.write()
        soak.show()
        if not args.folder:
            shutil.rmtree(scratch, ignore_errors=True)
    return 1 if soak.tally.problems or soak.tally.kills < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
