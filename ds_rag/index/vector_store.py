"""Vectors of passages on disk, by what was encoded: a passage is encoded once and never again.

A folder holds any number of files `vectors-HASH.npy`. Each is an array of records: `key`, 16 bytes, a hash of the
passage's token ids, and `vector`, (D,) float32. HASH is that of the file's records, so damage is found by the name. A
file is written complete or not at all, and never changed, so that several ranks and several runs can use one folder at
the same time without a lock. Vectors stay on the disk, memory-mapped; in memory a passage takes about 50 bytes.

Shape legend: n passages asked for, b of a batch, M passages that are known, D embedding.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.data.dataset import TokenTable
from ds_rag.index.shards import chunk_rows, slices
from ds_rag.index.vector_parts import VectorParts
from ds_rag.runtime.atomic_files import PARTIAL, replacing, sync_folder
from ds_rag.runtime.errors import UserError, not_written

PREFIX, KEY_BYTES = "vectors-", 16
KEY = np.dtype(f"S{KEY_BYTES}")
MOST_PENDING, MOST_SECONDS = 64 << 20, 60.0  # bytes of vectors, and seconds of work, that a crash may lose
BLOCK = 1 << 24  # bytes hashed at once

Embed = Callable[[np.ndarray], Iterator[np.ndarray]]  # rows -> batches (b, D) of their vectors, in order


class VectorStore:
    """Key of a passage -> (D,) float32 vector, of one encoder.

    folder: made if it is not there; None: nothing is kept, only what `include` brings is known. say: called with a
    warning that names a damaged file; such a file is not used, and its passages are encoded again. taken, added: how
    many vectors were known and new, of this process.
    """

    def __init__(self, dimension: int, folder: Path | None = None, say: Callable[[str], None] = lambda text: None):
        self.dimension, self.folder, self.say = dimension, folder, say
        self.pieces: list[tuple[np.ndarray, np.ndarray]] = []  # keys (n,) and vectors (n, D)
        self.files: set[str] = set()
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []
        self.waiting = 0  # bytes of them
        self.lookup: tuple[np.ndarray, np.ndarray, VectorParts] | None = None
        self.taken = self.added = 0
        self.flushed = time.monotonic()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--vector_cache: {folder} cannot be made", found=error, expected="a folder") from None

    def reload(self) -> None:
        """Opens the files that were written since, by this process too: what it adds is known only after this."""
        for file in sorted(self.folder.glob(f"{PREFIX}*.npy")) if self.folder is not None else ():
            if file.name in self.files:
                continue
            self.files.add(file.name)
            try:
                records = open_records(file, self.dimension)
            except (OSError, ValueError, EOFError) as error:
                self.say(f"warning: {file} is damaged and not used, its passages are encoded again: {error}")
                continue
            self.include(records["key"], records["vector"])

    def include(self, keys_n: np.ndarray, vectors_nD: np.ndarray) -> None:
        """Makes vectors known that lie elsewhere, perhaps memory-mapped. keys_n: as `passage_keys` gives them."""
        self.pieces.append((keys_n, vectors_nD))
        self.lookup = None

    def find(self, keys_n: np.ndarray) -> np.ndarray:
        """(n,) int64: for `take`, the place of each passage's vector; -1 where it is not known."""
        sorted_M, order_M, _ = self._look_up()
        if not len(sorted_M):
            return np.full(len(keys_n), -1)
        at_n = np.minimum(np.searchsorted(sorted_M, keys_n), len(sorted_M) - 1)
        return np.where(sorted_M[at_n] == keys_n, order_M[at_n], -1)

    def take(self, places_n: np.ndarray) -> np.ndarray:
        """(n, D) float32, a copy. places_n: of `find`, none of them -1."""
        self.taken += len(places_n)
        return self._look_up()[2][places_n] if len(places_n) else np.zeros((0, self.dimension), np.float32)

    def _look_up(self) -> tuple[np.ndarray, np.ndarray, VectorParts]:
        """(the keys sorted, the place of each, all vectors by place)."""
        if self.lookup is None:
            ends = np.cumsum([0, *(len(keys) for keys, _ in self.pieces)])
            numbered = [(v, np.arange(ends[n], ends[n + 1])) for n, (_, v) in enumerate(self.pieces)]
            keys_M = np.concatenate([np.zeros(0, KEY), *(keys for keys, _ in self.pieces)])
            order_M = np.argsort(keys_M, kind="stable")
            empty = np.zeros((0, self.dimension), np.float32), np.zeros(0, np.int64)
            self.lookup = keys_M[order_M], order_M, VectorParts(numbered or [empty])
        return self.lookup

    def add(self, keys_b: np.ndarray, vectors_bD: np.ndarray) -> None:
        """Keeps new vectors. They are on the disk after the next `flush`, which many additions, or a minute of them,
        bring about. Vectors that are not finite are not kept: they are signs of a fault."""
        self.added += len(vectors_bD)
        if self.folder is None:
            return
        finite = np.isfinite(vectors_bD).all(axis=1)
        self.pending.append((keys_b[finite], vectors_bD[finite].astype(np.float32)))
        self.waiting += self.pending[-1][1].nbytes
        if self.waiting >= MOST_PENDING or time.monotonic() - self.flushed > MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the new vectors to a file of their own. Raises RunError where the disk takes none."""
        self.flushed = time.monotonic()
        pending, self.pending, self.waiting = self.pending, [], 0
        count = sum(len(keys) for keys, _ in pending)
        if self.folder is None or not count:
            return
        records = np.empty(count, record_type(self.dimension))
        records["key"] = np.concatenate([keys for keys, _ in pending])
        records["vector"] = np.concatenate([vectors for _, vectors in pending])
        name = name_of(records)
        try:
            with replacing(self.folder / name, self.beside(name), binary=True) as stream:
                np.save(stream, records)
            sync_folder(self.folder)
        except OSError as error:
            fix = "free space; these passages are encoded again"
            raise not_written("vectors of passages", error, self.folder, fix) from None

    def beside(self, name: str) -> Path:
        """The path of a file while it is written, this process's alone."""
        assert self.folder is not None
        return self.folder / f"{name}.{uuid.uuid4().hex}{PARTIAL}"

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        files = self.folder.glob(f"{PREFIX}*.npy") if self.folder is not None else ()
        return sum(file.stat().st_size for file in files)


