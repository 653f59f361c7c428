"""Evaluates a pair of models on rows, both in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from ds_rag.config import build
from ds_rag.data.dataset import build_table
from ds_rag.data.formats import passages_of
from ds_rag.data.in_memory_rows import corpus_from, rows_from
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_evaluation
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.index.back_ends import check_factory
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


class EvaluationOptions(TypedDict, total=False):
    """prompt: by default the default template for the generator. The others are flags of `ds-rag evaluate`."""

    prompt: Prompt
    top_k: int  # passages that the generator reads for an answer
    decode: str  # "rag_sequence", "top1"
    max_new_tokens: int
    max_query_length: int  # tokens of a query in the prompt
    max_passage_length: int  # tokens of a passage in the prompt
    index_factory: str
    hybrid: str  # "none", or "bm25": the retriever's scores and BM25's together
    per_device_eval_batch_size: int


def evaluate(
    retriever: Retriever,
    generator: Generator | None,
    rows: Sequence[Mapping[str, Any]],
    corpus: Sequence[str | Mapping[str, Any]] | None = None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Retrieval and answers of a pair of models on held-out rows, with the figures of `ds-rag evaluate`.

    Every query is searched in the corpus (exactly, unless `index_factory` says otherwise); the generator answers from
    the `top_k` best passages. Both models are left in evaluation mode. The temperature is the retriever's.

    Args:
        retriever: embeds queries and passages.
        generator: answers; None: retrieval alone.
        rows: mappings with query, answer or answers, and perhaps positive or positives (texts); the keys are the
            columns of docs/data.md. Retrieval is measured on rows with positives, answers on rows with answers.
        corpus: the passages, texts or mappings with text, id and title; None: the distinct passages of the rows.
        options: see `EvaluationOptions`.

    Returns:
        `Evaluation`: `.retrieval` and `.answers` map each metric to its mean, from 0 to 1 (recall@k, hit@k, mrr@10,
        ndcg@10; exact_match, f1, rougeL); `.metrics` has both, `.samples` a few answers.

    Raises:
        UserError: rows or passages that cannot be used, with their numbers; an option that is unknown or out of bounds.

    Source: the formulas are trec_eval's, by ir_measures, and SQuAD's and ROUGE-L's, by torchmetrics.

    Example:
        >>> rows = [{"query": "who leads zor ?", "answer": "ann", "positive": "ann leads zor"}]
        >>> corpus = ["ann leads zor", "kelp grows in pool nine"]
        >>> found = ds_rag.evaluate(retriever, generator, rows, corpus, max_new_tokens=4)
        >>> found.retrieval["recall@5"], sorted(found.answers)
        (1.0, ['exact_match', 'f1', 'rougeL'])
    """
    values: dict[str, Any] = dict(options)
    prompt: Prompt | None = values.pop("prompt", None)
    if unknown := sorted(set(values) - set(EvaluationOptions.__annotations__)):
        raise UserError(
            f"evaluate: unknown option '{unknown[0]}'", expected=" | ".join(EvaluationOptions.__annotations__)
        )
    config = build(values)
    given = None if corpus is None else corpus_from(corpus)
    read = rows_from(rows, need_passages=corpus is None, need_answers=False, corpus=given)
    data = build_table(passages_of(read) if given is None else given, [], read)
    check_factory(config.evaluation.index_factory, retriever.hidden_size, data.corpus_size)
    if generator is None:
        prompt = None
    elif prompt is None:
        prompt = Prompt(generator.tokenizer, max_length=generator.max_length)
    silent = Console(speaks=False)
    settings = replace(config.evaluation, eval_answers=generator is not None, lexical_lines=False)
    tokens = tokenize_evaluation(retriever, prompt, data, config.data, silent)
    for module in (retriever, generator):
        if module is not None:
            module.eval()
    return Evaluator(retriever, generator, prompt, data, tokens, settings).run()
