"""Rows 23 and 24: what is there twice, and batches, corpora and shares of less than one would expect."""

from __future__ import annotations

import bad_input  # noqa: F401  (paths)
import numpy as np
import pytest
import torch
from bad_input import GOOD, put_jsonl
from ranks import run_ranks
from sharing import index_texts, search_nothing, step_of_one_query
from small import small_parts

from ds_rag.config import DataConfig
from ds_rag.data.dataset import Example, TokenTable, read_data
from ds_rag.data.formats import read_rows
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.losses import infonce, infonce_columns
from ds_rag.train import train_step


def loader_of(rows: list[Example], texts: int, **options) -> Loader:
    table = TokenTable(np.arange(texts, dtype=np.int32), np.arange(1, texts + 1))
    tokens = TrainTokens(table, table, table, table, table)
    return Loader(rows, tokens, BatchOptions(len(rows), **options))


def test_row_23_a_passage_of_two_rows_is_one_column_and_no_negative_of_either(tmp_path):
    rows = [GOOD | {"query": f"q{n}", "positive": "same", "negatives": [f"n{n}", "same"]} for n in (1, 2)]
    for row in rows:
        del row["passage"]
    data = read_data(DataConfig(train_data=str(put_jsonl(tmp_path / "r.jsonl", rows))), builtin=False)
    batch = loader_of(data.train, len(data.texts)).collate([0, 1])
    column = data.texts.index("same")
    assert batch.own_BN.shape[1] == 3 and batch.positive_BN[:, column].all() and batch.positive_BN.sum() == 2
    scores = torch.tensor([[5.0, 1.0, 2.0], [4.0, 3.0, 0.5]])
    for loss in (infonce, infonce_columns):
        leaf = scores.clone().requires_grad_()
        loss(leaf, batch.positive_BN).sum().backward()
        assert (leaf.grad[:, column] <= 0).all(), "pulled, never pushed away"


def test_row_23_duplicates_within_a_row_are_one(tmp_path):
    row = GOOD | {"answer": ["a", "a ", "b"], "passage": ["p", "p"], "passages": ["p", "c", "c"], "negatives": ["p"]}
    (read,) = read_rows(put_jsonl(tmp_path / "r.jsonl", [row]))
    assert (read.answers, read.positives, read.passages, read.negatives) == (("a", "b"), ("p",), ("c",), ())


def test_row_23_the_answers_of_other_rows_are_no_targets_of_a_row():
    """So two rows of the same answer have nothing to de-duplicate: each is scored by its own alone."""
    parts = small_parts(candidates="all")
    batch = parts.loader.micro_batches(0)[0]
    cells = parts.objective.cells(batch, torch.arange(batch.own_BN.shape[1]).expand(3, -1), parts.prompt)
    own = [batch.answer_ids[b] for b in cells.query_C]
    for cell, length, answer in zip(cells.suffixes, cells.target_lengths, own, strict=True):
        assert cell[-length:].tolist() == answer.tolist()


def test_row_23_a_row_that_meets_itself_in_a_batch_is_not_its_own_negative():
    """Fewer rows than a batch holds: the row comes twice, its passages once."""
    of = loader_of([Example("q", ("a",), (0,), (1,))], 2)
    of.batch = of.global_batch = 4
    (batch,) = of.micro_batches(0)
    assert batch.rows == [0, 0, 0, 0] and batch.own_BN.all() and batch.own_BN.shape == (4, 2)
    assert torch.equal(batch.positive_BN, torch.tensor([[True, False]] * 4))


def test_row_24_a_batch_of_one_query_with_one_passage_is_defined(monkeypatch):
    monkeypatch.setattr(Engines, "step", lambda self, factor, skip: StepResult(0.0, False))
    for name in ("rag_sequence", "rag_token", "positive_only", "emdr2", "pdist", "replug_lsr", "infonce"):
        parts = small_parts(batch=1, objective=name)
        object.__setattr__(parts.loader.rows[parts.loader.rows_of(0)[0]], "others", ())
        outputs, *_ = train_step(parts, 0, 1.0)
        assert np.isfinite(outputs[0].loss), name


@pytest.mark.parametrize("shards", ["merge", "keep"])
@pytest.mark.parametrize("texts", [["basalt"], ["basalt", "flint is there"]])
def test_row_24_top_k_above_the_corpus_and_a_rank_without_a_passage(texts, shards, tmp_path):
    found = run_ranks(index_texts, 2, tmp_path, texts, shards)
    shares = [share for share, *_ in found]
    assert sorted(n for share in shares for n in share) == list(range(len(texts)))
    assert len(texts) == 2 or [] in shares, "one rank has none"
    for _, numbers, again in found:
        assert sorted(numbers) == list(range(len(texts))) and again == numbers


def test_row_24_an_empty_shard_is_searched_on_all_ranks():
    for numbers in run_ranks(search_nothing, 2):
        assert numbers.tolist() == [[0]] * 4


@pytest.mark.parametrize("pool", ["rank", "world"])
def test_row_24_one_query_a_rank_and_one_passage_for_all_do_not_hang(pool):
    """With a pool of the world one rank has no passage to embed, and no cell to read of its own."""
    (first, fine, passages), (second, also, _) = run_ranks(step_of_one_query, 2, pool)
    assert fine and also and np.isfinite([first, second]).all() and passages == 1
