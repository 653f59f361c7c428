"""Encoding to disk, by part and again after a stop, against `encode` in memory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_retriever

from ds_rag.commands.index import command as index
from ds_rag.config import EvaluationConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.corpus_state import source_of
from ds_rag.data.dataset import RagData, TokenTable, tokenize
from ds_rag.index import building as module
from ds_rag.index import shards
from ds_rag.index.building import (
    Corpus,
    Encoder,
    build_from_shards,
    encode_shard,
    hash_tokens,
    index_corpus,
    update_shard,
)
from ds_rag.index.encode import encode, precision_of
from ds_rag.index.partial_update import drift
from ds_rag.index.store import describe, hash_model, read_index
from ds_rag.run.publish_index import describe_and_publish, publish
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

WORLD = make_world(0).corpus
TEXTS = [" ".join(p.text for p in WORLD[n : n + 1 + n % 3]) for n in range(101)]  # of many lengths
SILENT = Console(speaks=False)


@pytest.fixture(scope="module")
def retriever() -> Any:
    return small_retriever(max_passage_length=48)


@pytest.fixture(scope="module")
def moved() -> Any:
    """Some steps later."""
    later = small_retriever(max_passage_length=48)
    with torch.no_grad():
        for n, p in enumerate(later.parameters()):
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
    return later


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 10 * 4 * 16)


def table(retriever: Any, texts: list[str] = TEXTS) -> TokenTable:
    return tokenize(lambda t: retriever.tokenize(t, "passage"), texts, SILENT, "texts")


def forwards(retriever: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts of each forward from now on."""
    counts: list[int] = []
    embed = type(retriever).embed
    monkeypatch.setattr(
        type(retriever), "embed", lambda self, t, side: counts.append(len(t.ids_BT)) or embed(self, t, side)
    )
    return counts


def test_a_share_is_what_encode_gives(retriever, tmp_path):
    tokens = table(retriever)
    share = encode_shard(Encoder(retriever, "m", 7), Corpus(tokens, retriever, 4), tmp_path)
    assert np.array_equal(share.vectors_nD, encode(retriever, tokens, "passage", 4)[share.numbers_n])
    assert sorted(share.numbers_n.tolist()) == list(range(101)) and (share.steps_n == 7).all()


@pytest.mark.parametrize("stop", [1, 30, 95])
def test_a_stopped_encoding_goes_on_and_is_the_same_to_the_last_bit(retriever, tmp_path, monkeypatch, stop):
    corpus = Corpus(table(retriever), retriever, 4)
    whole = encode_shard(Encoder(retriever, "m", 0), corpus, tmp_path / "whole")
    done = 0

    def watch(count: int) -> None:
        nonlocal done
        done += count
        if done >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_shard(Encoder(retriever, "m", 0, watch), corpus, tmp_path / "cut")
    counts = forwards(retriever, monkeypatch)
    again = encode_shard(Encoder(retriever, "m", 0), corpus, tmp_path / "cut")
    assert np.array_equal(again.vectors_nD, whole.vectors_nD)
    assert 0 < sum(counts) <= 101 - max(0, stop - 20), "what was on the disk is not encoded again"
    counts.clear()
    encode_shard(Encoder(retriever, "m", 0), corpus, tmp_path / "cut")
    assert counts == []
    encode_shard(Encoder(retriever, "another model", 0), corpus, tmp_path / "cut")
    assert sum(counts) == 101


def test_tokens_decide_whether_a_corpus_is_the_same(retriever):
    tokens = table(retriever)
    others = [table(retriever, TEXTS[:-1]), table(retriever, TEXTS[::-1]), table(small_retriever(passage_prefix="a "))]
    assert hash_tokens(tokens) == hash_tokens(table(retriever))
    assert len({hash_tokens(t) for t in [tokens, tokens.first(50), *others]}) == 5


@pytest.mark.parametrize("fraction", ["0.1", "0.4", "1.0", "auto"])
def test_an_update_encodes_that_share_and_keeps_the_rest(retriever, moved, tmp_path, monkeypatch, fraction):
    monkeypatch.setattr("ds_rag.index.partial_update.LEAST_SAMPLE", 10)
    tokens = table(retriever)
    corpus = Corpus(tokens, retriever, 4)
    old = encode_shard(Encoder(retriever, "m", 3), corpus, tmp_path / "old")
    fresh = encode(moved, tokens, "passage", 4)[old.numbers_n]
    counts = forwards(moved, monkeypatch)
    new = update_shard(Encoder(moved, "n", 5), corpus, tmp_path / "new", old, fraction, 0)
    done = new.steps_n == 5
    assert (new.steps_n[~done] == 3).all() and (old.steps_n == 3).all()
    share = {"0.1": 11, "0.4": 41, "1.0": 101, "auto": 101}[fraction]  # all have moved far
    assert done.sum() == sum(counts) == share == new.figures["encoded"]
    rest = drift(new.vectors_nD[~done], fresh[~done])
    assert done.all() or rest.mean() < drift(old.vectors_nD[~done], fresh[~done]).mean(), "moved towards the new ones"
    np.testing.assert_allclose(new.vectors_nD[done], fresh[done], atol=1e-5)
    assert np.abs(new.vectors_nD[done] - old.vectors_nD[done]).max(1).min() > 1e-3
    mean = new.figures["drift"] / new.figures["sampled"]
    assert mean == pytest.approx(drift(old.vectors_nD, fresh).mean(), rel=0.5) and new.figures["sampled"] == 10
    assert new.figures["drift_left"] == pytest.approx(rest.sum(), rel=0.7)
    third = update_shard(Encoder(moved, "n", 6), corpus, tmp_path / "third", new, "auto", 0)  # nothing moves any more
    assert third.figures["drift"] == pytest.approx(0 if share == 101 else third.figures["drift"], abs=1e-6)
    assert encode_shard(Encoder(moved, "n", 5), corpus, tmp_path / "new").vectors_nD.shape == (101, 16)
    assert sum(counts) >= share + 101, "a share in part is not taken for a whole one"


