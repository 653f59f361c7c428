"""The run's folder: what it may be called, and whose it is."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ds_rag import lock, run_files, stopping
from ds_rag.config import RunConfig
from ds_rag.errors import UserError

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
STARTED_ONLY = {
    "config.json",
    "run.log",
    "tokenizers",
    "deepspeed_retriever.json",
    "deepspeed_generator.json",
    "refresh",
    "exit.json",
}


def check_path(output_dir: str) -> Path:
    """`--output_dir` as a path. Raises UserError for a name or a way to it that could surprise.

    The last component is the run's name. What leads there is the user's own: an absolute path may lead anywhere, and
    folders on the way may be links; a relative one stays within the working directory. The run's folder itself may be
    a link to one beside it only: what is cleared and written there should lie where it says.
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
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise UserError(
            "--output_dir is a symbolic link to another place",
            found=f"{path} -> {path.resolve()}",
            expected="the folder itself (folders on the way to it may be links)",
            fix=f"--output_dir {path.resolve()}",
        )
    return path


def claim(config: RunConfig) -> Path:
    """The run's folder: new, empty, or to be resumed, and from now on held by this process (lock.py).

    Replaced are the built-in run's own default folder, and what a run left that failed before its first figure. Raises
    UserError.
    """
    folder = check_path(config.run.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError("--output_dir: not a folder", found=folder)
    run_files.check_kinds(folder)
    if (folder / lock.FILE).exists():
        lock.hold(folder)  # first: that another job is at work there says more than that the folder is not empty
    clear = is_to_be_cleared(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    lock.hold(folder)
    if clear:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != lock.FILE:
                entry.unlink()
    stopping.forget(folder)
    if config.run.resume == "never":
        (folder / run_files.CONFIG).write_text(run_files.configuration_text(config))  # from now on it is a run's
    return folder


def is_to_be_cleared(folder: Path, config: RunConfig) -> bool:
    """Does it hold what this run may replace? Raises UserError where it holds anything else."""
    names = {f.name for f in folder.iterdir()} - {lock.FILE} if folder.is_dir() else set()
    if not names or config.run.resume != "never":
        return False
    own = config.is_builtin and "output_dir" not in config.explicit and "config.json" in names
    failed = {"config.json", "run.log"} <= names and all(
        n in STARTED_ONLY or n.startswith(("run-", "stacks-")) for n in names
    )
    if not own and not failed:
        raise UserError(
            "--output_dir is not empty",
            found=folder,
            expected="a new or empty folder",
            fix="--resume auto, or another folder",
        )
    return True
