"""An index on disk: vectors, ids, texts, its back end's file, and a manifest that says what they were made with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

import ds_rag
from ds_rag.data.origin import Origin
from ds_rag.index.back_ends import METRIC, VectorIndex, file_suffix, open_vector_index
from ds_rag.index.compatibility import check_compatible, check_parts
from ds_rag.index.corpus_index import CorpusIndex, Part
from ds_rag.index.vector_parts import Piece
from ds_rag.runtime import atomic_folders, json_files
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.own_files import INDEX, listed


@dataclass(frozen=True)
class Manifest:
    """What an index was made with. Only the model with hash `model_hash` may search it."""

    model_hash: str
    count: int
    dimension: int
    factory: str
    normalize: bool
    pooling: str
    corpus_hash: str
    metric: str = METRIC
    shards: int = 0  # number of shards; 0: one index of all passages
    source: str = ""  # file or folder of the corpus; "": the passages came from rows
    tokens: str = ""  # a hash of the passages' token ids, as they were encoded; "": not known
    precision: str = ""  # precision of the encoding (`encode.precision_of`)
    source_files: dict[str, Any] = field(default_factory=dict)  # of the corpus (data/corpus_state.py); empty: not known
    version: str = ds_rag.__version__


ORIGINS = "origins.json"  # document, title and place of each passage, where any is known
REQUIRED = tuple(f.name for f in fields(Manifest) if f.default is MISSING and f.default_factory is MISSING)


@dataclass
class StoredIndex:
    """An opened index. Passage number n has id `ids[n]` and text `texts[n]`."""

    index: CorpusIndex
    ids: list[str]
    texts: list[str]
    manifest: Manifest
    stale: bool = False  # the index was made by other weights
    origins: list[Origin] = field(default_factory=list)  # of the passages; empty: of none known


def hash_model(folder: Path) -> str:
    """sha256 over the weights and settings in a model folder."""
    digest = hashlib.sha256()
    found = (folder.rglob(pattern) for pattern in ("*.safetensors", "*.bin", "ds_rag.json"))
    for file in sorted(file for files in found for file in files):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def hash_texts(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def describe(
    model_hash: str,
    dimension: int,
    texts: list[str],
    factory: str,
    settings: Any,
    shards: int = 0,
    precision: str = "",
) -> Manifest:
    """The manifest of an index over these texts, without what is known of their source. settings: the retriever's
    (pooling, normalisation); precision: `precision_of` it."""
    return Manifest(
        model_hash=model_hash,
        count=len(texts),
        dimension=dimension,
        factory=factory,
        normalize=settings.normalize,
        pooling=settings.pooling,
        corpus_hash=hash_texts(texts),
        shards=shards,
        precision=precision,
    )


def write_index(folder: Path, index: VectorIndex, vectors_ND: np.ndarray, factory: str) -> None:
    """Writes the files of one index of all passages. factory: of its manifest."""
    np.save(folder / "vectors.npy", vectors_ND)
    index.write(folder / f"index.{file_suffix(factory)}")


def write_shard(
    folder: Path, rank: int, parts: list[Part], vectors_nD: np.ndarray, numbers_n: np.ndarray, manifest: Manifest
) -> None:
    """Writes one rank's files of an index in shards: vectors, numbers of the passages, and the back end's file if there
    is any passage."""
    name = f"shard-{rank}-of-{manifest.shards}"
    np.save(folder / f"{name}.npy", vectors_nD)
    np.save(folder / f"{name}.numbers.npy", numbers_n)
    for part in parts:
        part.index.write(folder / f"{name}.{file_suffix(manifest.factory)}")


def write_passages(folder: Path, ids: list[str], texts: list[str], origins: Sequence[Origin] = ()) -> None:
    """origins: of all passages, or none."""
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    if any(origins):
        (folder / ORIGINS).write_text(json.dumps([[o.document, o.title, o.place] for o in origins]), encoding="utf-8")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(text) + "\n" for text in texts)


def read_ids_and_texts(folder: Path) -> tuple[list[str], list[str]]:
    lines = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "ids.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def read_origins(folder: Path, count: int) -> list[Origin]:
    """The documents of an index's `count` passages; empty where it knows none. Raises UserError for another number."""
    file = folder / ORIGINS
    if not file.is_file():
        return []
    found = [Origin(*entry) for entry in json_files.read_json(file, list, "ds-rag index writes the index again")]
    if len(found) != count:
        raise UserError(f"{file}: files disagree", found=f"{len(found)} passages", expected=f"{count}")
    return found


def read_passages(folder: Path) -> list[tuple[str, str]]:
    """(id, text) of every passage of an index of any model. Raises UserError if there is no index."""
    atomic_folders.put_back(folder)
    if not (folder / "ids.json").is_file() or not (folder / "texts.jsonl").is_file():
        raise UserError(f"{folder}: holds no passages", expected="ids.json and texts.jsonl", fix="pass --corpus FILE")
    # Checks only these files: an index with a damaged back end's file can be made again from them.
    read = ("ids.json", "texts.jsonl", ORIGINS, atomic_folders.MANIFEST)
    if wrong := [d for d in atomic_folders.damages(folder) if d.file in read]:
        raise atomic_folders.refuse(folder, wrong, "pass --corpus FILE")
    ids, texts = read_ids_and_texts(folder)
    return list(zip(ids, texts, strict=True))


