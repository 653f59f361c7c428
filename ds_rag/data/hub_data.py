"""Rows and corpora by name: a data set of the hub, prepared by `datasets` and kept as a folder that the readers know.

    HF_DATASETS_CACHE/ds_rag/ORG--NAME/COMMIT/CONFIG/SPLIT      what `save_to_disk` writes

The place follows from a name with a commit alone, so that a run finds its rows again without a network. Scripts are
never executed: `datasets` refuses them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ds_rag.config.names import HubName, hub_name, near_path
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.hub import (
    DATASET,
    Found,
    Repository,
    ask,
    asking_nobody,
    is_of_network,
    one_line,
    refused,
    unreachable,
)

COMPLETE = "state.json"  # of the files of a folder written last
BY_COMMAND = "`hf download NAME --repo-type dataset --local-dir FOLDER`, then the file that has the rows"
AS_PARQUET = "@refs/convert/parquet after the name, where the hub keeps a copy without a script"


def path_of(source: str | Path, flag: str) -> Path:
    """The file or folder that a setting names: a path as it is; of a name on the hub its folder in the cache, fetched
    where it is not there. flag: "--train_data", "--corpus" ...; `--train_data` prefers the split train. Raises
    UserError."""
    name = hub_name(source, data=True) if isinstance(source, str) else None
    if name is None:
        return Path(source).expanduser()
    return fetch_data(str(source), flag)[1]


@lru_cache
def fetch_data(source: str, flag: str) -> tuple[HubName, Path]:
    """(name with commit, configuration and split; folder) of a data set, after asking the hub and fetching what the
    cache lacks. Where the hub cannot be asked, the cache answers. Raises UserError."""
    name = hub_name(source, data=True)
    assert name is not None
    if name.pinned and name.split and (place_of(name) / COMPLETE).is_file():
        return name, place_of(name)
    what = f"{flag} {source}"
    repository = Repository(name.repo, name.revision, DATASET, what, near_path(name.repo))
    answer = ask(repository)
    if isinstance(answer, Found):
        name = replace(name, repo=answer.name)
    try:
        with asking_nobody(isinstance(answer, str)):
            builder, name = open_builder(name, repository, answer)
            builder.download_and_prepare()
        name = replace(name, split=choose_split(name, list(builder.info.splits or ()), what, flag))
        if not (place_of(name) / COMPLETE).is_file():
            keep(builder.as_dataset(split=name.split), place_of(name))
    except UserError:
        raise
    except Exception as error:  # of many kinds, by the format of the files
        if isinstance(answer, str) and is_of_cache(error):
            raise unreachable(repository, answer) from None
        if "is a gated dataset" in str(error):
            raise refused(repository, error) from None
        if is_of_network(error):
            fix = "the same command again, which continues it"
            raise UserError(f"{what}: the download broke off", found=one_line(str(error)), fix=fix) from None
        raise unreadable(what, error) from error
    return name, place_of(name)


def place_of(name: HubName) -> Path:
    """Where a data set is kept. name: with commit, configuration and split."""
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    parts = (name.repo.replace("/", "--"), name.revision or "", name.config or "default", name.split or "")
    return cache.joinpath("ds_rag", *parts)


def open_builder(name: HubName, repository: Repository, answer: Found | str) -> tuple[Any, HubName]:
    """The builder of `datasets` for this name, and the name with its commit and configuration. answer: the hub's
    commit, or why it cannot be asked: then files in the hub's cache are read, or what `datasets` has prepared before.
    Raises UserError."""
    import datasets

    commit = answer.commit if isinstance(answer, Found) else repository.cached_commit()
    if isinstance(answer, str) and (folder := repository.snapshot(commit)):
        place, options = str(folder), {}
    else:
        place, options = name.repo, {"revision": commit} if isinstance(answer, Found) else {}
    config = name.config
    if config and name.split is None and config not in datasets.get_dataset_config_names(place, **options):
        name, config = replace(name, config=None, split=config), None
    builder = datasets.load_dataset_builder(place, config, **options)
    found = commit if place != name.repo else builder.hash
    # where files cannot be read, `datasets` falls back on any other commit that it has prepared
    if found != commit and (isinstance(answer, Found) or name.revision is not None):
        if isinstance(answer, str):
            raise unreachable(repository, answer)
        raise UserError(f"{repository.what}: `datasets` opened another revision", found=found, expected=commit)
    return builder, replace(name, revision=found, config=builder.config.name)


def choose_split(name: HubName, splits: list[str], what: str, flag: str) -> str:
    """The split to read: the one that is named, the only one, or for `--train_data` the one called train. Raises
    UserError."""
    wanted = [name.split] if name.split else ["train"] if flag == "--train_data" and "train" in splits else splits
    if len(wanted) == 1 and wanted[0] in splits:
        return wanted[0]
    example = f"{name.repo}:{splits[0]}" if splits else name.repo
    raise UserError(
        f"{what}: no such split" if name.split else f"{what}: more than one split",
        found=f"{', '.join(splits)} in the configuration {name.config}",
        expected="org/name:split, or org/name:config:split",
        fix=f"{flag} {example}",
    )


def keep(dataset: Any, place: Path) -> None:
    """Saves a data set as a folder, which is complete or absent."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    try:
        dataset.save_to_disk(str(part / "data"))
        if place.is_dir():  # of another process, or without its last file
            if (place / COMPLETE).is_file():
                return
            shutil.rmtree(place)
        os.rename(part / "data", place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_of_cache(error: Exception) -> bool:
    """Does the error say no more than that neither the hub nor the cache has it?"""
    return is_of_network(error) or isinstance(error, FileNotFoundError) or "cache" in str(error)


def unreadable(what: str, error: Exception) -> UserError:
    """The error for a repository from which `datasets` makes no rows."""
    text = one_line(error)
    if "scripts are no longer supported" in text:
        return UserError(f"{what}: made by a script, which is not run", found=text, fix=AS_PARQUET)
    if "Config name is missing" in text or "BuilderConfig" in text:
        expected = "org/name:config, or org/name:config:split"
        return UserError(f"{what}: which configuration?", found=text, expected=expected)
    found = f"{type(error).__name__}: {text}"
    return UserError(f"{what}: no rows that `datasets` can read", found=found, fix=BY_COMMAND)
