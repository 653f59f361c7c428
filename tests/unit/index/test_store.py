from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ds_rag.data.origin import NOWHERE, Origin
from ds_rag.index.corpus_index import Part
from ds_rag.index.faiss_index import build_vector_index
from ds_rag.index.store import (
    describe,
    hash_model,
    hash_texts,
    read_index,
    read_origins,
    write_index,
    write_passages,
)
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError

TEXTS = ["one", "zwei\nlines", "三", "  four", "line\u2028separator", "\x85 next"]
IDS = [f"id-{n}" for n in range(len(TEXTS))]
SETTINGS = SimpleNamespace(normalize=True, pooling="mean")


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(TEXTS), 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    put(tmp_path / "index", build_vector_index(vectors, "Flat"), vectors)
    return tmp_path / "index"


def put(folder: Path, index: Any, vectors: np.ndarray, ids: list[str] = IDS, texts: list[str] = TEXTS) -> None:
    """As `publish` does."""
    part = atomic_folders.begin(folder)

    def write() -> None:
        write_index(part, index, vectors, "Flat")
        write_passages(part, ids, texts)

    failure = atomic_folders.attempt(write)
    atomic_folders.seal(part, folder, asdict(describe("a-model", vectors.shape[1], TEXTS, "Flat", SETTINGS)), failure)


def test_round_trip(folder, vectors):
    stored = read_index(folder, "a-model")
    assert (stored.ids, stored.texts) == (IDS, TEXTS)
    assert np.array_equal(np.load(folder / "vectors.npy"), vectors)
    scores, numbers = stored.index.search(vectors, 3)
    expected = Part(build_vector_index(vectors, "Flat")).search(vectors, 3)
    assert np.array_equal(scores, expected[0]) and np.array_equal(numbers, expected[1])
    m = stored.manifest
    assert (m.model_hash, m.count, m.dimension, m.factory) == ("a-model", len(TEXTS), 8, "Flat")
    assert (m.pooling, m.normalize, m.metric, m.corpus_hash) == ("mean", True, "inner product", hash_texts(TEXTS))


def test_the_documents_of_passages_are_kept(tmp_path, vectors):
    origins = [Origin(f"d{n}.md", None, "page 2") if n % 2 else NOWHERE for n in range(len(IDS))]
    write_passages(tmp_path, IDS, TEXTS, origins)
    assert read_origins(tmp_path, len(IDS)) == origins
    with pytest.raises(UserError, match="files disagree"):
        read_origins(tmp_path, 3)


def test_another_model_must_not_search_it(folder):
    with pytest.raises(UserError, match="another model") as caught:
        read_index(folder, "b-model")
    assert "ds-rag index" in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no index"):
        read_index(tmp_path, "a-model")


@pytest.mark.parametrize("file", ["ids.json", "texts.jsonl", "index.faiss"])
def test_files_that_disagree(tmp_path, vectors, file):
    """Sealed as they are: each by itself is sound."""
    wrong = {"ids.json": {"ids": IDS[:-1]}, "texts.jsonl": {"texts": ["one"]}, "index.faiss": {}}[file]
    put(tmp_path / "index", build_vector_index(vectors[:2] if not wrong else vectors, "Flat"), vectors, **wrong)
    with pytest.raises(UserError, match="files disagree") as caught:
        read_index(tmp_path / "index", "a-model")
    assert file in str(caught.value)


@pytest.mark.parametrize("file", ["ids.json", "texts.jsonl", "index.faiss", "vectors.npy"])
def test_a_damaged_file_is_named_before_anything_reads_it(folder, monkeypatch, file):
    import faiss

    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / file).write_bytes(data)
    monkeypatch.setattr(faiss, "read_index", lambda path: pytest.fail("faiss read a damaged index"))
    with pytest.raises(UserError, match="damaged") as caught:
        read_index(folder, "a-model")
    assert file in str(caught.value) and "sha256" in str(caught.value) and "ds-rag index" in str(caught.value)


def test_while_a_new_index_fails_the_old_one_serves(folder, vectors, monkeypatch):
    import faiss

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(faiss, "write_index", crash)
    with pytest.raises(OSError, match="disk full"):
        put(folder, build_vector_index(vectors, "Flat"), vectors)
    assert read_index(folder, "a-model").ids == IDS
    assert [f.name for f in folder.parent.iterdir()] == ["index"], "nothing half-written is left"


def test_hash_texts_minds_boundaries_and_order():
    hashes = {hash_texts(t) for t in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""])}
    assert len(hashes) == 5 and hash_texts(["ab", "c"]) in hashes


def test_hash_model_minds_weights_settings_and_their_place(tmp_path):
    def put(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return hash_model(tmp_path / name)

    base = {"model.safetensors": b"weights", "ds_rag.json": b"{}"}
    first = put("a", base)
    assert put("b", base | {"README.md": b"a card"}) == first
    others = [
        put("c", base | {"model.safetensors": b"other"}),
        put("d", base | {"ds_rag.json": b'{"pooling": "cls"}'}),
        put("e", base | {"passage_encoder/model.safetensors": b"second"}),
        put("f", {"pytorch_model.bin": b"weights", "ds_rag.json": b"{}"}),
        put("g", {"pytorch_model.bin": b"others", "ds_rag.json": b"{}"}),
    ]
    assert len({first, *others}) == 6
