"""The run's folder: which paths are allowed, and whether a folder that exists may be used or replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ds_rag.config import RunConfig
from ds_rag.run import config_and_results
from ds_rag.runtime import folder_lock, json_files, stop_signals
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_access, check_place
from ds_rag.runtime.own_files import RESERVED, RUN, listed, strangers_by_name

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
NOT_BEGUN, BEGUN, ENDED = "not begun", "begun", "ended"


def check_path(output_dir: str) -> Path:
    """`--output_dir` as a path. Raises UserError for a name that is not allowed, or a path that could lead to a
    surprising place.

    The last component is the run's name. An absolute path may lead anywhere, and its parent folders may be links; a
    relative path must stay within the working directory. The run's folder itself may only be a link to a folder with
    the same parent: files should be written, and deleted, where the path says.
    """
    if "\0" in output_dir:
        raise UserError("--output_dir: a NUL character", found=repr(output_dir), expected="a path")
    path = Path(output_dir)
    name = path.name
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"--output_dir: {name or output_dir!r} is no name for a run",
            found=repr(output_dir),
            expected="a path whose last component is 1 to 100 letters, digits, dots, dashes and underscores",
        )
    inside = Path(os.path.normpath(Path.cwd() / path)).is_relative_to(Path.cwd())
    if ".." in path.parts and not path.is_absolute() and not inside:
        raise UserError(
            "--output_dir leads out of the working directory",
            found=output_dir,
            expected="a path below it, or an absolute one",
            fix=f"--output_dir {os.path.normpath(Path.cwd() / path)}",
        )
    place = Path(os.path.realpath(path))
    if path.is_symlink() and place.parent != path.parent.resolve():
        raise UserError(
            "--output_dir is a symbolic link to another place",
            found=f"{path} -> {place}",
            expected="the folder itself (folders on the way to it may be links)",
            fix=f"--output_dir {place}",
        )
    return path


def claim(config: RunConfig) -> Path:
    """Returns the run's folder (new, empty, or to be resumed) and locks it for this process (folder_lock.py).

    Two kinds of folders are cleared first, if they contain no file of the user's: the default folder of the built-in
    run, if the run in it has finished or never begun; and a run that failed before its first figure. Raises UserError
    for any other folder with content.
    """
    folder = check_path(config.run.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError("--output_dir: not a folder", found=folder)
    check_place(folder / "config.json", "--output_dir")
    json_files.check_kinds(folder)
    if (folder / folder_lock.FILE).exists():
        folder_lock.hold(folder)  # first: "another job uses it" tells more than "the folder is not empty"
    may_be_cleared(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    folder_lock.hold(folder)
    if may_be_cleared(folder, config):  # again, because another job may have used it before the lock was ours
        clear(folder)
    for entry in folder.iterdir():
        check_access(entry, os.W_OK, "--output_dir")
    stop_signals.forget(folder)
    if config.run.resume == "never":
        # This marks the folder as a run's.
        (folder / json_files.CONFIG).write_text(config_and_results.configuration_text(config), encoding="utf-8")
    return folder


def clear(folder: Path) -> None:
    """Deletes everything in the folder except the lock. Of links only the link is deleted."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != folder_lock.FILE:
            entry.unlink()


