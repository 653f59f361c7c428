"""Vectors that are kept on disk: found by token ids, complete or absent, and the same as encoded ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_retriever

from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import TokenTable, tokenize
from ds_rag.index import shards, vector_store
from ds_rag.index.building import Corpus, Encoder, encode_shard
from ds_rag.index.encode import encode
from ds_rag.index.vector_folder import key_of, open_vector_store, say_account
from ds_rag.index.vector_store import VectorStore, known_and_new, passage_keys
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

TEXTS = [" ".join(p.text for p in make_world(0).corpus[n : n + 1 + n % 3]) for n in range(40)]
SILENT = Console(speaks=False)


def table(retriever: Any, texts: list[str] = TEXTS) -> TokenTable:
    return tokenize(lambda t: retriever.tokenize(t, "passage"), texts, SILENT, "texts")


def keys(*names: bytes) -> np.ndarray:
    return np.array(names, dtype=vector_store.KEY)


@pytest.fixture(scope="module")
def retriever() -> Any:
    return small_retriever(max_passage_length=48)


def test_what_was_added_is_found_again_by_others_whatever_the_order(tmp_path: Path) -> None:
    """Keys that end in zero bytes, or differ only there, too: they are bytes, not texts."""
    rng = np.random.default_rng(0)
    names = [rng.bytes(16) for _ in range(50)] + [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"\0" * 16, b"\0" * 15 + b"a"]
    vectors = rng.normal(size=(54, 3)).astype(np.float32)
    for part in (slice(0, 20), slice(20, 54)):  # of two processes
        store = VectorStore(3, tmp_path)
        store.add(keys(*names[part]), vectors[part])
        assert (store.find(keys(*names[part])) == -1).all(), "known only after a reload"
        store.flush()
    known = VectorStore(3, tmp_path)
    known.reload()
    order = rng.permutation(54)
    places = known.find(keys(*[names[n] for n in order], b"b" * 16, b"a" * 13 + b"\0\0\0"))
    assert np.array_equal(known.take(places[:54]), vectors[order]) and places[54:].tolist() == [-1, -1]
    assert known.size == sum(f.stat().st_size for f in tmp_path.iterdir()) and known.taken == 54


def test_nothing_is_known_at_first_and_nothing_kept_without_a_folder() -> None:
    store = VectorStore(2)
    store.reload()
    assert store.find(keys(b"x" * 16)).tolist() == [-1] and store.take(np.zeros(0, np.int64)).shape == (0, 2)
    store.add(keys(b"x" * 16), np.ones((1, 2), np.float32))
    store.flush()
    assert store.find(keys(b"x" * 16)).tolist() == [-1] and store.size == 0


def test_a_key_is_of_the_token_ids_alone() -> None:
    rows = [[1, 2], [1, 2, 3], [2, 1], [1, 2]]
    tokens = TokenTable(np.array([t for ids in rows for t in ids], np.int32), np.cumsum([len(ids) for ids in rows]))
    one, two, three, four = passage_keys(tokens)
    assert one == four and len({one, two, three}) == 3
    assert passage_keys(tokens, np.array([2, 0])).tolist() == [three, one]


@pytest.mark.parametrize("change", ["a byte", "cut short", "another shape", "no file of numpy", "empty"])
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, change: str) -> None:
    for n in (1, 2):
        store = VectorStore(3, tmp_path)
        store.add(keys(bytes([n]) * 16), np.full((1, 3), n, np.float32))
        store.flush()
        files = set(tmp_path.iterdir())
    victim = sorted(files)[0]
    data = victim.read_bytes()
    changed = {
        "a byte": data[:-1] + bytes([data[-1] ^ 1]),
        "cut short": data[:-4],
        "no file of numpy": b"x" * 100,
        "empty": b"",
    }
    if change == "another shape":
        np.save(victim, np.zeros(3, np.float32))
    else:
        victim.write_bytes(changed[change])
    said: list[str] = []
    store = VectorStore(3, tmp_path, said.append)
    store.reload()
    assert sorted(store.find(keys(b"\1" * 16, b"\2" * 16)) >= 0) == [False, True]
    assert len(said) == 1 and str(victim) in said[0] and "damaged" in said[0]
    store.reload()
    assert len(said) == 1, "once"


def test_vectors_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    store = VectorStore(2, tmp_path)
    store.add(keys(b"a" * 16, b"b" * 16), np.array([[1, np.nan], [1, 2]], np.float32))
    store.flush()
    store.reload()
    assert store.find(keys(b"a" * 16, b"b" * 16)).tolist() == [-1, 0]


def test_known_and_new_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the rows themselves; batches of unlike size, blocks of three rows."""
    monkeypatch.setattr(shards, "CHUNK_BYTES", 3 * 4 * 2)
    rng = np.random.default_rng(1)
    for known_fraction in (0.0, 0.3, 0.9, 1.0):
        vectors, names = rng.normal(size=(31, 2)).astype(np.float32), [rng.bytes(16) for _ in range(31)]
        known = np.flatnonzero(rng.random(31) < known_fraction)
        store = VectorStore(2)
        store.include(keys(*[names[n] for n in known]), vectors[known])
        asked: list[int] = []

        def embed(rows: np.ndarray, asked: list[int] = asked, vectors: np.ndarray = vectors) -> Iterator[np.ndarray]:
            asked += rows.tolist()
            for start in range(0, len(rows), 4):
                yield vectors[rows[start : start + 4]]

        assert np.array_equal(np.concatenate(list(known_and_new(store, keys(*names), embed))), vectors)
        assert asked == [n for n in range(31) if n not in known]
        assert (store.taken, store.added) == (len(known), 31 - len(known))


