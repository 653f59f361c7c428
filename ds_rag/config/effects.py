"""Settings that have no effect in a run because of other settings: each is noted on the console.

A table of rules: settings, the condition under which they have an effect, and the reason to show if they have none.
Settings that contradict each other are in contradictions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ds_rag.config.objectives import CANDIDATES, CANDIDATES_FROM, GIVEN, ObjectiveSpec, names_with, spec_of
from ds_rag.config.run_config import RunConfig
from ds_rag.config.schedules import AUTO


class Rule(NamedTuple):
    """`settings` have an effect if `works(config)`; else `reason` says why not."""

    settings: tuple[str, ...]
    works: Callable[[RunConfig], bool]
    reason: str


def objective(c: RunConfig) -> ObjectiveSpec:
    """The facts about the run's objective, with its teacher."""
    return spec_of(c.objective.objective).under(c.objective.teacher)


def reads_scores(c: RunConfig) -> bool:
    """Are there scores in the rows that are read?"""
    return objective(c).reads == GIVEN


def has_generator(c: RunConfig) -> bool:
    return objective(c).needs_generator


def trains_generator(c: RunConfig) -> bool:
    return c.model.freeze != "generator" and objective(c).trains_generator(c.objective.reader_loss)


def has_setting(c: RunConfig, setting: str) -> bool:
    """Is it a setting that the objective uses, among those that only some objectives have?"""
    return setting in objective(c).settings


def measures_answers(c: RunConfig) -> bool:
    """Is the log-probability of answers in the loss: of the objective, or of the reader loss?"""
    return not objective(c).reader_loss or trains_generator(c)


def trains_retriever(c: RunConfig) -> bool:
    return c.model.freeze != "retriever"


def constant_passages(c: RunConfig) -> bool:
    """Are the vectors of passages constants, encoded once?"""
    return c.model.train_side == "query"


def has_words(c: RunConfig) -> bool:
    """May the retriever have a weight of BM25? A new one has that of `--lexical_prior` alone."""
    weight = c.model.lexical_prior
    return weight > 0 if weight is not None else not c.model.retriever.startswith("config:")


def evaluates(c: RunConfig) -> bool:
    return c.is_builtin or c.data.eval_data is not None or c.data.folds > 0 or c.data.eval_fraction > 0


def indexes(c: RunConfig) -> bool:
    """Is the index refreshed during training?"""
    return c.evaluation.refresh_index != "0" and (evaluates(c) or searches_index(c))


def searches_index(c: RunConfig) -> bool:
    """Do candidates come from the index?"""
    return CANDIDATES_FROM[c.objective.candidates_from].index


def weighs_pairs(c: RunConfig) -> bool:
    return c.objective.contrastive_weight > 0


def way(c: RunConfig) -> str:
    """How the generator's part of a step is computed; a frozen generator only scores, in chunks."""
    return c.scoring.generator_backward if trains_generator(c) else "scored"


def picks_best(c: RunConfig) -> bool:
    """May the run stop early or export its best step? `--num_train_epochs auto` decides it when the rows are known."""
    if c.optim.num_train_epochs == AUTO and c.optim.max_steps < 1 and evaluates(c):
        return True
    return c.evaluation.load_best_model_at_end or c.evaluation.early_stopping_patience > 0


def adapts(c: RunConfig) -> bool:
    return c.model.lora != "none"


def of_the_objective(name: str) -> Rule:
    return Rule((name,), lambda c: has_setting(c, name), f"it is a setting of {names_with(name)}")


