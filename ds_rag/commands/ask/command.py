"""`ds-rag ask RUN "question"`: prints an answer, the passages it was read from, and their scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.data.token_tables import tokenize_side
from ds_rag.evaluation.decoding import Answer, Answerer
from ds_rag.evaluation.lexical_sum import CorpusWords, Queries, search_by_sum
from ds_rag.evaluation.ranked import Ranked
from ds_rag.evaluation.retrieval import SearchOptions, search
from ds_rag.index.corpus_check import check_corpus
from ds_rag.index.store import hash_model, read_index
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.runtime.console import Console
from ds_rag.runtime.output_places import check_json, write_json


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    check_json(args.json, ("question", "passages"))
    console = Console()
    saved = open_saved(args, hashes=False)  # hashing the weights would take longer than the answer
    run, settings = Path(args.run), saved.config.evaluation
    folder = Path(args.index) if args.index else run / "index"
    stored = read_index(folder, hash_model(run / "retriever"), args.allow_stale, saved.retriever)
    if stored.stale:
        console.say(f"warning: {folder} is stale: it was made by other weights than this run's", style="yellow")
    check_corpus(stored, folder, saved.config.data.corpus if "corpus" in args else None)
    tokens = tokenize_side(saved.retriever, "query", [args.question], console, "the question")
    wanted = SearchOptions(settings.top_k, 1)
    if saved.retriever.reads_words:
        queries, words = Queries(tokens, [args.question]), CorpusWords(stored.texts)
        scores, numbers = search_by_sum(stored.index, saved.retriever, queries, words, wanted)
    else:
        scores, numbers = search(stored.index, saved.retriever, tokens, wanted)
    read = Ranked(scores, numbers, float(saved.retriever.temperature)).question(0, 0, settings.top_k)
    found = [(float(s), int(n)) for s, n in zip(scores[0], numbers[0], strict=True) if n in set(read.passages)]
    prior = np.asarray(read.log_prior)[: len(found)]
    answer = None
    if saved.generator is not None:
        answer = answer_from(saved, [stored.texts[n] for _, n in found], args.question, prior)
        console.say(f"answer    {answer.text}")
    rows = [
        [f"{score:.3f}", f"{np.exp(p):.3f}", stored.ids[n], stored.texts[n][:160]]
        for (score, n), p in zip(found, prior, strict=True)
    ]
    console.table("passages", ["score", "prior", "id", "text"], rows)
    passages = [
        {"id": stored.ids[n], "text": stored.texts[n], "score": s, "prior": float(np.exp(p))}
        for (s, n), p in zip(found, prior, strict=True)
    ]
    found_what: dict[str, Any] = {"question": args.question, "answer": None, "passages": passages}
    if answer is not None:
        found_what |= {"answer": answer.text, "answer_logprob": answer.logprob}
    write_json(args.json, found_what | ({"stale_index": True} if stored.stale else {}))
    return 0


def answer_from(saved: Saved, texts: list[str], question: str, prior: np.ndarray) -> Answer:
    """The answer to a question from these passages, by the configured decoding. prior: their log-probabilities."""
    prompt = saved.prompt
    assert prompt is not None and saved.generator is not None
    data, settings = saved.config.data, saved.config.evaluation
    passages = [np.array(x, dtype=np.int32) for x in prompt.encode("passage", texts, data.max_passage_length)]
    query = np.array(prompt.encode("query", [question], data.max_query_length)[0], dtype=np.int32)
    answerer = Answerer(
        saved.generator, prompt, settings.decode, settings.max_new_tokens, settings.per_device_eval_batch_size
    )
    return answerer.answer([query], [passages], [prior.tolist()])[0]
