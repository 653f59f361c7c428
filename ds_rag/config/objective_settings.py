"""The settings of the objective and of how a step is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.config.bounds import ITEMS, MANY, above, fraction, integer, real
from ds_rag.config.objectives import CANDIDATES_FROM, TEACHERS
from ds_rag.config.options import FIXED, FREE, option


@dataclass
class ObjectiveConfig:
    """What is minimised; docs/objectives.md has the formulas."""

    objective: str = option(FIXED, "rag_sequence", "the loss to minimise; see docs/objectives.md")
    teacher: str = option(
        FIXED,
        "answer",
        "what tells good candidates from bad ones: the generator's log-probability of the answer, or scores in the "
        "rows, and no generator",
        tuple(TEACHERS),
    )
    candidates: str = option(
        FIXED,
        "8",
        "passages per query that the loss sums over: the row's own first, then the best of the pool; or 'all'",
        bounds=integer(1, ITEMS, "all"),
    )
    candidates_from: str = option(
        FIXED,
        "batch",
        "where a query's unlabelled passages come from: its row and the batch's pool, the index, both, "
        "BM25, or index and BM25 in turn",
        tuple(CANDIDATES_FROM),
    )
    index_candidates: int = option(
        FIXED,
        8,
        "passages per query from the index, BM25, or both in turn, without known positives",
        bounds=integer(1, 10_000),
    )
    candidates_by: str = option(
        FIXED,
        "retriever",
        "retriever: all passages found are embedded, and the generator reads the --candidates that it ranks first; "
        "generator: it reads all of them once, and the --candidates that make the answer likeliest are embedded",
        ("retriever", "generator"),
    )
    pool: str = option(
        FIXED,
        "rank",
        "the pool of candidates and negatives: the passages of this rank's micro-batch, or of all ranks'",
        ("rank", "world"),
    )
    prior: str = option(FIXED, "candidates", "passages in the retriever's softmax", ("candidates", "pool"))
    answer_logprob: str = option(
        FIXED, "sum", "log-probability of an answer: sum (as in the paper) or mean over its tokens", ("sum", "mean")
    )
    answer_exponent: float | None = option(
        FIXED,
        None,
        "A of an answer's log-probability W * G / tokens^A; default: 0 for sum, 1 for mean",
        bounds=real(-4, 4),
    )
    answer_weight: float = option(
        FIXED,
        1.0,
        "W of an answer's log-probability W * G / tokens^A beside the prior, or of a score in the rows",
        bounds=above(0, 1e4),
    )
    gate_gain: float | None = option(
        FIXED,
        None,
        "rows teach nothing whose best passage gains fewer nats per answer token over no passage; default: no gate",
        bounds=real(-1e3, 1e3),
    )
    gate_margin: float | None = option(
        FIXED,
        None,
        "rows teach nothing whose best passage gains fewer nats per answer token (or score) over the second; "
        "default: no gate",
        bounds=real(0, 1e3),
    )
    reader_loss: str = option(
        FIXED, "prior", "the generator's loss under emdr2, pdist, replug_lsr", ("prior", "posterior", "none")
    )
    target_temperature: float = option(FIXED, 0.1, "tau_g of pdist, beta of replug_lsr", bounds=real(1e-4, 1e4))
    lm_tokens: str = option(
        FIXED,
        "all",
        "tokens in the language-model loss of positive_only: prompt and answer, or only the answer",
        ("all", "answer"),
    )
    contrastive_weight: float = option(
        FIXED, 0.0, "weight of an added InfoNCE loss over labelled positives", bounds=real(0, 1e6)
    )
    contrastive_symmetric: bool = option(
        FIXED, False, "InfoNCE as the mean of the losses over passages and over queries (rows and columns)"
    )


@dataclass
class ScoringConfig:
    """How a step is computed: the trade-off of time and memory; docs/performance.md has figures."""

    generator_backward: str = option(
        FIXED,
        "auto",
        "one_pass: fastest; exact: two passes, memory for one chunk; auto: one_pass if it fits, else exact; "
        "posterior: exact without cells of small weight; sample: one random cell per query, unbiased",
        ("auto", "one_pass", "exact", "posterior", "sample"),
    )
    micro_cells: str = option(
        FREE,
        "auto",
        "cells per chunk, unless in one pass; auto: as many as the memory budget allows",
        bounds=integer(1, MANY, "auto"),
    )
    memory_budget: float | None = option(
        FREE, None, "GB for activations; default: 80% of free GPU memory, else half of free RAM", bounds=above(0, 1e6)
    )
    posterior_threshold: float = option(
        FIXED, 0.01, "posterior: skip cells whose fraction of the weight is smaller at every token", bounds=fraction()
    )
    share_prefixes: bool = option(FIXED, True, "read a passage once for all its queries, if the model supports it")
    teacher_cache: str | None = option(
        FREE, None, "folder that keeps the scores of a generator that is not trained, so that each is computed once"
    )
    retriever_chunk: int = option(
        FREE,
        0,
        "texts that the retriever embeds at a time (GradCache); 0: the whole micro-batch",
        bounds=integer(0, MANY),
    )
