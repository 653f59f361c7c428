"""The vectors of a corpus on disk while they are encoded: each rank writes its shard, and continues it after an
interruption.

Rank r of W holds every W-th passage of the corpus sorted by length, longest first, so that shards take equal work. A
folder has `shard-r-of-W.npy` (float32, in that order) and `shard-r-of-W.json`, its progress: what is encoded with what,
and for each chunk its end and its CRC-32. Chunks are on disk before the progress lists them, and the progress is
replaced by a rename. So a crash interrupts only a chunk that is not listed, which is written again; a listed chunk with
wrong bytes (a torn page, a partially copied file) is found by its CRC.

Shape legend: n passages of a shard, N of the corpus, D embedding.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ds_rag.runtime.atomic_files import sync_file, write_complete
from ds_rag.runtime.own_files import SHARDS

CHUNK_BYTES = 8 << 20  # size of a chunk, which is held in memory; at most this much is encoded again after a crash


@dataclass(frozen=True)
class Origin:
    """What vectors were computed from. A shard of another origin is not continued. whole: this model encoded every row
    (False after a partial update)."""

    model: str  # a hash of weights and settings
    corpus: str  # a hash of the passages' token ids
    count: int  # passages of the corpus
    dimension: int
    whole: bool = True


def shard_of(lengths_N: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The numbers (int64) of a rank's passages, longest first; each passage belongs to one rank."""
    return np.argsort(-lengths_N, kind="stable")[rank::world]


def shard_path(folder: Path, rank: int, world: int) -> Path:
    return folder / f"shard-{rank}-of-{world}.npy"


def chunk_rows(dimension: int) -> int:
    return max(1, CHUNK_BYTES // (4 * dimension))


class ShardWriter:
    """Writes a shard from its first row to its last; when it is opened, `done` rows exist already.

    with ShardWriter(path, len(numbers), origin) as writer:
        for rows_bD in vectors_from(writer.done):
            writer.append(rows_bD)
    vectors_nD = open_shard(path)

    After an exception complete chunks are kept; rows of an incomplete chunk are lost. It uses plain writes instead of a
    memory map, so that a full disk is an OSError, not a signal that kills the process.
    """

    def __init__(self, path: Path, rows: int, origin: Origin):
        self.path, self.rows, self.origin = path, rows, origin
        self.progress = path.with_suffix(".json")
        self.chunks: list[tuple[int, int]] = []  # (rows up to its end, CRC-32)
        self.held: list[np.ndarray] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        known = self._known_chunks()
        if not known:
            path.unlink(missing_ok=True)  # processes that map the old file keep it
        self.file = path.open("r+b" if known else "w+b")
        shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, origin.dimension)}
        np.lib.format.write_array_header_1_0(self.file, shape)  # when continuing, these are the same bytes
        self.start = self.file.tell()
        self.chunks = self._verified(known)
        self.done = self.written

    @property
    def written(self) -> int:
        return self.chunks[-1][0] if self.chunks else 0

    def append(self, rows_bD: np.ndarray) -> None:
        """The next rows, of any number."""
        self.held.append(np.ascontiguousarray(rows_bD, dtype=np.float32))
        self.done += len(rows_bD)
        if self.done - self.written >= chunk_rows(self.origin.dimension):
            self._write()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.file:
            if kind is None:
                if self.held or not self.chunks:
                    self._write()
                assert self.written == self.rows, f"{self.path}: {self.written} of {self.rows} rows"

    def _write(self) -> None:
        """Writes the buffered rows to disk, then adds them to the progress."""
        if self.held:
            data = np.concatenate(self.held).tobytes()
            self.file.seek(self.start + 4 * self.origin.dimension * self.written)
            self.file.write(data)
            self.chunks.append((self.done, zlib.crc32(data)))
            self.held = []
        sync_file(self.file)
        note = {"origin": asdict(self.origin), "rows": self.rows, "chunks": self.chunks}
        write_complete(self.progress, json.dumps(note))

    def _known_chunks(self) -> list[tuple[int, int]]:
        """The chunks in the progress file, if it belongs to this shard."""
        try:
            note = json.loads(self.progress.read_text(encoding="utf-8"))
            same = note["origin"] == asdict(self.origin) and note["rows"] == self.rows and self.path.is_file()
            return [(int(stop), int(crc)) for stop, crc in note["chunks"]] if same else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _verified(self, known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The known chunks up to the first one whose bytes are missing or wrong."""
        self.file.seek(self.start)
        first = 0
        for place, (stop, crc) in enumerate(known):
            data = self.file.read(4 * self.origin.dimension * (stop - first))
            if zlib.crc32(data) != crc:
                return list(known[:place])
            first = stop
        return list(known)


def open_shard(path: Path) -> np.ndarray:
    """(n, D) float32 vectors of a finished shard, memory-mapped."""
    return np.load(path, mmap_mode="r")


def merge_shards(shards: Sequence[np.ndarray], numbers: Sequence[np.ndarray], path: Path) -> np.ndarray:
    """Writes `path`, (N, D) float32 in the order of the corpus, and returns it memory-mapped. One chunk is in memory at
    a time.

    numbers[r]: the passages of shards[r]'s rows; together they are 0 .. N - 1.
    """
    count, dimension = sum(len(n) for n in numbers), shards[0].shape[1]
    path.unlink(missing_ok=True)
    whole_ND = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    with path.open("r+b") as file:  # so that a full disk is an OSError here, not a signal at some page
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    for shard_nD, own in zip(shards, numbers, strict=True):
        for rows in slices(len(own), chunk_rows(dimension)):
            whole_ND[own[rows]] = shard_nD[rows]
    whole_ND.flush()
    return np.load(path, mmap_mode="r")


def remove_shards(folder: Path) -> None:
    """Deletes a folder of shards and the files made from them; other files in it stay. Processes that map a file keep
    it."""
    known = re.compile(SHARDS)
    for file in folder.iterdir() if folder.is_dir() else ():
        if known.fullmatch(file.name):
            with suppress(OSError):
                file.unlink()
    with suppress(OSError):  # not empty
        folder.rmdir()


def slices(count: int, size: int) -> Iterator[slice]:
    return (slice(n, min(n + size, count)) for n in range(0, count, size))
