"""Search by words: BM25 over a corpus's texts, by bm25s. No model, no vectors.

BM25: Robertson, Walker, Jones, Hancock-Beaulieu and Gatford 1994, in Lucene's form (Kamphuis, de Vries, Boytsov and
Lin 2020, ECIR, "Which BM25 do you mean?"): the sum over the query's words w of idf(w) tf / (tf + k1 (1 - b + b L / M)),
idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)), where w is tf times in a passage of L words, and in n of N passages, which
have M words on average. bm25s computes these terms when the index is built.

Scores of different queries have different scales: a long query has more terms. Divided by `spread` they can be added to
a retriever's scores with one weight for all queries (`lexical_pairs.py`, `evaluation/fusion.py`).

Shape legend: B queries, N passages, k results of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ds_rag.index.exact import best

K1, B, METHOD = 1.5, 0.75, "lucene"
DEPTH = 1000  # a query's first passages, over which its scores' scale is measured
# A word is a run of letters and digits, one letter being enough ("vitamin C"). Chinese and Japanese have no blanks
# between words, so each of their characters is one. bm25s' own pattern drops words of one letter.
NO_BLANKS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = rf"[{NO_BLANKS}]|[^\W{NO_BLANKS}]+"
# The sum of a query's terms is a log-odds of relevance, so its softmax at temperature 1 is the prior over passages.
TEMPERATURE = 1.0
ABOUT = {"method": METHOD, "k1": K1, "b": B, "word": WORD, "stop_words": "none", "stemming": "none"}


def nothing() -> None:
    """A pause that does nothing."""


def ignore(count: int) -> None:
    """A watch that does nothing."""


class LexicalIndex:
    """BM25 over texts, in one process and in memory.

    Words are lower-cased; no stop words are left out and nothing is stemmed. The scores of a text and a query depend
    on the corpus alone, and every run gives the same.
    """

    def __init__(self, texts: Sequence[str]):
        import bm25s  # a quarter of a second, and most commands search by vectors alone

        self.count = len(texts)
        listed = words(texts)
        self.ranker = bm25s.BM25(k1=K1, b=B, method=METHOD, backend="numpy")
        self.empty = not any(listed)  # no word in any text: bm25s has no index of that
        if not self.empty:
            self.ranker.index(listed, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """(N,) float32 scores of all passages, 0 for one that has none of the query's words."""
        if self.empty:
            return np.zeros(self.count, np.float32)
        return np.asarray(self.ranker.get_scores_from_ids(self.known(query)), dtype=np.float32)

    def scaled(self, query: str) -> np.ndarray:
        """(N,) float64: the same times `scale_of` them, as a retriever with a weight of BM25 reads them."""
        scores_N = self.scores(query)
        return scores_N.astype(np.float64) * scale_of(scores_N)

    def known(self, query: str) -> list[int]:
        """The numbers of the query's words that some text has, a repeated word as often as it is there."""
        return [] if self.empty else list(self.ranker.get_tokens_ids(words([query])[0]))

    @property
    def postings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(terms, passages, starts): entries starts[w] to starts[w + 1] are of word w: the passages that have it, and
        what it adds to their scores."""
        if self.empty:
            return np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(1, np.int64)
        held = self.ranker.scores
        return held["data"], held["indices"], held["indptr"]

    def search(
        self,
        queries: Sequence[str],
        k: int,
        watch: Callable[[int], None] = ignore,
        pause: Callable[[], None] = nothing,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, numbers_Bk int64) of the k best passages of each query by (score descending, number
        ascending), as `CorpusIndex.search` gives them; k is at most N. Passages without any of the query's words are
        among them, with score 0, where there are too few others.

        watch: called with the number of further queries done; pause: between two of them, may raise to end the search.
        """
        k = min(k, self.count)
        scores_Bk, numbers_Bk = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        for row, query in enumerate(queries):
            pause()
            scores_Bk[row], numbers_Bk[row] = best_of(self.scores(query), k)
            watch(1)
        return scores_Bk, numbers_Bk


def spread(scores: np.ndarray) -> float:
    """The standard deviation of the scores that one query's first passages have, in float64; 0 where all are equal (a
    query with no known word)."""
    wide = scores.astype(np.float64)
    found = float(wide.std()) if len(wide) else 0.0
    return found if found > 1e-9 * np.abs(wide).max(initial=0.0) else 0.0


def scale_of(scores_N: np.ndarray) -> float:
    """What one query's BM25 of all passages is multiplied by before it is added to a retriever's scores: 1 / the spread
    of its best `DEPTH`; 0 where they have none. Their mean stays: it is the same for all passages, so that no softmax
    and no ranking sees it."""
    first = len(scores_N) - min(DEPTH, len(scores_N))
    found = spread(np.partition(scores_N, first)[first:] if first else scores_N)
    return 1 / found if found else 0.0


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in order, repeated ones too."""
    import bm25s

    found = bm25s.tokenize(list(texts), token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False)
    return [list(row) for row in found]


def best_of(scores_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers of the k best; of equal scores the lower numbers."""
    if not k:
        return scores_N[:0], np.zeros(0, np.int64)
    kth = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    numbers = np.flatnonzero(scores_N >= kth)
    return best(scores_N[numbers], numbers, k)
