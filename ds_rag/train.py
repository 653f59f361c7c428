"""The main job: `deepspeed launch/train.py --deepspeed ds_configs/zero2.json`.

    python launch/train.py                                        # the built-in almanac, one process
    torchrun --nproc_per_node 2 launch/train.py --max_steps 50    # two ranks
    ds-rag train --config recipe.yaml --train_data rows.jsonl --retriever DIR --generator DIR

`train_step` is the mathematics of one optimizer step, `train` the loop around it, `main` what comes before and after.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ds_rag import __version__, checkpoint, dist, log
from ds_rag.assemble import Parts, assemble
from ds_rag.cards import card
from ds_rag.checkpoint import TrainState
from ds_rag.config import RunConfig
from ds_rag.engine import StepResult
from ds_rag.errors import UserError
from ds_rag.evaluate import Evaluation, Evaluator
from ds_rag.index.store import describe, hash_model, write_index
from ds_rag.log import Console, Metrics
from ds_rag.objective import StepOutput
from ds_rag.report import write_report
from ds_rag.schedule import Schedule, lr_factor
from ds_rag.warmup import lm_warmup


def train_step(parts: Parts, step: int, factor: float) -> tuple[list[StepOutput], dict[str, float], StepResult]:
    """One optimizer step: every micro-batch forward and backward through both engines, then the joint step."""
    engines, objective, prompt = parts.engines, parts.objective, parts.prompt
    micros = [batch.to(parts.device) for batch in parts.loader.micro_batches(step)]
    totals = dist.all_sum(objective.counts(micros, prompt), parts.device)  # means are over the whole step
    outputs, tokens = [], 0
    for m, batch in enumerate(micros):
        engines.boundary(last=m == len(micros) - 1)
        embedded = engines.retriever(batch.queries, batch.passages)  # both in one forward
        leaves = [x.detach().float().requires_grad_() for x in embedded]
        q_BD, p_ND, temperature = leaves
        scores_BN = q_BD @ p_ND.T / temperature
        candidates_BK = objective.select(scores_BN, batch)
        cells = logp_CA = leaf_CA = None
        if prompt is not None and engines.generator is not None:
            cells = objective.cells(batch, candidates_BK, prompt, parts.pad).to(parts.device)
            logp_CA = engines.generator(cells)
            leaf_CA = logp_CA.detach().requires_grad_()
            tokens += int(cells.mask_CT.sum())
        output = objective.backward(scores_BN, candidates_BK, cells, leaf_CA, batch, totals)
        engines.backward("retriever", list(embedded), leaves)
        if logp_CA is not None and leaf_CA is not None:
            engines.backward("generator", [logp_CA], [leaf_CA])
        tokens += int(batch.queries.mask_BT.sum() + batch.passages.mask_BT.sum())
        output.sums["embedding_spread"] = float(p_ND.detach().std(0).mean()) if len(p_ND) > 1 else 0.0
        outputs.append(output)
    return outputs, totals | {"tokens": float(tokens)}, engines.step(factor)


def train(
    parts: Parts, config: RunConfig, evaluator: Evaluator, state: TrainState, folder: Path, console: Console, metrics: Metrics
) -> Evaluation | None:
    """The loop: steps, the index stage when it is due, checkpoints. Returns the evaluation of the last step, if one
    was made there."""
    optim, stage, run = config.optim, config.stage, config.run
    schedule, last = Schedule(stage.refresh_index), None
    live = Live(state.before or {})
    with console.progress(parts.total_steps, "training", done=state.step) as meter:
        for step in range(state.step, parts.total_steps):
            began = time.monotonic()
            parts.engines.train()
            factor = lr_factor(step, parts.total_steps, optim.warmup_steps, optim.lr_scheduler_type)
            values = summarise(*train_step(parts, step, factor), began=began, device=parts.device)
            state.step, last = step + 1, None
            state.skipped += int(values["skipped"])
            metrics.write("train", state.step, values | {"lr": optim.learning_rate * factor})
            stop = False
            if schedule.due(state.step) and state.step < parts.total_steps:
                last = evaluator.run()
                metrics.write("eval", state.step, last.metrics)
                live.metrics = last.metrics
                stop = judge(state, last.metrics, config)
            if (run.save_steps and state.step % run.save_steps == 0) or (
                stage.load_best_model_at_end and state.best_step == state.step
            ):
                checkpoint.save(folder, parts.engines, state, run.save_total_limit)
            meter.advance(1, live.line(values["loss"]))
            if stop:
                console.say(f"stopped early at step {state.step}: no gain in {stage.metric_for_best_model}")
                break
    return last


def summarise(
    outputs: list[StepOutput], totals: dict[str, float], result: StepResult, began: float, device: torch.device
) -> dict[str, float]:
    """A step's line in metrics.jsonl: sums over micro-batches and ranks, turned into the step's values."""
    local = {"loss": sum(o.loss for o in outputs), "tokens": totals["tokens"]}
    for output in outputs:
        for name, value in output.sums.items():
            local[name] = local.get(name, 0.0) + value
    values = dist.all_sum(local, device)
    seconds = time.monotonic() - began
    parts = len(outputs) * dist.world()
    for name in values:
        if name.endswith("entropy"):
            values[name] /= max(1.0, totals["queries"])
        elif name.startswith("grad_share/") or name == "embedding_spread":
            values[name] /= parts
    tokens = values.pop("tokens")
    return values | {
        "grad_norm": result.grad_norm if result.grad_norm == result.grad_norm else None,
        "skipped": int(result.skipped),
        "tokens_per_s": tokens / seconds,
        "queries_per_s": totals["queries"] / seconds,
        "memory_gb": log.memory_gb(),
    }


class Live:
    """The text beside the progress bar."""

    def __init__(self, metrics: dict[str, float]):
        self.metrics, self.loss = metrics, None

    def line(self, loss: float) -> str:
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        shown = {"recall@1": "recall@1", "exact_match": "answers right"}
        parts = [f"{text} {self.metrics[name]:.2f}" for name, text in shown.items() if name in self.metrics]
        return "  ".join([f"loss {self.loss:.3f}", *parts])


def judge(state: TrainState, metrics: dict[str, float], config: RunConfig) -> bool:
    """Books the chosen metric; True when it is time to stop early. All metrics here are better when higher."""
    name, patience = config.stage.metric_for_best_model, config.stage.early_stopping_patience
    if name not in metrics:
        if patience or config.stage.load_best_model_at_end:
            raise UserError(
                f"--metric_for_best_model {name}: not among the metrics", expected=" | ".join(metrics) or "--eval_data"
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
    else:
        lm_warmup(parts, config, console, metrics)
        before = evaluator.run(progress=True)
        state.before = before.metrics
        metrics.write("eval", 0, before.metrics)
        judge(state, before.metrics, config)
    last = train(parts, config, evaluator, state, folder, console, metrics)
    finish(parts, config, evaluator, state, last, folder, console, metrics, began)
    dist.stop()
    return 0


def introduce(parts: Parts, config: RunConfig, folder: Path, console: Console) -> None:
    """What is about to happen, in four lines; the resolved configuration goes to the run's folder."""
    optim, data = config.optim, parts.data
    sizes = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in parts.engines.modules.items()}
    learning = parts.engines.learning
    models = ", ".join(f"{n} {s:.1f}M ({'learns' if n in learning else 'frozen'})" for n, s in sizes.items())
    batch = f"{optim.per_device_train_batch_size} x {optim.gradient_accumulation_steps} x {dist.world()}"
    console.say(f"data       {len(data.train)} rows, {data.corpus_size} passages, {len(data.evaluation)} held-out queries")
    console.say(f"models     {models}")
    console.say(
        f"objective  {config.objective.objective}, {config.objective.candidates} candidates a query; "
        f"{parts.total_steps} steps of {batch} queries (batch x accumulation x ranks) on {parts.device}"
    )
    console.say(f"run        {folder} (libraries' messages: run.log)")
    if not config.is_builtin:
        for name in ("retriever", "generator"):
            if getattr(config.model, name).startswith("config:") and name in sizes:
                console.say(f"note: the {name} starts untrained, from {getattr(config.model, name)}", style="yellow")
    if dist.rank() == 0:
        (folder / "config.json").write_text(json.dumps(config.flat(), indent=1))