def forwards(retriever: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    embed = type(retriever).embed
    monkeypatch.setattr(
        type(retriever), "embed", lambda self, t, side: counts.append(len(t.ids_BT)) or embed(self, t, side)
    )
    return counts


def test_a_passage_is_encoded_once(retriever: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order, fewer and more passages; on disk and in memory; the same vectors as without a store."""
    plain = encode(retriever, table(retriever), "passage", 4)
    counts, root = forwards(retriever, monkeypatch), str(tmp_path / "cache")

    def shard_of(texts: list[str], name: str) -> np.ndarray:
        corpus, store = Corpus(table(retriever, texts), retriever, 4), open_vector_store(root, retriever, print)
        shard = encode_shard(Encoder(retriever, "m", 0, store=store), corpus, tmp_path / name)
        return shard.vectors_nD[np.argsort(shard.numbers_n)]

    first = shard_of(TEXTS[:30], "first")
    assert sum(counts) == 30 and np.allclose(first, plain[:30], atol=1e-5)
    counts.clear()
    again = shard_of(TEXTS[29::-1], "again")
    assert counts == [] and np.array_equal(again, first[::-1])
    more = shard_of(TEXTS[::-1], "more")
    assert sum(counts) == 10 and np.array_equal(more[39:9:-1], first) and np.allclose(more[::-1], plain, atol=1e-5)
    counts.clear()
    store = open_vector_store(root, retriever, print)
    assert np.array_equal(encode(retriever, table(retriever), "passage", 4, store=store), more[::-1]) and counts == []


def test_an_interrupted_encoding_keeps_what_it_has(
    retriever: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, root, done = Corpus(table(retriever), retriever, 4), str(tmp_path / "cache"), 0

    def watch(count: int) -> None:
        nonlocal done
        done += count
        if done >= 20:
            raise KeyboardInterrupt

    store = open_vector_store(root, retriever, print)
    with pytest.raises(KeyboardInterrupt):
        encode_shard(Encoder(retriever, "m", 0, watch, store=store), corpus, tmp_path / "one")
    counts, store = forwards(retriever, monkeypatch), open_vector_store(root, retriever, print)
    assert store is not None
    encode_shard(Encoder(retriever, "m", 0, store=store), corpus, tmp_path / "elsewhere")
    assert sum(counts) == store.added == 40 - done and store.taken == done >= 20


def test_another_encoder_has_another_folder_and_other_ids_another_key(retriever: Any, tmp_path: Path) -> None:
    """Each change alone. A prefix and a length are in the ids: only passages that the length cuts are others."""

    def folder(other: Any) -> str:
        store = open_vector_store(str(tmp_path), other, print)
        assert store is not None and store.folder is not None
        assert json.loads((store.folder / "key.json").read_text()) == key_of(other)
        return store.folder.name

    own = folder(retriever)
    assert folder(small_retriever(max_passage_length=48)) == own, "the same weights, opened again"
    others = {
        "weights": small_retriever(seed=1, max_passage_length=48),
        "pooling": small_retriever(max_passage_length=48, pooling="cls"),
        "normalize": small_retriever(max_passage_length=48, normalize=False),
        "precision": small_retriever(max_passage_length=48).bfloat16(),
    }
    configured = small_retriever(max_passage_length=48)
    configured.encoder.config.hidden_act = "relu"
    others["configuration"] = configured
    assert len({own, *map(folder, others.values())}) == 6
    for name, other in others.items():
        if name != "precision":  # which is also another value of each weight
            assert {k for k, v in key_of(other).items() if v != key_of(retriever)[k]} == {name}
    tuned = small_retriever(max_passage_length=48)
    with torch.no_grad():
        next(tuned.parameters())[0, 0] += 1e-6
    assert folder(tuned) != own, "one weight is another"
    tokens = table(retriever)
    known, cut = passage_keys(tokens), small_retriever(max_passage_length=20)
    assert folder(cut) == folder(small_retriever(passage_prefix="a ", max_passage_length=48)) == own
    assert not set(known) & set(passage_keys(table(small_retriever(passage_prefix="a ", max_passage_length=48))))
    same = passage_keys(table(cut)) == known
    assert np.array_equal(same, tokens.lengths <= 20) and 0 < same.sum() < 40


def test_the_side_of_passages_decides(retriever: Any) -> None:
    two = small_retriever(max_passage_length=48)
    two.keep_passages()
    assert key_of(two) == key_of(retriever)
    with torch.no_grad():
        next(two.encoder.parameters()).add_(1)
    assert key_of(two) == key_of(retriever), "of passages, the encoder of queries is not asked"
    with torch.no_grad():
        next(two.passage_encoder.parameters()).add_(1)
    assert key_of(two) != key_of(retriever)


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = VectorStore(3, tmp_path)
    store.add(keys(b"a" * 16), np.zeros((1, 3), np.float32))
    store.flush()
    store.reload()
    say_account(store, Console())
    assert "1 passages: 1 encoded, 0 vectors from" in capsys.readouterr().out.replace("\n", " ")
    known = VectorStore(3, tmp_path)
    known.reload()
    known.take(known.find(keys(b"a" * 16)))
    say_account(known, Console())
    assert "1 passages: vectors from" in capsys.readouterr().out.replace("\n", " ")
    say_account(None, Console())
    assert capsys.readouterr().out == ""


def test_a_place_that_cannot_be_made(tmp_path: Path, retriever: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--vector_cache"):
        open_vector_store(str(tmp_path / "file" / "cache"), retriever, print)
    assert open_vector_store(None, retriever, print) is None
