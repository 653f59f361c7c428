"""BM25 of a batch's queries and passages, against a search of the whole corpus for each query."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.index import lexical
from ds_rag.index.lexical import LexicalIndex
from ds_rag.index.lexical_pairs import LexicalPairs

TEXTS = ["vitamin c keeps scurvy away", "the sun and the sun", "kelp grows in pool nine", "a mill", "kelp kelp kelp"]
QUERIES = ["what keeps kelp away", "zebra", "kelp in the kelp pool", "the the sun"]


def plain(query: str, texts: list[str], deep: int) -> list[float]:
    """BM25 divided by the deviation of the first `deep` scores."""
    scores = LexicalIndex(texts).scores(query).astype(np.float64)
    deviation = np.sort(scores)[::-1][:deep].std()
    return [score / deviation if deviation else 0.0 for score in scores]


@pytest.mark.parametrize("deep", [1000, 3])
def test_each_pair_is_what_a_search_of_its_query_gives(deep, monkeypatch):
    monkeypatch.setattr(lexical, "DEPTH", deep)
    rows, passages = [2, 0, 1, 2, 3], [4, 0, 2, 1]
    found = LexicalPairs(QUERIES, TEXTS)(rows, passages)
    assert found.dtype == np.float32 and found.shape == (5, 4)
    wanted = [[plain(QUERIES[row], TEXTS, deep)[p] for p in passages] for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found[0].any() and not found[2].any(), "a query of unknown words tells none from another"


def test_what_is_held_out_is_in_no_statistic():
    allowed = np.array([True, False, True, True, True])
    found = LexicalPairs(QUERIES, TEXTS, allowed)([0, 2], [0, 2, 4])
    kept = [text for text, may in zip(TEXTS, allowed, strict=True) if may]
    wanted = [[plain(QUERIES[row], kept, 1000)[place] for place in (0, 1, 3)] for row in (0, 2)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert not np.allclose(found, LexicalPairs(QUERIES, TEXTS)([0, 2], [0, 2, 4]), rtol=1e-3)
    with pytest.raises(AssertionError):
        LexicalPairs(QUERIES, TEXTS, allowed)([0], [1])


def test_scale_and_length_of_a_query_do_not_matter():
    """Twice the words are twice the scores, and the same b."""
    twice = [f"{query} {query}" for query in QUERIES]
    one, two = (LexicalPairs(queries, TEXTS)(range(4), range(5)) for queries in (QUERIES, twice))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_without_a_word_in_any_text():
    assert not LexicalPairs(["kelp"], ["...", "!"])([0], [0, 1]).any()
