"""The index stage around a small training loop: what lands when, and that training does not notice."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import small_parts

from ds_rag.config import EvaluationConfig, build
from ds_rag.config.schedules import Schedule
from ds_rag.data.batch import pad_right
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.index import building
from ds_rag.index.encode import encode
from ds_rag.models.fingerprint import fingerprint, hash_weights
from ds_rag.run import index_refresh as module
from ds_rag.run.active_run import look_up_passages
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.index_refresh import IndexStage, Landed
from ds_rag.runtime.console import Console
from ds_rag.train import train_step

SILENT = Console(speaks=False)


class Notes:
    """Stands for the evaluator: notes what it is asked to measure."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, str]] = []

    def measure(self, index: Any, retriever: Any) -> Evaluation:
        self.seen.append((index, fingerprint(retriever)))
        return Evaluation(retrieval={"recall@1": 0.5})


def make(folder: Path, schedule: str = "2", steps: int = 8, flags: dict[str, Any] | None = None, **stage: Any) -> Any:
    """(parts, stage) of a run whose retriever has dropout, so that its steps draw random numbers."""
    parts = small_parts(dropout=0.2, **flags or {})
    parts.schedule, parts.total_steps = Schedule(schedule), steps
    for engine in parts.engines.learning.values():
        engine.optimizer.param_groups[0]["lr"] = 0.01
    parts.engines.base_lrs = {name: [0.01] for name in parts.engines.base_lrs}
    torch.manual_seed(0)
    return parts, IndexStage(parts, EvaluationConfig(**stage), Notes(), folder, SILENT, needed=True)  # type: ignore[arg-type]


def loop(parts: Any, stage: IndexStage) -> tuple[list[float], list[Landed], list[str]]:
    """Losses, what landed, and the fingerprint after each step."""
    losses, landed, prints = [], [], [fingerprint(parts.retriever)]
    with stage:
        for step in range(parts.total_steps):
            parts.engines.train()
            outputs, _, _ = train_step(parts, step, 1.0)
            losses.append(outputs[0].loss)
            prints.append(fingerprint(parts.retriever))
            landed.append(stage.after_step(step + 1))
        landed.append(stage.drain(parts.total_steps))
    return losses, [x for x in landed if x], prints


def test_training_is_the_same_to_the_last_bit_whatever_the_stage_does(tmp_path):
    """The steps draw dropout; were the thread to draw too, or the copy to be no copy, they would differ."""
    ways = {
        "never": {"schedule": "0"},
        "sync": {},
        "async": {"refresh_mode": "async"},
        "in part": {"refresh_mode": "async", "refresh_fraction": "0.5", "index_shards": "keep"},
        "tight": {"refresh_mode": "async", "refresh_staleness": 1},
    }
    found = {name: loop(*make(tmp_path / name, **way)) for name, way in ways.items()}
    losses, _, prints = found["never"]
    assert len(set(losses)) == len(losses) and len(set(prints)) == len(prints)
    for name, (other, landed, marks) in found.items():
        assert other == losses and marks == prints, name
        assert [x.step for x in landed] == ([] if name == "never" else [2, 4, 6]), name


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_lands_is_of_the_weights_of_its_step(tmp_path, mode):
    parts, stage = make(tmp_path, refresh_mode=mode)
    first = stage.refresh(0)
    assert (first.step, first.at, first.full, stage.step) == (0, 0, True, 0)
    _, landed, prints = loop(parts, stage)
    notes = stage.evaluator.seen
    assert [mark for _, mark in notes] == [prints[s] for s in (0, 2, 4, 6)]
    assert [x.step for x in landed] == [2, 4, 6] and stage.step == 6
    assert all(x.at == x.step if mode == "sync" else x.step < x.at <= x.step + 2 for x in landed)
    assert all(x.metrics == {"recall@1": 0.5} | ({"landed": x.at} if mode == "async" else {}) for x in landed)
    assert all(x.figures["index_age"] == x.at - x.step and x.figures["landed"] == x.at for x in landed)
    assert stage.model == prints[6]
    vectors = np.load(tmp_path / "refresh/step-6/vectors.npy")
    if mode == "async":
        assert fingerprint(landed[-1].retriever) == prints[6] != prints[8]
        assert np.array_equal(vectors, encode(landed[-1].retriever, parts.eval_tokens.passages, "passage", 64))
    scores, numbers = stage.search(vectors[:3], 2)
    assert numbers[:, 0].tolist() == [0, 1, 2] and scores.dtype == np.float32
    assert [f.name for f in (tmp_path / "refresh").iterdir()] == ["step-6"]
    assert 0 < stage.stall_fraction < 1
    stage.clear()
    assert not (tmp_path / "refresh").exists()


