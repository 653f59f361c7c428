"""BM25, the hybrid and the generator's scores of pairs: two ranks give what one gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # for small.py, on the ranks too

from small import small_generator, small_retriever

from ds_rag.config import DataConfig, EvaluationConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import build_table
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_evaluation, tokenize_for_reader
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.evaluation.reranking import AnswerScoring, rerank
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.runtime.console import Console
from ds_rag.step import pair_scores

SILENT = Console(speaks=False)


def evaluate_all() -> tuple[Evaluation, Evaluation, dict[str, dict[str, float]]]:
    """BM25 alone, the hybrid, and the re-ranked first passages of the hybrid."""
    pair_scores.BLOCK = 7  # several blocks, not as many on each rank
    world = make_world(0)
    data = build_table(world.corpus[:60], [], world.evaluation[:9])
    generator = small_generator(seed=1)
    share_prefixes(generator)
    prompt = Prompt(generator.tokenizer, max_length=generator.max_length)
    settings: dict[str, Any] = {"eval_answers": False, "lexical_lines": False}
    words = Evaluator(
        None, None, None, data, tokenize_for_reader(None, data, DataConfig(), SILENT), EvaluationConfig(**settings)
    ).run()
    retriever = small_retriever(seed=2)
    tokens = tokenize_evaluation(retriever, prompt, data, DataConfig(), SILENT)
    both = EvaluationConfig(**settings, hybrid="bm25", rerank=4)
    evaluator = Evaluator(retriever, generator, prompt, data, tokens, both)
    hybrid = evaluator.run()
    return words, hybrid, rerank(evaluator, hybrid, AnswerScoring(16, "sum"))


def test_two_ranks_find_and_rank_as_one_does():
    block = pair_scores.BLOCK
    words, hybrid, reranked = evaluate_all()
    pair_scores.BLOCK = block
    for other_words, other_hybrid, other_reranked in run_ranks(evaluate_all, 2):
        for one, other in ((words, other_words), (hybrid, other_hybrid)):
            assert np.array_equal(other.ranked.numbers_QK, one.ranked.numbers_QK)
        assert np.array_equal(other_words.ranked.scores_QK, words.ranked.scores_QK)
        assert other_words.retrieval == words.retrieval and other_hybrid.retrieval == hybrid.retrieval
        assert other_reranked == reranked
    assert words.retrieval != hybrid.retrieval and reranked["prior"] != reranked["likelihood"]
