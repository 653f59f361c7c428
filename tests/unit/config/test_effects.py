"""Settings that do nothing under the others are said, and those that contradict them are errors.

The variants: every field of the configuration is either in a rule or among those that always have an effect; each rule
is tried on both sides; given by a flag, by a recipe, by nobody.
"""

from __future__ import annotations

import io
import re
from dataclasses import fields
from types import SimpleNamespace

import pytest

from ds_rag.config import SECTIONS, ObjectiveConfig, RunConfig, build
from ds_rag.config.contradictions import CONTRARY, METRICS, OF_ANSWERS
from ds_rag.config.effects import IDLE, idle
from ds_rag.config.flags import parse
from ds_rag.config.objectives import CANDIDATES, NOTHING, OBJECTIVES, POSITIVE
from ds_rag.evaluation.evaluator import KS
from ds_rag.run.assemble import check_labels
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.objectives import make_objective

ROWS = ["--train_data", "rows.jsonl", "--eval_data", "dev.jsonl"]
# What has its effect whatever else is set, as long as its own value says so.
ALWAYS = """train_data eval_data corpus query_column answer_column positive_column passages_column negatives_column
    id_column document_column title_column place_column
    on_bad_row assume_first_positive train_labels max_train_samples max_query_length max_passage_length
    retriever encoders pooling normalize query_prefix passage_prefix gradient_checkpointing trust_remote_code
    temperature lexical_prior
    objective pool retriever_chunk
    per_device_train_batch_size gradient_accumulation_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_bad_steps max_grad_norm max_steps lr_scheduler_type bf16 fp16 seed
    per_device_eval_batch_size index_factory vector_cache index_shards top_k
    output_dir deepspeed_retriever resume save_steps collective_timeout report_to detect_collapse
    debug"""

