"""Search by words: BM25 over a corpus's texts, by bm25s. No model, no vectors.

BM25: Robertson, Walker, Jones, Hancock-Beaulieu and Gatford 1994, in Lucene's form (Kamphuis, de Vries, Boytsov and
Lin 2020, ECIR, "Which BM25 do you mean?"): the sum over the query's words w of idf(w) tf / (tf + k1 (1 - b + b L / M)),
idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)), where w is tf times in a passage of L words, and in n of N passages, which
have M words on average. bm25s computes these terms when the index is built.

Shape legend: B queries, N passages, k results of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ds_rag.index.exact import best

K1, B, METHOD = 1.5, 0.75, "lucene"
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
        known = self.ranker.get_tokens_ids(words([query])[0])
        return np.asarray(self.ranker.get_scores_from_ids(known), dtype=np.float32)

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