def read_index(folder: Path, model_hash: str, allow_stale: bool = False, retriever: Any = None) -> StoredIndex:
    """Opens an index for the model with that hash. Raises UserError if there is none, or it is of another model, or
    inconsistent.

    allow_stale: accept an index of another model, and mark it as stale. retriever: will embed the queries, and must fit
    (compatibility.py).
    """
    atomic_folders.put_back(folder)
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(f"{folder}: no index", expected="manifest.json in it", fix="ds-rag index --run RUN")
    if damage := atomic_folders.damages(folder):  # before a library reads files that may be damaged or malicious
        raise atomic_folders.refuse(folder, damage, "ds-rag index --run RUN")
    facts = atomic_folders.read_manifest(folder) or {}
    facts = {name: value for name, value in facts.items() if name not in ("kind", "files")}
    by = facts.get("version")
    if missing := [name for name in REQUIRED if name not in facts]:
        raise UserError(f"{file}: not an index's manifest", found=f"no {missing[0]}", fix="ds-rag index --run RUN")
    manifest = json_files.record(Manifest, facts, file, by, "ds-rag index --run RUN")
    stale = manifest.model_hash != model_hash
    if stale and not allow_stale:
        raise UserError(
            f"{folder}: the index was made by another model",
            found=f"model {manifest.model_hash[:12]}",
            expected=f"model {model_hash[:12]}",
            fix="ds-rag index --run RUN; ds-rag ask searches it all the same with --allow_stale",
        )
    if retriever is not None:
        check_compatible(folder, manifest, retriever)
    parts = read_parts(folder, manifest.shards, manifest.factory)
    check_parts(folder, manifest, parts)
    ids, texts = read_ids_and_texts(folder)
    name = f"{manifest.shards} shards" if manifest.shards else f"index.{file_suffix(manifest.factory)}"
    sizes = {name: sum(p.index.count for p in parts), "ids.json": len(ids), "texts.jsonl": len(texts)}
    wrong = {name: size for name, size in sizes.items() if size != manifest.count}
    if wrong:
        raise UserError(f"{folder}: files disagree", found=wrong, expected=f"{manifest.count} passages in each")
    if (content := hash_texts(texts)) != manifest.corpus_hash:
        raise UserError(
            f"{folder}: texts.jsonl was changed after its passages were encoded",
            found=f"{len(texts)} passages of content {content[:12]}",
            expected=f"{manifest.count} of content {manifest.corpus_hash[:12]}",
            fix="ds-rag index --run RUN",
        )
    origins = read_origins(folder, manifest.count)
    return StoredIndex(CorpusIndex(parts, manifest.count), ids, texts, manifest, stale, origins)


def check_replaceable(place: Path, of_run: bool = False) -> None:
    """To be called before an index is written to `place` (links are followed): raises UserError unless there is
    nothing, an empty folder, or an index of ours without other files. of_run: the index is in a run's folder, so its
    files are recognised by name if its manifest is damaged.
    """
    if not place.exists() or (place.is_dir() and not os.path.ismount(place) and not any(place.iterdir())):
        return
    if not place.is_dir() or os.path.ismount(place):
        found = "a mount point" if place.is_dir() else "a file"
    elif not of_run and (atomic_folders.read_manifest(place) or {}).get("kind") != "index":
        found = "a folder that is no index: it has no manifest.json of one that is as it was written"
    elif foreign := atomic_folders.strangers(place, INDEX):
        found = f"files that are not the index's: {listed(foreign)}"
    else:
        return
    raise UserError(
        f"{place}: not replaced by an index",
        found=found,
        expected="nothing there, an empty folder, or an index and nothing besides",
        fix="another --out, or move away what is there",
    )


def read_parts(folder: Path, shards: int, factory: str) -> list[Part]:
    """The index of all passages, or the indexes of all shards, memory-mapped if possible. Raises UserError if a file is
    missing, or the back end of `factory` is unknown."""
    if not shards:
        return [Part(open_vector_index(folder, "index", factory, "vectors.npy"))]
    parts = []
    for name in (f"shard-{rank}-of-{shards}" for rank in range(shards)):
        numbers = folder / f"{name}.numbers.npy"
        if not numbers.is_file():
            raise UserError(f"{folder}: a shard is missing", found=f"no {numbers.name}", fix="ds-rag index --run RUN")
        numbers_n = np.load(numbers)
        if len(numbers_n):
            parts.append(Part(open_vector_index(folder, name, factory, f"{name}.npy"), numbers_n))
    return parts


def open_vectors(folder: Path, shards: int) -> list[Piece]:
    """The vectors of a complete index, memory-mapped."""
    if not shards:
        vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r")
        return [(vectors_ND, np.arange(len(vectors_ND)))]
    names = [folder / f"shard-{rank}-of-{shards}" for rank in range(shards)]
    return [(np.load(f"{name}.npy", mmap_mode="r"), np.load(f"{name}.numbers.npy")) for name in names]
