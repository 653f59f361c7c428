"""What a setting that was given does under the others: nothing, which is said, or the contrary, which is an error.

A table: settings, the condition under which they have an effect, and the reason that is given where they have none.
Training alone asks it: a saved run opens whatever it was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ds_rag.config.objectives import CANDIDATES, ObjectiveSpec, names_with, spec_of
from ds_rag.config.run_config import RunConfig
from ds_rag.config.sections import MODEL_CHOICES
from ds_rag.runtime.errors import UserError

METRICS = r"(recall|hit)@(1|5|10)|mrr@10|ndcg@10|exact_match|f1|rougeL"
OF_ANSWERS = ("exact_match", "f1", "rougeL")


class Rule(NamedTuple):
    """settings have an effect where `works`; else `reason` says why not."""

    settings: tuple[str, ...]
    works: Callable[[RunConfig], bool]
    reason: str


def objective(c: RunConfig) -> ObjectiveSpec:
    return spec_of(c.objective.objective)


def has_generator(c: RunConfig) -> bool:
    return objective(c).needs_generator


def generator_learns(c: RunConfig) -> bool:
    return c.model.freeze != "generator" and objective(c).trains_generator(c.objective.reader_loss)


def looks_at(c: RunConfig, setting: str) -> bool:
    """Is it a setting of the objective's own?"""
    return setting in objective(c).settings


def retriever_learns(c: RunConfig) -> bool:
    return c.model.freeze != "retriever"


def evaluates(c: RunConfig) -> bool:
    return c.is_builtin or c.data.eval_data is not None or c.data.folds > 0 or c.data.eval_fraction > 0


def indexes(c: RunConfig) -> bool:
    """Is the index refreshed during training?"""
    return c.evaluation.refresh_index != "0" and (evaluates(c) or c.objective.candidates_from != "batch")


def weighs_pairs(c: RunConfig) -> bool:
    return c.objective.contrastive_weight > 0


def way(c: RunConfig) -> str:
    """Of the generator's backward pass; one that does not learn is only scored, in chunks."""
    return c.scoring.generator_backward if generator_learns(c) else "scored"


def picks_best(c: RunConfig) -> bool:
    return c.evaluation.load_best_model_at_end or c.evaluation.early_stopping_patience > 0


def adapts(c: RunConfig) -> bool:
    return c.model.lora != "none"


def of_the_objective(name: str) -> Rule:
    return Rule((name,), lambda c: looks_at(c, name), f"it is a setting of {names_with(name)}")


NO_GENERATOR = "the objective has no generator"
UNTAUGHT = "the generator does not learn"
NOT_READ = "the objective reads no candidates, only labelled passages"
IDLE = (
    Rule(("world_seed",), lambda c: c.is_builtin, "it is the built-in rows', and these are not taken"),
    Rule(
        ("eval_fraction",),
        lambda c: not c.is_builtin and c.data.eval_data is None and not c.data.folds,
        "there are evaluation rows without it",
    ),
    Rule(("fold", "fold_corpus"), lambda c: c.data.folds > 0, "there are no --folds"),
    Rule(("cluster_column",), evaluates, "there are no evaluation rows (--eval_data)"),
    Rule(("max_eval_samples", "eval_answers"), evaluates, "there are no evaluation rows (--eval_data)"),
    Rule(
        ("generator", "max_answer_length", "prompt_template", "chat_template", "share_prefixes", "deepspeed_generator"),
        has_generator,
        NO_GENERATOR,
    ),
    Rule(("micro_cells", "memory_budget", "eval_answers", "decode", "max_new_tokens"), has_generator, NO_GENERATOR),
    Rule(("prompt_version",), has_generator, NO_GENERATOR),
    Rule(("generator_learning_rate", "lm_warmup_steps"), generator_learns, UNTAUGHT),
    Rule(("generator_backward",), generator_learns, UNTAUGHT + ", so it only scores"),
    Rule(("retriever_learning_rate", "contrastive_weight"), retriever_learns, "the retriever does not learn"),
    Rule(("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"), adapts, "--lora is none"),
    Rule(("candidates", "prior"), lambda c: objective(c).reads == CANDIDATES, NOT_READ),
    Rule(
        ("answer_logprob",),
        lambda c: looks_at(c, "answer_logprob") and (not objective(c).reader_loss or generator_learns(c)),
        "the objective takes no log-probability of a whole answer",
    ),
    Rule(("index_candidates",), lambda c: c.objective.candidates_from != "batch", "--candidates_from is batch"),
    Rule(("reader_loss",), lambda c: objective(c).reader_loss, "the objective has no reader loss"),
    Rule(("reader_loss",), lambda c: c.model.freeze != "generator", UNTAUGHT),
    of_the_objective("target_temperature"),
    of_the_objective("lm_tokens"),
    Rule(
        ("contrastive_symmetric",),
        lambda c: weighs_pairs(c) or looks_at(c, "contrastive_symmetric"),
        "--contrastive_weight is 0",
    ),
    Rule(("posterior_threshold",), lambda c: way(c) == "posterior", "--generator_backward is not posterior"),
    Rule(("micro_cells",), lambda c: way(c) != "one_pass", "--generator_backward is one_pass"),
    Rule(
        ("memory_budget",),
        lambda c: way(c) == "auto" or (way(c) != "one_pass" and c.scoring.micro_cells == "auto"),
        "--generator_backward and --micro_cells leave nothing to choose by it",
    ),
    Rule(
        ("learning_rate",),
        lambda c: None in (c.optim.retriever_learning_rate, c.optim.generator_learning_rate),
        "each model has a rate of its own",
    ),
    Rule(("num_train_epochs",), lambda c: c.optim.max_steps < 1, "--max_steps says how long the run is"),
    Rule(("lm_warmup_learning_rate",), lambda c: c.optim.lm_warmup_steps > 0, "--lm_warmup_steps is 0"),
    Rule(
        ("refresh_index",),
        lambda c: evaluates(c) or c.objective.candidates_from != "batch",
        "no rows are evaluated and none take candidates from the index",
    ),
    Rule(("refresh_mode", "refresh_fraction"), indexes, "the index is not refreshed during training"),
    Rule(
        ("refresh_staleness",),
        lambda c: indexes(c) and c.evaluation.refresh_mode == "async",
        "--refresh_mode is not async",
    ),
    Rule(("metric_for_best_model",), picks_best, "neither the best step is exported nor does the run stop early"),
    Rule(
        ("deepspeed",),
        lambda c: not (c.run.deepspeed_retriever and c.run.deepspeed_generator),
        "each engine has a file of its own",
    ),
    Rule(("save_total_limit",), lambda c: c.run.save_steps > 0 or picks_best(c), "--save_steps is 0"),
    Rule(("resume_changed",), lambda c: c.run.resume != "never", "--resume is never"),
)

