"""Is it the same run that goes on? What a checkpoint says of its run, held against the one that is starting."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import ds_rag
from ds_rag import checkpoint, commit, dist
from ds_rag.assemble import Parts
from ds_rag.checkpoint import TrainState
from ds_rag.config import RunConfig
from ds_rag.deepspeed_config.keys import listed
from ds_rag.errors import UserError, not_written
from ds_rag.refresh import hash_tokens

# What may differ and leaves the mathematics as it was: where and how often things are written, how much is done at
# once, and in which pieces. (The batch's own rule is `fit_batch`'s; how long the run is, the note's.)
FREE = {"output_dir", "resume", "resume_changed", "save_steps", "save_total_limit", "report_to", "debug", "corpus"}
FREE |= {"train_data", "eval_data", "max_eval_samples"}  # what is in them counts, not where they lie
FREE |= {"deepspeed", "deepspeed_retriever", "deepspeed_generator", "memory_budget", "micro_cells", "retriever_chunk"}
FREE |= {"gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps", "collective_timeout"}
FREE |= {"per_device_eval_batch_size", "refresh_index", "refresh_mode", "refresh_staleness", "index_shards"}
FREE |= {"index_factory", "top_k", "decode", "max_new_tokens", "eval_answers", "metric_for_best_model"}
FREE |= {"load_best_model_at_end", "early_stopping_patience", "max_bad_steps", "detect_collapse", "on_bad_row"}
LENGTH = {"max_steps", "num_train_epochs"}


class Keeper:
    """Saves this run's checkpoints. `saved`: the last step there is one of."""

    def __init__(self, folder: Path, config: RunConfig, parts: Parts, saved: int = -1):
        self.folder, self.parts, self.limit = folder, parts, config.run.save_total_limit
        self.facts, self.saved = facts(config, parts), saved
        self.seconds = 0.0  # spent on the last one

    def save(self, state: TrainState) -> bool:
        """A checkpoint of this step; False where there is one already. Raises RunError where it could not be written:
        the one before still stands."""
        if state.step == self.saved:
            return False
        began = time.monotonic()
        arrays = self.parts.candidates.arrays if self.parts.candidates else {}  # so that a resumed run reads the same
        try:
            checkpoint.save(self.folder, self.parts.engines, state, self.limit, self.facts, arrays)
        except OSError as error:
            fix = "free some, then --resume auto: the checkpoint before it is whole"
            raise not_written(f"the checkpoint of step {state.step}", error, self.folder, fix) from None
        self.saved, self.seconds = state.step, time.monotonic() - began
        return True


def facts(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """For a checkpoint's manifest."""
    return {
        "global_batch": parts.loader.global_batch,
        "per_device_batch": parts.loader.batch,
        "data": data_hash(parts),
        "config": config.flat(),
        "versions": {
            "ds_rag": ds_rag.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def data_hash(parts: Parts) -> str:
    """Of the training rows and passages as the models read them: texts, order, tokenizers and lengths at once."""
    tokens, digest = parts.loader.tokens, hashlib.sha256()
    tables = (tokens.queries, tokens.passages, tokens.generator_queries, tokens.generator_passages)
    for table in (*tables, tokens.generator_answers):
        digest.update(b"none" if table is None else hash_tokens(table).encode())
    for row in parts.loader.rows:
        digest.update(repr((row.positives, row.own)).encode())
    return digest.hexdigest()


def fit_batch(folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """The same rows a step on this number of ranks: accumulation follows, where no flag fixes it.

    Raises UserError where the ranks cannot share a step's rows evenly.
    """
    saved = (commit.read_manifest(folder) or {}).get("global_batch")
    optim, world = config.optim, dist.world()
    batch = optim.per_device_train_batch_size
    if saved is None or batch * optim.gradient_accumulation_steps * world == saved:
        return
    if "gradient_accumulation_steps" not in config.explicit and saved % (batch * world) == 0:
        optim.gradient_accumulation_steps = saved // (batch * world)
        say(f"note: {optim.gradient_accumulation_steps} micro-batches a step on {world} ranks: the same {saved} rows")
        return
    sizes = [n for n in range(1, saved // batch + 1) if saved % (batch * n) == 0]
    raise UserError(
        f"{folder}: a step of its run has {saved} rows",
        found=f"{batch} a rank and micro-batch x {optim.gradient_accumulation_steps} micro-batches x {world} ranks",
        expected=f"a product of {saved}: with {batch} a micro-batch, {' | '.join(map(str, sizes)) or 'no'} ranks",
        fix="another number of ranks, or --per_device_train_batch_size",
    )


def check_unchanged(folder: Path, config: RunConfig, parts: Parts, say: Callable[[str], None]) -> None:
    """Raises UserError for other rows, another tokenizer or other settings than the checkpoint's; with
    `--resume_changed` says so instead."""
    saved = commit.read_manifest(folder) or {}
    if "config" not in saved:
        return
    now, then = facts(config, parts), saved
    wrong = [
        f"--{key}: {then['config'][key]!r} then, {value!r} now"
        for key, value in now["config"].items()
        if key in then["config"] and key not in FREE | LENGTH and then["config"][key] != value
    ]
    if then["data"] != now["data"]:
        wrong.append("training rows, passages, tokenizers or lengths: other tokens than then")
    for key in sorted(LENGTH):
        if then["config"].get(key) != now["config"][key]:
            say(f"note: --{key} {then['config'].get(key)} then, {now['config'][key]} now: the learning rate follows it")
    if now["per_device_batch"] != then["per_device_batch"] and config.objective.pool == "rank":
        say("note: another micro-batch of a rank is another pool of candidates, and so another objective")
    if not wrong:
        return
    if config.run.resume_changed:
        say(f"warning: resumed although this has changed:{listed(wrong)}")
        return
    raise UserError(
        f"{folder}: of a run that was another",
        found=listed(wrong),
        expected="the data, tokenizers and settings that it was saved with",
        fix="put them back, or --resume_changed to go on all the same",
    )
