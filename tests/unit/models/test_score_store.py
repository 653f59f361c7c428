"""The store of scores on disk: what is kept, what a damaged file costs, who may write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_rag.data.batch import list_cells
from ds_rag.models.score_store import MOST_PENDING, ScoreStore, cell_keys
from ds_rag.runtime.errors import RunError


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def filled(folder: Path, cells: dict[bytes, list[float]]) -> ScoreStore:
    store = ScoreStore(folder)
    for key, values in cells.items():
        store.add(key, np.array(values))
    store.flush()
    return store


A, B, C = (name * 16 for name in (b"a", b"b", b"c"))


def test_what_was_added_is_read_again(tmp_path):
    filled(tmp_path, {A: [-0.5, -2.0], B: [-1.0]})
    filled(tmp_path, {C: [-3.0, -4.0, -5.0], A: [-9.0, -9.0]})  # a cell that is known stays as it is
    store = ScoreStore(tmp_path)
    assert {key: store[key].tolist() for key in (A, B, C)} == {A: [-0.5, -2.0], B: [-1.0], C: [-3.0, -4.0, -5.0]}
    assert len(store) == 3 and store[A].dtype == np.float32 and b"d" * 16 not in store
    assert len(list(tmp_path.iterdir())) == 2  # a shard each, nothing beside them


def test_a_running_store_sees_what_another_writes(tmp_path):
    first, second = ScoreStore(tmp_path), ScoreStore(tmp_path)
    second.add(A, np.array([-1.0]))
    first.reload()
    assert A not in first, "not yet on the disk"
    second.flush()
    first.reload()
    assert first[A].tolist() == [-1.0]


def test_many_cells_are_written_without_being_asked(tmp_path):
    store = ScoreStore(tmp_path)
    for n in range(MOST_PENDING):
        store.add(n.to_bytes(16, "big"), np.array([-float(n)]))
    assert len(ScoreStore(tmp_path)) == MOST_PENDING


def test_values_that_are_not_finite_are_not_kept(tmp_path):
    filled(tmp_path, {A: [float("nan")], B: [-1.0]})
    assert A not in ScoreStore(tmp_path) and B in ScoreStore(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_shard_is_named_and_ignored(tmp_path, damage):
    filled(tmp_path, {A: [-0.5, -2.0]})
    (spoiled,) = tmp_path.iterdir()
    filled(tmp_path, {B: [-1.0]})
    content = bytearray(spoiled.read_bytes())
    if damage == "flipped":
        place = content.index(np.float32(-2.0).tobytes())
        content[place] ^= 1
    kept = {"cut": content[:-40], "flipped": content, "empty": b"", "other": b"not a zip file"}[damage]
    spoiled.write_bytes(kept)
    said: list[str] = []
    store = ScoreStore(tmp_path, say=said.append)
    assert A not in store and store[B].tolist() == [-1.0]
    assert len(said) == 1 and spoiled.name in said[0] and "damaged" in said[0]


def test_arrays_that_do_not_fit_together_are_damage(tmp_path):
    keys = np.zeros((2, 16), np.uint8)
    np.savez(tmp_path / "scores-x.npz", keys=keys, lengths=np.array([1, 2]), logp=np.zeros(2, np.float32))
    said: list[str] = []
    assert not len(ScoreStore(tmp_path, say=said.append)) and "do not fit together" in said[0]


def test_what_a_crash_left_behind_is_no_shard(tmp_path):
    (tmp_path / "scores-1.npz.1.tmp").write_bytes(b"half")
    said: list[str] = []
    assert not len(ScoreStore(tmp_path, say=said.append)) and not said


def test_a_full_disk_is_an_error_with_the_folder(tmp_path, monkeypatch):
    def refuse(stream, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", refuse)
    store = ScoreStore(tmp_path)
    store.add(A, np.array([-1.0]))
    with pytest.raises(RunError, match=str(tmp_path)):
        store.flush()
    assert not list(tmp_path.iterdir())


def test_a_key_is_the_text_and_its_target():
    texts = [ids(1, 2), ids(1, 2), ids(1, 2, 3), ids(1, 2), ids(1, 2)]
    rests = [ids(3, 4, 5), ids(3, 4, 5), ids(4, 5), ids(3, 4, 6), ids(3, 4, 5)]
    keys = cell_keys(list_cells(texts, rests, [1, 1, 1, 1, 2]))
    assert keys[0] == keys[1] == keys[2], "the same tokens, wherever the prefix ends"
    assert len(set(keys)) == 3, "another answer, and more of it as target, are other cells"


def test_a_sample_is_of_several_shards_and_only_of_the_disk(tmp_path):
    filled(tmp_path, {A: [-1.0]})
    filled(tmp_path, {B: [-1.0]})
    store = ScoreStore(tmp_path)
    store.add(C, np.array([-2.0]))
    assert store.sample([C, B, C, A, B]) == [1, 3]
    store.verified = True
    assert store.sample([A, B]) == []


def test_disagreement_is_a_mean_over_tokens(tmp_path):
    filled(tmp_path, {A: [-1.0, -2.0]})
    store = ScoreStore(tmp_path, tolerance=0.1)
    assert store.disagreement(A, np.array([-1.1, -2.05])) is None
    assert "0.15 nats" in (store.disagreement(A, np.array([-1.2, -2.1])) or "")
    assert store.disagreement(A, np.array([-1.0])), "another number of tokens"
