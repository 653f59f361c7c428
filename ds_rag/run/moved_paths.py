"""Finds the files that a run's settings name, after the run was moved or copied, or from another working directory.

config.json keeps the paths as they were typed and, beside them, where they led: `paths`, absolute.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ds_rag.config import BUILTIN, DataConfig, RunConfig
from ds_rag.data.format import with_split
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError

PATHS = "paths"  # key of config.json: setting -> absolute path; `output_dir` is the run's own
OF_ROWS = ("train_data", "eval_data", "corpus")  # settings that name files which a finished run is asked about


def absolute_paths(config: RunConfig) -> dict[str, str]:
    """The entry for config.json, of the files that exist; made in the working directory of the training."""
    named = {name: getattr(config.data, name) for name in OF_ROWS} | {"output_dir": config.run.output_dir}
    places = {name: Path(path).expanduser() for name, path in named.items() if path and path != BUILTIN}
    return {name: os.path.abspath(place) for name, place in places.items() if is_there(place)}


def is_there(place: Path) -> bool:
    """Is there such a file or folder, or FOLDER:SPLIT?"""
    return with_split(place)[0].exists()


def recorded(run: Path) -> dict[str, str]:
    """What config.json says; empty for a run of before. Raises UserError for another type."""
    paths = json_files.read_json(run / json_files.CONFIG, dict, json_files.AGAIN).get(PATHS, {})
    if not json_files.fits(paths, dict) or not all(isinstance(path, str) for path in paths.values()):
        raise json_files.wrong_type(run / json_files.CONFIG, PATHS, paths, dict[str, str], json_files.AGAIN)
    return dict(paths)


def places(run: Path, name: str, typed: str, known: Mapping[str, str]) -> Iterator[Path]:
    """Where a file may be, the best first: where it was; where it now is as seen from the run, if both were moved
    together; beside the run; and what the typed path means here."""
    if name in known:
        place = Path(known[name])
        yield place
        if "output_dir" in known:
            yield Path(os.path.normpath(run.absolute() / os.path.relpath(place, known["output_dir"])))
        yield run.absolute().parent / place.name
    yield Path(typed).expanduser()


def located(run: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """The settings of rows and corpus whose files are found elsewhere than their typed path leads from here: setting ->
    path. values: of the run's config.json."""
    known, found = recorded(run), {}
    for name in OF_ROWS:
        typed = values.get(name)
        if typed and typed != BUILTIN:
            there = [place for place in places(run, name, typed, known) if is_there(place)]
            here = Path(typed).expanduser()
            if there and not (is_there(here) and with_split(here)[0].samefile(with_split(there[0])[0])):
                found[name] = str(there[0])
    return found


def check_found(run: Path, data: DataConfig, given: Collection[str] = ()) -> None:
    """Raises UserError where a file that an evaluation reads, of those that the run's own settings name, is nowhere.
    data: with the paths of `located`; given: settings that do not come from the run."""
    known = recorded(run)
    for name in OF_ROWS:
        typed = getattr(data, name)
        own = name in known and name not in given and not (name == "train_data" and data.eval_data)
        if not own or not typed or typed == BUILTIN or is_there(Path(typed).expanduser()):
            continue
        tried = [str(place) for place in dict.fromkeys(places(run, name, typed, known))]
        raise UserError(
            f"{run}: the file that its training read as --{name} {typed} is not there",
            found=f"nothing at {', '.join(tried)}",
            expected=f"{known[name]}, as it was, or the same place seen from the run",
            fix=f"--{'data' if name == 'eval_data' else name} FILE says where it is now",
        )