def test_with_constant_passages_a_refresh_encodes_nothing_and_the_index_is_that_of_every_step(tmp_path, monkeypatch):
    parts, stage = make(tmp_path, steps=5, flags={"train_side": "query", "objective": "infonce"}, refresh_mode="async")
    run: Any = SimpleNamespace(parts=parts, index=stage, state=TrainState(), console=SILENT, config=build({}))
    look_up_passages(run)
    file, passages = tmp_path / "refresh/step-0/vectors.npy", parts.loader.tokens.passages
    made, index = file.read_bytes(), stage.built.index
    kept = hash_weights(parts.retriever.passage_encoder)
    wanted_ND = torch.cat([parts.retriever.embed(pad_right([ids], 0), "passage") for ids in passages]).detach()
    assert len(passages) > parts.data.corpus_size, "there are passages that only rows have"
    found_ND = parts.joint.options.vectors.take(range(len(passages)))
    torch.testing.assert_close(torch.from_numpy(found_ND), wanted_ND, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "encode_shard", None)
    losses, landed, prints = loop(parts, stage)
    assert len(set(losses)) == len(set(prints)) - 1 == 5, "the queries' side is trained"
    assert [(x.step, x.at, x.full, x.figures["index_age"]) for x in landed] == [(2, 2, True, 0), (4, 4, True, 0)]
    assert [mark for _, mark in stage.evaluator.seen] == [prints[2], prints[4]]
    assert stage.built.index is index and file.read_bytes() == made
    assert hash_weights(parts.retriever.passage_encoder) == kept != hash_weights(parts.retriever.encoder)
    monkeypatch.undo()
    for side, encodes in (("query", False), ("both", True)):  # of a run that is resumed
        _, again = make(tmp_path, flags={"train_side": side, "objective": "infonce"})
        counts = encoded(monkeypatch)
        again.encode(4)
        assert bool(sum(counts)) == encodes and (again.step, again.built.index is index) == (4, False)
        monkeypatch.undo()


def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Is given the number of passages of each call that encodes some."""
    counts: list[int] = []
    embed_rows = building.embed_rows

    def counting(retriever: Any, tokens: Any, numbers: Any, *others: Any) -> Any:
        counts.append(len(numbers))
        return embed_rows(retriever, tokens, numbers, *others)

    monkeypatch.setattr(building, "embed_rows", counting)
    return counts


class Gate:
    """Holds the encoding of the thread until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.open, encode_shard = threading.Event(), module.encode_shard

        def held(*inputs: Any) -> Any:
            assert self.open.wait(30)
            return encode_shard(*inputs)

        monkeypatch.setattr(module, "encode_shard", held)


def test_training_goes_on_while_a_refresh_is_under_way_and_lands_once_it_is_done(tmp_path, monkeypatch):
    _, stage = make(tmp_path, schedule="4", refresh_mode="async", refresh_staleness=10)
    gate = Gate(monkeypatch)
    assert [stage.after_step(step) for step in (1, 2, 3, 4, 5, 6)] == [None] * 6
    assert stage.pending is not None and stage.built is None
    gate.open.set()
    stage.pending.job.join()
    landed = stage.after_step(7)
    assert landed is not None and (landed.step, landed.at, stage.step) == (4, 7, 4) and stage.pending is None


