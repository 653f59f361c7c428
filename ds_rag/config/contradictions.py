"""Settings that contradict each other: an error before anything is opened.

Only training checks this: the configuration of a saved run can always be opened.
"""

from __future__ import annotations

import re

from ds_rag.config.effects import (
    NO_GENERATOR,
    Rule,
    constant_passages,
    evaluates,
    has_generator,
    picks_best,
    reads_scores,
    trains_generator,
    trains_retriever,
)
from ds_rag.config.objectives import CANDIDATES_FROM
from ds_rag.config.run_config import RunConfig
from ds_rag.config.sections import MODEL_CHOICES
from ds_rag.runtime.errors import UserError

METRICS = r"(recall|hit)@(1|5|10)|mrr@10|ndcg@10|exact_match|f1|rougeL"
OF_ANSWERS = ("exact_match", "f1", "rougeL")

# Settings that the user gave although the others make the opposite happen.
CONTRARY = (
    Rule(
        ("folds",),
        lambda c: not (c.data.folds and c.data.eval_data is not None),
        "folds hold evaluation rows out of the training rows, and --eval_data names others",
    ),
    Rule(("folds",), lambda c: not (c.data.folds and c.is_builtin), "the built-in rows have a split of their own"),
    Rule(
        ("reader_loss",),
        lambda c: not reads_scores(c) or c.objective.reader_loss == "none",
        "it trains a generator, and --teacher scores has none",
    ),
    Rule(
        ("candidates_from",),
        lambda c: not reads_scores(c) or CANDIDATES_FROM[c.objective.candidates_from].own,
        "the candidates are the row's own passages, which have scores (--teacher scores)",
    ),
    Rule(("teacher",), lambda c: not (reads_scores(c) and c.is_builtin), "the built-in rows have no scores"),
    Rule(("freeze",), lambda c: trains_retriever(c) or trains_generator(c), "no model would be trained"),
    Rule(
        ("train_side",),
        lambda c: not constant_passages(c) or trains_retriever(c),
        "it trains the encoder of queries, and --freeze retriever is set",
    ),
    Rule(
        ("learn_temperature",),
        lambda c: not c.model.learn_temperature or trains_retriever(c),
        "it is trained with the retriever, and --freeze retriever is set",
    ),
    Rule(
        ("lora", "load_in_4bit"),
        lambda c: has_generator(c) or not {c.model.lora, c.model.load_in_4bit} & {"generator", "both"},
        NO_GENERATOR,
    ),
    Rule(("lora",), lambda c: c.model.lora == "none" or trains_adapted(c), "that model is not trained"),
    Rule(
        ("teacher_cache",),
        lambda c: not c.scoring.teacher_cache or not trains_generator(c),
        "the generator is trained, so that its scores change; --freeze generator keeps them",
    ),
    Rule(
        ("candidates_by",),
        lambda c: c.objective.candidates_by != "generator" or bool(c.scoring.teacher_cache),
        "the generator reads before passages are embedded only if its scores are stored (--teacher_cache)",
    ),
    Rule(
        ("candidates_by", "candidates"),
        lambda c: c.objective.candidates_by != "generator" or c.objective.candidates != "all",
        "of all passages there are none to choose",
    ),
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
        "it is not one of recall@ and hit@ 1, 5 and 10, mrr@10, ndcg@10, exact_match, f1, rougeL",
    ),
    Rule(
        ("metric_for_best_model", "eval_answers"),
        lambda c: (
            not picks_best(c)
            or c.evaluation.metric_for_best_model not in OF_ANSWERS
            or (has_generator(c) and c.evaluation.eval_answers)
        ),
        "the metric is one of answers, and no answers are evaluated",
    ),
    Rule(
        ("warmup_steps", "warmup_ratio"),
        lambda c: not (c.optim.warmup_steps and c.optim.warmup_ratio),
        "each of them is the length of the warm-up",
    ),
    Rule(
        ("lm_warmup_steps",),
        lambda c: not c.optim.lm_warmup_steps or not trains_generator(c) or rate_of_generator(c) > 0,
        "the generator's learning rate is 0",
    ),
)


def trains_adapted(c: RunConfig) -> bool:
    """Are all models trained that `--lora` gives adapters to?"""
    wanted = MODEL_CHOICES[1:3] if c.model.lora == "both" else (c.model.lora,)
    return all({"retriever": trains_retriever, "generator": trains_generator}[name](c) for name in wanted)


def rate_of_generator(c: RunConfig) -> float:
    rate = c.optim.generator_learning_rate
    return c.optim.learning_rate if rate is None else rate


def check_contrary(config: RunConfig) -> None:
    """Raises UserError for settings, given in a recipe or by a flag, that other settings contradict."""
    for rule in CONTRARY:
        if not rule.works(config) and (given := [name for name in rule.settings if name in config.explicit]):
            values = config.flat()
            raise UserError(
                ", ".join(f"--{name} {str(values[name]).lower()}" for name in given) + f": {rule.reason}",
                fix="leave one of them out",
            )