# The same where the user has asked for the contrary of what would happen.
CONTRARY = (
    Rule(
        ("folds",),
        lambda c: not (c.data.folds and c.data.eval_data is not None),
        "folds hold evaluation rows out of the training rows, and --eval_data names others",
    ),
    Rule(("folds",), lambda c: not (c.data.folds and c.is_builtin), "the built-in rows have a split of their own"),
    Rule(("freeze",), lambda c: retriever_learns(c) or generator_learns(c), "nothing would learn"),
    Rule(
        ("learn_temperature",),
        lambda c: not c.model.learn_temperature or retriever_learns(c),
        "it is trained with the retriever, and --freeze retriever is set",
    ),
    Rule(
        ("lora", "load_in_4bit"),
        lambda c: has_generator(c) or not {c.model.lora, c.model.load_in_4bit} & {"generator", "both"},
        NO_GENERATOR,
    ),
    Rule(("lora",), lambda c: c.model.lora == "none" or learns_all(c), "that model does not learn"),
    Rule(
        ("early_stopping_patience", "load_best_model_at_end"),
        lambda c: not picks_best(c) or evaluates(c),
        "without evaluation rows (--eval_data) no step is better than another",
    ),
    Rule(
        ("early_stopping_patience",),
        lambda c: c.evaluation.refresh_index != "0",
        "with --refresh_index 0 nothing is evaluated before the end",
    ),
    Rule(
        ("metric_for_best_model",),
        lambda c: not picks_best(c) or bool(re.fullmatch(METRICS, c.evaluation.metric_for_best_model)),
        "it is none of recall@ and hit@ 1, 5 and 10, mrr@10, ndcg@10, exact_match, f1, rougeL",
    ),
    Rule(
        ("metric_for_best_model", "eval_answers"),
        lambda c: (
            not picks_best(c)
            or c.evaluation.metric_for_best_model not in OF_ANSWERS
            or (has_generator(c) and c.evaluation.eval_answers)
        ),
        "the metric is of answers, and none are evaluated",
    ),
    Rule(
        ("lm_warmup_steps",),
        lambda c: not c.optim.lm_warmup_steps or not generator_learns(c) or rate_of_generator(c) > 0,
        "the generator's learning rate is 0",
    ),
)


def learns_all(c: RunConfig) -> bool:
    """Do the models that adapters are asked for learn?"""
    wanted = MODEL_CHOICES[1:3] if c.model.lora == "both" else (c.model.lora,)
    return all({"retriever": retriever_learns, "generator": generator_learns}[name](c) for name in wanted)


def rate_of_generator(c: RunConfig) -> float:
    own = c.optim.generator_learning_rate
    return c.optim.learning_rate if own is None else own


def check_contrary(config: RunConfig) -> None:
    """Raises UserError for settings given, in a recipe or by flag, that the others contradict."""
    for rule in CONTRARY:
        if not rule.works(config) and (given := [name for name in rule.settings if name in config.explicit]):
            values = config.flat()
            raise UserError(
                ", ".join(f"--{name} {str(values[name]).lower()}" for name in given) + f": {rule.reason}",
                fix="leave one of them out",
            )


def idle(config: RunConfig) -> list[str]:
    """A line for each flag that does nothing in this run. Of a recipe's keys nothing is said: it serves many runs."""
    values, defaults = config.flat(), RunConfig().flat()
    found: dict[str, str] = {}
    for rule in IDLE:
        if not rule.works(config):
            found |= {name: rule.reason for name in rule.settings if name not in found}
    return [
        f"--{name} {values[name]} has no effect: {reason}"
        for name, reason in found.items()
        if name in config.flags and values[name] != defaults[name]
    ]
