"""A run's parts in small, without DeepSpeed: random models, a few rows of the almanac, plain engines.

Everything is the real thing but the engines, whose backward and step are plain autograd and SGD.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ds_rag.commands import cli
from ds_rag.config import ModelConfig, RunConfig, build
from ds_rag.config.schedules import Schedule
from ds_rag.data.almanac import make_world
from ds_rag.data.batch import Batch, CellList
from ds_rag.data.dataset import RagData, build_table
from ds_rag.data.formats import Row
from ds_rag.data.loader import Loader
from ds_rag.data.prompt import make_prompt
from ds_rag.data.token_tables import tokenize_run
from ds_rag.engines.joint import Engines
from ds_rag.losses import LOSSES, infonce, infonce_columns, log_prior, positive_only, reader_loss
from ds_rag.models.adapters import add_adapters, wanted_by
from ds_rag.models.generator import Generator
from ds_rag.models.loading import checkpoint_activations
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.shared_prefix.probe import share_prefixes
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.run import export, run_files
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives, folder_lock
from ds_rag.runtime.log import Console
from ds_rag.step.generator_side import Scoring
from ds_rag.step.objective import Objective
from ds_rag.step.two_pass import Embedding

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,  # away from tiny weights, at which nothing matters
}


class PlainEngine:
    """What `Engines` uses of a DeepSpeed engine, as plain autograd and SGD."""

    lr_scheduler = None

    def __init__(self, module: nn.Module):
        self.module = module
        self.optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
        self.boundaries: list[bool] = []

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self.boundaries.append(last)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()

    def was_step_applied(self) -> bool:
        return True


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


def finished_run(folder: Path) -> Path:
    """`folder/run`, as a run over TEXTS leaves it at its end, with an index; beside it rows.jsonl and corpus.jsonl."""
    corpus = [{"text": text, "id": f"p{n}"} for n, text in enumerate(TEXTS)]
    rows = [{"query": f"where {n} ?", "answer": "x", "positive": text} for n, text in enumerate(TEXTS)]
    for name, objects in (("rows", rows), ("corpus", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    run, config = folder / "run", build(RunConfig().flat() | SAID)
    with export.staged(run) as place:
        small_retriever(seed=4).save(place / "retriever")
        small_generator(seed=5).save(place / "generator")
        (place / "results.json").write_text(json.dumps({"before": {"mrr": 0.1}, "after": {"mrr": 0.2}, "samples": []}))
        (place / "config.json").write_text(run_files.configuration_text(config))
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
    force_generator: bool = False,
    dropout: float = 0.0,
    engine: Callable[[str, nn.Module], Any] = lambda name, module: PlainEngine(module),
    **flags: Any,
) -> Parts:
    """`flags` are keys of the configuration; `force_generator`: also where the objective needs none. On several ranks
    each has its own part of the rows. With `candidates_from` the index has found what `found_passages` says."""
    config = build({"candidates": "4", "max_answer_length": 16, "max_steps": 2} | flags)
    objective = Objective(config.objective, collectives.world())
    data = small_data()
    retriever = small_retriever(seed, dropout, learn_temperature=config.model.learn_temperature)
    generator = small_generator(seed + 1, dropout) if objective.needs_generator or force_generator else None
    adapt(config.model, {"retriever": retriever.encoder, "generator": generator and generator.lm})
    if config.model.gradient_checkpointing:
        checkpoint_activations([retriever.encoder, *([generator.lm] if generator else [])], True)
    prompt = make_prompt(config.model, generator.tokenizer, generator.max_length) if generator else None
    if generator is not None and config.scoring.share_prefixes:
        assert share_prefixes(generator) is None
    train, evaluation = tokenize_run(retriever, prompt, data, config.data, Console(speaks=False))
    pad = retriever.tokenizer.pad_token_id
    shared, source = config.objective.pool == "world", config.objective.candidates_from
    loader = Loader(
        data.train,
        train,
        batch,
        accumulation,
        collectives.rank(),
        collectives.world(),
        0,
        pad,
        shared,
        keep_own=source == "both",
    )
    if source != "batch":
        loader.offer(found_passages(len(data.train), data.corpus_size, config.objective.index_candidates))
    learns = {
        "retriever": config.model.freeze != "retriever",
        "generator": config.model.freeze != "generator" and objective.generator_learns,
    }
    engines: dict[str, Any] = {"retriever": retriever, "generator": generator}
    for name, module in engines.items():
        if module is not None:
            engines[name] = engine(name, module) if learns[name] else module.requires_grad_(False)
    pair = Engines(**engines, max_grad_norm=0.0)
    schedule, device = Schedule(config.stage.refresh_index), torch.device("cpu")
    embedding = Embedding(pair, config.scoring.retriever_chunk)
    scoring = Scoring(pair, generator, config.scoring, generator.tokenizer.pad_token_id) if generator else None
    models = retriever, generator, pair, embedding, scoring
    return Parts(data, loader, evaluation, objective, prompt, *models, 2, schedule, device)


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


def direct_loss(
    objective: Objective,
    scores_BN: torch.Tensor,
    candidates_BK: torch.Tensor,
    cells: CellList | None,
    logp_CA: torch.Tensor | None,
    batch: Batch,
    totals: dict[str, float],
) -> torch.Tensor:
    """One micro-batch's share of the loss by direct calls of `ds_rag.losses`, for one rank."""
    config, name = objective.config, objective.name
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
    B, K = candidates_BK.shape
    args = (scores_BN.gather(1, candidates_BK), logp_CA.view(B, K, -1), batch.answer_mask_BT)
    kept = {"log_prior_BK": log_prior(scores_BN).gather(1, candidates_BK)} if config.prior == "pool" else {}
    options = {key: getattr(config, key) for key in LOSSES[name].options}
    unit = totals["answer_tokens" if name == "emdr2" else "queries"]
    loss = LOSSES[name].fn(*args, **kept, **options).sum() / unit + extra
    if name in ("emdr2", "pdist", "replug_lsr") and config.reader_loss != "none":
        reader = reader_loss(*args, **kept, kind=config.reader_loss, answer_logprob=config.answer_logprob)
        loss = loss + reader.sum() / totals["queries"]
    return loss
