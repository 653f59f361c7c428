"""Token log-probabilities of a frozen generator, kept on disk: each cell is read once and never again.

A folder holds any number of shards, `scores-*.npz`. Each is written complete or not at all, under a name of its own,
and never changed, so that several ranks and several runs can use one folder at the same time without a lock. A shard
has three arrays: `keys` (n, 16) uint8, `lengths` (n,) int32, and `logp` (sum of lengths,) float32 in nats; the CRC of
the zip format covers each. What is read is kept in memory: about 300 bytes a cell and 4 for each token of its target.

Shape legend: C cells, A target tokens of one cell.
"""

from __future__ import annotations

import time
import uuid
import zipfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ds_rag.data.batch import CellList
from ds_rag.runtime.atomic_files import PARTIAL, replacing, sync_folder
from ds_rag.runtime.errors import UserError, not_written

PREFIX, KEY_BYTES = "scores-", 16
MOST_PENDING, MOST_SECONDS = 4096, 60.0  # cells, and seconds of work, that a crash may lose
SAMPLE = 4  # cells that are read again when a store is opened


class ScoreStore:
    """Key of a cell -> (A,) float32 log-probabilities of its target in nats.

    folder: made if it is not there. tolerance: the mean difference in nats between a stored cell and the same one read
    again, above which the store is refused. say: called with a warning that names a damaged shard; such a shard is not
    used, and its cells are read again.
    """

    def __init__(self, folder: Path, tolerance: float = 1e-3, say: Callable[[str], None] = lambda text: None):
        self.folder, self.tolerance, self.say = folder, tolerance, say
        self.scores: dict[bytes, np.ndarray] = {}
        self.shards: dict[str, set[bytes]] = {}  # keys by the name of their file, of what was found on disk
        self.pending: list[bytes] = []
        self.verified = False
        self.flushed = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--teacher_cache: {folder} cannot be made", found=error, expected="a folder") from None
        self.reload()

    def __contains__(self, key: bytes) -> bool:
        return key in self.scores

    def __getitem__(self, key: bytes) -> np.ndarray:
        return self.scores[key]

    def __len__(self) -> int:
        return len(self.scores)

    def reload(self) -> None:
        """Reads the shards that others have written since."""
        for file in sorted(self.folder.glob(f"{PREFIX}*.npz")):
            if file.name in self.shards:
                continue
            try:
                found = read_shard(file)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self.say(f"warning: {file} is damaged and not used, its cells are read again: {error}")
                found = {}
            self.shards[file.name] = set(found)
            for key, logp_A in found.items():
                self.scores.setdefault(key, logp_A)

    def add(self, key: bytes, logp_A: np.ndarray) -> None:
        """Keeps a cell that was not known. It is on the disk after the next `flush`, which many additions, or a minute
        of them, bring about. Values that are not finite are not kept on disk: they are signs of a fault."""
        if key in self.scores:
            return
        self.scores[key] = logp_A.astype(np.float32)
        if np.isfinite(logp_A).all():
            self.pending.append(key)
        if len(self.pending) >= MOST_PENDING or time.monotonic() - self.flushed > MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the new cells to a shard of their own. Raises RunError where the disk takes none."""
        self.flushed = time.monotonic()
        if not self.pending:
            return
        name = f"{PREFIX}{uuid.uuid4().hex}.npz"
        found = [self.scores[key] for key in self.pending]
        keys = np.frombuffer(b"".join(self.pending), np.uint8).reshape(-1, KEY_BYTES)
        lengths, logp = np.array([len(logp_A) for logp_A in found], np.int32), np.concatenate(found)
        try:
            with replacing(self.folder / name, self.beside(name), binary=True) as stream:
                np.savez(stream, keys=keys, lengths=lengths, logp=logp)
            sync_folder(self.folder)
        except OSError as error:
            raise not_written(
                "scores of the generator", error, self.folder, "free space; they are scored again"
            ) from None
        self.shards[name] = set()  # what this process has read itself needs no verification
        self.pending = []

    def beside(self, name: str) -> Path:
        """The path of a file while it is written, this process's alone."""
        return self.folder / f"{name}.{uuid.uuid4().hex}{PARTIAL}"

    def sample(self, keys: Sequence[bytes]) -> list[int]:
        """Places in `keys` of a few cells that came from the disk, of different shards where there are several; none
        once they have been verified."""
        if self.verified:
            return []
        of_shard = {}
        for shard, members in self.shards.items():
            if (place := next((n for n, key in enumerate(keys) if key in members), None)) is not None:
                of_shard[shard] = place
            if len(of_shard) == SAMPLE:
                break
        return sorted(set(of_shard.values()))

    def disagreement(self, key: bytes, logp_A: np.ndarray) -> str | None:
        """What is wrong with a stored cell that has been read again; None if both agree."""
        stored_A = self.scores[key]
        apart = float(np.abs(stored_A - logp_A).mean()) if stored_A.shape == logp_A.shape else float("inf")
        if apart <= self.tolerance:
            return None
        shard = next((name for name, members in self.shards.items() if key in members), "a shard")
        return f"{shard}: a cell of {len(logp_A)} tokens is {apart:.2g} nats a token from the same one read again"

    def refuse(self, wrong: Sequence[str]) -> UserError:
        """The error for stored cells that do not agree with the generator."""
        return UserError(
            f"{self.folder}: stored scores are not those of this generator",
            found="; ".join(wrong[:3]),
            expected=f"a difference of at most {self.tolerance:g} nats a token",
            fix="another --teacher_cache, or delete that folder: everything in it can be scored again",
        )


def read_shard(file: Path) -> dict[bytes, np.ndarray]:
    """Key -> (A,) float32. Raises ValueError, KeyError, EOFError, OSError or BadZipFile for a damaged file."""
    with np.load(file, allow_pickle=False) as arrays:
        keys, lengths, logp = arrays["keys"], arrays["lengths"], arrays["logp"]
    sound = keys.shape == (len(lengths), KEY_BYTES) and keys.dtype == np.uint8 and logp.dtype == np.float32
    if not sound or (lengths < 1).any() or logp.shape != (int(lengths.sum()),) or not np.isfinite(logp).all():
        raise ValueError("its arrays do not fit together")
    parts = np.split(logp, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return {key.tobytes(): part for key, part in zip(keys, parts, strict=True)}


def cell_keys(cells: CellList) -> list[bytes]:
    """(C,) the key of each cell: a hash of all its token ids and of how many of them are its target. Passage, query,
    answer, prompt and lengths are all in these ids; where a prefix ends makes no difference."""
    begun = [blake2b(as_bytes(prefix), digest_size=KEY_BYTES) for prefix in cells.prefixes]
    keys = []
    for prefix, suffix, length in zip(cells.prefix_C, cells.suffixes, cells.target_lengths, strict=True):
        digest = begun[prefix].copy()
        digest.update(as_bytes(suffix))
        digest.update(f"target {length}".encode())
        keys.append(digest.digest())
    return keys


def as_bytes(ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids, dtype="<i4").tobytes()
