"""Shards on disk: what a crash leaves, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds_rag.index import shards as module
from ds_rag.index.shards import Origin, ShardWriter, merge_shards, open_shard, shard_of, shard_path

D = 4
ROWS = np.random.default_rng(0).normal(size=(23, D)).astype(np.float32)
ORIGIN = Origin("a-model", "a-corpus", 46, D)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 4 * D)  # of 5 rows


def write(path: Path, stop: int = 23, origin: Origin = ORIGIN, batch: int = 2) -> int:
    """Rows up to `stop`, then a crash unless all are there. Returns how many were there before."""
    with ShardWriter(path, 23, origin) as writer:
        found = writer.done
        for start in range(found, stop, batch):
            writer.append(ROWS[start : min(start + batch, stop)])
        if stop < 23:
            raise KeyboardInterrupt
    return found


def crash(path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(path, stop)


def test_a_shard_is_a_plain_npy_file(tmp_path):
    path = shard_path(tmp_path / "new", 0, 2)
    assert write(path) == 0
    assert np.array_equal(np.load(path), ROWS) and np.array_equal(open_shard(path), ROWS)
    assert path.name == "shard-0-of-2.npy" and sorted(f.suffix for f in path.parent.iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("stop", [0, 3, 6, 7, 12, 22])
def test_it_goes_on_where_it_stopped(tmp_path, stop):
    """Batches of two: a chunk is whole at six rows."""
    path = tmp_path / "s.npy"
    crash(path, stop)
    with pytest.raises(ValueError, match="mmap"):  # what is not finished does not open
        open_shard(path)
    assert write(path) == stop // 6 * 6
    assert np.array_equal(open_shard(path), ROWS)
    assert write(path) == 23, "a finished one is kept"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "header"])
def test_a_damaged_chunk_is_written_again_with_all_after_it(tmp_path, damage):
    path = tmp_path / "s.npy"
    crash(path, 21)
    data = bytearray(path.read_bytes())
    start = len(data) - 18 * 4 * D  # three chunks of six
    if damage == "flip":
        data[start + 7 * 4 * D] ^= 1
    elif damage == "header":
        data[20] ^= 1
    data = data[: {"cut": start + 11 * 4 * D, "empty": 0}.get(damage, len(data))]
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    assert write(path) == {"flip": 6, "cut": 6, "empty": 0, "gone": 0, "header": 18}[damage]
    assert np.array_equal(np.load(path), ROWS)


@pytest.mark.parametrize("change", [{"model": "b"}, {"corpus": "b"}, {"count": 47}, {"whole": False}])
def test_another_origin_starts_anew_and_leaves_the_old_map_alone(tmp_path, change):
    path = tmp_path / "s.npy"
    write(path)
    old = open_shard(path)
    assert write(path, origin=replace(ORIGIN, **change)) == 0
    assert np.array_equal(old, ROWS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"origin": 1}', "null"])
def test_a_progress_that_says_nothing_is_none(tmp_path, text):
    path = tmp_path / "s.npy"
    crash(path, 12)
    path.with_suffix(".json").write_text(text)
    assert write(path) == 0 and np.array_equal(open_shard(path), ROWS)


def test_the_progress_names_no_row_before_it_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "s.npy"
    seen: list[tuple[int, int]] = []
    write_complete = module.write_complete

    def watch(file: Path, text: str) -> None:
        rows = json.loads(text)["chunks"][-1][0]
        seen.append((rows, path.stat().st_size))
        write_complete(file, text)

    monkeypatch.setattr(module, "write_complete", watch)
    write(path)
    header = path.stat().st_size - ROWS.nbytes
    assert [rows for rows, _ in seen] == [6, 12, 18, 23]
    assert all(size >= header + rows * 4 * D for rows, size in seen)


def test_too_few_rows_are_no_shard(tmp_path):
    with pytest.raises(AssertionError, match="2 of 23"), ShardWriter(tmp_path / "s.npy", 23, ORIGIN) as writer:
        writer.append(ROWS[:2])


def test_a_shard_of_no_rows(tmp_path):
    with ShardWriter(tmp_path / "s.npy", 0, ORIGIN) as writer:
        assert writer.done == 0
    assert open_shard(tmp_path / "s.npy").shape == (0, D)


@pytest.mark.parametrize("world", [1, 2, 3, 50])
def test_ranks_share_the_corpus_longest_first_and_merge_gives_its_order(tmp_path, world):
    lengths = np.random.default_rng(1).integers(1, 9, size=46)
    numbers = [shard_of(lengths, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(numbers).tolist()) == list(range(46))
    assert all((np.diff(lengths[n]) <= 0).all() for n in numbers)
    assert world > 40 or max(lengths[n].sum() for n in numbers) - min(lengths[n].sum() for n in numbers) <= 8
    vectors = np.random.default_rng(2).normal(size=(46, D)).astype(np.float32)
    found = merge_shards([vectors[n] for n in numbers], numbers, tmp_path / "vectors.npy")
    assert np.array_equal(found, vectors) and np.array_equal(np.load(tmp_path / "vectors.npy"), vectors)
    np.save(tmp_path / "plain.npy", vectors)
    assert (tmp_path / "plain.npy").read_bytes() == (tmp_path / "vectors.npy").read_bytes()
