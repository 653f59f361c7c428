"""`ds-rag build DOCS --out FOLDER`: from a folder of documents to a trained and measured system.

Each stage is a process of its own with the command line that is shown. FOLDER/build.json keeps what was run on which
inputs, so that the same call again runs what has changed, and goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_rag.commands.build.child import command_of, run
from ds_rag.commands.build.costs import Cost, Sizes, predict, rate_of, sizes
from ds_rag.commands.build.options import Wanted, flags, read_wanted
from ds_rag.commands.build.page import write_page
from ds_rag.commands.build.stages import ORDER, RECIPES, STAGES, WITH_KEPT_MODEL, Stage, read
from ds_rag.commands.build.state import FILE, Entry, State, key_of, read_state
from ds_rag.commands.build.summary import summarise
from ds_rag.config.flags import parse
from ds_rag.run.output_dir import NOT_BEGUN, standing
from ds_rag.runtime import folder_lock
from ds_rag.runtime.console import Console, duration
from ds_rag.runtime.errors import RunError, UserError
from ds_rag.runtime.output_places import check_place, write_json


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    wanted, console = read_wanted(args), Console()
    check_settings(wanted)
    out = check_place(wanted.out, "--out")
    if out.exists() and not out.is_dir():
        raise UserError("--out: not a folder", found=out, expected="a new folder, or one that ds-rag build made")
    state = read_state(wanted.out)
    if args.dry_run:
        show_plan(wanted, state, console)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock.holding(wanted.out):
        state = read_state(wanted.out)
        code = build(wanted, state, console)
        if code == 0:
            conclude(wanted, state, console)
    return code


def check_settings(wanted: Wanted) -> None:
    """Raises UserError where training would refuse these flags with every recipe that it may be given: now, and not
    after an hour."""
    errors = []
    for recipe in dict.fromkeys(wanted.recipe or recipe for recipe in RECIPES.values()):
        words = ["--config", recipe, "--train_data", str(wanted.train_rows), "--corpus", str(wanted.passages)]
        words += ["--eval_data", str(wanted.eval_rows), "--output_dir", str(wanted.run)]
        words += flags(wanted.given or {})
        try:
            parse(words)
            return
        except UserError as error:
            errors.append(error)
    raise errors[0]


def build(wanted: Wanted, state: State, console: Console) -> int:
    """Runs the stages whose command line or inputs have changed; returns the exit code of the one that failed, or 0."""
    order = WITH_KEPT_MODEL if wanted.keep_model else ORDER
    began = time.monotonic()
    for number, name in enumerate(order, start=1):
        stage = STAGES[name](wanted)
        head = f"stage {number} of {len(order)}, {name}"
        if stage.skip:
            console.say(f"{head}: {stage.skip}")
            continue
        key = key_of(stage, wanted.out)
        if not stage.always and state.is_done(stage, key):
            console.say(f"{head}: as it was, nothing to do")
            continue
        costs = predict(wanted, rate_of(state.stages, wanted.ranks)[0])
        console.say("")
        console.say(f"{head}: {stage.title}   ({time_left(costs, order[number - 1 :], began)})", style="bold")
        if name == "train":
            keep_earlier_run(wanted.run, state.stages.get(name), key, console)
        code = run_stage(stage, key, costs[name], state, console)
        if code:
            return code
    return 0


def run_stage(stage: Stage, key: str, cost: Cost, state: State, console: Console) -> int:
    """Runs one stage and keeps how it went. Returns its exit code. Raises RunError where it left nothing."""
    command, shown = command_of(stage.words, stage.ranks)
    folder = state.file.parent
    log, lock = folder / "logs" / f"{stage.name}.log", folder_lock.descriptor(folder)
    console.say(f"$ {shown}")
    if stage.partial is not None:
        stage.partial.unlink(missing_ok=True)
    entry, began = state.begin(stage, shown, key, cost.flops or 0.0), time.monotonic()
    code, stopped = run(command, log, [] if lock is None else [lock])
    if code == 1 and stage.partial is not None and stage.partial.is_file():
        console.say(f"warning: {stage.name} left something out, see above; the build goes on without it", "bold yellow")
        code = 0
    state.end(entry, code, stopped, time.monotonic() - began)
    if stopped:
        console.say(f"{stage.name} was stopped; the same command again goes on from there")
    elif code:
        console.say(f"{stage.name} failed with exit code {code} (log: {log})", style="red")
        console.say("once that is corrected, the same command again goes on from there")
    elif missing := [path for path in stage.outputs if not path.exists()]:
        raise RunError(f"{stage.name} ended well, but left no {missing[0]}", fix=f"see {log}")
    return code


def keep_earlier_run(run: Path, entry: Entry | None, key: str, console: Console) -> None:
    """Moves a run that was trained on something else out of the way: RUN-1, RUN-2 and so on. A run that is to go on
    stays, and so does one that never began."""
    if not run.exists() or (entry is not None and entry.key == key) or standing(run) == NOT_BEGUN:
        return
    number = 1
    while (place := run.with_name(f"{run.name}-{number}")).exists():
        number += 1
    with folder_lock.holding(run):  # an error if another job is at work in it
        pass
    run.rename(place)
    console.say(f"note: rows, passages or settings have changed: the earlier run is kept as {place}")


def time_left(costs: Mapping[str, Cost], order: Sequence[str], began: float) -> str:
    """The time so far and that which is predicted of these stages."""
    spent = f"{duration(time.monotonic() - began)} so far"
    seconds = [costs[name].seconds for name in order]
    known = sum(s for s in seconds if s is not None)
    if None in seconds:
        return spent
    return f"{spent}, about {duration(known)} left"


def show_plan(wanted: Wanted, state: State, console: Console) -> None:
    """Prints the stages, their command lines and predicted cost, as far as it is known what they will be."""
    rate, source = rate_of(state.stages, wanted.ranks)
    costs, size = predict(wanted, rate), sizes(wanted)
    order, rows = WITH_KEPT_MODEL if wanted.keep_model else ORDER, []
    console.say(f"would be built in {wanted.out}:")
    for name in order:
        stage = STAGES[name](wanted)
        cost = costs[name]
        if stage.skip:
            console.say(f"{name}: {stage.skip}")
            continue
        done = not stage.always and state.is_done(stage, key_of(stage, wanted.out))
        console.say(f"{name}: {stage.title}" + ("; as it was, nothing to do" if done else ""), style="bold")
        console.say(f"  {command_of(stage.words, stage.ranks)[1]}")
        tera = "-" if cost.flops is None else f"{cost.flops / 1e12:,.4g}"
        about = "-" if cost.seconds is None else duration(cost.seconds)
        rows.append([name, cost.counts, "0" if done else tera, "0 s" if done else about])
    console.table("predicted, at most", ["stage", "counts", "TFLOP", "time"], rows)
    console.say(assumptions(size, source))


def assumptions(size: Sizes, source: str) -> str:
    guessed = "; what no file has yet is guessed from the size of others" if size.guessed else ""
    return f"{source}; every text at its maximum length{guessed}"


def conclude(wanted: Wanted, state: State, console: Console) -> None:
    """Prints what was found, writes it to the folder, and says what to do next."""
    console.say("")
    if wanted.keep_model:
        console.say("the index is up to date; the models are as they were trained")
        say_next(wanted, None, console)
        return
    summary = summarise(wanted.run, generated=not wanted.rows and not wanted.setting("eval_data"))
    counts = read(wanted.row_counts) or {}
    if summary.means:
        console.table(f"{summary.questions} held-out questions: mean (95 % interval)", *summary.table())
    for n, line in enumerate(summary.lines):
        console.say(line, style="bold" if n == 0 else None)
    if counts.get("lost"):
        console.say(f"note: {counts['lost']} rows were left out, since their passages are gone: {wanted.row_counts}")
    write_json(str(wanted.out / "summary.json"), summary.as_json())
    page = write_page(wanted, state, summary, counts)
    say_next(wanted, page, console)


def say_next(wanted: Wanted, page: Path | None, console: Console) -> None:
    generator = "" if (wanted.run / "generator").exists() else f" --generator {wanted.setting('generator')}"
    console.say("")
    console.command("next", f'ds-rag ask {wanted.run} "a question"{generator}')
    if wanted.eval_rows.exists():
        console.command("", f"ds-rag errors {wanted.run}")
    if page is not None:
        console.say(f"report     {page}   (of the training: {wanted.run / 'report.html'})")
    console.say(f"stages     {wanted.out / FILE}")
