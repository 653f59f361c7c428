"""Ranks that wait for one, longer than a collective may take: a search, the making of an index, a refresh beside
training that is waited for. They are told of what fails, may stop meanwhile, and the one that works has the cores."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # for small.py, on the ranks too

from small import small_parts, small_retriever

from ds_rag.config import EvaluationConfig
from ds_rag.config.schedules import Schedule
from ds_rag.data.dataset import tokenize
from ds_rag.index import building, corpus_index, faiss_index
from ds_rag.index.building import Corpus, index_corpus
from ds_rag.index.corpus_index import CorpusIndex, Part, build_part
from ds_rag.run import index_refresh
from ds_rag.run.index_refresh import IndexStage
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import RunError
from ds_rag.runtime.long_waits import together
from ds_rag.runtime.stop_signals import Stopped

TIMEOUT, LONG = 2.4, 3.4  # seconds
SILENT = Console(speaks=False)
VECTORS = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
Found = tuple[np.ndarray, np.ndarray]


def slowly(function: Callable[..., Any], rank: int = 0) -> Callable[..., Any]:
    def slow(*args: Any, **named: Any) -> Any:
        time.sleep(LONG if collectives.rank() == rank else 0)
        return function(*args, **named)

    return slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_long(port: int, folder: Path) -> dict[str, Any]:
    """Signs of life at each wait, and what was found; in a group whose collectives take TIMEOUT at most."""
    collectives.barrier()
    collectives.stop()
    os.environ["MASTER_PORT"] = str(port)
    collectives.start(timeout_minutes=TIMEOUT / 60)
    beats: dict[str, int] = {}

    def during(name: str) -> Callable[[], None]:
        def beat() -> None:
            beats[name] = beats.get(name, 0) + 1

        return beat

    retriever = small_retriever()
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), ["zor", "mel", "dor"], SILENT, "texts")
    corpus, build, encode_shard = Corpus(tokens, retriever, 8), building.build_from_shards, index_refresh.encode_shard
    collectives.barrier()
    stop_signals.agree_by(during("search"))
    search, Part.search = Part.search, slowly(Part.search)  # type: ignore[method-assign]
    index = CorpusIndex([build_part(VECTORS, "Flat")] if collectives.rank() == 0 else [], 300)  # type: ignore[list-item]
    found = index.search(VECTORS[:9], 5)
    Part.search = search  # type: ignore[method-assign]
    stop_signals.agree_by(during("build"))
    building.build_from_shards = slowly(build)
    built = index_corpus(retriever, corpus, EvaluationConfig(), folder / "work", "m").index.search(
        np.eye(16, dtype="f"), 3
    )
    building.build_from_shards = build
    stop_signals.agree_by(None)
    parts = small_parts()
    parts.schedule, parts.total_steps = Schedule("2"), 9
    stage = IndexStage(parts, EvaluationConfig(refresh_mode="async"), Quiet(), folder, SILENT, needed=True)  # type: ignore[arg-type]
    stage.refresh(0)
    for p in parts.retriever.parameters():
        p.data += 1e-3
    index_refresh.encode_shard = slowly(encode_shard, rank=1)
    collectives.barrier()
    stop_signals.agree_by(during("refresh"))
    with stage:
        assert stage.after_step(2) is None
        landed = stage.drain(3)
    index_refresh.encode_shard = encode_shard
    stop_signals.agree_by(None)
    assert landed is not None
    return {"beats": beats, "search": found, "build": built, "landed": landed.step}


class Quiet:
    def measure(self, index: CorpusIndex, retriever: Any) -> Any:
        from ds_rag.evaluation.evaluator import Evaluation

        return Evaluation()


def test_no_rank_times_out_while_another_works_for_long(tmp_path):
    """Without the meetings: "Timed out waiting 2400ms for recv operation to complete"."""
    first, second = run_ranks(wait_long, 2, free_port(), tmp_path)
    alone = CorpusIndex([build_part(VECTORS, "Flat")], 300).search(VECTORS[:9], 5)
    for rank in (first, second):
        assert all(np.array_equal(a, b) for a, b in zip(rank["search"], alone, strict=True)) and rank["landed"] == 2
        assert np.array_equal(rank["build"][1], first["build"][1])
        assert rank["beats"] == first["beats"] and all(n >= 3 for n in rank["beats"].values()), rank["beats"]
        assert set(rank["beats"]) == {"search", "build", "refresh"}


def threads_of_search() -> list[tuple[int, int]]:
    """For an index that rank 0 has and one in shards: FAISS's threads while this rank searched (-1: it had nothing to)
    and afterwards, of seven cores."""
    collectives.cores = lambda: 7
    numbers = np.arange(300)[collectives.rank() :: 2]
    whole = [build_part(VECTORS, "Flat")] if collectives.rank() == 0 else []
    search, found = faiss_index.search, []
    for parts in (whole, [build_part(VECTORS[numbers], "Flat", numbers)]):
        seen = [-1]
        faiss_index.search = lambda *x, s=seen: s.append(faiss.omp_get_max_threads()) or search(*x)  # type: ignore
        CorpusIndex(parts, 300).search(VECTORS[:2], 5)  # type: ignore[arg-type]
        found.append((seen[-1], faiss.omp_get_max_threads()))
    return found


def test_a_rank_searches_with_the_cores_that_the_others_leave():
    assert run_ranks(threads_of_search, 2) == [[(7, 1), (3, 1)], [(-1, 1), (3, 1)]]


def stop_meanwhile() -> tuple[str, int]:
    """How a search of many parts ends that the ranks agree to stop, and how many queries were searched."""
    corpus_index.MOST_QUERIES = corpus_index.LEAST_QUERIES = 2
    collectives.BEAT = 0.1
    beats: list[int] = []

    def check() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise Stopped("SIGTERM")

    done: list[int] = []
    search = Part.search
    Part.search = lambda *x: time.sleep(0.1) or search(*x)  # type: ignore
    index = CorpusIndex([build_part(VECTORS, "Flat")] if collectives.rank() == 0 else [], 300)  # type: ignore[list-item]
    stop_signals.agree_by(check)
    try:
        index.search(VECTORS, 5, done.append)
        return "to its end", sum(done)
    except Stopped as error:
        return f"{error}, {threading.active_count()} thread", sum(done)
    finally:
        stop_signals.agree_by(None)


def fail_on_one() -> str:
    def work(pause: Callable[[], None]) -> int:
        if collectives.rank() == 0:
            raise ValueError("no vectors")
        return 1

    try:
        return str(together(work, "the search"))
    except (ValueError, RunError) as error:
        return f"{type(error).__name__}: {error}"


def fail_and_stop() -> tuple[str, str, int]:
    return fail_on_one(), *stop_meanwhile()


def test_all_ranks_end_where_one_fails_or_is_asked_to_stop():
    """The search that is stopped has a hundred and fifty parts, of which few are done."""
    (own, said, done), (heard, other, _) = run_ranks(fail_and_stop, 2)
    assert own == "ValueError: no vectors" and heard.startswith("RunError: the search failed on another rank")
    assert said == other == "SIGTERM, 1 thread" and 2 <= done < 100


def test_one_process_works_without_a_thread_and_pauses_between_the_parts(monkeypatch):
    monkeypatch.setattr(corpus_index, "MOST_QUERIES", 4)
    monkeypatch.setattr(corpus_index, "LEAST_QUERIES", 4)
    seen: list[Any] = []
    stop_signals.agree_by(lambda: seen.append(threading.current_thread().name))
    try:
        found = CorpusIndex([build_part(VECTORS, "Flat")], 300).search(VECTORS[:10], 5, seen.append)
    finally:
        stop_signals.agree_by(None)
    assert seen == ["MainThread", 4, "MainThread", 4, "MainThread", 2]
    monkeypatch.undo()
    whole = CorpusIndex([build_part(VECTORS, "Flat")], 300).search(VECTORS[:10], 5)
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))


def test_cores_are_those_of_the_affinity_and_the_container(tmp_path, monkeypatch):
    for text, expected in (("150000 100000\n", 2), ("max 100000\n", 0), ("", 0)):
        (tmp_path / "cpu.max").write_text(text)
        assert collectives.container_cores(tmp_path) == expected
    assert collectives.container_cores(tmp_path / "none") == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for container, cores, rank in ((0, 8, 2), (4, 4, 1), (2, 2, 1), (64, 8, 2)):
        monkeypatch.setattr(collectives, "container_cores", lambda c=container: c)
        assert (collectives.cores(), collectives.cores_of_rank()) == (cores, rank)
