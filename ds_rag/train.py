"""The main job: `deepspeed launch/train.py --deepspeed ds_configs/zero2.json`.

    python launch/train.py                                        # the built-in almanac, one process
    torchrun --nproc_per_node 2 launch/train.py --max_steps 50    # two ranks
    ds-rag train --config recipe.yaml --train_data rows.jsonl --retriever DIR --generator DIR

`train_step` is the mathematics of one optimizer step, `train` the loop around it, `main` what comes before and
after.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from ds_rag import checkpoint, dist, log
from ds_rag.assemble import Parts, assemble
from ds_rag.bad_steps import any_loss_is_bad, look
from ds_rag.checkpoint import TrainState
from ds_rag.config import RunConfig
from ds_rag.engine import StepResult
from ds_rag.errors import UserError
from ds_rag.evaluate import Evaluation, Evaluator
from ds_rag.guards import Guards
from ds_rag.index_stage import IndexStage, Landed
from ds_rag.log import Console, Metrics
from ds_rag.objective import StepOutput
from ds_rag.results import introduce, leave
from ds_rag.schedule import lr_factor
from ds_rag.warmup import lm_warmup


def train_step(parts: Parts, step: int, factor: float) -> tuple[list[StepOutput], dict[str, float], StepResult]:
    """One optimizer step: every micro-batch forward and backward through both engines, then the joint step."""
    engines, objective, embedding, scoring = parts.engines, parts.objective, parts.embedding, parts.scoring
    micros = [batch.to(parts.device) for batch in parts.loader.micro_batches(step)]
    totals = dist.all_sum(objective.counts(micros, parts.prompt), parts.device)  # means are over the whole step
    outputs, tokens = [], 0
    for m, batch in enumerate(micros):
        last = m == len(micros) - 1
        q_BD, p_ND, temperature = embedding.forward(batch, last)  # leaves: no graph spans the two models
        scores_BN = q_BD @ p_ND.T / temperature
        candidates_BK = objective.select(scores_BN, batch)
        cells = logp_CA = None
        if scoring is not None and parts.prompt is not None:
            cells = objective.cells(batch, candidates_BK, parts.prompt)
            logp_CA = scoring.forward(cells, batch, last)
        output = objective.backward(scores_BN, candidates_BK, cells, logp_CA, batch, totals)
        embedding.backward()
        if scoring is not None:
            output.sums |= scoring.backward((step, m))
        tokens += int(batch.queries.mask_BT.sum() + batch.passages.mask_BT.sum())
        mine = scoring.mine if scoring is not None else ()
        output.sign = look(m, batch, q_BD, p_ND, logp_CA, mine, output.loss)
        output.sums["embedding_spread"] = float(p_ND.detach().std(0).mean()) if len(p_ND) > 1 else 0.0
        outputs.append(output)
    tokens += scoring.tokens_read() if scoring is not None else 0
    bad = any_loss_is_bad([o.sign for o in outputs], parts.device)
    return outputs, totals | {"tokens": float(tokens)}, engines.step(factor, skip=bad)


def train(
    parts: Parts,
    config: RunConfig,
    index: IndexStage,
    state: TrainState,
    folder: Path,
    console: Console,
    metrics: Metrics,
) -> Evaluation | None:
    """The loop: steps, the index stage when it is due, checkpoints. Returns the evaluation of the last step, if one
    was made there."""
    optim, stage, run = config.optim, config.stage, config.run
    last = None
    live = Live(state.before or {})
    guards = Guards(config, folder, console, metrics)
    with index, console.progress(parts.total_steps, "step", done=state.step, unit="") as meter:
        for step in range(state.step, parts.total_steps):
            began = time.monotonic()
            parts.engines.train()
            factor = lr_factor(step, parts.total_steps, optim.warmup_steps, optim.lr_scheduler_type)
            outputs, totals, result = train_step(parts, step, factor)
            values = summarise(outputs, totals, result, began, parts)
            state.step = step + 1
            state.skipped += int(result.skipped)
            values |= guards.count(state.step, state.skipped, result, outputs)
            if parts.candidates:
                values["index_age"] = parts.candidates.age(step)
            metrics.write("train", state.step, values)
            guards.after_step(values)
            landed = index.after_step(state.step)
            stop = landed is not None and book(landed, parts, index, state, config, metrics, live)
            if landed is not None:
                guards.after_evaluation(landed.step, landed.result.retrieved)
            last = landed.result if landed is not None and landed.step == state.step and landed.whole else None
            due = run.save_steps and state.step % run.save_steps == 0 and guards.healthy
            if due or (stage.load_best_model_at_end and state.best_step == state.step):
                checkpoint.save(folder, parts.engines, state, run.save_total_limit, kept(parts))
            meter.advance(1, live.line(values["loss"]))
            if stop:
                console.say(f"stopped early at step {state.step}: no gain in {stage.metric_for_best_model}")
                break
        if late := index.drain(state.step):
            book(late, parts, index, state, config, metrics, live)
    return last


def book(
    landed: Landed,
    parts: Parts,
    index: IndexStage,
    state: TrainState,
    config: RunConfig,
    metrics: Metrics,
    live: Live | None = None,
) -> bool:
    """Writes down what an index and its evaluation gave, and offers its candidates to the rows to come; True when it is
    time to stop early."""
    metrics.write("refresh", landed.step, landed.figures)
    if parts.candidates and state.step < parts.total_steps:
        found = parts.candidates.refresh(landed.step, index.search, landed.retriever)
        metrics.write("candidates", landed.step, found)
    if parts.data.evaluation:
        metrics.write("eval", landed.step, landed.metrics)
    if live is not None:
        live.metrics = landed.result.metrics
    return judge(state, landed.result.metrics, config, landed.step)


def resume_candidates(parts: Parts, index: IndexStage, state: TrainState, resumed: Path, metrics: Metrics) -> None:
    """The checkpoint's table. A new one where it holds none, or where the run ended at a step that a longer run would
    have refreshed it after."""
    if not parts.candidates or state.step >= parts.total_steps:
        return
    found = parts.candidates.restore(resumed)
    if not found or (parts.schedule.due(state.step) and parts.candidates.step != state.step):
        landed = index.refresh(state.step, progress=True)
        figures = parts.candidates.refresh(state.step, index.search, landed.retriever)
        metrics.write("candidates", state.step, figures)


def kept(parts: Parts) -> dict[str, np.ndarray]:
    """What a checkpoint holds beside engines and state, so that a resumed run reads the same candidates."""
    return parts.candidates.arrays if parts.candidates else {}


MEANS = ("embedding_spread", "kept_cells", "dropped_mass")  # over micro-batches and ranks


def summarise(
    outputs: list[StepOutput], totals: dict[str, float], result: StepResult, began: float, parts: Parts
) -> dict[str, float]:
    """A step's line in metrics.jsonl: sums over micro-batches and ranks, turned into the step's values."""
    local = {"loss": sum(o.loss for o in outputs), "tokens": totals["tokens"]}
    for output in outputs:
        for name, value in output.sums.items():
            local[name] = local.get(name, 0.0) + value
    values = dist.all_sum(local, parts.device)
    seconds = time.monotonic() - began
    shares = len(outputs) * dist.world()
    for name in values:
        if name.endswith("entropy"):
            values[name] /= max(1.0, totals["queries"])
        elif name.startswith("grad_share/") or name in MEANS:
            values[name] /= shares
    tokens = values.pop("tokens")
    return values | {
        "grad_norm": result.grad_norm,
        "skipped": int(result.skipped),
        "tokens_per_s": tokens / seconds,
        "queries_per_s": totals["queries"] / seconds,
        "memory_gb": log.memory_gb(),
        **{f"lr/{name}": engine.optimizer.param_groups[0]["lr"] for name, engine in parts.engines.learning.items()},
    }


class Live:
    """The text beside the progress bar."""

    def __init__(self, metrics: dict[str, float]):
        self.metrics = metrics
        self.loss: float | None = None

    def line(self, loss: float) -> str:
        if math.isfinite(loss):  # a skipped step's may not be
            self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        shown = {"recall@1": "recall@1", "exact_match": "answers"}
        parts = [f"{text} {self.metrics[name]:.2f}" for name, text in shown.items() if name in self.metrics]
        return "  ".join([f"loss {loss if self.loss is None else self.loss:.3f}", *parts])


def judge(state: TrainState, metrics: dict[str, float], config: RunConfig, step: int) -> bool:
    """Books the chosen metric of the weights of `step`; True when it is time to stop early. All metrics here are better
    when higher."""
    name, patience = config.stage.metric_for_best_model, config.stage.early_stopping_patience
    if name not in metrics:
        if patience or config.stage.load_best_model_at_end:
            raise UserError(
                f"--metric_for_best_model {name}: not among the metrics",
                expected=" | ".join(metrics) or "--eval_data",
            )
        return False
    if state.best is None or metrics[name] > state.best:
        state.best, state.best_step, state.evaluations_without_gain = metrics[name], step, 0
    else:
        state.evaluations_without_gain += 1
    return bool(patience) and state.evaluations_without_gain >= patience


def main(config: RunConfig, folder: Path, console: Console) -> int:
    """One run, from its configuration to its report."""
    began = time.monotonic()
    device = dist.start()
    dist.barrier()
    log.redirect(folder, dist.rank())  # rank 0 has made the folder by now
    resumed = checkpoint.find(folder, config.run.resume)
    parts = assemble(config, console, folder, device)
    metrics = Metrics(folder if dist.rank() == 0 else None, config.run.report_to, resume=resumed is not None)
    introduce(parts, config, folder, console)
    evaluator = Evaluator(
        parts.retriever, parts.generator, parts.prompt, parts.data, parts.eval_tokens, config.stage, console
    )
    needed = parts.candidates is not None
    index = IndexStage(parts, config.stage, evaluator, folder, console, config.optim.seed, needed)
    state = TrainState(world=dist.world())
    if resumed:
        state = checkpoint.load(resumed, parts.engines)
        console.say(f"resumed from {resumed} at step {state.step}")
        resume_candidates(parts, index, state, resumed, metrics)
    else:
        lm_warmup(parts, config, console, metrics)
        measure_before(parts, config, index, state, folder, metrics)
    last = train(parts, config, index, state, folder, console, metrics)
    result = finish(parts, config, index, state, last, folder, console, metrics)
    metrics.close()
    leave(parts, config, state, result, index, folder, console, began)
    dist.stop()
    return 0


def measure_before(
    parts: Parts, config: RunConfig, index: IndexStage, state: TrainState, folder: Path, metrics: Metrics
) -> None:
    """The figures before the first step, and its candidates; these weights too may turn out to be the best, so they
    are kept."""
    if index.wanted:
        first = index.refresh(0, progress=True)
        metrics.write("refresh", 0, first.figures)
        if parts.candidates:
            metrics.write("candidates", 0, parts.candidates.refresh(0, index.search, first.retriever))
    if parts.data.evaluation:
        state.before = first.result.metrics
        metrics.write("eval", 0, state.before)
    judge(state, state.before or {}, config, 0)
    if config.stage.load_best_model_at_end:
        checkpoint.save(folder, parts.engines, state, config.run.save_total_limit, kept(parts))


def finish(
    parts: Parts,
    config: RunConfig,
    index: IndexStage,
    state: TrainState,
    last: Evaluation | None,
    folder: Path,
    console: Console,
    metrics: Metrics,
) -> Evaluation:
    """The last checkpoint and evaluation; under `load_best_model_at_end` the best weights, evaluated again."""
    if config.run.save_steps and state.step % config.run.save_steps:
        checkpoint.save(folder, parts.engines, state, config.run.save_total_limit, kept(parts))
    if last is None:
        landed = index.refresh(state.step, progress=True)
        book(landed, parts, index, state, config, metrics)
        last = landed.result
    best = folder / "checkpoints" / f"step-{state.best_step}"
    if not config.stage.load_best_model_at_end or state.best_step in (state.step, None) or not best.exists():
        return last
    assert state.best_step is not None
    checkpoint.load_engines(best, parts.engines, weights_only=True)
    console.say(f"exporting step {state.best_step}, the best by {config.stage.metric_for_best_model}")
    return index.refresh(state.best_step, progress=True).result
