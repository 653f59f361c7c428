"""Sizes that only take memory are refused by arithmetic, before anything of that size is made: of a micro-batch, of a
step, of the table of candidates."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from ds_rag.config import build
from ds_rag.run.assemble import candidate_count, check_batch
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


def rows_and_corpus(rows: int, corpus: int) -> SimpleNamespace:
    return SimpleNamespace(train=range(rows), corpus_size=corpus)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"per_device_train_batch_size": 10**6}, "1,000,000, of 40 training rows"),
        ({"per_device_train_batch_size": 641}, "641, of 40 training rows"),
        ({"gradient_accumulation_steps": 10**6}, "16 a micro-batch x 1,000,000 micro-batches"),
    ],
)
def test_batches_that_only_repeat_few_rows(flags, says):
    with pytest.raises(UserError) as caught:
        check_batch(40, build(flags).optim)
    assert says in str(caught.value)


def test_batches_larger_than_the_rows_are_trained():
    for rows, batch in ((40, 16), (40, 64), (1, 16), (40, 640)):
        check_batch(rows, build({"per_device_train_batch_size": batch}).optim)


def test_candidates_are_cut_to_the_corpus_and_it_is_said():
    stream = io.StringIO()
    assert candidate_count(10_000, rows_and_corpus(200, 66), Console(stream)) == 66
    assert "the corpus has 66 passages" in stream.getvalue()
    stream = io.StringIO()
    assert candidate_count(8, rows_and_corpus(200, 66), Console(stream)) == 8 and not stream.getvalue()


def test_a_table_of_candidates_that_fits_no_memory():
    with pytest.raises(UserError, match="--index_candidates 10,000: too many") as caught:
        candidate_count(10_000, rows_and_corpus(10**6, 10**6), Console(io.StringIO()))
    assert "--index_candidates 1,000 or less" in str(caught.value)
