"""Language-model warm-up: trains a new generator on the corpus by next-token prediction, before joint training."""

from __future__ import annotations

import numpy as np

from ds_rag.config import RunConfig
from ds_rag.config.schedules import lr_factor
from ds_rag.data.batch import lengths_to_mask, list_cells
from ds_rag.run.assemble import Parts
from ds_rag.run.metrics_file import Metrics
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.step.non_finite import LOSS, BadSteps


def lm_warmup(parts: Parts, config: RunConfig, console: Console, metrics: Metrics) -> None:
    """`--lm_warmup_steps` steps of next-token prediction on random passages; the retriever is not changed.

    The loss is the mean over the step's tokens on all ranks, in nats. Its kind in metrics.jsonl is 'lm_warmup', so that
    it is not confused with the joint objective.
    """
    steps, optim, engines = config.optim.lm_warmup_steps, config.optim, parts.engines
    table, prompt = parts.loader.tokens.generator_passages, parts.prompt
    if not steps or "generator" not in engines.learning or table is None or prompt is None or parts.generator is None:
        return
    if not config.model.generator.startswith("config:"):
        console.say("note: --lm_warmup_steps is for a new generator; this one is pretrained: no warm-up", "yellow")
        return
    stop_signals.phase("the language-model warm-up")
    rng = np.random.default_rng([optim.seed, 2])
    size = optim.per_device_train_batch_size
    tokenizer = parts.generator.tokenizer
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = np.array([end if begin is None else begin], dtype=np.int32)
    last = np.array([] if end is None else [end], dtype=np.int32)
    room = parts.generator.max_length - 2
    ratio = optim.lm_warmup_learning_rate / engines.base_lrs["generator"][0]
    engines.train()
    bad = BadSteps(optim.max_bad_steps)
    allowed = parts.data.allowed
    numbers = np.arange(len(table)) if allowed is None else np.flatnonzero(allowed)
    with console.progress(steps, "language modelling of the corpus") as meter:
        for step in range(steps):
            stop_signals.safe_place()
            rows = numbers[rng.integers(len(numbers), size=(collectives.world(), size))[collectives.rank()]]
            targets = [np.concatenate([prompt.alone("passage", table[n])[:room], last]) for n in rows]
            tokens = collectives.all_sum({"n": float(sum(len(t) for t in targets))}, parts.device)["n"]
            listed = list_cells([first] * size, targets, [len(t) for t in targets])
            cells = parts.generator.lay_out(listed, tokenizer.pad_token_id).to(parts.device)
            engines.boundary(last=True)
            logp_CA = engines.generator(cells)
            leaf = logp_CA.detach().requires_grad_()
            mask = lengths_to_mask(cells.target_lengths).to(parts.device)
            loss = -leaf[mask].sum() * collectives.world() / tokens
            loss.backward()
            engines.backward("generator", [logp_CA], [leaf.grad])
            factor = ratio * lr_factor(step, steps, min(20, steps // 5), "linear")
            result = engines.step(factor, only={"generator"})
            bad.count(step + 1, result, [None if loss.isfinite() else (0, LOSS)])
            bad.check()
            value = collectives.all_sum({"loss": float(loss.detach()) / collectives.world()}, parts.device)["loss"]
            metrics.write("lm_warmup", step + 1, {"loss": value})
            meter.advance(1, f"loss {value:.3f} a token")
