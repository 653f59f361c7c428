"""A step with stored scores against the same step without: values, gradients, and what the generator still reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import gradients, small_parts

from ds_rag.config import build
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.models.score_store import ScoreStore
from ds_rag.run.assemble import Parts
from ds_rag.run.teacher import pairs_ahead, reader_of, score_ahead
from ds_rag.runtime.errors import UserError
from ds_rag.step.cached_scoring import CachedScoring, keys_of, score_missing

TAUGHT = [name for name, spec in OBJECTIVES.items() if spec.needs_generator]
FROZEN: dict[str, Any] = {"freeze": "generator"}


def step_of(parts: Parts, number: int = 0) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """(loss, gradients, sums over micro-batches) of a step that updates nothing."""
    parts.engines.step = lambda *args, **options: None  # type: ignore[assignment, method-assign]
    report = parts.joint.step(parts.loader.micro_batches(number), number=number)
    sums: dict[str, float] = {}
    for output in report.outputs:
        for name, value in output.sums.items():
            sums[name] = sums.get(name, 0.0) + value / len(report.outputs)
    return report.loss, gradients(parts), sums


def counted(parts: Parts) -> list[int]:
    """Tokens of each forward of the generator from now on."""
    assert parts.generator is not None
    tokens: list[int] = []
    parts.generator.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].token_count))
    return tokens


def store_of(parts: Parts) -> ScoreStore:
    assert isinstance(parts.joint.scoring, CachedScoring)
    return parts.joint.scoring.store


@pytest.mark.parametrize("objective", TAUGHT)
def test_the_same_loss_and_gradients(objective, tmp_path):
    flags = FROZEN | {"objective": objective, "accumulation": 2}
    loss, plain, sums = step_of(small_parts(**flags))
    first = small_parts(**flags, teacher_cache=str(tmp_path))
    step_of(first)
    store_of(first).flush()
    again = small_parts(**flags, teacher_cache=str(tmp_path))
    store_of(again).verified = True
    read = counted(again)
    found, cached, cached_sums = step_of(again)
    assert found == pytest.approx(loss, abs=1e-5) and not read, "no forward at all"
    assert plain.keys() == cached.keys() and any(g.abs().max() > 1e-3 for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-5)
    assert cached_sums.pop("cached_cells") == 1 and "cached_cells" not in sums
    assert cached_sums == pytest.approx(sums, abs=1e-5)


def test_scores_without_a_passage_are_stored_too(tmp_path):
    """With a gate; the store has one cell more for each row, which the next run does not read."""
    flags = FROZEN | {"gate_gain": 0.0}
    _, plain, sums = step_of(small_parts(**flags))
    first = small_parts(**flags, teacher_cache=str(tmp_path))
    _, _, cached_sums = step_of(first)
    rows = sum(len(batch.rows) for batch in first.loader.micro_batches(0))
    without_gate = small_parts(**FROZEN, teacher_cache=str(tmp_path / "other"))
    step_of(without_gate)
    assert len(store_of(first)) == len(store_of(without_gate)) + rows
    store_of(first).flush()
    again = small_parts(**flags, teacher_cache=str(tmp_path))
    store_of(again).verified = True
    read = counted(again)
    _, cached, again_sums = step_of(again)
    assert not read, "no forward at all"
    assert sums["gated_queries"] == cached_sums["gated_queries"] == again_sums["gated_queries"] > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-5)


def test_other_scores_in_the_store_give_another_gradient(tmp_path):
    """What is in the store is what the step uses."""
    loss, plain, _ = step_of(small_parts(**FROZEN))
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    step_of(parts)
    parts.engines.retriever.zero_grad()
    rng = np.random.default_rng(0)
    store = store_of(parts)
    store.scores = {key: logp_A - rng.random(1).astype(np.float32) for key, logp_A in store.scores.items()}
    other, changed, _ = step_of(parts)
    assert abs(other - loss) > 1e-2
    assert max(float((changed[name] - g).abs().max()) for name, g in plain.items()) > 1e-3


def test_only_cells_that_are_missing_are_read(tmp_path):
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    read = counted(parts)
    _, _, sums = step_of(parts)
    assert sums["cached_cells"] == 0 and len(store_of(parts)) == 12
    whole = sum(read)
    (forgotten, *_) = store_of(parts).scores
    del store_of(parts).scores[forgotten]
    read.clear()
    _, _, sums = step_of(parts)
    assert sums["cached_cells"] == pytest.approx(11 / 12) and 0 < sum(read) < whole / 3


def test_pairs_are_scored_ahead_once_with_a_prefix_for_all_its_questions(tmp_path):
    config = build(
        {"candidates": "4", "max_answer_length": 16, "max_steps": 40, "teacher_cache": str(tmp_path)} | FROZEN
    )
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path), max_steps=40)
    pairs = pairs_ahead(parts, 0, parts.total_steps)
    assert {row for row, _ in pairs} == set(range(12))
    assert all(p in parts.loader.passages_of(row) for row, p in pairs)
    read = counted(parts)
    assert score_ahead(parts, config, 0)["scored"] == len(pairs)
    distinct = len({p for _, p in pairs})
    passages = parts.loader.tokens.generator_passages
    assert passages is not None and distinct < len(pairs)
    texts, prompt = reader_of(parts).texts, parts.prompt
    assert prompt is not None
    apart = sum(len(prompt.context(texts.passages[p], texts.queries[r], 8)) + len(texts.answers[r]) for r, p in pairs)
    assert sum(read) < apart, "shared prefixes are read once"
    read.clear()
    assert score_ahead(parts, config, 0)["scored"] == 0 and not read
    again = small_parts(**FROZEN, teacher_cache=str(tmp_path), max_steps=40)
    assert score_ahead(again, config, 0)["scored"] == 0, "another process finds them on the disk"


def test_a_new_table_of_candidates_scores_only_its_new_pairs(tmp_path):
    flags = FROZEN | {"candidates_from": "index", "index_candidates": 3, "teacher_cache": str(tmp_path)}
    parts = small_parts(**flags)
    pairs = pairs_ahead(parts, 0, 1000)
    reader, store = reader_of(parts), store_of(parts)
    assert score_missing(reader, pairs, store) == len(pairs)
    found = parts.loader.found_RK
    assert found is not None
    new = found.copy()
    new[0, 0] = next(p for p in range(20) if p not in parts.loader.passages_of(0))
    parts.loader.offer(new)
    assert score_missing(reader, pairs_ahead(parts, 0, 1000), store) == 1


def test_the_generators_best_passages_are_kept(tmp_path):
    """Of four that were found for a row, the two of the highest sum, in the order found; others are not embedded."""
    flags = FROZEN | {"candidates_from": "index", "index_candidates": 4, "candidates": "2", "max_steps": 100}
    plain = small_parts(**flags)
    found_RK = plain.loader.found_RK
    parts = small_parts(**flags, teacher_cache=str(tmp_path), candidates_by="generator")
    config = build(flags | {"teacher_cache": str(tmp_path), "candidates_by": "generator"})
    for _ in range(2):  # the second time nothing changes
        score_ahead(parts, config, 0)
    store, reader = store_of(parts), reader_of(parts)
    changed = 0
    for row, (line, left) in enumerate(zip(found_RK.tolist(), parts.loader.found_RK.tolist(), strict=True)):
        before, after = ([p for p in passages if p >= 0] for passages in (line, left))
        sums = [float(store[key].sum()) for key in keys_of(reader, [(row, p) for p in before])]
        best = sorted(range(len(before)), key=lambda n: -sums[n])[:2]
        assert after == [before[n] for n in sorted(best)]
        changed += after != before[:2]
    assert changed, "the first two are not always the best"
    widths = [[batch.passages.ids_BT.shape[0] for batch in p.loader.micro_batches(0)] for p in (plain, parts)]
    assert sum(widths[1]) < sum(widths[0])


def test_without_a_table_there_is_nothing_to_choose(tmp_path):
    """As in a run that is resumed at its last step, and with passages of the batch."""
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    config = build(FROZEN | {"teacher_cache": str(tmp_path), "candidates_by": "generator"})
    assert score_ahead(parts, config, parts.total_steps)["pairs"] == 0


def test_only_the_rows_before_the_next_refresh_are_scored_ahead(tmp_path):
    flags = FROZEN | {"candidates_from": "index", "index_candidates": 3, "max_steps": 9, "refresh_index": "2"}
    flags |= {"teacher_cache": str(tmp_path)}
    parts = small_parts(**flags)
    found = score_ahead(parts, build(flags), 0)
    rows = {row for step in range(2) for row in parts.loader.rows_of(step)}
    assert found["pairs"] == sum(len(parts.loader.passages_of(row)) for row in rows) and len(rows) == 6


def test_scores_of_another_generator_are_refused(tmp_path):
    """As if the folder's key had missed something: the cells are there, their values are not this generator's."""
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    step_of(parts)
    store = store_of(parts)
    store.scores = {key: logp_A - 1 for key, logp_A in store.scores.items()}
    store.flush()
    again = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    with pytest.raises(UserError, match="1 nats a token"):
        step_of(again)
    with pytest.raises(UserError, match="not those of this generator"):
        score_missing(reader_of(again), pairs_ahead(again, 0, 1000), ScoreStore(store.folder))


def test_good_scores_are_verified_once(tmp_path):
    parts = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    step_of(parts)
    store_of(parts).flush()
    again = small_parts(**FROZEN, teacher_cache=str(tmp_path))
    read = counted(again)
    step_of(again)
    assert store_of(again).verified and read, "a few cells are read again"
    read.clear()
    step_of(again)
    assert not read


def test_another_generator_prompt_or_length_has_a_folder_of_its_own(tmp_path):
    cases: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"max_passage_length": 9},
        {"prompt_template": "{passage} {query} :"},
    ]
    folders = [store_of(small_parts(**FROZEN, teacher_cache=str(tmp_path), **case)).folder for case in cases]
    assert len(set(folders)) == len(cases)
    assert store_of(small_parts(**FROZEN, teacher_cache=str(tmp_path), candidates="2")).folder == folders[0]


def test_a_trained_generator_has_no_store(tmp_path):
    parts = small_parts(freeze="retriever", teacher_cache=str(tmp_path))
    assert not isinstance(parts.joint.scoring, CachedScoring) and not list(tmp_path.iterdir())
    assert parts.joint.scoring is not None
    with pytest.raises(UserError, match="trained"):
        CachedScoring(parts.joint.scoring, ScoreStore(Path(tmp_path)))