NO_GENERATOR = "the objective has no generator"
FROZEN_GENERATOR = "the generator is not trained"
NOT_READ = "the generator reads no candidates under this objective, at most the labelled passage"
IDLE = (
    Rule(("world_seed",), lambda c: c.is_builtin, "it is the seed of the built-in rows, which this run does not use"),
    Rule(
        ("hybrid", "rerank"),
        lambda c: False,
        "training measures the retriever itself, and BM25 and the hybrid beside it; `ds-rag evaluate` takes it",
    ),
    Rule(
        ("eval_fraction",),
        lambda c: not c.is_builtin and c.data.eval_data is None and not c.data.folds,
        "there are evaluation rows without it",
    ),
    Rule(("fold", "fold_corpus"), lambda c: c.data.folds > 0, "there are no --folds"),
    Rule(("cluster_column",), evaluates, "there are no evaluation rows (--eval_data)"),
    Rule(
        ("max_eval_samples", "eval_answers", "lexical_lines"), evaluates, "there are no evaluation rows (--eval_data)"
    ),
    Rule(
        ("generator", "max_answer_length", "prompt_template", "chat_template", "share_prefixes", "deepspeed_generator"),
        has_generator,
        NO_GENERATOR,
    ),
    Rule(("micro_cells", "memory_budget", "eval_answers", "decode", "max_new_tokens"), has_generator, NO_GENERATOR),
    Rule(("prompt_version", "teacher_cache"), has_generator, NO_GENERATOR),
    Rule(("generator_learning_rate", "lm_warmup_steps"), trains_generator, FROZEN_GENERATOR),
    Rule(("generator_backward",), trains_generator, FROZEN_GENERATOR + ", so it only scores"),
    Rule(("retriever_learning_rate", "contrastive_weight"), trains_retriever, "the retriever is not trained"),
    Rule(
        ("lexical_prior_learning_rate",),
        lambda c: trains_retriever(c) and has_words(c),
        "the retriever has no weight of BM25 (--lexical_prior), or is not trained",
    ),
    Rule(("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"), adapts, "--lora is none"),
    Rule(("teacher",), lambda c: objective(c).reads in (CANDIDATES, GIVEN), NOT_READ),
    Rule(("scores_column",), reads_scores, "--teacher is not scores"),
    Rule(("candidates", "prior"), lambda c: objective(c).reads in (CANDIDATES, GIVEN), NOT_READ),
    Rule(("answer_logprob", "answer_exponent"), lambda c: not reads_scores(c), "scores in the rows have no tokens"),
    Rule(
        ("answer_logprob", "answer_exponent"),
        lambda c: has_setting(c, "answer_logprob") and measures_answers(c),
        "the objective uses no log-probability of a full answer",
    ),
    Rule(
        ("answer_weight",),
        lambda c: has_setting(c, "answer_weight") and measures_answers(c),
        "the objective does not weigh an answer's log-probability against a prior",
    ),
    Rule(("answer_logprob",), lambda c: c.objective.answer_exponent is None, "--answer_exponent takes its place"),
    Rule(("candidates_by",), lambda c: c.objective.candidates_from != "batch", "--candidates_from is batch"),
    Rule(("candidates_by",), has_generator, NO_GENERATOR),
    Rule(("index_candidates",), lambda c: c.objective.candidates_from != "batch", "--candidates_from is batch"),
    Rule(("reader_loss",), lambda c: objective(c).reader_loss, "the objective has no reader loss"),
    Rule(("reader_loss",), lambda c: c.model.freeze != "generator", FROZEN_GENERATOR),
    of_the_objective("target_temperature"),
    of_the_objective("lm_tokens"),
    of_the_objective("gate_gain"),
    of_the_objective("gate_margin"),
    Rule(
        ("contrastive_symmetric",),
        lambda c: weighs_pairs(c) or has_setting(c, "contrastive_symmetric"),
        "--contrastive_weight is 0",
    ),
    Rule(("posterior_threshold",), lambda c: way(c) == "posterior", "--generator_backward is not posterior"),
    Rule(("micro_cells",), lambda c: way(c) != "one_pass", "--generator_backward is one_pass"),
    Rule(
        ("memory_budget",),
        lambda c: way(c) == "auto" or (way(c) != "one_pass" and c.scoring.micro_cells == "auto"),
        "with these --generator_backward and --micro_cells nothing depends on it",
    ),
    Rule(
        ("learning_rate",),
        lambda c: None in (c.optim.retriever_learning_rate, c.optim.generator_learning_rate),
        "each model has its own learning rate",
    ),
    Rule(("num_train_epochs",), lambda c: c.optim.max_steps < 1, "--max_steps sets the length of the run"),
    Rule(("lm_warmup_learning_rate",), lambda c: c.optim.lm_warmup_steps > 0, "--lm_warmup_steps is 0"),
    Rule(
        ("refresh_index",),
        lambda c: evaluates(c) or searches_index(c),
        "no rows are evaluated, and no candidates come from the index",
    ),
    Rule(
        ("refresh_mode", "refresh_staleness", "refresh_fraction"),
        lambda c: not constant_passages(c),
        "with --train_side query the vectors of passages do not change",
    ),
    Rule(("refresh_mode", "refresh_fraction"), indexes, "the index is not refreshed during training"),
    Rule(
        ("refresh_staleness",),
        lambda c: indexes(c) and c.evaluation.refresh_mode == "async",
        "--refresh_mode is not async",
    ),
    Rule(("metric_for_best_model",), picks_best, "the run neither exports its best step nor stops early"),
    Rule(
        ("deepspeed",),
        lambda c: not (c.run.deepspeed_retriever and c.run.deepspeed_generator),
        "each engine has its own DeepSpeed configuration",
    ),
    Rule(("save_total_limit",), lambda c: c.run.save_steps > 0 or picks_best(c), "--save_steps is 0"),
    Rule(("resume_changed",), lambda c: c.run.resume != "never", "--resume is never"),
)


def idle(config: RunConfig) -> list[str]:
    """A line for each flag that has no effect in this run. Keys of a recipe are not reported, because a recipe may be
    used for many runs."""
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
