"""The public index: passages with their texts and ids, searched by texts or vectors, in this process alone.

Training's index stage builds on the same parts, over ranks and on the disk (`building.py`).

Shape legend: B queries, N passages, D embedding, k results of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ds_rag.data.token_tables import tokenize_side
from ds_rag.index import store
from ds_rag.index.back_ends import check_factory
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import embed_rows, precision_of, token_budget
from ds_rag.index.shards import shard_of
from ds_rag.index.vector_parts import VectorParts
from ds_rag.models.fingerprint import fingerprint
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

CHECKED = 8  # passages that `Index.open` encodes again
# Fraction of a vector's length by which it may differ: rounding on another machine or in another precision stays
# below, weights that were trained further do not.
TOLERANCE = 1e-2


class Index:
    """A corpus as vectors, made by `Index.build` or opened by `Index.open`; number n is `texts[n]` under `ids[n]`.

    Scores are inner products of the retriever's embeddings (of unit vectors: cosines), not divided by the temperature.
    A flat index is exact: ties are ordered by passage number. An index belongs to the weights that made it: after a
    step of training its vectors are stale, and `Index.build` makes new ones.

    Example:
        >>> index = ds_rag.Index.build(retriever, ["ann leads zor", "kelp grows in pool nine", "bob leads via"])
        >>> scores_Bk, numbers_Bk = index.search(["who leads zor ?"], k=2)
        >>> scores_Bk.shape, numbers_Bk.dtype
        ((1, 2), dtype('int64'))
        >>> index.save(folder / "index")
        >>> again = ds_rag.Index.open(folder / "index", retriever)
        >>> again.texts[numbers_Bk[0, 0]] == index.texts[numbers_Bk[0, 0]]
        True
    """

    def __init__(self, retriever: Retriever, stored: store.StoredIndex, vectors_ND: np.ndarray | None = None):
        self.retriever, self.stored, self.vectors_ND = retriever, stored, vectors_ND

    @property
    def texts(self) -> list[str]:
        """The passages, in the order of their numbers."""
        return self.stored.texts

    @property
    def ids(self) -> list[str]:
        """The passages' ids."""
        return self.stored.ids

    @property
    def documents(self) -> list[str | None]:
        """The document of each passage, None where it is not known."""
        return [origin.document for origin in self.stored.origins] or [None] * len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def build(
        cls,
        retriever: Retriever,
        texts: Sequence[str],
        ids: Sequence[str] | None = None,
        factory: str = "flat",
        batch: int = 64,
    ) -> Index:
        """Encodes the passages and indexes their vectors, in memory: 4 N D bytes.

        Args:
            retriever: embeds passages now and queries later; left in evaluation mode.
            texts: the passages.
            ids: the passages' ids, all different; by default "0", "1", ...
            factory: flat | hnsw | ivf | ivfpq, or a `faiss.index_factory` string.
            batch: the most passages of the longest length in one forward.

        Raises:
            UserError: no passage; ids that repeat, or another number of ids; a text without a token; a factory string
                that FAISS refuses or that needs more passages.
        """
        names = [str(n) for n in range(len(texts))] if ids is None else list(ids)
        if not texts or len(names) != len(texts) or len(set(names)) != len(names):
            raise UserError(
                "Index.build: passages and ids do not fit each other",
                found=f"{len(texts)} passages, {len(set(names))} different ids",
                expected="one passage or more, and a different id for each",
            )
        check_factory(factory, retriever.hidden_size, len(texts))
        vectors_ND = embed(retriever, texts, "passage", batch)
        part = build_part(vectors_ND, factory)
        assert part is not None
        made_by, dimension = fingerprint(retriever), retriever.hidden_size
        manifest = store.describe(made_by, dimension, list(texts), factory, retriever.settings)
        manifest = replace(manifest, precision=precision_of(retriever))
        return cls(
            retriever,
            store.StoredIndex(CorpusIndex([part], len(texts)), names, list(texts), manifest),
            vectors_ND,
        )

    def search(self, queries: Sequence[str] | np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: (scores_Bk float32, numbers_Bk int64), best first.

        Args:
            queries: B texts, or their vectors (B, D) float32.
            k: reduced to the number of passages if it is larger.

        If an approximate index finds fewer, the rest has number -1 and the lowest float32 as its score. Raises
        UserError for vectors of another dimension.
        """
        if not isinstance(queries, np.ndarray):
            if isinstance(queries, str):
                raise UserError("Index.search: one text", expected="a list of texts, or vectors (B, D)")
            queries = embed(self.retriever, queries, "query")
        dimension = self.stored.manifest.dimension
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise UserError("Index.search: vectors of another shape", found=queries.shape, expected=f"(B, {dimension})")
        return self.stored.index.search_here(queries, k)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `Index.open` opens. An index that is there is replaced in one step, once the new one is
        complete. All ranks must call it; rank 0 writes. Raises UserError if anything else is there."""
        if self.vectors_ND is None:
            raise UserError("Index.save: an index that was opened", fix="copy its folder")
        place, vectors_ND = Path(folder).expanduser(), self.vectors_ND
        store.check_replaceable(place)
        part = atomic_folders.begin(place)

        def write() -> None:
            if collectives.rank() != 0:
                return
            store.write_index(part, self.stored.index.parts[0].index, vectors_ND, self.stored.manifest.factory)
            store.write_passages(part, self.ids, self.texts)

        facts = {"kind": "index", **asdict(self.stored.manifest)}
        atomic_folders.seal(part, place, facts, atomic_folders.attempt(write))

    @classmethod
    def open(cls, folder: str | Path, retriever: Retriever) -> Index:
        """Opens the index in a folder that `save`, `ds-rag index` or a run wrote. Vectors are memory-mapped if
        possible.

        A few passages are encoded again as a check. Raises UserError if the retriever gives them other vectors than the
        index has, or if the folder is not an index, is damaged, or does not fit the retriever.
        """
        place = Path(folder).expanduser()
        stored = store.read_index(place, "", allow_stale=True, retriever=retriever)
        stored.stale = False
        check_vectors(place, stored, retriever)
        return cls(retriever, stored)


def embed(retriever: Retriever, texts: Sequence[str], side: str, batch: int = 64) -> np.ndarray:
    """(N, D) float32 embeddings of the texts. side: 'query' or 'passage'. Raises UserError for a text without a
    token."""
    tokens = tokenize_side(retriever, side, texts, Console(speaks=False), f"{side} texts")
    order = shard_of(tokens.lengths, rank=0, world=1)  # longest first
    vectors_ND = np.zeros((len(tokens), retriever.hidden_size), np.float32)
    rows = embed_rows(retriever, tokens, order, side, token_budget(retriever, tokens, batch), alone=True)
    vectors_ND[order] = np.concatenate([*rows, vectors_ND[:0]])
    return vectors_ND


def check_vectors(folder: Path, stored: store.StoredIndex, retriever: Retriever) -> None:
    """Raises UserError if the retriever gives the first passages other vectors than the index contains."""
    some = list(range(min(CHECKED, len(stored.texts))))
    held = VectorParts(store.open_vectors(folder, stored.manifest.shards))[some]
    now = embed(retriever, [stored.texts[n] for n in some], "passage")
    apart = np.linalg.norm(held - now, axis=1) / np.maximum(np.linalg.norm(held, axis=1), 1e-12)
    if apart.max(initial=0.0) > TOLERANCE:
        raise UserError(
            f"{folder}: the index was made by other weights, or for another length or prefix",
            found=f"vectors that differ by {apart.max():.2g} of their length",
            expected="the retriever that made it",
            fix="Index.build(retriever, texts) again",
        )
