"""Names on the Hugging Face hub: how they are written, and which texts are paths that no hub is ever asked for.

    org/name[@revision]                       a model
    org/name[@revision][:config][:split]      a data set

A revision is a branch, a tag, a commit, `refs/pr/N` or `refs/convert/NAME`. One part alone after a colon is a
configuration if the data set has one of that name, else a split; `org/name::split` names a split of the default
configuration.

Never a name: what exists here as a file or a folder; what begins with `.`, `/` or `~`; what has more than one `/`
before the revision; what ends like a file (`rows.jsonl`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ds_rag.runtime.errors import nearest
from ds_rag.runtime.hub import COMMIT

PART = r"\w(?:[\w.-]{0,94}\w)?"
REVISION = r"refs/pr/\d+|refs/convert/[\w.-]+|[\w.+-]+"
REPOSITORY = re.compile(rf"{PART}/{PART}", re.ASCII)  # one that is written to
MODEL = re.compile(rf"(?P<repo>{PART}(?:/{PART})?)(?:@(?P<revision>{REVISION}))?", re.ASCII)
DATA = re.compile(MODEL.pattern + r"(?::(?P<config>[^:/\\\s]*)(?::(?P<split>[^:/\\\s]+))?)?", re.ASCII)

OF_FILES = (
    *(
        "arrow",
        "bin",
        "bz2",
        "csv",
        "docx?",
        "gguf",
        "gz",
        "html?",
        "ipynb",
        "jsonl?",
        "md",
        "ndjson",
        "parquet",
        "pdf",
    ),
    *(
        "pptx?",
        "pt",
        "py",
        "rst",
        "safetensors",
        "sqlite",
        "tar",
        "tsv",
        "txt",
        "xlsx?",
        "xml",
        "xz",
        "ya?ml",
        "zip",
        "zst",
    ),
)
LIKE_A_FILE = re.compile(rf".*\.(?:{'|'.join(OF_FILES)})", re.IGNORECASE)
BARE = "sentence-transformers/"
# The settings that may be such names -> whether they name data.
NAMED = {"retriever": False, "generator": False, "train_data": True, "eval_data": True, "corpus": True}


@dataclass(frozen=True)
class HubName:
    """A repository of the hub. config, split: of a data set; None where not given. config may be a split's name, if no
    split is given (see above)."""

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @property
    def pinned(self) -> bool:
        """Is the revision a commit, which never changes?"""
        return bool(self.revision and COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        text = f"{self.repo}@{self.revision}" if self.revision else self.repo
        if self.split is not None:
            return f"{text}:{self.config or ''}:{self.split}"
        return f"{text}:{self.config}" if self.config else text


def hub_name(source: str, data: bool = False) -> HubName | None:
    """The name that `source` is; None where it is a path. data: may it have a configuration and a split?"""
    match = (DATA if data else MODEL).fullmatch(source)
    if match is None or ".." in match["repo"] or "--" in match["repo"] or LIKE_A_FILE.fullmatch(match["repo"]):
        return None
    folder, colon, _ = source.rpartition(":")  # FOLDER:SPLIT
    if source.startswith("config:") or Path(source).exists() or (colon and Path(folder).is_dir()):
        return None
    found = match.groupdict()
    return HubName(found["repo"], found["revision"], found.get("config") or None, found.get("split"))


def pinned_name(source: object, data: bool = False) -> HubName | None:
    """The name, if its revision is a commit; else None."""
    name = hub_name(source, data) if isinstance(source, str) else None
    return name if name is not None and name.pinned else None


def spellings(name: HubName, flag: str) -> Iterator[HubName]:
    """The repositories that a model's name may mean, in the order in which they are tried: a bare retriever is first
    looked for below `sentence-transformers/`, as that library does."""
    if flag == "--retriever" and "/" not in name.repo:
        yield replace(name, repo=BARE + name.repo)
    yield name


def near_path(source: str) -> str | None:
    """A path that exists and is spelt almost like `source`; None where there is none."""
    place = Path(".")
    for part in Path(source).parts:
        around = [entry.name for entry in place.iterdir()] if place.is_dir() else []
        close = part if part in around else nearest(part, around)
        if close is None:
            return None
        place /= close
    return str(place)
