"""The folder below `--vector_cache DIR` that belongs to one encoder of passages.

Its name is a hash of everything that a vector depends on beside the token ids: weights and configuration of the
encoder, pooling, normalisation, precision and kind of device. `key.json` in it says the same in words. Prefix,
tokenizer and length are in the token ids, which are the keys of the vectors (vector_store.py): a passage that is not
cut has the same vector under another length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_rag.index.encode import precision_of
from ds_rag.index.vector_store import VectorStore
from ds_rag.models.fingerprint import hash_configuration, hash_encoder
from ds_rag.models.retriever import Retriever
from ds_rag.models.sharded import is_sharded
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.keyed_folder import KEY, keyed_folder, write_key

FLAG = "--vector_cache"


def open_vector_store(root: str | None, retriever: Retriever, say: Callable[[str], None]) -> VectorStore | None:
    """The store of this retriever's passages below `root`, on every rank; None without a root. The retriever has its
    final weights, precision and device. say: called with warnings. Raises UserError where nothing can be written."""
    if root is None:
        return None
    key = key_of(retriever)
    store = VectorStore(retriever.hidden_size, keyed_folder(root, FLAG, key), say)
    if collectives.rank() == 0 and store.folder is not None:
        write_key(store.folder, key, store.beside(KEY), FLAG)
    return store


def key_of(retriever: Retriever) -> dict[str, Any]:
    """What vectors depend on beside the token ids, the same on every rank. Of a retriever that is sharded over ranks
    the hash of its weights depends on their number."""
    encoder, settings = retriever.passage_encoder or retriever.encoder, retriever.settings
    sharded = is_sharded(encoder)
    own = hash_encoder(encoder) if sharded or collectives.rank() == 0 else ""
    parts = collectives.gather_objects(own)
    return {
        "weights": hashlib.sha256("".join(parts if sharded else parts[:1]).encode()).hexdigest(),
        "configuration": hash_configuration(encoder.config),
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "precision": precision_of(retriever),
    }


def say_account(store: VectorStore | None, console: Console, *others: Path) -> None:
    """Prints how many passages had their vector in the store's folder, over all ranks. All ranks call it together.
    others: places whose vectors the store knew too."""
    if store is None:
        return
    counts = collectives.all_sum({"taken": store.taken, "added": store.added}, collectives.device())
    taken, added = int(counts["taken"]), int(counts["added"])
    own = [f"{store.folder} ({store.size / 1e6:,.1f} MB)"] if store.folder is not None else []
    place = " and ".join([*own, *map(str, others)])
    found = f"{added:,} encoded, {taken:,} vectors from {place}" if added else f"vectors from {place}"
    console.say(f"vectors    {taken + added:,} passages: {found}")
