"""The table of what an index holds for each training row: against brute force over chosen vectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ds_rag.data.dataset import Example, TokenTable, build_table
from ds_rag.data.formats import Passage, Row
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens
from ds_rag.index.faiss_index import build_index, search
from ds_rag.run import index_candidates as module
from ds_rag.run.index_candidates import Candidates, in_turn
from ds_rag.run.word_candidates import passages_by_words
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


class Chosen:
    """A retriever that embeds query number n as a given vector: token ids are the numbers."""

    tokenizer = SimpleNamespace(pad_token_id=0)
    log_temperature = torch.zeros(())

    def __init__(self, queries: np.ndarray):
        self.vectors, self.hidden_size = torch.tensor(queries).float(), queries.shape[1]

    def eval(self) -> None:
        pass

    def embed(self, tokens: Any, side: str) -> torch.Tensor:
        assert side == "query"
        return self.vectors[tokens.ids_BT[:, 0]]


def numbers(count: int) -> TokenTable:
    return TokenTable(np.arange(count, dtype=np.int32), np.arange(1, count + 1))


class Made(Candidates):
    """With the retriever whose queries the test has chosen."""

    chosen: Any

    def again(self, step: int, search: Any) -> dict[str, float]:
        return self.refresh(step, search, self.chosen)


def made(rows: list[Example], corpus: int = 12, count: int = 3, seed: int = 0) -> tuple[Made, Any, np.ndarray]:
    """(candidates, search, scores of every row on every passage)."""
    rng = np.random.default_rng(seed)
    queries, passages = rng.normal(size=(len(rows), 6)), rng.normal(size=(corpus, 6)).astype(np.float32)
    loader = Loader(rows, TrainTokens(numbers(len(rows)), numbers(50)), BatchOptions(2, 1, 0, 1, 0, 0))
    index = build_index(passages, "Flat")
    made = Made(loader, count, corpus, 4)
    made.chosen = Chosen(queries)
    return made, lambda queries_BD, k: search(index, queries_BD, k), queries @ passages.T


def best(scores: np.ndarray, without: tuple[int, ...], count: int) -> list[int]:
    return [n for n in np.argsort(-scores).tolist() if n not in without][:count]


ROWS = [
    Example("a", ("x",), (), ()),
    Example("b", ("x",), (3,), (4, 5)),
    Example("c", ("x",), (0, 1, 2, 6), ()),
    Example("d", ("x",), (40,), ()),  # a positive that is not in the corpus
    Example("e", ("x",), (), (7,), (), (7,)),
]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_each_row_gets_its_best_passages_but_for_its_positives(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    made_of, find, scores = made(ROWS)
    figures = made_of.again(7, find)
    table = made_of.loader.found_RK
    assert table is not None and table.dtype == np.int32
    assert table.tolist() == [best(scores[r], row.positives, 3) for r, row in enumerate(ROWS)]
    hits = [bool(set(best(scores[r], (), 3)) & set(ROWS[r].positives)) for r in (1, 2, 3)]
    assert figures["retrieved_positive"] == pytest.approx(sum(hits) / 3) and not hits[2]
    assert figures["distinct"] == len(set(table.ravel().tolist()))
    assert [made_of.age(step) for step in (7, 9)] == [0, 2]


def test_other_vectors_find_other_passages():
    tables = []
    for seed in (0, 1):
        made_of, find, _ = made(ROWS, seed=seed)
        made_of.again(0, find)
        tables.append(made_of.loader.found_RK.tolist())
    assert tables[0] != tables[1]


def test_unlabelled_rows_have_no_rate():
    made_of, find, _ = made([ROWS[0], ROWS[4]])
    assert set(made_of.again(0, find)) == {"distinct"}


def test_fewer_passages_than_wanted_are_padded_and_never_read():
    made_of, _, _ = made(ROWS[:3], count=3)
    made_of.again(0, lambda queries_BD, k: (np.zeros((3, 3)), np.array([[2, -1, -1], [3, 9, -1], [0, 1, 2]])))
    assert made_of.loader.found_RK.tolist() == [[2, -1, -1], [9, -1, -1], [-1, -1, -1]]
    made_of.loader.keep_own = False
    assert [made_of.loader.passages_of(r) for r in range(3)] == [(2,), (3, 9), (0, 1, 2, 6)]


def test_a_positive_under_two_ids_is_no_negative():
    """Equal texts are one passage of the table, so a copy in the corpus is the positive itself."""
    corpus = [Passage("1", "gold"), Passage("2", "other"), Passage("3", "gold")]
    data = build_table(corpus, [Row("q", "q", ("a",), ("gold",), (), (), "f:1")], [])
    assert data.corpus_size == 2
    made_of, find, _ = made(data.train, corpus=2)
    made_of.again(0, find)
    assert made_of.loader.found_RK.tolist() == [[1, -1, -1]]


class Words:
    """Given passages by words; `calls` counts."""

    def __init__(self, found_RK: list[list[int]]):
        self.found_RK, self.calls = np.array(found_RK, np.int32), 0

    def __call__(self, deep: int) -> np.ndarray:
        self.calls += 1
        return self.found_RK[:, :deep]


BY_WORDS = [[11, 3, 8, 1], [3, 9, 4, 2], [0, 1, 2, -1], [5, 6, 7, 8], [7, 10, -1, -1]]


@pytest.mark.parametrize("chunk", [2, 100])
def test_index_and_words_in_turn(monkeypatch, chunk):
    """The best of each, then the second of each ...: `count` different passages that are no positives."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    made_of, find, scores = made(ROWS)
    made_of.words = words = Words(BY_WORDS)
    for step in (0, 5):
        figures = made_of.again(step, find)
    assert words.calls == 1
    wanted, hits = [], []
    for r, row in enumerate(ROWS):
        line: list[int] = []
        for by_index, by_words in zip(best(scores[r], (), 4), BY_WORDS[r], strict=True):
            line += [n for n in (by_index, by_words) if n >= 0 and n not in line]
        hits.append(bool(set(line[:3]) & set(row.positives)))
        wanted.append([n for n in line if n not in row.positives][:3])
    table = made_of.loader.found_RK
    assert table.tolist() == wanted and table.dtype == np.int32
    assert figures["retrieved_positive"] == pytest.approx(sum(hits[1:4]) / 3)
    assert made_of.loader.passages_of(0) == tuple(wanted[0])