INFONCE, FROZEN = ["--objective", "infonce"], ["--freeze", "generator"]
SCORES = ["--teacher", "scores"]
DOES_NOTHING = [
    (["--world_seed", "3"], "world_seed"),
    (["--eval_fraction", "0.1"], "eval_fraction"),
    (["--fold", "1"], "fold"),
    (["--fold_corpus", "all"], "fold_corpus"),
    (["--eval_data", "none", "--cluster_column", "c"], "cluster_column"),
    (["--generator", "G", *INFONCE], "generator"),
    (["--max_answer_length", "9", *INFONCE], "max_answer_length"),
    (["--prompt_template", "{passage} {query}", *INFONCE], "prompt_template"),
    (["--chat_template", *INFONCE], "chat_template"),
    (["--prompt_version", "1", *INFONCE], "prompt_version"),
    (["--share_prefixes", "false", *INFONCE], "share_prefixes"),
    (["--teacher_cache", "T", *INFONCE], "teacher_cache"),
    (["--deepspeed_generator", "D", *INFONCE], "deepspeed_generator"),
    (["--micro_cells", "4", *INFONCE], "micro_cells"),
    (["--memory_budget", "4", *INFONCE], "memory_budget"),
    (["--eval_answers", "false", *INFONCE], "eval_answers"),
    (["--decode", "top1", *INFONCE], "decode"),
    (["--max_new_tokens", "5", *INFONCE], "max_new_tokens"),
    (["--generator_learning_rate", "1e-4", *INFONCE], "generator_learning_rate"),
    (["--generator_learning_rate", "1e-4", *FROZEN], "generator_learning_rate"),
    (["--lm_warmup_steps", "9", *FROZEN], "lm_warmup_steps"),
    (["--generator_backward", "posterior", *FROZEN], "generator_backward"),
    (["--generator_backward", "exact", "--objective", "emdr2", "--reader_loss", "none"], "generator_backward"),
    (["--retriever_learning_rate", "1e-4", "--freeze", "retriever"], "retriever_learning_rate"),
    (["--contrastive_weight", "1", "--freeze", "retriever"], "contrastive_weight"),
    (["--lexical_prior_learning_rate", "1"], "lexical_prior_learning_rate"),
    (
        ["--lexical_prior_learning_rate", "1", "--lexical_prior", "2", "--freeze", "retriever"],
        "lexical_prior_learning_rate",
    ),
    (["--lora_r", "4"], "lora_r"),
    (["--lora_alpha", "4"], "lora_alpha"),
    (["--lora_dropout", "0.1"], "lora_dropout"),
    (["--lora_target_modules", "q"], "lora_target_modules"),
    (["--candidates", "3", *INFONCE], "candidates"),
    (["--prior", "pool", "--objective", "positive_only"], "prior"),
    (["--answer_logprob", "mean", *INFONCE], "answer_logprob"),
    (["--answer_logprob", "mean", "--objective", "pdist", "--reader_loss", "none"], "answer_logprob"),
    (["--answer_exponent", "1", *INFONCE], "answer_exponent"),
    (["--answer_weight", "2", "--objective", "pdist", "--reader_loss", "none"], "answer_weight"),
    (["--answer_logprob", "mean", "--answer_exponent", "0.5"], "answer_logprob"),
    (["--answer_logprob", "mean", *SCORES], "answer_logprob"),
    (["--answer_exponent", "1", *SCORES], "answer_exponent"),
    (["--generator", "G", *SCORES], "generator"),
    (["--max_answer_length", "9", *SCORES], "max_answer_length"),
    (["--reader_loss", "none", "--objective", "pdist", *SCORES], "reader_loss"),
    (["--scores_column", "s"], "scores_column"),
    ([*SCORES, *INFONCE], "teacher"),
    ([*SCORES, "--objective", "positive_only"], "teacher"),
    (["--gate_gain", "1", *INFONCE], "gate_gain"),
    (["--gate_margin", "1", "--objective", "positive_only"], "gate_margin"),
    (["--index_candidates", "3"], "index_candidates"),
    (["--candidates_by", "generator", "--teacher_cache", "T", *FROZEN], "candidates_by"),
    (["--reader_loss", "posterior"], "reader_loss"),
    (["--reader_loss", "posterior", "--objective", "emdr2", *FROZEN], "reader_loss"),
    (["--target_temperature", "2", "--objective", "emdr2"], "target_temperature"),
    (["--lm_tokens", "answer"], "lm_tokens"),
    (["--contrastive_symmetric"], "contrastive_symmetric"),
    (["--posterior_threshold", "0.1"], "posterior_threshold"),
    (["--micro_cells", "4", "--generator_backward", "one_pass"], "micro_cells"),
    (["--memory_budget", "4", "--generator_backward", "one_pass"], "memory_budget"),
    (["--memory_budget", "4", "--generator_backward", "exact", "--micro_cells", "4"], "memory_budget"),
    (
        ["--learning_rate", "1", "--retriever_learning_rate", "0.1", "--generator_learning_rate", "0.1"],
        "learning_rate",
    ),
    (["--num_train_epochs", "3", "--max_steps", "9"], "num_train_epochs"),
    (["--lm_warmup_learning_rate", "0.1"], "lm_warmup_learning_rate"),
    (["--eval_data", "none", "--refresh_index", "9"], "refresh_index"),
    (["--eval_data", "none", "--refresh_mode", "async"], "refresh_mode"),
    (["--candidates_from", "bm25", "--eval_data", "none", "--refresh_index", "9"], "refresh_index"),
    (["--eval_data", "none", "--max_eval_samples", "9"], "max_eval_samples"),
    (["--eval_data", "none", "--lexical_lines", "false"], "lexical_lines"),
    (["--hybrid", "bm25"], "hybrid"),
    (["--rerank", "9"], "rerank"),
    (["--refresh_fraction", "0.5", "--refresh_index", "0"], "refresh_fraction"),
    (["--refresh_staleness", "9"], "refresh_staleness"),
    (["--refresh_mode", "async", "--train_side", "query"], "refresh_mode"),
    (["--refresh_fraction", "0.5", "--train_side", "query"], "refresh_fraction"),
    (["--metric_for_best_model", "f1"], "metric_for_best_model"),
    (["--deepspeed", "A", "--deepspeed_retriever", "B", "--deepspeed_generator", "C"], "deepspeed"),
    (["--save_total_limit", "5", "--save_steps", "0"], "save_total_limit"),
    (["--resume_changed"], "resume_changed"),
]
WORKS = [
    ["--learn_temperature", "false", "--freeze", "retriever"],
    ["--learn_temperature", "--freeze", "generator"],
    ["--train_side", "query", "--freeze", "generator"],
    ["--candidates", "3", "--candidates_from", "index", "--index_candidates", "3", "--answer_logprob", "mean"],
    ["--target_temperature", "1", "--objective", "pdist", "--reader_loss", "posterior", "--answer_logprob", "mean"],
    ["--answer_exponent", "0.5", "--answer_weight", "2"],
    ["--answer_weight", "2", "--objective", "rag_token"],
    ["--lexical_prior", "2", "--lexical_prior_learning_rate", "1"],
    ["--lexical_prior_learning_rate", "1", "--retriever", "R"],
    [*SCORES, "--scores_column", "s", "--candidates", "3", "--prior", "pool", "--gate_margin", "1"],
    [*SCORES, "--answer_weight", "2", "--objective", "pdist", "--target_temperature", "1"],
    ["--gate_gain", "1", "--gate_margin", "0.2", "--objective", "pdist"],
    ["--generator_backward", "posterior", "--posterior_threshold", "0.1", "--micro_cells", "4"],
    ["--memory_budget", "4", "--micro_cells", "4"],
    ["--generator_backward", "exact", "--memory_budget", "4"],
    ["--memory_budget", "4", *FROZEN],
    ["--teacher_cache", "T", *FROZEN],
    ["--teacher_cache", "T", "--objective", "pdist", "--reader_loss", "none"],
    ["--contrastive_symmetric", "--objective", "infonce", "--retriever_learning_rate", "1"],
    ["--contrastive_weight", "1", "--contrastive_symmetric", "--answer_logprob", "mean"],
    ["--lora", "retriever", "--lora_r", "4", "--lora_alpha", "4", "--lora_dropout", "0.1", "--retriever", "R"],
    ["--objective", "positive_only", "--lm_tokens", "answer", "--lm_warmup_steps", "4"],
    ["--refresh_mode", "async", "--refresh_staleness", "9", "--refresh_fraction", "0.5", "--max_eval_samples", "3"],
    ["--candidates_from", "index", "--eval_data", "none", "--refresh_index", "9"],
    ["--candidates_from", "index,bm25", "--eval_data", "none", "--refresh_index", "9", "--index_candidates", "3"],
    ["--early_stopping_patience", "3", "--metric_for_best_model", "exact_match"],
    ["--learning_rate", "1", "--retriever_learning_rate", "0.1"],
    ["--save_total_limit", "5", "--save_steps", "0", "--load_best_model_at_end"],
    ["--resume", "auto", "--resume_changed"],
    ["--num_train_epochs", "auto", "--warmup_ratio", "0.1", "--metric_for_best_model", "f1"],
    ["--folds", "3", "--fold", "2", "--fold_corpus", "all", "--cluster_column", "c", "--eval_data", "none"],
    ["--eval_fraction", "0.2", "--max_eval_samples", "9", "--eval_data", "none"],
]
CONTRADICTS = [
    (["--folds", "3", "--fold", "1"], "--folds 3: folds hold evaluation rows out"),
    (["--folds", "3", "--fold", "1", "--eval_data", "none", "--train_data", "builtin"], "split of their own"),
    (["--freeze", "retriever", "--learn_temperature"], "--learn_temperature true"),
    (["--freeze", "retriever", *INFONCE], "--freeze retriever: no model would be trained"),
    (["--freeze", "retriever", "--objective", "emdr2", "--reader_loss", "none"], "no model would be trained"),
    (["--freeze", "retriever", "--train_side", "query"], "--train_side query: it trains the encoder of queries"),
    (["--teacher_cache", "T"], "--teacher_cache t: the generator is trained"),
    ([*SCORES, "--objective", "pdist", "--reader_loss", "prior"], "--reader_loss prior: it trains a generator"),
    ([*SCORES, "--candidates_from", "index"], "--candidates_from index: the candidates are the row's own"),
    ([*SCORES, "--train_data", "builtin", "--eval_data", "none"], "the built-in rows have no scores"),
    (["--lora", "generator", "--generator", "G", *INFONCE], "no generator"),
    (["--load_in_4bit", "generator", "--generator", "G", *INFONCE, "--freeze", "generator"], "no generator"),
    (["--lora", "generator", "--generator", "G", "--objective", "emdr2", "--reader_loss", "none"], "is not trained"),
    (["--early_stopping_patience", "3", "--eval_data", "none"], "--early_stopping_patience 3: without evaluation rows"),
    (["--load_best_model_at_end", "--eval_data", "none"], "--load_best_model_at_end true: without evaluation rows"),
    (["--early_stopping_patience", "3", "--refresh_index", "0"], "nothing is evaluated before the end"),
    (["--early_stopping_patience", "3", "--metric_for_best_model", "bleu"], "--metric_for_best_model bleu"),
    (["--load_best_model_at_end", "--metric_for_best_model", "f1", "--eval_answers", "false"], "of answers"),
    (["--load_best_model_at_end", "--metric_for_best_model", "f1", *INFONCE], "of answers"),
    (["--lm_warmup_steps", "9", "--generator_learning_rate", "0"], "learning rate is 0"),
    (["--warmup_steps", "9", "--warmup_ratio", "0.1"], "--warmup_steps 9, --warmup_ratio 0.1: each of them"),
]