def finish(
    parts: Parts,
    config: RunConfig,
    evaluator: Evaluator,
    state: TrainState,
    last: Evaluation | None,
    folder: Path,
    console: Console,
    metrics: Metrics,
    began: float,
) -> None:
    """The last checkpoint and evaluation, then what the run leaves: models, index, results, report."""
    if config.run.save_steps and state.step % config.run.save_steps:
        checkpoint.save(folder, parts.engines, state, config.run.save_total_limit)
    result = last or evaluator.run(progress=True)
    if last is None:
        metrics.write("eval", state.step, result.metrics)
        judge(state, result.metrics, config)
    best_folder = folder / "checkpoints" / f"step-{state.best_step}"
    if config.stage.load_best_model_at_end and state.best_step not in (state.step, None) and best_folder.exists():
        checkpoint.load_engines(best_folder, parts.engines, weights_only=True)
        result = evaluator.run(progress=True)
        console.say(f"exporting step {state.best_step}, the best by {config.stage.metric_for_best_model}")
    cards = {name: card(name, config, state.step, result.metrics, facts(name, parts, config)) for name in parts.engines.modules}
    checkpoint.export(folder, parts.engines, cards)
    if dist.rank() == 0:
        save_index(parts, config, result, folder)
        results = {
            "before": state.before or {},
            "after": result.metrics,
            "samples": [asdict(s) for s in result.samples],
            "steps": state.step,
            "skipped_steps": state.skipped,
            "seconds": round(time.monotonic() - began, 1),
            "lm_warmup_steps": config.optim.lm_warmup_steps,
            "ds_rag": __version__,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        metrics.close()
        show(results, write_report(folder), console)


def facts(name: str, parts: Parts, config: RunConfig) -> dict[str, Any]:
    if name == "retriever":
        s = parts.retriever.settings
        return {"pooling": s.pooling, "normalize": s.normalize, "query prefix": s.query_prefix, "passage prefix": s.passage_prefix}
    return {"prompt": config.model.prompt_template, "chat template": config.model.chat_template}


def save_index(parts: Parts, config: RunConfig, result: Evaluation, folder: Path) -> None:
    """The last index, with what made it."""
    assert result.vectors is not None
    data = parts.data
    texts = data.texts[: data.corpus_size]
    model = hash_model(folder / "retriever")
    manifest = describe(model, result.vectors, texts, config.stage.index_factory, parts.retriever.settings)
    write_index(folder / "index", result.index, result.vectors, data.ids[: data.corpus_size], texts, manifest)


def show(results: dict[str, Any], report: Path, console: Console) -> None:
    """The table before and after, three questions, and where the report lies."""
    before, after = results["before"], results["after"]
    if after:
        rows = [[name, f"{before[name]:.3f}" if name in before else "-", f"{value:.3f}"] for name, value in after.items()]
        console.table("held-out queries", ["metric", "before", "after"], rows)
    for sample in results["samples"]:
        console.say(f"\nquestion   {sample['query']}")
        console.say(f"retrieved  {sample['passage'][:300]}{'' if sample['retrieved_gold'] else '   (not the labelled one)'}")
        console.say(f"answer     {sample['answer']}   (wanted: {' | '.join(sample['gold'])})")
    console.say(f"\nreport     {report}   ({results['steps']} steps, {results['seconds']:.0f} s in all)")
