"""Training: `deepspeed launch/train.py --deepspeed ds_configs/zero2.json`.

    python launch/train.py                                        # the built-in almanac, one process
    torchrun --nproc_per_node 2 launch/train.py --max_steps 50    # two ranks
    ds-rag train --config recipe.yaml --train_data rows.jsonl --retriever DIR --generator DIR

`JointStep.step` (step/joint_step.py) contains the mathematics of one optimizer step, `train` the loop over steps, and
`main` everything before and after the loop.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from ds_rag.config import RunConfig
from ds_rag.config.schedules import lr_factor
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.run import checkpoint, resume_rules, split_file
from ds_rag.run.active_run import (
    Run,
    look_up_passages,
    measure_before,
    record_index,
    refresh_candidates,
    score_known_pairs,
    take_up,
)
from ds_rag.run.assemble import Parts, assemble
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.checkpoint_saver import CheckpointSaver
from ds_rag.run.early_stopping import is_time_to_stop
from ds_rag.run.index_refresh import IndexStage
from ds_rag.run.lm_warmup import lm_warmup
from ds_rag.run.metrics_file import open_metrics
from ds_rag.run.step_metrics import ProgressText, step_values
from ds_rag.run.summary import say_beginning, write_results
from ds_rag.run.teacher import flush_scores
from ds_rag.run.watchers import Watchers
from ds_rag.runtime import atomic_folders, collectives, fault_injection, log_capture, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.stop_agreement import Halt, join_ranks
from ds_rag.runtime.stop_signals import Stopped
from ds_rag.step.joint_step import StepReport


def train_step(parts: Parts, step: int, factor: float) -> StepReport:
    """One optimizer step: every micro-batch forward and backward through both engines, then the joint step."""
    return parts.joint.step(parts.loader.micro_batches(step), factor, step)


def train(run: Run) -> Evaluation | None:
    """The training loop: steps, index refreshes with evaluations, and checkpoints.

    Returns the evaluation after the last step, or None if there was none after that step. Raises Stopped on all ranks
    if one rank was asked to stop.
    """
    parts, state, index, optim, watchers, last = run.parts, run.state, run.index, run.config.optim, run.watchers, None
    text, settings = ProgressText(state.before or {}), run.config.evaluation
    warmup = optim.warmup(parts.total_steps)
    with index, run.console.progress(parts.total_steps, "step", done=state.step, unit="") as meter:
        catch_up(run, text)
        for step in range(state.step, parts.total_steps):
            if is_time_to_stop(state, settings):  # before the step: a resumed run may have to stop at once
                run.console.say(
                    f"stopped early at step {state.step}: {settings.metric_for_best_model} has not improved"
                )
                break
            fault_injection.point("step")
            stop_signals.phase(f"step {step + 1}")
            began = time.monotonic()
            factor = lr_factor(step, parts.total_steps, warmup, optim.lr_scheduler_type)
            outputs, totals, result = train_step(parts, step, factor)
            values = step_values(outputs, totals, result, began, parts)
            state.step = step + 1
            state.skipped += int(result.skipped)
            state.gated += round(values.get("gated_queries", 0.0))
            values |= watchers.count(state.step, state.skipped, result, outputs)
            if parts.candidates and parts.candidates.searches_index:
                values["index_age"] = parts.candidates.age(step)
            run.metrics.write("train", state.step, values)
            watchers.after_step(values)
            stop_signals.phase(f"the index stage after step {state.step}")
            landed = index.after_step(state.step)
            if landed is not None:
                take_up(run, landed, text)
            last = landed.result if landed is not None and landed.step == state.step and landed.full else None
            if due_for_saving(run):
                save_checkpoint(run)
            meter.advance(1, text.line(values["loss"]))
            stop_signals.phase(f"the end of step {state.step}")
            run.halt.check()
        stop_signals.phase("the index stage that is still under way")
        if late := index.drain(state.step):
            take_up(run, late, text, new_candidates=False)  # no step follows that would read them
    flush_scores(parts)
    return last


def due_for_saving(run: Run) -> bool:
    """Is a checkpoint due, by `--save_steps` or because this step is the best so far?"""
    state, every = run.state, run.config.run.save_steps
    best_now = run.config.evaluation.load_best_model_at_end and state.best_step == state.step
    return bool(every and state.step % every == 0 and run.watchers.healthy) or best_now


def save_checkpoint(run: Run) -> None:
    """Saves a checkpoint of this step, and logs how long it took."""
    run.state.watched = run.watchers.memory
    flush_scores(run.parts)
    if run.saver.save(run.state):
        run.metrics.write("checkpoint", run.state.step, {"seconds": run.saver.seconds})


def catch_up(run: Run, text: ProgressText) -> None:
    """Refreshes the index after the last step, if the run was interrupted before that was complete."""
    if run.state.step and run.state.refreshed < run.state.step:
        stop_signals.phase(f"the index stage after step {run.state.step}")
        landed = run.index.after_step(run.state.step)
        if landed is not None:
            take_up(run, landed, text)


def main(config: RunConfig, folder: Path, console: Console) -> int:
    """One run, from its configuration to its report. Returns the exit code: 0, or 75 if the run was asked to stop and
    can be resumed."""
    began, minutes = time.monotonic(), config.run.collective_timeout
    try:
        device = join_ranks(folder, minutes, console)
    except Stopped as reason:
        return stop_here(None, str(reason), folder, console)
    log_capture.redirect(folder, collectives.rank())  # rank 0 has made the folder by now
    halt = Halt(folder, device, 60 * minutes)
    stop_signals.agree_by(halt.check, halt.begin)
    run: Run | None = None
    try:
        try:
            halt.check()
            run = set_up(config, folder, console, device, halt)
            last = train(run)
            result = finish(run, last)
            run.metrics.close()
            write_results(run, result, began)
        except Stopped as reason:
            return stop_here(
                run, str(reason), folder, console
            )  # an error here may also be caused by the loss of another rank
    except RuntimeError as error:
        raise halt.lost(error) or error from error
    finally:
        stop_signals.agree_by(None)
        halt.close()
    collectives.stop()
    return 0


def set_up(config: RunConfig, folder: Path, console: Console, device: torch.device, halt: Halt) -> Run:
    """Everything before the first step: rows, models and engines, then a checkpoint's state, or for a new run language
    model warm-up and the first evaluation."""
    fault_injection.point("start")
    resumed = checkpoint.find(folder, config.run.resume, console.say)
    if resumed:
        resume_rules.fit_batch(resumed, config, console.say)
        resume_rules.fit_length(resumed, config, console.say)
        split_file.keep_whole(resumed, config, console.say)
    stop_signals.phase("start: reading rows and models")
    parts = assemble(config, console, folder, device, resumed)
    facts = resume_rules.run_facts(config, parts)
    if resumed:
        resume_rules.check_unchanged(resumed, config, facts, console.say)
    split_file.write_split(folder, parts.data.split)
    if config.run.resume != "never":
        checkpoint.tidy(folder, resumed, console.say)
    saved = checkpoint.state_of(resumed) if resumed else None
    step, refreshed = (saved.step, saved.refreshed) if saved else (None, None)
    metrics = open_metrics(config, folder, step, refreshed, console.say)
    say_beginning(parts, config, folder, console)
    alone = replace(config.evaluation, hybrid="none", rerank=0)  # training is judged by what it trains
    evaluator = Evaluator(parts.retriever, parts.generator, parts.prompt, parts.data, parts.eval_tokens, alone)
    searches_index = parts.candidates is not None and parts.candidates.searches_index
    index = IndexStage(parts, config.evaluation, evaluator, folder, console, searches_index)
    here = step if step is not None and checkpoint.is_of(folder, resumed) else -1
    saver = CheckpointSaver(folder, config.run.save_total_limit, parts, facts, here)
    watchers = Watchers(config, folder, console, metrics)
    run = Run(parts, config, folder, index, saver, halt, watchers, TrainState(), console, metrics)
    if resumed:
        run.state = checkpoint.load(resumed, parts.engines, config.optim.seed)
        resume_rules.fit_best(run.state, resumed, folder, facts, console.say)
        watchers.remember(run.state.watched)
        index.best = run.state.best_step
        console.say(f"resumed from {resumed} at step {run.state.step}")
        resume_candidates(run, resumed)
    else:
        lm_warmup(parts, config, console, metrics)
        measure_before(run)
    look_up_passages(run)
    score_known_pairs(run, progress=True)
    return run


def resume_candidates(run: Run, resumed: Path) -> None:
    """Restores the candidates from the index that the checkpoint has saved; without them, finds new ones."""
    candidates, state = run.parts.candidates, run.state
    if candidates and state.step < run.parts.total_steps and not candidates.restore(resumed):
        stop_signals.phase("the index that offers rows their candidates")
        by_index = candidates.searches_index
        encoder = run.index.refresh(state.step, progress=True).retriever if by_index else run.parts.retriever
        refresh_candidates(run, state.step, encoder)


def stop_here(run: Run | None, reason: str, folder: Path, console: Console) -> int:
    """Saves a checkpoint and tells the user. Before the first step there is nothing to save. Returns the exit code."""
    step = run.state.step if run is not None else 0
    if run is not None and step:
        save_checkpoint(run)
        run.metrics.close()
    if collectives.rank() == 0:
        stop_signals.leave_word(folder, reason, step or None)
        stop_signals.take_back(folder)
    where = f"at step {step}, saved" if step else "before the first step"
    console.say(f"stopped {where} ({reason}); --resume auto continues")
    stop_signals.phase("the end, after being asked to stop")
    collectives.barrier()
    collectives.stop()
    return stop_signals.EXIT_CODE


def finish(run: Run, last: Evaluation | None) -> Evaluation:
    """Saves the last checkpoint and evaluates; with `load_best_model_at_end` loads the best weights and evaluates them
    again. Returns the evaluation of the final weights."""
    state, settings = run.state, run.config.evaluation
    if run.config.run.save_steps:
        save_checkpoint(run)
    if last is None:
        stop_signals.phase("the last evaluation")
        landed = run.index.refresh(state.step, progress=True)
        record_index(
            run, landed
        )  # not `take_up`: if the run is extended later, its index is refreshed at this step anyway
        last = landed.result
    if not settings.load_best_model_at_end or state.best_step is None or state.best_step == state.step:
        return last
    save_checkpoint(run)  # before other weights are loaded, because the run may still be stopped
    load_best(run, state.best_step)
    stop_signals.phase(f"the evaluation of the best step, {state.best_step}")
    return run.index.refresh(state.best_step, progress=True).result


def load_best(run: Run, step: int) -> None:
    """Loads the weights of the best step. Raises UserError if its checkpoint is damaged."""
    best = run.saver.folder / "checkpoints" / f"step-{step}"
    if wrong := atomic_folders.damages_on_ranks(best):
        raise atomic_folders.refuse(
            best, wrong, "--resume auto --load_best_model_at_end false exports the last step instead"
        )
    checkpoint.load_engines(best, run.parts.engines, weights_only=True)
    run.console.say(f"exporting step {step}, the best by {run.config.evaluation.metric_for_best_model}")
