"""An index on disk: vectors, ids, texts, the FAISS file, and a manifest that names what they were made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ds_rag
from ds_rag.errors import UserError
from ds_rag.index.corpus_index import CorpusIndex, Part


@dataclass(frozen=True)
class Manifest:
    """What an index was made with; a model other than `model_hash`'s must not search it."""

    model_hash: str
    count: int
    dimension: int
    factory: str
    normalize: bool
    pooling: str
    corpus_hash: str
    metric: str = "inner product"
    shards: int = 0  # files of a part of the passages each; 0: one index of all
    source: str = ""  # file or folder that the passages were read from; "": they are those of rows
    version: str = ds_rag.__version__


@dataclass
class StoredIndex:
    """An opened index: number n is passage `ids[n]`, `texts[n]`."""

    index: CorpusIndex
    ids: list[str]
    texts: list[str]
    manifest: Manifest


def hash_model(folder: Path) -> str:
    """sha256 over the weights and settings in a model folder."""
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.safetensors"), *folder.rglob("ds_rag.json")]):
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
    source: str | None = None,
) -> Manifest:
    """The manifest of an index; `settings` are the retriever's (pooling, normalisation); source: the corpus's path."""
    return Manifest(
        model_hash=model_hash,
        count=len(texts),
        dimension=dimension,
        factory=factory,
        normalize=settings.normalize,
        pooling=settings.pooling,
        corpus_hash=hash_texts(texts),
        shards=shards,
        source=str(Path(source).expanduser().resolve()) if source else "",
    )


def write_index(
    folder: Path, index: Any, vectors_ND: np.ndarray, ids: list[str], texts: list[str], manifest: Manifest
) -> None:
    """Writes the folder of one index of all passages; the manifest goes last, so that a folder without one is no
    index."""
    import faiss

    begin_index(folder)
    np.save(folder / "vectors.npy", vectors_ND)
    faiss.write_index(index, str(folder / "index.faiss"))
    write_passages(folder, ids, texts, manifest)


def begin_index(folder: Path) -> None:
    """An empty folder for an index: what an earlier one, of whichever layout, has left there goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # first: from now on it is none
    for old in [folder / "vectors.npy", folder / "index.faiss", *folder.glob("shard-*-of-*.*")]:
        old.unlink(missing_ok=True)


def write_shard(
    folder: Path, rank: int, parts: list[Part], vectors_nD: np.ndarray, numbers_n: np.ndarray, manifest: Manifest
) -> None:
    """One rank's files of an index in shards: vectors, the passages' numbers, and the FAISS index where there is any
    passage."""
    import faiss

    name = f"shard-{rank}-of-{manifest.shards}"
    np.save(folder / f"{name}.npy", vectors_nD)
    np.save(folder / f"{name}.numbers.npy", numbers_n)
    for part in parts:
        faiss.write_index(part.index, str(folder / f"{name}.faiss"))


def write_passages(folder: Path, ids: list[str], texts: list[str], manifest: Manifest) -> None:
    """What is said of all passages, and last the manifest."""
    (folder / "ids.json").write_text(json.dumps(ids))
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(text) + "\n" for text in texts)
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def read_ids_and_texts(folder: Path) -> tuple[list[str], list[str]]:
    lines = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "ids.json").read_text()), [json.loads(line) for line in lines]


def read_passages(folder: Path) -> list[tuple[str, str]]:
    """(id, text) of every passage of an index, whatever model made it. Raises UserError where there is none."""
    if not (folder / "ids.json").is_file() or not (folder / "texts.jsonl").is_file():
        raise UserError(f"{folder}: holds no passages", expected="ids.json and texts.jsonl", fix="pass --corpus FILE")
    ids, texts = read_ids_and_texts(folder)
    return list(zip(ids, texts, strict=True))


def read_index(folder: Path, model_hash: str) -> StoredIndex:
    """Opens an index for the model of that hash. Raises UserError: none there, another model's, or inconsistent."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(f"{folder}: no index", expected="manifest.json in it", fix="ds-rag index --run RUN")
    manifest = Manifest(**json.loads(file.read_text()))
    if manifest.model_hash != model_hash:
        raise UserError(
            f"{folder}: the index was made by another model",
            found=f"model {manifest.model_hash[:12]}",
            expected=f"model {model_hash[:12]}",
            fix="ds-rag index --run RUN",
        )
    parts = read_parts(folder, manifest.shards)
    ids, texts = read_ids_and_texts(folder)
    name = f"{manifest.shards} shards" if manifest.shards else "index.faiss"
    sizes = {name: sum(p.index.ntotal for p in parts), "ids.json": len(ids), "texts.jsonl": len(texts)}
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
    return StoredIndex(CorpusIndex(parts, manifest.count), ids, texts, manifest)


def read_parts(folder: Path, shards: int) -> list[Part]:
    """The index of all passages, or those of all shards. Raises UserError where a file is missing."""
    import faiss

    if not shards:
        return [Part(faiss.read_index(str(folder / "index.faiss")))]
    parts = []
    for name in (f"shard-{rank}-of-{shards}" for rank in range(shards)):
        numbers = folder / f"{name}.numbers.npy"
        if not numbers.is_file():
            raise UserError(f"{folder}: a shard is missing", found=f"no {numbers.name}", fix="ds-rag index --run RUN")
        numbers_n = np.load(numbers)
        if len(numbers_n):
            parts.append(Part(faiss.read_index(str(folder / f"{name}.faiss")), numbers_n))
    return parts
