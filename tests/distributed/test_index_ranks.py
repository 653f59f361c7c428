"""The index on two and three ranks: encoded, searched, published and refreshed as on one."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # for small.py, on the ranks too

from small import small_parts, small_retriever

from ds_rag.commands.index import command as index
from ds_rag.config import EvaluationConfig
from ds_rag.config.schedules import Schedule
from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import tokenize
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.index.building import Corpus, index_corpus, scratch
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import encode
from ds_rag.index.store import describe, hash_model, read_index
from ds_rag.index.vector_folder import open_vector_store
from ds_rag.run import index_refresh
from ds_rag.run.index_refresh import IndexStage
from ds_rag.run.publish_index import publish
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.console import Console

SILENT = Console(speaks=False)
WORLD = make_world(0).corpus
TEXTS = [" ".join(p.text for p in WORLD[n : n + 1 + n % 3]) for n in range(61)]
Found = tuple[np.ndarray, np.ndarray]


def vectors_with_ties() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    few = rng.normal(size=(90, 24)).astype(np.float32)
    return few[rng.integers(90, size=1001)], np.concatenate([few[:12], rng.normal(size=(13, 24)).astype(np.float32)])


def search_shards() -> tuple[Found, Found]:
    """The same queries on all ranks, in shards and in the merged layout."""
    vectors, queries = vectors_with_ties()
    rank, world = collectives.rank(), collectives.world()
    numbers = np.random.default_rng(1).permutation(1001)[rank::world]
    index = CorpusIndex([build_part(vectors[numbers], "Flat", numbers)], 1001)  # type: ignore[list-item]
    merged = CorpusIndex([build_part(vectors, "Flat")] if rank == 0 else [], 1001)  # type: ignore[list-item]
    return index.search(queries, 101), merged.search(queries, 101)


def same(a: Found, b: Found) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_what_one_finds(world):
    vectors, queries = vectors_with_ties()
    alone = CorpusIndex([build_part(vectors, "Flat")], 1001)
    expected = alone.search(queries, 101)
    for shared, merged in run_ranks(search_shards, world):
        assert same(shared, expected) and same(merged, expected)


def count_forwards() -> tuple[int, int, np.ndarray]:
    """A rank's forwards over a corpus whose shares take unequal numbers of them; its real ones; the vectors."""
    retriever = small_retriever()
    texts = TEXTS[:1] * 7
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), texts, SILENT, "texts")
    shapes: list[int] = []
    embed = retriever.embed
    retriever.embed = lambda t, side: shapes.append(t.ids_BT.shape[1]) or embed(t, side)  # type: ignore[method-assign]
    vectors = encode(retriever, tokens, "passage", 1)
    return len(shapes), sum(n > 1 for n in shapes), vectors


def test_all_ranks_run_equally_many_forwards():
    found = run_ranks(count_forwards, 2)
    assert [(every, real) for every, real, _ in found] == [(4, 4), (4, 3)]
    (alone,) = run_ranks(count_forwards, 1)
    assert alone[:2] == (7, 7)
    for _, _, vectors in found:
        np.testing.assert_allclose(vectors, alone[2], atol=1e-6)


def index_and_publish(folder: Path, shards: str) -> tuple[Found, Found, Found, list[int]]:
    """Searched by all before it is written, and opened by each; and made of a store that has had a part of it."""
    retriever, stage = small_retriever(), EvaluationConfig(index_shards=shards)
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), TEXTS, SILENT, "texts")
    queries = encode(retriever, tokens, "query", 8)[:9]
    with scratch() as work:
        built = index_corpus(retriever, Corpus(tokens, retriever, 8), stage, work, "m")
        found = built.index.search(queries, 20)
        count = collectives.world() if shards == "keep" else 0
        manifest = describe("m", 16, TEXTS, "Flat", retriever.settings, count)
        publish(folder, built, [str(n) for n in range(61)], TEXTS, manifest)
        collectives.barrier()
    assert collectives.rank() == 0 or not work.exists()
    opened = CorpusIndex(read_index(folder, "m").index.parts if collectives.rank() == 0 else [], 61)
    counts: list[int] = []
    for passages in (tokens.first(20), tokens, tokens):
        collectives.barrier()  # the other ranks' vectors are on the disk
        store = open_vector_store(str(folder.with_name("cache")), retriever, print)
        assert store is not None
        with scratch() as work:
            built = index_corpus(retriever, Corpus(passages, retriever, 8), stage, work, "m", store)
            stored = built.index.search(queries, 20)
        counts.append(int(collectives.all_sum({"added": store.added})["added"]))
    return found, opened.search(queries, 20), stored, counts


@pytest.mark.parametrize("shards", ["merge", "keep"])
def test_an_index_of_two_ranks_is_that_of_one(tmp_path, shards):
    ((expected, *_),) = run_ranks(index_and_publish, 1, tmp_path / "alone/one", "merge")
    found = run_ranks(index_and_publish, 2, tmp_path / "two", shards)
    for before, opened, stored, counts in found:
        assert same(before, opened) and counts == [20, 41, 0], "each passage once, by whichever rank"
        assert np.array_equal(before[1], stored[1])
        np.testing.assert_allclose(stored[0], before[0], atol=1e-5)
        assert np.array_equal(before[1], expected[1])
        np.testing.assert_allclose(before[0], expected[0], atol=1e-6)
    names = {f.name for f in (tmp_path / "two").iterdir()}
    plain = {"ids.json", "texts.jsonl", "manifest.json"}
    kept = {f"shard-{r}-of-2.{x}" for r in (0, 1) for x in ("npy", "numbers.npy", "faiss")}
    assert names == plain | ({"vectors.npy", "index.faiss"} if shards == "merge" else kept)


