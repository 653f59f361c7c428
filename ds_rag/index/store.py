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
    version: str = ds_rag.__version__


@dataclass
class StoredIndex:
    """An opened index: number n is passage `ids[n]`, `texts[n]`."""

    index: Any
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


def describe(model_hash: str, vectors_ND: np.ndarray, texts: list[str], factory: str, settings: Any) -> Manifest:
    """The manifest of an index; `settings` are the retriever's (pooling, normalisation)."""
    return Manifest(
        model_hash=model_hash,
        count=len(texts),
        dimension=vectors_ND.shape[1],
        factory=factory,
        normalize=settings.normalize,
        pooling=settings.pooling,
        corpus_hash=hash_texts(texts),
    )


def write_index(
    folder: Path, index: Any, vectors_ND: np.ndarray, ids: list[str], texts: list[str], manifest: Manifest
) -> None:
    """Writes the folder; the manifest goes last, so that a folder without one is no index."""
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    np.save(folder / "vectors.npy", vectors_ND)
    (folder / "ids.json").write_text(json.dumps(ids))
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(text) + "\n" for text in texts)
    faiss.write_index(index, str(folder / "index.faiss"))
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
    import faiss

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
    index = faiss.read_index(str(folder / "index.faiss"))
    ids, texts = read_ids_and_texts(folder)
    sizes = {"index.faiss": index.ntotal, "ids.json": len(ids), "texts.jsonl": len(texts)}
    wrong = {name: size for name, size in sizes.items() if size != manifest.count}
    if wrong:
        raise UserError(f"{folder}: files disagree", found=wrong, expected=f"{manifest.count} passages in each")
    return StoredIndex(index, ids, texts, manifest)
