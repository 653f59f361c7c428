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
from ds_rag.checkpoint import TrainState
from ds_rag.config import RunConfig
from ds_rag.engine import StepResult
from ds_rag.errors import UserError
from ds_rag.evaluate import Evaluation, Evaluator
from ds_rag.index.faiss_index import search
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
        output.sums["embedding_spread"] = float(p_ND.detach().std(0).mean()) if len(p_ND) > 1 else 0.0
        outputs.append(output)
    tokens += scoring.tokens_read() if scoring is not None else 0
    return outputs, totals | {"tokens": float(tokens)}, engines.step(factor)


def train(
    parts: Parts,
    config: RunConfig,
    evaluator: Evaluator,
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
    with console.progress(parts.total_steps, "step", done=state.step, unit="") as meter:
        for step in range(state.step, parts.total_steps):
            began = time.monotonic()
            parts.engines.train()
            factor = lr_factor(step, parts.total_steps, optim.warmup_steps, optim.lr_scheduler_type)
            values = summarise(*train_step(parts, step, factor), began, parts)
            state.step, last = step + 1, None
            state.skipped += int(values["skipped"])
            if parts.candidates:
                values["index_age"] = parts.candidates.age(step)
            metrics.write("train", state.step, values)
            stop = False
            due = parts.schedule.due(state.step) and state.step < parts.total_steps
            if due and (parts.data.evaluation or parts.candidates):
                last = evaluator.run()
                refresh_candidates(parts, last, state.step, metrics)
            if due and parts.data.evaluation:
                assert last is not None
                metrics.write("eval", state.step, last.metrics)
                live.metrics = last.metrics
                stop = judge(state, last.metrics, config)
            if (run.save_steps and state.step % run.save_steps == 0) or (
                stage.load_best_model_at_end and state.best_step == state.step
            ):
                checkpoint.save(folder, parts.engines, state, run.save_total_limit, kept(parts))
            meter.advance(1, live.line(values["loss"]))
            if stop:
                console.say(f"stopped early at step {state.step}: no gain in {stage.metric_for_best_model}")
                break
    return last


def refresh_candidates(
    parts: Parts, evaluation: Evaluation, step: int, metrics: Metrics, console: Console | None = None
) -> None:
    """Where the index supplies candidates: those that the one just built holds for the training queries."""
    if not parts.candidates:
        return

    def search_first(queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The index is rank 0's."""
        return dist.from_first(search(evaluation.index, queries_BD, k) if dist.rank() == 0 else None)

    metrics.write("candidates", step, parts.candidates.refresh(step, search_first, console))


def resume_candidates(
    parts: Parts, evaluator: Evaluator, state: TrainState, resumed: Path, metrics: Metrics, console: Console
) -> None:
    """The checkpoint's table. A new one where it holds none, or where the run ended at a step that a longer run would
    have refreshed it after."""
    if not parts.candidates or state.step >= parts.total_steps:
        return
    found = parts.candidates.restore(resumed)
    if not found or (parts.schedule.due(state.step) and parts.candidates.step != state.step):
        refresh_candidates(parts, evaluator.run(progress=True), state.step, metrics, console)


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


def judge(state: TrainState, metrics: dict[str, float], config: RunConfig) -> bool:
    """Books the chosen metric; True when it is time to stop early. All metrics here are better when higher."""
    name, patience = config.stage.metric_for_best_model, config.stage.early_stopping_patience
    if name not in metrics:
        if patience or config.stage.load_best_model_at_end:
            raise UserError(
                f"--metric_for_best_model {name}: not among the metrics",
                expected=" | ".join(metrics) or "--eval_data",
            )
        return False
    if state.best is None or metrics[name] > state.best:
        state.best, state.best_step, state.evaluations_without_gain = metrics[name], state.step, 0
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
    state = TrainState(world=dist.world())
    if resumed:
        state = checkpoint.load(resumed, parts.engines)
        console.say(f"resumed from {resumed} at step {state.step}")
        resume_candidates(parts, evaluator, state, resumed, metrics, console)
    else:
        lm_warmup(parts, config, console, metrics)
        measure_before(parts, config, evaluator, state, folder, console, metrics)
    last = train(parts, config, evaluator, state, folder, console, metrics)
    result = finish(parts, config, evaluator, state, last, folder, console, metrics)
    metrics.close()
    leave(parts, config, state, result, folder, console, began)
    dist.stop()
    return 0


def measure_before(
    parts: Parts,
    config: RunConfig,
    evaluator: Evaluator,
    state: TrainState,
    folder: Path,
    console: Console,
    metrics: Metrics,
) -> None:
    """The figures before the first step, and its candidates; these weights too may turn out to be the best, so they
    are kept."""
    if parts.data.evaluation or parts.candidates:
        first = evaluator.run(progress=True)
        refresh_candidates(parts, first, 0, metrics, console)
    if parts.data.evaluation:
        state.before = first.metrics
        metrics.write("eval", 0, state.before)
    judge(state, state.before or {}, config)
    if config.stage.load_best_model_at_end:
        checkpoint.save(folder, parts.engines, state, config.run.save_total_limit, kept(parts))


def finish(
    parts: Parts,
    config: RunConfig,
    evaluator: Evaluator,
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
        last = evaluator.run(progress=True)
        metrics.write("eval", state.step, last.metrics)
        judge(state, last.metrics, config)
    best = folder / "checkpoints" / f"step-{state.best_step}"
    if not config.stage.load_best_model_at_end or state.best_step in (state.step, None) or not best.exists():
        return last
    checkpoint.load_engines(best, parts.engines, weights_only=True)
    console.say(f"exporting step {state.best_step}, the best by {config.stage.metric_for_best_model}")
    return evaluator.run(progress=True)