def said(argv: list[str]) -> list[str]:
    return [line.split()[0].removeprefix("--") for line in idle(parse([*ROWS, *argv]))]


def test_every_field_is_in_a_rule_or_always_has_an_effect():
    ruled = {name for rule in (*IDLE, *CONTRARY) for name in rule.settings}
    every = {f.name for cls in SECTIONS.values() for f in fields(cls)}
    assert ruled | set(ALWAYS.split()) == every and not ruled & set(ALWAYS.split())
    assert {name for _, name in DOES_NOTHING} == {name for rule in IDLE for name in rule.settings}
    assert len(CONTRADICTS) >= len(CONTRARY)


@pytest.mark.parametrize(("argv", "name"), DOES_NOTHING, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_flag_that_does_nothing_is_said(argv, name):
    assert name in said(argv)
    line = next(x for x in idle(parse([*ROWS, *argv])) if x.startswith(f"--{name} "))
    assert "has no effect: " in line


@pytest.mark.parametrize("argv", WORKS, ids=" ".join)
def test_a_flag_that_does_something_is_not(argv):
    assert said(argv) == []


@pytest.mark.parametrize(("argv", "says"), CONTRADICTS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_contradictions_are_errors_before_anything_is_opened(argv, says):
    with pytest.raises(UserError) as caught:
        parse([*ROWS, *argv])
    assert says in str(caught.value)


def test_a_saved_run_opens_all_the_same():
    given = {"freeze": "retriever", "learn_temperature": True, "early_stopping_patience": 3, "objective": "infonce"}
    values = build(given).flat()
    assert {name: values[name] for name in given} == given
    with pytest.raises(UserError):  # the same from flags
        parse([*ROWS, *(word for name, value in given.items() for word in (f"--{name}", str(value).lower()))])


def test_recipes_and_defaults_are_quiet(tmp_path):
    for argv in ([], ROWS, ["--max_steps", "3"], [*ROWS, "--lora_r", "16"]):
        assert idle(parse(argv)) == []
    (tmp_path / "r.yaml").write_text("lora_r: 4\ntarget_temperature: 3\nlearn_temperature: true\n")
    recipe = ["--config", str(tmp_path / "r.yaml")]
    assert idle(parse([*recipe, *ROWS])) == []
    with pytest.raises(UserError, match="--learn_temperature"):  # contradictions of a recipe are errors too
        parse([*recipe, *ROWS, "--freeze", "retriever"])


def test_the_table_of_objectives_knows_what_their_classes_do():
    settings = {f.name for f in fields(ObjectiveConfig)}
    for name, spec in OBJECTIVES.items():
        objective = make_objective(build({"objective": name}).objective)
        assert (objective.name, objective.spec) == (name, spec)
        assert set(spec.settings) <= settings and spec.reads in (CANDIDATES, POSITIVE, NOTHING)
        assert spec.needs_generator or not spec.trains_generator("prior")
    assert RunConfig().objective.objective in OBJECTIVES


def test_the_metrics_are_those_that_are_measured():
    found = {f"{kind}@{k}" for kind in ("recall", "hit") for k in KS} | {"mrr@10", "ndcg@10", *OF_ANSWERS}
    assert all(re.fullmatch(METRICS, name) for name in found)
    assert not re.fullmatch(METRICS, f"recall@{max(KS) + 1}")


@pytest.mark.parametrize("labelled", [True, False])
def test_pairs_without_labels(labelled):
    data = SimpleNamespace(train=[SimpleNamespace(positives=()), SimpleNamespace(positives=(1,) * labelled)])
    stream = io.StringIO()
    by_flag = parse([*ROWS, "--contrastive_weight", "1"])
    by_recipe = build({"contrastive_weight": 1.0})
    check_labels(build({}), data, Console(stream))
    check_labels(by_recipe, data, Console(stream))
    assert ("no training row has a labelled passage" in stream.getvalue()) != labelled
    if labelled:
        return check_labels(by_flag, data, Console(stream))
    with pytest.raises(UserError, match="--contrastive_weight"):
        check_labels(by_flag, data, Console(stream))
    return None