@pytest.mark.parametrize("shards", ["merge", "keep"])
def test_publish_and_open(retriever, tmp_path, shards):
    tokens, stage = table(retriever), EvaluationConfig(index_shards=shards)
    ids = [f"id-{n}" for n in range(101)]
    built = index_corpus(retriever, Corpus(tokens, retriever, 8), stage, tmp_path / "work", "m")
    settings = retriever.settings
    for layout in ("keep", shards):  # another layout's files go
        count = int(layout == "keep")
        manifest = describe("m", 16, TEXTS, "Flat", settings, count)
        other = index_corpus(
            retriever, Corpus(tokens, retriever, 8), EvaluationConfig(index_shards=layout), tmp_path, "m"
        )
        publish(tmp_path / "index", other, ids, TEXTS, manifest)
    names = {
        "merge": {"vectors.npy", "index.faiss"},
        "keep": {f"shard-0-of-1.{x}" for x in ("npy", "numbers.npy", "faiss")},
    }
    assert {f.name for f in (tmp_path / "index").iterdir()} == {
        "ids.json",
        "texts.jsonl",
        "manifest.json",
        *names[shards],
    }
    stored, vectors = read_index(tmp_path / "index", "m"), encode(retriever, tokens, "passage", 8)
    if shards == "merge":
        assert np.array_equal(np.load(tmp_path / "index/vectors.npy"), vectors)
    for a, b in zip(stored.index.search(vectors[:9], 20), built.index.search(vectors[:9], 20), strict=True):
        assert np.array_equal(a, b)


def test_a_shard_that_is_missing_is_said(retriever, tmp_path, monkeypatch):
    corpus = Corpus(table(retriever), retriever, 8)
    share = encode_shard(Encoder(retriever, "m", 0), corpus, tmp_path)
    corpus.world = 2
    with pytest.raises(UserError, match="not all ranks") as caught:
        build_from_shards(corpus, share, tmp_path, EvaluationConfig())
    assert "shard-0-of-2.npy" in str(caught.value) and "keep" in str(caught.value)


def saved_run(folder: Path, retriever: Any) -> argparse.Namespace:
    """What `ds-rag index --run` opens, without a generator."""
    retriever.save(folder / "retriever")
    own = atomic_folders.begin(folder / "index")
    (own / "ids.json").write_text(json.dumps([f"p{n}" for n in range(101)]))
    (own / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in TEXTS))
    atomic_folders.seal(own, folder / "index", {})
    config = {"retriever": "r", "generator": "g", "per_device_eval_batch_size": 4, "max_passage_length": 48}
    (folder / "config.json").write_text(json.dumps(config | {"train_data": "x.jsonl"}))
    return argparse.Namespace(run=str(folder), device="cpu", out=None)


def test_the_command_goes_on_after_it_was_stopped(retriever, tmp_path, monkeypatch):
    args = saved_run(tmp_path / "run", retriever)
    counts = forwards(retriever, monkeypatch)
    encode_batches = module.embed_rows

    def stops(*inputs: Any) -> Any:
        for n, vectors in enumerate(encode_batches(*inputs)):
            if n == 8:
                raise KeyboardInterrupt
            yield vectors

    monkeypatch.setattr(module, "embed_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        index.main(args)
    monkeypatch.setattr(module, "embed_rows", encode_batches)
    assert (tmp_path / "run/index.partial").is_dir() and not (tmp_path / "run/index/index.faiss").exists()
    first = sum(counts)
    assert index.main(args) == 0
    assert 101 < sum(counts) < 101 + first
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == ["config.json", "index", "retriever"]
    stored = read_index(tmp_path / "run/index", hash_model(tmp_path / "run/retriever"))
    assert stored.texts == TEXTS and stored.index.count == 101
    expected = encode(retriever, table(retriever), "passage", 4)
    np.testing.assert_allclose(np.load(tmp_path / "run/index/vectors.npy"), expected, atol=1e-6)


def test_a_manifest_says_what_made_the_index_and_holds_no_passage_of_rows_alone(retriever, tmp_path):
    corpus_file = tmp_path / "c.jsonl"
    corpus_file.write_text("".join(json.dumps({"id": f"p{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    data = RagData([*TEXTS, "of a row alone"], [f"p{n}" for n in range(len(TEXTS) + 1)], len(TEXTS))
    data.source = source_of(corpus_file)
    corpus, stage = Corpus(table(retriever), retriever, 8), EvaluationConfig(index_factory="flat")
    built = index_corpus(retriever, corpus, stage, tmp_path / "work", "m")
    describe_and_publish(tmp_path / "index", built, corpus, retriever, data, stage, "m")
    stored = read_index(tmp_path / "index", "m", retriever=retriever)
    assert stored.texts == TEXTS and stored.ids[-1] == f"p{len(TEXTS) - 1}"
    found = stored.manifest
    assert (found.tokens, found.precision) == (hash_tokens(corpus.tokens), precision_of(retriever))
    assert (found.factory, found.shards, found.dimension) == ("flat", 0, 16)
    assert found.source == str(corpus_file.resolve()) and found.source_files == data.source.sealed()
    assert found.source_files["files"]["."]["size"] == corpus_file.stat().st_size
