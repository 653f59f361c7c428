"""A run's parts in small, without DeepSpeed: random models, a few rows of the almanac, plain engines.

Everything is the library's own; the engines are its plain ones, with SGD.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ds_rag import losses
from ds_rag.commands import cli
from ds_rag.config import ModelConfig, ObjectiveConfig, RunConfig, build
from ds_rag.data.almanac import make_world
from ds_rag.data.batch import Batch, lay_out_plain, list_cells
from ds_rag.data.dataset import RagData, TokenTable, build_table
from ds_rag.data.formats import Row
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.plain import PlainEngine
from ds_rag.index.encode import encode
from ds_rag.index.lexical import LexicalIndex
from ds_rag.losses import Temper, infonce, infonce_columns, log_prior, positive_only, reader_loss
from ds_rag.models.adapters import add_adapters, wanted_by
from ds_rag.models.from_settings import checkpoint_activations
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.run import config_and_results, export
from ds_rag.run.assemble import Models, Parts, put_together
from ds_rag.runtime import collectives, folder_lock
from ds_rag.runtime.console import Console
from ds_rag.step.candidates import choose_candidates
from ds_rag.step.objectives import Micro, Objective, make_objective

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,  # away from tiny weights, at which nothing matters
}


class Recorded(PlainEngine):
    """The library's, with plain SGD; it records what it is told of boundaries."""

    def __init__(self, module: nn.Module):
        super().__init__(module, torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0))
        self.boundaries: list[bool] = []

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self.boundaries.append(last)


@cache
def tokenizer_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ds_rag-tests-"))
    train_tokenizer([passage.text for passage in make_world(0).corpus], 512, folder)
    return folder


def small_retriever(seed: int = 0, dropout: float = 0.0, **settings: Any) -> Retriever:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    tokenizer = open_tokenizer(tokenizer_folder(), "right")
    drop: dict[str, Any] = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE, **drop), add_pooling_layer=False)
    return Retriever(encoder, tokenizer, RetrieverSettings(**{"temperature": 0.3} | settings))


def small_generator(seed: int = 0, dropout: float = 0.0) -> Generator:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = open_tokenizer(tokenizer_folder(), "left")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return Generator(
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **SHAPE, **ids)), tokenizer
    )


TEXTS = ("the tavern of zor is flint", "the forge of via is ebony", "kelp grows in pool nine")
SAID = {"train_data": "rows.jsonl", "max_new_tokens": 2, "top_k": 2, "per_device_eval_batch_size": 4}  # its settings


