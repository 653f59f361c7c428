"""What no single value shows: settings out of their range, and settings that contradict each other."""

from __future__ import annotations

from ds_rag.config.sections import ModelConfig, RunConfig, ScoringConfig, StageConfig
from ds_rag.errors import UserError

AT_LEAST_ONE = {
    "data": ("max_query_length", "max_passage_length", "max_answer_length", "max_train_samples", "max_eval_samples"),
    "model": ("lora_r", "lora_alpha"),
    "objective": ("index_candidates",),
    "optim": ("per_device_train_batch_size", "gradient_accumulation_steps"),
    "stage": ("per_device_eval_batch_size", "top_k", "max_new_tokens", "refresh_staleness"),
}


def validate(config: RunConfig) -> None:
    """Contradictions that no single value shows. Raises UserError."""
    optim, objective = config.optim, config.objective
    if optim.bf16 and optim.fp16:
        raise UserError("--bf16 and --fp16 are both set", expected="at most one of them")
    for section, names in AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: too small", found=value, expected="1 or more")
    rates = ("learning_rate", "retriever_learning_rate", "generator_learning_rate", "weight_decay")
    for name in (*rates, "warmup_steps", "max_bad_steps"):
        if (getattr(optim, name) or 0) < 0:
            raise UserError(f"--{name}: negative", found=getattr(optim, name), expected="0 or more")
    if config.model.temperature is not None and config.model.temperature <= 0:
        raise UserError("--temperature: not positive", found=config.model.temperature, expected="more than 0")
    if objective.candidates != "all" and (not objective.candidates.isdigit() or int(objective.candidates) < 1):
        raise UserError("--candidates: unknown value", found=objective.candidates, expected="a number >= 1, or 'all'")
    if config.run.collective_timeout <= 0:
        raise UserError("--collective_timeout: not positive", found=config.run.collective_timeout, expected="minutes")
    check_adapters(config.model)
    check_scoring(config.scoring)
    check_stage(config.stage)
    if optim.max_steps == 0 or optim.num_train_epochs <= 0:
        raise UserError("nothing to train", found=f"--max_steps {optim.max_steps}", expected="-1, or 1 and more")


def check_adapters(model: ModelConfig) -> None:
    """Adapters and 4-bit weights belong to a pretrained model; 4-bit weights cannot learn."""
    if not 0 <= model.lora_dropout < 1:
        raise UserError("--lora_dropout: not a share", found=model.lora_dropout, expected="0 or more, below 1")
    for name in ("retriever", "generator"):
        adapted, small = (choice in (name, "both") for choice in (model.lora, model.load_in_4bit))
        source = getattr(model, name)
        if (adapted or small) and source.startswith("config:"):
            flag = "lora" if adapted else "load_in_4bit"
            raise UserError(f"--{flag}: the {name} is a new model", found=source, expected=f"--{name} FOLDER")
        if adapted and model.freeze == name:
            raise UserError(f"--lora {model.lora} and --freeze {name}", expected="one of them")
        if small and not adapted and model.freeze != name:
            raise UserError(
                f"--load_in_4bit {model.load_in_4bit}: weights in 4 bits cannot learn",
                fix=f"--lora {name}, or --freeze {name}",
            )


def check_scoring(scoring: ScoringConfig) -> None:
    if scoring.micro_cells != "auto" and (not scoring.micro_cells.isdigit() or int(scoring.micro_cells) < 1):
        raise UserError("--micro_cells: unknown value", found=scoring.micro_cells, expected="a number >= 1, or 'auto'")
    if scoring.memory_budget is not None and scoring.memory_budget <= 0:
        raise UserError("--memory_budget: not positive", found=scoring.memory_budget, expected="GB, more than 0")
    if not 0 <= scoring.posterior_threshold < 1:
        raise UserError("--posterior_threshold: not a share", found=scoring.posterior_threshold, expected="0 to 1")
    if scoring.retriever_chunk < 0:
        raise UserError("--retriever_chunk: negative", found=scoring.retriever_chunk, expected="0 (all) or more")


def check_stage(stage: StageConfig) -> None:
    if stage.refresh_fraction != "auto":
        try:
            fits = 0 < float(stage.refresh_fraction) <= 1
        except ValueError:
            fits = False
        if not fits:
            raise UserError(
                "--refresh_fraction: not a share", found=stage.refresh_fraction, expected="more than 0 to 1, or 'auto'"
            )
    if stage.refresh_mode == "async" and stage.load_best_model_at_end:
        raise UserError(
            "--load_best_model_at_end needs --refresh_mode sync",
            found="--refresh_mode async: the figures come when the weights they belong to are gone",
            fix="leave one of them out",
        )
