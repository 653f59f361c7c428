"""Model folders by name: where the hub's cache has them, and fetching them into it.

Fetched are weights that run no code, configurations and tokenizers: safetensors, and `.bin` only where there are none.
A bare name of a retriever is first looked for below `sentence-transformers/`, as that library does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ds_rag.config.names import HubName, hub_name, near_path, spellings
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.hub import MODEL, NotOnHub, Repository, ask, download, is_offline, unreachable

FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
OTHER_FORMATS = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
CONFIG, ADAPTER = "config.json", "adapter_config.json"


def folder_of(source: str | Path, flag: str, trusted: bool = False) -> Path:
    """The folder that a setting names: a path as it is; of a name on the hub its place in the cache.

    A name with a commit is not asked for again. What is not there is fetched, if this is the only process (with several
    ranks `settle_names` fetches first). flag: "--retriever" or "--generator". trusted: --trust_remote_code. Raises
    UserError.
    """
    name = hub_name(source) if isinstance(source, str) else None
    if name is None:
        return Path(source).expanduser()
    if collectives.world() > 1 and (found := cached_model(name, flag)):
        return found[1]
    return fetch_model(str(source), flag, trusted)[1]


def cached_model(name: HubName, flag: str) -> tuple[HubName, Path] | None:
    """(name with its commit, folder) where the cache has all that opening the model needs; else None."""
    for one in spellings(name, flag):
        repository = repository_of(one, flag)
        commit = repository.cached_commit()
        folder = repository.snapshot(commit)
        if folder is not None and is_complete(place_in(folder, flag)):
            return replace(one, revision=commit), place_in(folder, flag)
    return None


@lru_cache
def fetch_model(source: str, flag: str, trusted: bool = False) -> tuple[HubName, Path]:
    """(name with its commit, folder) of a model, after asking the hub and fetching what the cache lacks.

    Where the hub cannot be asked, the cache answers. The base that an adapter names is fetched with it, if that is a
    name too. Raises UserError.
    """
    found = fetch_alone(source, flag, trusted)
    if base := base_name(found[1]):
        fetch_alone(str(base), flag, trusted)  # whose own base, if it is an adapter again, is an error
    return found


def fetch_alone(source: str, flag: str, trusted: bool) -> tuple[HubName, Path]:
    """The same, without the base of an adapter."""
    name = hub_name(source)
    assert name is not None
    if name.pinned and not trusted and (found := cached_model(name, flag)) and says_how(found[1], flag):
        return found
    wrong: UserError | None = None
    for one in spellings(name, flag):
        repository = replace(repository_of(one, flag), what=f"{flag} {source}")
        try:
            answer = ask(repository)
        except NotOnHub as error:
            wrong = error  # of the name as it is written, which is the last
            continue
        if isinstance(answer, str):
            if (found := cached_model(name, flag)) is None:
                raise unreachable(repository_of(name, flag), answer)
            return found
        folder = fetch_files(repository, trusted)
        return replace(one, revision=folder.name), place_in(folder, flag)
    assert wrong is not None
    raise wrong


def fetch_files(repository: Repository, trusted: bool) -> Path:
    """The snapshot's folder, with all files that may be needed."""
    wanted = [*FILES, *(["*.py"] if trusted else [])]
    folder = download(repository, wanted, OTHER_FORMATS)
    return folder if any(folder.rglob("*.safetensors")) else download(repository, [*wanted, "*.bin"], OTHER_FORMATS)


def says_how(folder: Path, flag: str) -> bool:
    """Does a cached copy say how a retriever pools, or can the hub not be asked whether it should? Another program that
    fetched the encoder alone has left `modules.json` out."""
    return flag != "--retriever" or (folder / "modules.json").is_file() or is_offline(MODEL)


def pooling_is_guessed(source: str, flag: str) -> bool:
    """Does the cached copy of a retriever not say how it pools, while the hub, which may, cannot be asked?"""
    name = hub_name(source)
    found = cached_model(name, flag) if name is not None and is_offline(MODEL) and flag == "--retriever" else None
    return found is not None and not (found[1] / "modules.json").is_file()


def base_name(folder: Path) -> HubName | None:
    """The name on the hub, with its revision, that an adapter's configuration has as its base; None where it names a
    folder, cannot be read, or is not there."""
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
        return hub_name(f"{base}@{revision}") if revision else hub_name(base)  # one with a commit is no folder
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def repository_of(name: HubName, flag: str) -> Repository:
    return Repository(name.repo, name.revision, MODEL, f"{flag} {name}", near_path(name.repo))


def place_in(snapshot: Path, flag: str) -> Path:
    """Where in a snapshot the model is: in the folder `retriever` or `generator` where the root has none."""
    role = snapshot / flag.removeprefix("--")
    at_root = any((snapshot / file).is_file() for file in (CONFIG, ADAPTER, "modules.json"))
    return role if not at_root and role.is_dir() else snapshot


def is_complete(folder: Path) -> bool:
    """Has this folder a configuration, and all files of weights? Another program may have fetched a part of them. (What
    else is missing is an error when the model is opened.)"""
    configured = any(next(folder.rglob(name), None) for name in (CONFIG, ADAPTER))
    parts = set()
    for index in folder.rglob("*.index.json"):
        try:
            of_index = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        parts |= {index.parent / file for file in of_index}

    def whole(kind: str) -> bool:
        of_kind = [part for part in parts if part.suffix == kind]
        return all(map(Path.is_file, of_kind)) if of_kind else any(f.is_file() for f in folder.rglob(f"*{kind}"))

    return configured and any(map(whole, (".safetensors", ".bin")))
