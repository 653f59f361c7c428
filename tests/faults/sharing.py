"""What ranks do with less than one passage, or one query, each; run by tests/distributed/ranks.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small import small_parts, small_retriever

from ds_rag.config import EvaluationConfig
from ds_rag.data.token_tables import tokenize_side
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.index.building import Corpus, index_corpus
from ds_rag.index.encode import encode
from ds_rag.index.store import describe, read_index
from ds_rag.run.publish_index import publish
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.train import train_step

SILENT = Console(speaks=False)


def index_texts(folder: Path, texts: list[str], shards: str) -> tuple[list[int], list[int], list[int]]:
    """Built, searched for more passages than there are, published and opened again: this rank's share, the numbers
    found, and those found in the opened one."""
    retriever = small_retriever()
    tokens = tokenize_side(retriever, "passage", texts, SILENT, "passages")
    corpus, stage = Corpus(tokens, retriever, 4), EvaluationConfig(index_shards=shards)
    built = index_corpus(retriever, corpus, stage, folder / "parts", "model")
    query = encode(retriever, tokenize_side(retriever, "query", ["who ?"], SILENT, "query"), "query", 4)
    found = built.index.search(query, 50)[1]
    manifest = describe("model", 16, texts, "Flat", retriever.settings, collectives.world() if shards == "keep" else 0)
    publish(folder / "index", built, [str(n) for n in range(len(texts))], texts, manifest)
    collectives.barrier()
    again = read_index(folder / "index", "model").index.search_here(query, 50)[1]
    return corpus.numbers_n.tolist(), found[0].tolist(), again[0].tolist()


def step_of_one_query(pool: str) -> tuple[float, bool, int]:
    """A step with a micro-batch of one query on each rank, all rows of the same one passage: loss, whether every
    gradient is finite, and the passages of the pool."""
    parts = small_parts(batch=1, pool=pool)
    for n, row in enumerate(parts.loader.rows):
        object.__setattr__(row, "positives", (0,))
        object.__setattr__(row, "others", ())
        assert parts.loader.passages_of(n) == (0,)
    Engines.step = lambda self, factor, skip: StepResult(0.0, False)  # type: ignore[method-assign]
    outputs, *_ = train_step(parts, 0, 1.0)
    fine = all(torch.isfinite(p.grad).all() for m in parts.engines.modules.values() for p in grads(m))
    return sum(output.loss for output in outputs), fine, parts.loader.micro_batches(0)[0].own_BN.shape[1]


def grads(module: Any) -> list[Any]:
    return [p for p in module.parameters() if p.grad is not None]


def search_nothing() -> np.ndarray:
    """A share without any passage is searched all the same."""
    from ds_rag.index.corpus_index import CorpusIndex, build_part

    vectors = np.eye(4, dtype=np.float32)[:1]
    part = build_part(vectors, "Flat") if collectives.rank() == 0 else None
    return CorpusIndex([part] if part else [], 1).search(np.eye(4, dtype=np.float32), 9)[1]
