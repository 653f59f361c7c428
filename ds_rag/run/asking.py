"""Questions to a run's models and index, one after another: models, index and words are opened once.

Shape legend: K passages that are read for a question, best first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.data.origin import NOWHERE
from ds_rag.data.token_tables import tokenize_side
from ds_rag.evaluation import fusion
from ds_rag.evaluation.decoding import Answer, Answerer
from ds_rag.evaluation.lexical_sum import CorpusWords, Queries, search_by_sum
from ds_rag.evaluation.ranked import Ranked
from ds_rag.evaluation.retrieval import Found, SearchOptions, search
from ds_rag.index.corpus_check import check_corpus
from ds_rag.index.lexical import LexicalIndex
from ds_rag.index.store import StoredIndex, hash_model, read_index
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class FoundPassage:
    """A passage that was read. prior: its probability among those that were read, by the retriever."""

    id: str
    text: str
    score: float
    prior: float
    document: str | None = None
    place: str | None = None

    @property
    def source(self) -> str:
        """Its document and place, as far as they are known; else its id."""
        return ", ".join(filter(None, (self.document, self.place))) or self.id


@dataclass(frozen=True)
class Reply:
    """answer: None where the run has no generator."""

    question: str
    answer: Answer | None
    passages: list[FoundPassage]

    def as_json(self) -> dict[str, Any]:
        keys = ("id", "text", "score", "prior", "document", "place")
        passages = [{k: v for k in keys if (v := getattr(p, k)) is not None} for p in self.passages]
        said = {"answer_logprob": self.answer.logprob} if self.answer else {}
        return (
            {"question": self.question, "answer": self.answer.text if self.answer else None}
            | said
            | {"passages": passages}
        )


class Asker:
    """A run's models and one index, opened. Ranks are not split: one process asks."""

    def __init__(self, saved: Saved, stored: StoredIndex):
        self.saved, self.stored, self.settings = saved, stored, saved.config.evaluation
        self.words: LexicalIndex | None = None
        self.corpus_words = CorpusWords(stored.texts)
        if saved.retriever.reads_words and self.settings.hybrid != "none":
            raise UserError(
                "--hybrid bm25 and a retriever whose scores have BM25 already (--lexical_prior)",
                expected="one of them",
                fix="leave --hybrid out",
            )

    @classmethod
    def of_run(cls, args: argparse.Namespace, console: Console) -> Asker:
        """Opens what the arguments name: `run`, or models, and perhaps `index`, which models alone need, and
        `allow_stale`. Raises UserError."""
        saved = open_saved(args, hashes=False)  # hashing the weights would take longer than the answer
        folder = Path(args.index) if args.index else Path(args.run) / "index"
        stored = read_index(folder, hash_model(saved.retriever_folder), args.allow_stale, saved.retriever)
        if stored.stale:
            console.say(f"warning: {folder} is stale: other weights than the retriever's made it", style="yellow")
        check_corpus(stored, folder, saved.config.data.corpus if "corpus" in args else None)
        return cls(saved, stored)

    def ask(self, question: str, max_new_tokens: int | None = None) -> Reply:
        """Searches, and answers from the first `--top_k` passages. max_new_tokens: instead of the configured number."""
        scores, numbers = self.search(question)
        temperature = float(self.saved.retriever.temperature)
        if self.settings.hybrid != "none":
            temperature = fusion.TEMPERATURE
        read = Ranked(scores, numbers, temperature).question(0, 0, self.settings.top_k)
        prior = np.asarray(read.log_prior)[: len(read.passages)]
        score_of = dict(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))
        passages = [self.passage(n, score_of[n], float(np.exp(p))) for n, p in zip(read.passages, prior, strict=True)]
        answer = None
        if self.saved.generator is not None:
            texts = [passage.text for passage in passages]
            answer = answer_from(self.saved, texts, question, prior, max_new_tokens or self.settings.max_new_tokens)
        return Reply(question, answer, passages)

    def search(self, question: str) -> Found:
        """The best passages by the retriever, by its sum with BM25, or by both fused, as `ds-rag evaluate` ranks."""
        saved, index = self.saved, self.stored.index
        tokens = tokenize_side(saved.retriever, "query", [question], Console(speaks=False), "the question")
        if saved.retriever.reads_words:
            wanted = SearchOptions(self.settings.top_k, 1)
            return search_by_sum(index, saved.retriever, Queries(tokens, [question]), self.corpus_words, wanted)
        if self.settings.hybrid == "none":
            return search(index, saved.retriever, tokens, SearchOptions(self.settings.top_k, 1))
        self.words = self.words or LexicalIndex(self.stored.texts)
        found = search(index, saved.retriever, tokens, SearchOptions(fusion.DEPTH, 1))
        return fusion.fuse(found, self.words.search([question], fusion.DEPTH), self.settings.top_k)

    def passage(self, number: int, score: float, prior: float) -> FoundPassage:
        origin = self.stored.origins[number] if self.stored.origins else NOWHERE
        return FoundPassage(
            self.stored.ids[number], self.stored.texts[number], score, prior, origin.document, origin.place
        )


def answer_from(saved: Saved, texts: list[str], question: str, prior: np.ndarray, max_new_tokens: int) -> Answer:
    """The answer to a question from these passages, by the configured decoding. prior: (K,) their log-probabilities."""
    prompt = saved.prompt
    assert prompt is not None and saved.generator is not None
    data, settings = saved.config.data, saved.config.evaluation
    passages = [np.array(x, dtype=np.int32) for x in prompt.encode("passage", texts, data.max_passage_length)]
    query = np.array(prompt.encode("query", [question], data.max_query_length)[0], dtype=np.int32)
    answerer = Answerer(saved.generator, prompt, settings.decode, max_new_tokens, settings.per_device_eval_batch_size)
    return answerer.answer([query], [passages], [prior.tolist()])[0]