def evaluate_elsewhere(folder: Path) -> tuple[Path, Found]:
    """A rank as on a host of its own: with a /tmp that is not the others', in a working directory that they share."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    tempfile.tempdir = str(folder / f"host{collectives.rank()}")
    (folder / "checkout").mkdir(exist_ok=True)
    os.chdir(folder / "checkout")
    retriever = small_retriever()
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), TEXTS, SILENT, "texts")
    with scratch() as work:
        built = index_corpus(retriever, Corpus(tokens, retriever, 8), EvaluationConfig(), work, "m")
        return work, built.index.search(encode(retriever, tokens, "query", 8)[:9], 20)


def test_ranks_on_several_hosts_meet_where_all_see_it(tmp_path):
    for n in (0, 1):
        (tmp_path / f"host{n}").mkdir()
    (first, found), (second, also) = run_ranks(evaluate_elsewhere, 2, tmp_path)
    assert first == second and first.parent == tmp_path / "checkout" and same(found, also)
    assert not list((tmp_path / "checkout").iterdir()), "it is gone at the end"


class Notes:
    def measure(self, index: CorpusIndex, retriever: Any) -> Evaluation:
        return Evaluation()


def stage_on(folder: Path, **flags: Any) -> IndexStage:
    parts = small_parts()
    parts.schedule, parts.total_steps = Schedule("2"), 9
    return IndexStage(parts, EvaluationConfig(**flags), Notes(), folder, SILENT, needed=True)  # type: ignore[arg-type]


def refresh_beside(folder: Path, shards: str, fraction: str) -> tuple[list[tuple[int, int]], Found]:
    """What landed at which steps, while the second rank is slow; and what is found then."""
    import time

    stage = stage_on(folder, refresh_mode="async", index_shards=shards, refresh_fraction=fraction)
    stage.refresh(0)
    encode_shard, update_shard = index_refresh.encode_shard, index_refresh.update_shard
    wait = 0.2 * collectives.rank()
    index_refresh.encode_shard = lambda *x: time.sleep(wait) or encode_shard(*x)
    index_refresh.update_shard = lambda *x: time.sleep(wait) or update_shard(*x)
    landed = []
    with stage:
        for step in range(1, 10):
            for p in stage.parts.retriever.parameters():
                p.data += 1e-3
            found = stage.after_step(step)
            landed += [(found.step, found.at)] if found else []
            time.sleep(0.05)
        late = stage.drain(9)
        landed += [(late.step, late.at)] if late else []
    assert stage.built is not None
    index_refresh.encode_shard, index_refresh.update_shard = encode_shard, update_shard
    stage.refresh(9)
    return landed, stage.search(np.eye(16, dtype=np.float32), 9)


@pytest.mark.parametrize(("shards", "fraction"), [("merge", "1.0"), ("keep", "0.5")])
def test_ranks_swap_at_the_same_step(tmp_path, shards, fraction):
    first, second = run_ranks(refresh_beside, 2, tmp_path / "two", shards, fraction)
    assert first[0] == second[0] and [step for step, _ in first[0]] == [2, 4, 6, 8]
    assert all(step < at <= step + 2 for step, at in first[0])
    assert same(first[1], second[1])
    ((_, alone),) = run_ranks(refresh_beside, 1, tmp_path / "one", "merge", "1.0")
    np.testing.assert_allclose(first[1][0], alone[0], atol=1e-5)


def fail_on_one(folder: Path) -> str:
    stage = stage_on(folder, refresh_mode="async", refresh_staleness=1)

    def full(*_: Any) -> Any:
        raise OSError("No space left on device")

    if collectives.rank() == 1:
        index_refresh.encode_shard = full
    stage.after_step(2)
    try:
        stage.after_step(3)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_thread_that_fails_on_one_rank_ends_all(tmp_path):
    first, second = run_ranks(fail_on_one, 2, tmp_path)
    assert first.startswith("RunError") and "another rank" in first and second == "OSError: No space left on device"


def command(run: str) -> int:
    return index.main(argparse.Namespace(run=run, device="cpu", out=None))


def test_the_command_on_two_ranks(tmp_path):
    run = tmp_path / "run"
    small_retriever().save(run / "retriever")
    part = atomic_folders.begin(run / "index")
    (part / "ids.json").write_text(json.dumps([f"p{n}" for n in range(61)]))
    (part / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in TEXTS))
    atomic_folders.seal(part, run / "index", {})
    (run / "config.json").write_text(json.dumps({"train_data": "x.jsonl", "retriever": "r", "generator": "g"}))
    assert run_ranks(command, 2, str(run)) == [0, 0]
    two = np.load(run / "index/vectors.npy")
    assert run_ranks(command, 1, str(run)) == [0]
    np.testing.assert_allclose(two, np.load(run / "index/vectors.npy"), atol=1e-6)
    assert read_index(run / "index", hash_model(run / "retriever")).index.count == 61
    assert sorted(f.name for f in run.iterdir()) == ["config.json", "index", "retriever"]