@pytest.mark.parametrize(("schedule", "staleness", "at"), [("4", 2, 6), ("4", 1, 5), ("2", 100, 4)])
def test_a_refresh_that_is_too_old_or_overtaken_is_waited_for(tmp_path, monkeypatch, schedule, staleness, at):
    _, stage = make(tmp_path, schedule=schedule, refresh_mode="async", refresh_staleness=staleness)
    gate = Gate(monkeypatch)
    for step in range(1, at):
        assert stage.after_step(step) is None
    timer = threading.Timer(0.1, gate.open.set)
    timer.start()
    landed = stage.after_step(at)
    assert landed is not None and landed.at == at and gate.open.is_set()
    assert landed.figures["stall_seconds"] >= 0.05 and stage.stalled >= landed.figures["stall_seconds"] * 0.99
    assert (stage.pending is not None) == (schedule == "2"), "the next one begins where it is due"
    with stage:
        pass


def test_what_the_thread_raises_is_raised_in_the_loop(tmp_path, monkeypatch):
    _, stage = make(tmp_path, schedule="1", refresh_mode="async", refresh_staleness=1)

    def full(*inputs: Any) -> Any:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "encode_shard", full)
    assert stage.after_step(1) is None
    with pytest.raises(OSError, match="No space"):
        stage.after_step(2)


def test_a_loop_that_breaks_leaves_no_thread(tmp_path, monkeypatch):
    _, stage = make(tmp_path, schedule="1", refresh_mode="async")
    gate = Gate(monkeypatch)
    threading.Timer(0.1, gate.open.set).start()
    with pytest.raises(KeyboardInterrupt), stage:
        stage.after_step(1)
        job = stage.pending.job
        raise KeyboardInterrupt
    assert not job.running and isinstance(job.error, module.Cancelled) and stage.pending is None


def test_a_frozen_retriever_is_encoded_once(tmp_path, monkeypatch):
    parts, stage = make(tmp_path, flags={"freeze": "retriever"}, refresh_mode="async")
    stage.refresh(0)
    monkeypatch.setattr(module, "encode_shard", None)
    _, landed, _ = loop(parts, stage)
    assert [(x.step, x.at) for x in landed] == [(2, 2), (4, 4), (6, 6)]
    assert len(stage.evaluator.seen) == 4 and landed[-1].figures["index_age"] == 0


def test_part_of_the_corpus_and_at_the_end_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("ds_rag.index.partial_update.LEAST_SAMPLE", 4)
    parts, stage = make(tmp_path, refresh_fraction="0.25")
    N = len(parts.eval_tokens.passages)
    stage.refresh(0)
    _, landed, _ = loop(parts, stage)
    share = -(-N // 4) / N
    assert all(not x.full and x.figures["encoded"] == pytest.approx(share) for x in landed)
    assert all(x.figures["drift"] > 0 and x.figures["drift_left"] > 0 for x in landed)
    assert landed[-1].figures["index_age_max"] == 6 and 0 < landed[-1].figures["index_age"] < 6
    end = stage.refresh(8)
    assert end.full and stage.full and end.figures["index_age_max"] == 0 and "drift" not in end.figures
    expected = encode(parts.retriever, parts.eval_tokens.passages, "passage", 64)
    assert np.array_equal(np.load(tmp_path / "refresh/step-8/vectors.npy"), expected)


def test_the_first_refresh_is_whole_and_nothing_is_due_at_the_last_step(tmp_path):
    _, stage = make(tmp_path, schedule="4", refresh_fraction="0.1")
    landed = stage.after_step(4)
    assert landed is not None and landed.full
    assert stage.after_step(8) is None


def test_a_resumed_run_goes_on_with_a_refresh_that_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("ds_rag.index.shards.CHUNK_BYTES", 4 * 16)
    monkeypatch.setattr("ds_rag.index.encode.CPU_TOKENS", 1)
    _, stage = make(tmp_path)
    batches: list[int] = []

    def stop(count: int) -> None:
        batches.append(count)
        if len(batches) == 6:
            stage.cancel.set()

    embed = stage.parts.retriever.embed
    monkeypatch.setattr(stage.parts.retriever, "embed", lambda t, side: stop(1) or embed(t, side))
    with pytest.raises(module.Cancelled):
        stage.refresh(4)
    _, again = make(tmp_path)
    embed_again, counts = again.parts.retriever.embed, []
    monkeypatch.setattr(again.parts.retriever, "embed", lambda t, side: counts.append(1) or embed_again(t, side))
    again.refresh(4)
    assert len(counts) == len(again.corpus.tokens) - 6