def may_be_cleared(folder: Path, config: RunConfig) -> bool:
    """Whether the folder contains something that this run may delete. False if it is empty or missing, or contains the
    run to be resumed. Raises UserError if it contains anything else."""
    names = {f.name for f in folder.iterdir()} - {folder_lock.FILE} if folder.is_dir() else set()
    if not names:
        return False
    foreign = strangers_by_name(folder, RUN)
    if config.run.resume != "never":
        if not is_run(folder) and (foreign or configured(folder) is False):
            raise UserError(
                "--output_dir: a folder of something else than a run",
                found=f"{folder}, with {listed(foreign or ['config.json'])}",
                expected="a run to resume, or a new or empty folder",
            )
        return False
    done = standing(folder)
    if config.is_quickstart and is_run(folder):
        if done == BEGUN:
            raise UserError(
                "--output_dir: the run there has not ended, so it is not replaced",
                found=f"{folder}, {how_far(folder)}",
                expected="a run that has ended, or that never began",
                fix="--resume auto continues it; --output_dir runs/ANOTHER starts a new run",
            )
        if foreign := foreign + written_on(folder):
            raise UserError(
                "--output_dir: the run there is not replaced, because its folder contains files that are not a run's",
                found=f"{folder}, with {listed(foreign)}",
                fix="move them away, or --output_dir runs/ANOTHER",
            )
        return True
    if done != NOT_BEGUN or foreign or not is_run(folder) or "run.log" not in names:
        raise UserError(
            "--output_dir is not empty",
            found=folder,
            expected="a new or empty folder",
            fix=f"{'--resume auto, or ' if is_run(folder) else ''}another folder",
        )
    return True


def written_on(folder: Path) -> list[str]:
    """The models' cards that the user has edited, as paths relative to the run's folder."""
    from ds_rag.runtime import atomic_folders  # imports torch

    named = (atomic_folders.read_manifest(folder) or {}).get("files", {})
    cards = [name for name in named if name.endswith("/README.md") and (folder / name).is_file()]
    return [name for name in cards if atomic_folders.measure(folder / name) != named[name]]


def standing(folder: Path) -> str:
    """The state of the run in a folder. ENDED: results.json covers its last step. BEGUN: there are figures, a
    checkpoint or models, but the run did not end: it was stopped or killed, or failed, perhaps after it was resumed to
    run longer. NOT_BEGUN: none of these."""
    last, ended = last_step(folder), steps_at_end(folder)
    if ended is None:
        kept = any((folder / name).exists() for name in ("results.json", "retriever", "generator", "index"))
        return NOT_BEGUN if last is None and not kept else BEGUN
    return BEGUN if (last or 0) > ended or (folder / stop_signals.EXIT_FILE).exists() else ENDED


def last_step(folder: Path) -> int | None:
    """The last step of which the folder has figures or a checkpoint; None if there is none."""
    kept = (re.fullmatch(r"(?:abandoned-)?step-(\d+)", f.name) for f in folder.glob("checkpoints/*"))
    steps = [int(name[1]) for name in kept if name]
    metrics = folder / "metrics.jsonl"
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else ():
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):  # cut by a crash
            steps.append(0)
    return max(steps, default=None)


def steps_at_end(folder: Path) -> int | None:
    """The number of steps in results.json, which is written last; None if it is missing or damaged."""
    try:
        return int(json.loads((folder / "results.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def how_far(folder: Path) -> str:
    word = stop_signals.last_word(folder)
    return f"stopped at step {word['step']} ({word['reason']})" if word else f"left at step {last_step(folder)}"


def is_run(folder: Path) -> bool:
    """Whether a run made this folder: by its configuration, or by a checkpoint if the configuration is damaged."""
    return configured(folder) or any(folder.glob("checkpoints/*step-*/state.json"))


def configured(folder: Path) -> bool | None:
    """Whether config.json belongs to a run, not to another program; None if it is missing or damaged."""
    try:
        known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return isinstance(known, dict) and {"train_data", "retriever", "generator"} <= set(known)


def runs_of_index(folder: Path) -> list[Path]:
    """The runs whose own index (`RUN/index`) this folder is, by its path or by the path that a link leads to."""
    places = (Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))
    return [p.parent for p in dict.fromkeys(places) if p.name == "index" and is_run(p.parent)]


def check_beside_run(place: Path, flag: str) -> None:
    """Raises UserError for a place in a run's folder that the run itself writes to."""
    for parent in place.parents:
        if is_run(parent):
            path = place.relative_to(parent)
            if re.fullmatch(RESERVED, path.parts[0]) or re.fullmatch(RUN, path.as_posix()):
                raise UserError(f"{flag}: among the files of the run {parent}", found=place, expected="another place")
