"""The vectors of an earlier index, for the passages that a new one has too.

Shape legend: N passages of the new corpus, M of the earlier index, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.data.dataset import TokenTable
from ds_rag.data.token_tables import tokenize_side
from ds_rag.index.building import hash_tokens
from ds_rag.index.encode import precision_of
from ds_rag.index.store import open_vectors, read_ids_and_texts
from ds_rag.index.vector_parts import Piece
from ds_rag.index.vector_store import VectorStore, passage_keys
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.console import Console


@dataclass
class EarlierIndex:
    """An index whose vectors the same encoder made. keys_M: of its passages, as `passage_keys` has them; pieces: their
    vectors, memory-mapped."""

    folder: Path
    keys_M: np.ndarray
    pieces: list[Piece]

    def offer(self, store: VectorStore) -> None:
        """Makes the vectors known to a store."""
        for vectors, numbers in self.pieces:
            store.include(self.keys_M[numbers], vectors)

    def compare(self, tokens: TokenTable) -> dict[str, int]:
        """How many passages of the new corpus are new and unchanged, and how many of the index are removed. Passages
        are the same if their token ids are."""
        keys_N = passage_keys(tokens)
        unchanged, kept = np.isin(keys_N, self.keys_M), np.isin(self.keys_M, keys_N)
        return {"new": int((~unchanged).sum()), "unchanged": int(unchanged.sum()), "removed": int((~kept).sum())}


def open_earlier(folder: Path, model: str, retriever: Retriever, console: Console) -> EarlierIndex | None:
    """The index in `folder`, if this retriever made its vectors; else None, with the reason on the console unless there
    is no index. model: the hash of the retriever's weights."""
    found = atomic_folders.read_manifest(folder) or {}
    if found.get("kind") != "index" or "tokens" not in found:
        return None
    reason = differs(found, model, retriever) or ("a damaged index" if atomic_folders.damages(folder) else None)
    if reason is None:
        _, texts = read_ids_and_texts(folder)
        silent = Console(speaks=False)  # how many are cut is said of the new corpus
        tokens = tokenize_side(retriever, "passage", texts, silent, "passages of the index")
        if hash_tokens(tokens) == found["tokens"]:
            return EarlierIndex(folder, passage_keys(tokens), open_vectors(folder, found.get("shards", 0)))
        reason = "another prefix, length or tokenizer"
    console.say(f"note: every passage is encoded, because the vectors in {folder} are of {reason}", style="yellow")
    return None


def differs(manifest: dict[str, Any], model: str, retriever: Retriever) -> str | None:
    """In what the vectors of an index differ from those that this retriever would make; None: in nothing that the
    manifest knows. model: the hash of the retriever's weights."""
    here = precision_of(retriever)
    wanted = {
        "model_hash": (model, "other weights"),
        "precision": (here, f"another precision ({manifest.get('precision')}, here {here})"),
        "pooling": (retriever.settings.pooling, "another pooling"),
        "normalize": (retriever.settings.normalize, "another normalisation"),
        "dimension": (retriever.hidden_size, "another dimension"),
    }
    return next((reason for name, (value, reason) in wanted.items() if manifest.get(name) != value), None)
