"""A joint step at given shapes, on real DeepSpeed engines: new models, rows of random tokens of equal length.

scaling.py measures `JointStep.step` on these. As in a run, `collectives.start` must have been called first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_runs import DROPOUTS, Run
from variants import Joined

from ds_rag.config import ModelConfig, build, deepspeed_config
from ds_rag.config.deepspeed_config import Known
from ds_rag.data.dataset import Example, RagData, TokenTable
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens
from ds_rag.engines.deepspeed_engine import make_engine
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.setup import frozen
from ds_rag.models.adapters import add_adapters
from ds_rag.models.from_settings import checkpoint_activations, fuse_activations
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.runtime import collectives
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep, StepReport


def build_model(keys: dict[str, Any], head: bool) -> Any:
    """A model with random float32 weights and no dropout. head: a causal LM, else an encoder."""
    import transformers

    config = transformers.AutoConfig.for_model(**keys)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    auto: Any = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    model = auto.from_config(config)
    fuse_activations(model)
    return model


def make_models(run: Run, settings: ModelConfig, device: str = "cpu") -> tuple[Retriever, Generator]:
    """On the device from the start: a CPU would draw the weights of large models for minutes."""
    torch.manual_seed(0)
    with torch.device(device):
        retriever = Retriever(build_model(run.retriever, False), None, RetrieverSettings())
        generator = Generator(build_model(run.generator, True), None)
    if settings.lora == "generator":
        add_adapters(generator.lm, settings, Path("base"))
    checkpoint_activations((retriever.encoder, generator.lm), settings.gradient_checkpointing)
    reason = share_prefixes(generator)
    assert reason is None, reason
    return retriever, generator


@dataclass
class Steps:
    """The joint step, and where its micro-batches come from."""

    joint: JointStep
    loader: Loader

    def step(self, number: int) -> StepReport:
        return self.joint.step(self.loader.micro_batches(number), number=number)

    @property
    def engines(self) -> Engines:
        return self.joint.engines


def make_steps(run: Run, device: str = "cpu") -> Steps:
    folders = {"retriever": ".", "generator": "."}  # as if from some, for adapters are not for new models
    config = build({"candidates": "all"} | folders | run.flags)
    retriever, generator = make_models(run, config.model, device)
    made: dict[str, Any] = {}
    for name, module in (("retriever", retriever), ("generator", generator)):
        if name == config.model.freeze:
            made[name] = frozen(module, torch.device(device), run.precision)
            continue
        resolved = deepspeed_config.resolve(deepspeed_json(run.stage), known(run, module.hidden_size))
        made[name] = make_engine(module, resolved, config.optim, 1e-4)
    engines, options = Engines(made["retriever"], made["generator"], 1.0), StepOptions(config.scoring)
    joint = JointStep.from_models(retriever, generator, config.objective, engines, Joined(), options)
    data = make_rows(run)
    tokens = make_tokens(run, len(data.train), len(data.texts), retriever, generator)
    rank, world = collectives.rank(), collectives.world()
    shared = config.objective.pool == "world"
    batches = BatchOptions(run.batch, run.accumulation, rank, world, shared_pool=shared)
    return Steps(joint, Loader(data.train, tokens, batches))


def deepspeed_json(stage: int | str) -> dict[str, Any]:
    """The same settings as in ds_configs/."""
    number = int(str(stage)[0])
    zero: dict[str, Any] = {"stage": number} | ({"reduce_bucket_size": "auto"} if number else {})
    if number == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    if str(stage).endswith("+offload"):
        on_host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero |= {"offload_optimizer": on_host, "offload_param": on_host}
    return {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "zero_optimization": zero}


def known(run: Run, hidden_size: int) -> Known:
    return Known(
        per_device_batch=run.batch,
        accumulation=run.accumulation,
        world=collectives.world(),
        max_grad_norm=1.0,
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=10,
        precision=run.precision,
        hidden_size=hidden_size,
    )


def make_rows(run: Run) -> RagData:
    """The rows of one step. Each has its own passages; the first is its positive."""
    rows, each = run.batch * run.accumulation * collectives.world(), run.passages
    train = [Example("", ("",), (r * each,), tuple(range(r * each + 1, (r + 1) * each))) for r in range(rows)]
    return RagData([""] * rows * each, [""] * rows * each, 0, train)


def make_tokens(run: Run, rows: int, passages: int, retriever: Retriever, generator: Generator) -> TrainTokens:
    """Random token ids of all texts, the same on every rank."""
    rng = np.random.default_rng(0)
    words = retriever.encoder.config.vocab_size, generator.vocabulary

    def texts(count: int, length: int, vocabulary: int) -> TokenTable:
        ids = rng.integers(5, vocabulary, count * length).astype(np.int32)
        return TokenTable(ids, np.arange(1, count + 1) * length)

    return TrainTokens(
        texts(rows, run.query, words[0]),
        texts(passages, run.passage, words[0]),
        texts(rows, run.query, words[1]),
        texts(passages, run.passage, words[1]),
        texts(rows, run.answer, words[1]),
    )