def finished_run(folder: Path, **settings: Any) -> Path:
    """`folder/run`, as a run over TEXTS leaves it at its end, with an index; beside it rows.jsonl and corpus.jsonl.
    settings: of the retriever."""
    corpus = [{"text": text, "id": f"p{n}"} for n, text in enumerate(TEXTS)]
    rows = [{"query": f"where {n} ?", "answer": "x", "positive": text} for n, text in enumerate(TEXTS)]
    for name, objects in (("rows", rows), ("corpus", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    run, config = folder / "run", build(RunConfig().flat() | SAID)
    with export.staged(run) as place:
        small_retriever(seed=4, **settings).save(place / "retriever")
        small_generator(seed=5).save(place / "generator")
        (place / "results.json").write_text(json.dumps({"before": {"mrr": 0.1}, "after": {"mrr": 0.2}, "samples": []}))
        (place / "config.json").write_text(config_and_results.configuration_text(config))
    assert cli.main(["index", "--run", str(run), "--corpus", str(folder / "corpus.jsonl")]) == 0
    folder_lock.release(run)  # a process of its own would have ended
    return run


def small_data(rows: int = 12) -> RagData:
    """Rows of the almanac with made-up labels: a positive and three other passages; the first row has two positives,
    the last two share passages, answers differ in length."""
    table: list[Row] = []
    for n, row in enumerate(make_world(0).train[:rows]):
        positives, others = row.passages[: 2 if n == 0 else 1], row.passages[2 if n == 0 else 1 :]
        if n == rows - 1:
            positives, others = table[-1].passages[:1], table[-1].positives
        answer = " and ".join([row.answers[0]] * (1 + n % 3))
        table.append(Row(f"r{n}", row.query, (answer,), positives, others, (), f"small:{n}"))
    return build_table(make_world(0).corpus[:20], table, [])


def small_parts(
    accumulation: int = 1,
    batch: int = 3,
    seed: int = 0,
    dropout: float = 0.0,
    engine: Callable[[str, nn.Module], Any] = lambda name, module: Recorded(module),
    **flags: Any,
) -> Parts:
    """`flags` are keys of the configuration. On several ranks each has its own part of the rows. With
    `candidates_from` the index has found what `found_passages` says. With `train_side` query the vectors of passages
    are there."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    config = build({"candidates": "4", "max_answer_length": 16, "max_steps": 2} | sizes | flags)
    objective = make_objective(config.objective, collectives.world())
    learned = {"learn_temperature": config.model.learn_temperature, "lexical_weight": config.model.lexical_prior}
    retriever = small_retriever(seed, dropout, **learned)
    generator = small_generator(seed + 1, dropout) if objective.needs_generator else None
    adapt(config.model, {"retriever": retriever.encoder, "generator": generator and generator.lm})
    if config.model.gradient_checkpointing:
        checkpoint_activations([retriever.encoder, *([generator.lm] if generator else [])], True)

    def engines(learns: dict[str, bool], total_steps: int) -> Engines:
        made: dict[str, Any] = {"retriever": retriever, "generator": generator}
        for name, module in made.items():
            if module is not None:
                made[name] = engine(name, module) if learns[name] else module.requires_grad_(False)
        return Engines(**made, max_grad_norm=0.0)

    models = Models(retriever, generator, engines)
    parts = put_together(config, objective, small_data(), models, Console(speaks=False))
    if parts.candidates is not None:
        shape = len(parts.data.train), parts.data.corpus_size, config.objective.index_candidates
        parts.loader.offer(found_passages(*shape))
    if (vectors := parts.joint.options.vectors) is not None:
        passages = parts.loader.tokens.passages
        vectors.fill([(np.arange(len(passages)), encode(parts.retriever, passages, "passage", 4))])
    return parts


def found_passages(rows: int, corpus_size: int, count: int) -> np.ndarray:
    """(rows, count) as an index might have found them, the last row's fewer."""
    rng = np.random.default_rng(7)
    table = np.stack([rng.permutation(corpus_size)[:count] for _ in range(rows)]).astype(np.int32)
    table[-1, 1:] = -1
    return table


def adapt(config: ModelConfig, models: dict[str, Any]) -> None:
    """Adapters that already do something: a new one's B is zero, and A's gradient with it."""
    for name, model in models.items():
        if model is not None and wanted_by(config.lora, name):
            add_adapters(model, config, Path("base"))
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(p, std=0.2)


def gradients(parts: Parts) -> dict[str, torch.Tensor]:
    """The accumulated gradients by '<model>.<parameter>', zeros where there is none."""
    return {
        f"{name}.{key}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, module in parts.engines.modules.items()
        for key, p in module.named_parameters()
    }


def direct_loss(objective: Objective, micro: Micro, totals: dict[str, float]) -> torch.Tensor:
    """One micro-batch's share of the loss by direct calls of `ds_rag.losses`, for one rank."""
    config, name, batch = objective.config, objective.name, micro.batch
    scores_BN, logp_CA, cells = micro.scores_BN, micro.logp_CA, micro.cells
    pairs = infonce(scores_BN, batch.positive_BN).sum() / totals["pairs"]
    if config.contrastive_symmetric:
        pairs = (pairs + infonce_columns(scores_BN, batch.positive_BN).sum() / totals["pairs"]) / 2
    extra = config.contrastive_weight * pairs
    if name == "infonce":
        return pairs + extra
    assert cells is not None and logp_CA is not None
    if name == "positive_only":
        tokens = torch.tensor(cells.target_lengths)[:, None]
        answers = torch.tensor([len(a) for a in batch.answer_ids])[:, None]
        place = torch.arange(logp_CA.shape[1])[None, :]
        first = torch.tensor([row.nonzero()[0, 0] for row in batch.positive_BN])
        parts = positive_only(
            scores_BN,
            first,
            logp_CA,
            place < tokens,
            (place < tokens) & (place >= tokens - answers),
            positive_mask_BN=batch.positive_BN,
        )
        return parts.loss(totals["all_tokens"], totals["pairs"]) + extra
    B, K = micro.candidates_BK.shape
    args = (scores_BN.gather(1, micro.candidates_BK), logp_CA.view(B, K, -1), batch.answer_mask_BT)
    kept: dict[str, Any] = {}
    if config.prior == "pool":
        kept["log_prior_BK"] = log_prior(scores_BN).gather(1, micro.candidates_BK)
    options: dict[str, Any] = {}
    exponent = config.answer_exponent
    temper = Temper({"sum": 0.0, "mean": 1.0}[config.answer_logprob] if exponent is None else exponent)
    temper = temper._replace(weight=config.answer_weight)
    if name == "rag_sequence":
        options["answer_logprob"] = temper
    if name == "rag_token":
        options["answer_weight"] = config.answer_weight
    if name in ("pdist", "replug_lsr"):
        options["target_temperature"] = config.target_temperature
    unit = totals["answer_tokens" if name == "emdr2" else "queries"]
    passes_B = torch.tensor([naive_gate(config, *cells_of) for cells_of in zip_gate(micro, args[1], args[2])])
    loss = (getattr(losses, name)(*args, **kept, **options) * passes_B).sum() / unit + extra
    if name in ("emdr2", "pdist", "replug_lsr") and config.reader_loss != "none":
        reader = reader_loss(*args, **kept, kind=config.reader_loss, answer_logprob=temper)
        loss = loss + (reader * passes_B).sum() / totals["queries"]
    return loss


def zip_gate(micro: Micro, logp_BKT: torch.Tensor, answer_mask_BT: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """For each query: the means of its answer's log-probabilities given each passage, and without any."""
    for b, mask_T in enumerate(answer_mask_BT):
        means = [float(logp_T[mask_T].mean()) for logp_T in logp_BKT[b].detach()]
        yield means, None if micro.without_B is None else float(micro.without_B[b])


def naive_gate(config: ObjectiveConfig, means: list[float], without: float | None) -> bool:
    """Does the query teach?"""
    first, *others = sorted(means, reverse=True)
    if config.gate_gain is not None and without is not None and first - without < config.gate_gain:
        return False
    return config.gate_margin is None or not others or first - others[0] >= config.gate_margin


@torch.no_grad()
def plain_without(parts: Parts, batch: Batch) -> torch.Tensor:
    """(B,) the mean log-probability of each answer's tokens with an empty passage, every row a sequence of its own."""
    assert parts.prompt is not None and parts.generator is not None
    found, pad = [], parts.generator.tokenizer.pad_token_id
    for query, answer in zip(batch.query_ids, batch.answer_ids, strict=True):
        before = parts.prompt.context(np.zeros(0, np.int32), query, len(answer))
        cells = list_cells([before], [answer], [len(answer)])
        found.append(float(parts.generator.plain(lay_out_plain(cells, pad)).mean()))
    return torch.tensor(found, dtype=torch.float64)


def plain_words(parts: Parts, batch: Batch) -> torch.Tensor:
    """(B, N) BM25 of the batch's queries and passages over the whole table, divided by its deviation in each query."""
    index = LexicalIndex(parts.data.texts)
    by_tokens = {ids.tobytes(): n for n, ids in enumerate(table_rows(parts.loader.tokens.passages))}
    real = [ids[mask > 0].numpy().astype(np.int32) for ids, mask in zip(*vars(batch.passages).values(), strict=True)]
    found = []
    for row in batch.rows:
        scores_N = index.scores(parts.data.train[row].query).astype(np.float64)
        found.append([scores_N[by_tokens[ids.tobytes()]] / (scores_N.std() or 1.0) for ids in real])
    return torch.tensor(found, dtype=torch.float32)


def table_rows(table: TokenTable) -> list[np.ndarray]:
    return [table[n] for n in range(len(table))]


def plain_loss(parts: Parts, step: int) -> torch.Tensor:
    """The loss of a step of one rank as one graph through both models, every cell a sequence of its own."""
    micros = parts.loader.micro_batches(step)
    totals = parts.objective.counts(micros, [parts.joint.cells_ahead(batch) for batch in micros])
    loss = torch.zeros(())
    for batch in micros:
        q_BD, p_ND, temperature, *weight = parts.retriever(batch.queries, batch.passages)
        scores_BN = q_BD @ p_ND.T / temperature
        if weight:
            scores_BN = scores_BN + weight[0] * plain_words(parts, batch)
        micro = Micro(batch, scores_BN, choose_candidates(scores_BN, batch, parts.objective.config.candidates))
        if parts.generator is not None and parts.prompt is not None:
            micro.cells = parts.objective.cells(batch, micro.candidates_BK, parts.prompt)
            micro.logp_CA = parts.generator.plain(lay_out_plain(micro.cells, parts.generator.tokenizer.pad_token_id))
            if parts.objective.config.gate_gain is not None:
                micro.without_B = plain_without(parts, batch)
        loss = loss + direct_loss(parts.objective, micro, totals)
    return loss