def record_type(dimension: int) -> np.dtype[Any]:
    return np.dtype([("key", KEY), ("vector", "<f4", (dimension,))])


def name_of(records: np.ndarray) -> str:
    """The name of a file with these records, which holds their hash."""
    digest, size = blake2b(digest_size=16), max(1, BLOCK // records.dtype.itemsize)
    for part in slices(len(records), size):
        digest.update(np.ascontiguousarray(records[part]).view(np.uint8).data)
    return f"{PREFIX}{digest.hexdigest()}.npy"


def open_records(file: Path, dimension: int) -> np.ndarray:
    """The records of a file, memory-mapped. Raises ValueError, EOFError or OSError for a damaged one."""
    records: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    if records.dtype != record_type(dimension) or records.ndim != 1 or name_of(records) != file.name:
        raise ValueError("its bytes are not those that its name tells")
    return records


def passage_keys(tokens: TokenTable, numbers_n: np.ndarray | None = None) -> np.ndarray:
    """(n,) the key of each passage, a hash of its token ids: text, prefix, tokenizer and length are all in these.
    numbers_n: of the passages; None: all."""
    wanted = range(len(tokens)) if numbers_n is None else numbers_n
    ids = (np.ascontiguousarray(tokens[n], dtype="<i4") for n in wanted)
    return np.array([blake2b(one.data, digest_size=KEY_BYTES).digest() for one in ids], dtype=KEY)


def known_and_new(store: VectorStore, keys_n: np.ndarray, embed: Embed) -> Generator[np.ndarray]:
    """Vectors (b, D) of passages, batch by batch in their order: those that the store knows, and between them those
    that `embed` makes of the other rows, which are added. On all ranks together if `embed` is.

    What has been made when this is stopped stays in the store.
    """
    store.reload()
    places_n = store.find(keys_n)
    new = np.flatnonzero(places_n < 0)
    done = cursor = 0

    def up_to(stop: int, made_bD: np.ndarray) -> Iterator[np.ndarray]:
        """From the cursor to row `stop`; made_bD: of the unknown ones among them."""
        first = 0
        for part in slices(stop - cursor, chunk_rows(store.dimension)):
            places = places_n[cursor + part.start : cursor + part.stop]
            unknown = places < 0
            block = np.empty((len(places), store.dimension), np.float32)
            last = first + int(unknown.sum())
            block[unknown], block[~unknown] = made_bD[first:last], store.take(places[~unknown])
            first = last
            yield block

    try:
        for made_bD in embed(new):
            rows = new[done : done + len(made_bD)]
            store.add(keys_n[rows], made_bD)
            yield from up_to(int(rows[-1]) + 1, made_bD)
            done, cursor = done + len(rows), int(rows[-1]) + 1
        yield from up_to(len(keys_n), np.zeros((0, store.dimension), np.float32))
    finally:
        store.flush()