def test_few_passages_in_turn():
    tables = [np.array([[4, 2, -1], [7, 7, 1]]), np.array([[2, 4], [-1, -1]])]
    assert in_turn(tables).tolist() == [[4, 2, -1, -1, -1, -1], [7, 1, -1, -1, -1, -1]]


def test_words_alone_search_no_index():
    made_of, _, _ = made(ROWS)
    made_of.batch, made_of.words = None, Words(BY_WORDS)
    assert not made_of.are_final

    def never(queries_BD, k):
        raise AssertionError("searched")

    assert made_of.again(0, never)["retrieved_positive"] == pytest.approx(2 / 3)
    assert made_of.are_final
    assert made_of.loader.found_RK.tolist() == [[11, 3, 8], [9, 4, 2], [-1, -1, -1], [5, 6, 7], [7, 10, -1]]


def test_passages_by_words_are_those_that_share_rare_ones():
    """By eye: the rarer word weighs more; equal scores by number; only what training may have is found."""
    corpus = [Passage(str(n), text) for n, text in enumerate(TEXTS)]
    rows = [Row("a", "where is ZOR ?", ("x",), (), (), (), "f:1"), Row("b", "iron", ("x",), (), (), (), "f:2")]
    data = build_table(corpus, rows, [])
    quiet = Console(speaks=False)
    assert passages_by_words(data, quiet, 3).tolist() == [[1, 3, 0], [2, 0, 1]]
    data.allowed = np.array([True, False, True, True, True])
    assert passages_by_words(data, quiet, 3).tolist() == [[3, 0, 2], [2, 0, 3]]
    assert passages_by_words(data, quiet, 6).tolist()[1] == [2, 0, 3, 4, -1, -1]


TEXTS = ["the mill is old", "zor", "iron and zinc", "zor is an old town by the sea", "kelp"]


def test_a_checkpoint_keeps_the_table_and_its_step(tmp_path):
    made_of, find, _ = made(ROWS)
    assert made_of.arrays == {} and not made_of.restore(tmp_path)
    made_of.again(11, find)
    for name, array in made_of.arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    again, _, _ = made(ROWS, seed=5)
    assert again.restore(tmp_path) and again.step == 11
    assert np.array_equal(again.loader.found_RK, made_of.loader.found_RK)
    for rows, corpus in ((ROWS[:2], 12), (ROWS, 4)):
        other, _, _ = made(rows, corpus)
        with pytest.raises(UserError, match="other rows or of another corpus"):
            other.restore(tmp_path)
        assert other.loader.found_RK is None


@pytest.mark.parametrize(("place", "rate"), [(0, 1.0), (2, 1.0), (3, 0.0), (5, 0.0)])
def test_a_positive_counts_as_retrieved_among_the_first_of_the_wanted_number(place, rate):
    """The search goes deeper than that, by as many as a row has positives."""
    row = Example("q", ("x",), (0, 1, 2), ())
    made_of, _, _ = made([row], count=3)
    found = [[7, 8, 9, 10, 11, 6]]
    found[0][place] = 1

    def find(queries_BD, k):
        assert k == 6
        return np.zeros((1, 6)), np.array(found)

    assert made_of.again(0, find)["retrieved_positive"] == rate


def test_passages_that_are_not_allowed_are_no_candidates():
    """Against brute force: the best of those that are allowed, even where these are far down the list."""
    rows = [Example(f"q{n}", ("a",), (n,), ()) for n in range(4)]
    candidates, search, scores_RN = made(rows, corpus=40, count=3)
    for allowed in (np.arange(50) % 7 == 0, np.arange(50) < 2, np.arange(50) >= 0):
        candidates.allowed = allowed
        candidates.again(0, search)
        assert candidates.loader.found_RK is not None
        for row, found in zip(rows, candidates.loader.found_RK, strict=True):
            order = np.argsort(-scores_RN[int(row.query[1:])])
            best = [n for n in order if allowed[n] and n not in row.positives][:3]
            assert found.tolist() == best + [-1] * (3 - len(best))
