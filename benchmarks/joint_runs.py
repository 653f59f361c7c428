"""The joint runs that scaling.py counts and measures, described by shapes alone: a parent process needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ds_rag.commands.plan.setup import Setup
from ds_rag.commands.plan.shapes import shape_from
from ds_rag.commands.plan.workload import Workload

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Run:
    """Configurations of both models (keys of a config.json), the batch of one rank, and the training settings.

    stage: ZeRO's, of both engines; "3+offload" too. flags: keys of ds_rag's own configuration (pool,
    generator_backward, retriever_chunk, lora, freeze, ...).
    """

    retriever: dict[str, Any]
    generator: dict[str, Any]
    batch: int = 4
    passages: int = 1  # of a row
    query: int = 20
    passage: int = 100
    answer: int = 20
    stage: int | str = 2
    precision: str = "fp32"
    accumulation: int = 1
    flags: dict[str, Any] = field(default_factory=dict)


def setup_of(run: Run, world: int, device: str = "cpu") -> Setup:
    """The run in the form that `ds-rag plan` uses: texts joined without a prompt."""
    flags, stage = run.flags, str(run.stage)
    work = Workload(
        run.batch,
        None if flags.get("candidates", "all") == "all" else int(flags["candidates"]),
        run.passages,
        run.query,
        run.passage,
        run.answer,
        run.accumulation,
        flags.get("pool") == "world",
        before=0,
        after=0,
        shared=flags.get("share_prefixes", True),
    )
    none = dict.fromkeys(DROPOUTS, 0.0)
    return Setup(
        shape_from(run.retriever | none, "the retriever", "--retriever", False),
        shape_from(run.generator | none, "the generator", "--generator", True),
        work,
        world,
        (stage, stage),
        run.precision,
        bool(flags.get("gradient_checkpointing")),
        int(flags["micro_cells"]) if flags.get("generator_backward") == "exact" else 0,
        flags.get("retriever_chunk", 0),
        lora=("generator",) if flags.get("lora") == "generator" else (),
        frozen=flags.get("freeze", ""),
        device=device,
    )


SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 8000,
}
MINILM = SMALL_BERT | {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}
GPT2 = {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16000, "n_positions": 512}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1376,
    "vocab_size": 16000,
    "max_position_embeddings": 512,
}
TIED = LLAMA | {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "num_hidden_layers": 6,
    "intermediate_size": 1024,
    "tie_word_embeddings": True,
}
QWEN = LLAMA | {"model_type": "qwen2", "num_hidden_layers": 6, "num_key_value_heads": 2, "vocab_size": 24000}
WIDE = GPT2 | {"n_embd": 640, "n_head": 10, "n_layer": 6, "vocab_size": 32000}
ONE_PASS: dict[str, Any] = {"generator_backward": "one_pass"}
CHUNKS: dict[str, Any] = {"generator_backward": "exact", "micro_cells": "8", "retriever_chunk": 4}
_GPT2, _LLAMA = Run(SMALL_BERT, GPT2, 3, flags=ONE_PASS), Run(SMALL_BERT, LLAMA, 8, flags=ONE_PASS)

# name -> (ranks, run); the shorter ones first.
MEMORY_RUNS: dict[str, tuple[int, Run]] = {
    "gpt2 39M, stage 2": (1, _GPT2),
    "gpt2 39M, stage 0": (1, replace(_GPT2, stage=0)),
    "llama 22M, stage 2, chunks": (1, Run(SMALL_BERT, TIED, 6, flags=CHUNKS)),
    "llama 62M, stage 2, two ranks": (2, replace(_LLAMA, retriever=MINILM, batch=3)),
    "llama 45M, stage 2, checkpointing": (1, replace(_LLAMA, flags=ONE_PASS | {"gradient_checkpointing": True})),
    "llama 45M, stage 2": (1, _LLAMA),
    "llama 62M, stage 0": (1, replace(_LLAMA, retriever=MINILM, stage=0)),
    "gpt2 39M, stage 1, two ranks": (2, replace(_GPT2, stage=1)),
    "llama 45M, stage 2, two micro-batches": (1, replace(_LLAMA, batch=4, accumulation=2)),
    # Held out: not measured until the model of the plan was final.
    "qwen2 47M, stage 2, two ranks, one pool": (2, Run(SMALL_BERT, QWEN, 3, flags=ONE_PASS | {"pool": "world"})),
    "gpt2 56M, stage 1, two micro-batches": (1, Run(SMALL_BERT, WIDE, 3, 2, stage=1, accumulation=2, flags=ONE_PASS)),
    "llama 45M, stage 2, bf16": (1, replace(_LLAMA, batch=4, precision="bf16")),
}
TRAFFIC_RUN = Run(SMALL_BERT, TIED, 4, flags=ONE_PASS | {"candidates": "4"})
