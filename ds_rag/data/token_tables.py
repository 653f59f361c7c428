"""Rows and corpus as token ids: every text once for each of the two tokenizers, what is cut said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ds_rag.config import DataConfig
from ds_rag.data.dataset import Limit, RagData, TokenTable, tokenize
from ds_rag.data.loader import TrainTokens
from ds_rag.data.prompt import Prompt
from ds_rag.runtime.console import Console


@dataclass
class EvalTokens:
    """Token ids of the corpus and of the evaluation queries; the generator's are None where none is measured."""

    passages: TokenTable
    queries: TokenTable
    generator_passages: TokenTable | None = None
    generator_queries: TokenTable | None = None


class SideTokenizer(Protocol):
    """Of a retriever, what tokenises: side is 'query' or 'passage'."""

    def tokenize(self, texts: list[str], side: str) -> list[list[int]]: ...

    def length(self, side: str) -> int: ...


def tokenize_side(retriever: SideTokenizer, side: str, texts: Sequence[str], console: Console, what: str) -> TokenTable:
    """The texts of one side ('query' or 'passage') for the retriever's tokenizer; how many it cuts is said."""
    limit = Limit(retriever.length(side), f"--max_{side}_length, or the model's own limit")
    return tokenize(lambda t: retriever.tokenize(t, side), texts, console, what, limit)


def tokenize_field(
    prompt: Prompt, field: str, texts: Sequence[str], lengths: DataConfig, console: Console, what: str
) -> TokenTable:
    """The texts of a field (passage, query, answer) for the generator's tokenizer; how many it cuts is said."""
    length: int = getattr(lengths, f"max_{field}_length")
    limit = Limit(length, f"--max_{field}_length")
    return tokenize(lambda t: prompt.encode(field, t, length), texts, console, f"{what} for the generator", limit)


def tokenize_run(
    retriever: SideTokenizer, prompt: Prompt | None, data: RagData, lengths: DataConfig, console: Console
) -> tuple[TrainTokens, EvalTokens]:
    """All that was read; training and evaluation share the passages. prompt: None where no generator reads."""

    def for_retriever(side: str, texts: Sequence[str], of: str = "") -> TokenTable:
        return tokenize_side(retriever, side, texts, console, f"{len(texts)} {of}{side} texts")

    train_queries, eval_queries = ([row.query for row in rows] for rows in (data.train, data.evaluation))
    passages = for_retriever("passage", data.texts)
    train = TrainTokens(for_retriever("query", train_queries), passages)
    evaluation = EvalTokens(passages.first(data.corpus_size), for_retriever("query", eval_queries, "held-out "))
    if prompt is None:
        return train, evaluation
    if data.train and prompt.tokenizer.eos_token_id is None:
        console.say("note: the generator's tokenizer has no end-of-sequence token: no answer learns to end", "yellow")

    def for_generator(field: str, texts: Sequence[str], of: str = "") -> TokenTable:
        return tokenize_field(prompt, field, texts, lengths, console, f"{len(texts)} {of}{field} texts")

    train.generator_passages = for_generator("passage", data.texts)
    train.generator_queries = for_generator("query", train_queries)
    train.generator_answers = for_generator("answer", [row.answers[0] for row in data.train])  # that is trained on
    evaluation.generator_passages = train.generator_passages.first(data.corpus_size)
    evaluation.generator_queries = for_generator("query", eval_queries, "held-out ")
    return train, evaluation


def tokenize_evaluation(
    retriever: SideTokenizer, prompt: Prompt | None, data: RagData, lengths: DataConfig, console: Console
) -> EvalTokens:
    """For an evaluation by itself: the corpus alone, and the held-out queries."""
    searched = replace(data, texts=data.texts[: data.corpus_size], train=[])
    return tokenize_run(retriever, prompt, searched, lengths, console)[1]


def tokenize_for_reader(prompt: Prompt | None, data: RagData, lengths: DataConfig, console: Console) -> EvalTokens:
    """The same where passages are found by their words: for the generator alone."""
    nothing = TokenTable(np.zeros(0, np.int32), np.zeros(0, np.int64))
    if prompt is None:
        return EvalTokens(nothing, nothing)
    fields = {"passage": data.texts[: data.corpus_size], "query": [row.query for row in data.evaluation]}
    tables = [tokenize_field(prompt, f, t, lengths, console, f"{len(t)} {f} texts") for f, t in fields.items()]
    return EvalTokens(nothing, nothing, *tables)
