"""Names on the hub in a run's settings: fetched before anything is opened, and replaced by the same names with the
commit that was found.

So config.json, the cards, the results and the checkpoints say which revision it was, and whoever opens the run later,
without a network perhaps, gets the same. A resumed run keeps the revisions of its checkpoint: the same words mean what
they meant when the run began, whatever `main` has become.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ds_rag.config import BUILTIN, OWNER, RunConfig
from ds_rag.config.names import NAMED, hub_name, pinned_name
from ds_rag.data.data_settings import splits
from ds_rag.data.hub_data import fetch_data
from ds_rag.models.adapters import ADAPTER_FILE
from ds_rag.models.hub_models import fetch_model, pooling_is_guessed
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.long_waits import together

Say = Callable[[str], None]


def settle_names(
    config: RunConfig, say: Say, only: Collection[str] = tuple(NAMED), resumed: Path | None = None
) -> None:
    """Fetches what the settings name on the hub, once on each host, and puts the commits into `config`, whose `named`
    then has the names as they were given. All ranks call it together. Raises UserError, on every rank.

    only: the settings that this command reads. resumed: the checkpoint that the run continues.
    """
    known = revisions_of(resumed) if collectives.rank() == 0 else {}
    wanted = {key: value for key in only if isinstance(value := setting(config, key), str)}
    wanted = {key: value for key, value in wanted.items() if value in known.get(key, ()) or hub_name(value, NAMED[key])}
    if not any(collectives.gather_objects(wanted)):
        return
    error: UserError | None = None
    found: dict[str, str] = {}

    def by_first() -> None:
        nonlocal error
        try:
            for key, given in wanted.items() if collectives.rank() == 0 else ():
                found[key] = fetch(config, key, known.get(key, {}).get(given, given))
        except UserError as met:
            error = met

    together(lambda pause: by_first(), "fetching what the settings name")
    found, error, wanted = collectives.from_first((found, error, wanted))
    if error is not None:
        raise error
    if collectives.several_hosts():
        first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0 and collectives.rank() != 0
        here = found if first_here else {}
        together(lambda pause: [fetch(config, *item) for item in here.items()], "fetching what the settings name")
    for key, name in found.items():
        say(f"{key:10} {name}")
        setattr(getattr(config, OWNER[key]), key, name)
        config.named[key] = wanted[key]
        if config.model.pooling == "auto" and pooling_is_guessed(name, f"--{key}"):
            say(
                f"note: the cached copy of {name} does not say how its vectors are pooled (no modules.json): the usual "
                "way is taken. --pooling names another, or fetch it once with a network"
            )


def setting(config: RunConfig, key: str) -> Any:
    """The value of a setting; None for the built-in rows and for a new model."""
    value = getattr(getattr(config, OWNER[key]), key)
    return None if value == BUILTIN or str(value).startswith("config:") else value


def fetch(config: RunConfig, key: str, source: str) -> str:
    """Fetches one name; returns it with its commit."""
    if NAMED[key]:
        return str(fetch_data(source, f"--{key}")[0])
    return str(fetch_model(source, f"--{key}", config.model.trust_remote_code)[0])


def revisions_of(resumed: Path | None) -> Mapping[str, dict[str, str]]:
    """Setting -> the name as the run's command had it -> with the commit of the checkpoint's run."""
    manifest = (atomic_folders.read_manifest(resumed) if resumed else None) or {}
    config, named = manifest.get("config"), manifest.get("named")
    if not isinstance(config, dict) or not isinstance(named, dict):
        return {}
    return {key: {named[key]: config[key]} for key in NAMED if isinstance(named.get(key), str) and key in config}


def read_by(config: RunConfig) -> list[str]:
    """The settings that name the rows and passages of an evaluation."""
    rows = "eval_data" if config.data.eval_data else "train_data" if splits(config.data) else None
    return [key for key in (rows, "corpus") if key is not None]


def as_paths(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A run's settings, in which a name without a commit is a path: had it been a name, it would have got one. given:
    the settings of this command, whose names are names."""

    def path(key: str, value: Any) -> Any:
        is_path = key in NAMED and key not in given and isinstance(value, str) and value != BUILTIN
        unsettled = is_path and hub_name(value, NAMED[key]) and not pinned_name(value, NAMED[key])
        return f"./{value}" if unsettled else value

    return {key: path(key, value) for key, value in values.items()}


def bases_of(run: Path, config: RunConfig) -> list[str]:
    """The models of which a run has only adapters, and that it names on the hub."""
    adapted = (key for key in ("retriever", "generator") if any((run / key).rglob(ADAPTER_FILE)))
    return [key for key in adapted if pinned_name(getattr(config.model, key))]
