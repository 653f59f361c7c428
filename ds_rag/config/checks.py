"""Checks of a complete configuration: numbers out of bounds, and settings that contradict each other."""

from __future__ import annotations

from dataclasses import fields

from ds_rag.config.run_config import SECTIONS, RunConfig
from ds_rag.config.sections import DataConfig, EvaluationConfig, ModelConfig
from ds_rag.runtime.errors import UserError


def validate(config: RunConfig) -> None:
    """Raises UserError for numbers out of bounds and for settings that contradict each other."""
    check_bounds(config)
    if config.optim.bf16 and config.optim.fp16:
        raise UserError("--bf16 and --fp16 are both set", expected="at most one of them")
    check_folds(config.data)
    check_adapters(config.model)
    check_evaluation(config.evaluation)


def check_bounds(config: RunConfig) -> None:
    """Checks every number, whether from a flag, a recipe, or the configuration of a saved run."""
    for section, cls in SECTIONS.items():
        for f in fields(cls):
            value, bounds = getattr(getattr(config, section), f.name), f.metadata["bounds"]
            if bounds is None or (value is None and f.default is None):
                continue
            if isinstance(value, str) and "str" not in str(f.type).split(" | "):  # from an edited config.json
                raise UserError(f"--{f.name}: wrong type", found=repr(value), expected="a number")
            bounds.check(value, f"--{f.name}")


def check_folds(data: DataConfig) -> None:
    """Of several folds one is named."""
    if data.folds and data.fold is None:
        raise UserError(f"--folds {data.folds}: which is evaluated?", expected=f"--fold 0 to {data.folds - 1}")
    if data.folds and data.fold is not None and data.fold >= data.folds:
        raise UserError(
            f"--fold {data.fold}: no such fold", expected=f"0 to {data.folds - 1}, for --folds {data.folds}"
        )


def check_adapters(model: ModelConfig) -> None:
    """Adapters and 4-bit weights need a pretrained model, and 4-bit weights cannot be trained."""
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
                f"--load_in_4bit {model.load_in_4bit}: 4-bit weights cannot be trained",
                fix=f"--lora {name}, or --freeze {name}",
            )


def check_evaluation(settings: EvaluationConfig) -> None:
    if settings.refresh_mode == "async" and settings.load_best_model_at_end:
        raise UserError(
            "--load_best_model_at_end needs --refresh_mode sync",
            found="--refresh_mode async: when an evaluation is complete, the weights that it evaluated are gone",
            fix="leave one of them out",
        )
