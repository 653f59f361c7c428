"""A retriever's folder as sentence-transformers describes it, read and written: pooling, normalisation, prompts,
lengths; and ours beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.errors import UserError, choose
from ds_rag.pooling import POOLERS

OWN_SETTINGS = "ds_rag.json"  # what sentence-transformers' own files have no place for


@dataclass
class RetrieverSettings:
    """What turns hidden states into embeddings and texts into tokens; saved beside the weights."""

    pooling: str = "mean"
    normalize: bool = True
    query_prefix: str = ""
    passage_prefix: str = ""
    max_query_length: int = 64
    max_passage_length: int = 200
    temperature: float = 0.05
    learn_temperature: bool = False


def is_decoder(config: Any) -> bool:
    """Is there a causal LM of this type, and no masked one?"""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    return config.model_type in CAUSAL and config.model_type not in MASKED


def described(folder: Path | None, config: Any, pooling: str = "auto") -> RetrieverSettings:
    """Pooling, normalisation and prompts as the folder's own files describe them, else the usual defaults.

    pooling: the flag; where it chooses one, a pooling that is not supported is no error.
    """
    settings = RetrieverSettings(pooling="last" if is_decoder(config) else "mean")
    if folder is None:
        return settings
    if (own := read_json(folder / OWN_SETTINGS)) is not None:
        return RetrieverSettings(**own)
    modules = read_json(folder / "modules.json")
    if modules is None:
        return settings
    kinds = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise UserError(
            f"--retriever {folder}: a module that is not supported",
            found=", ".join(sorted(unknown)),
            expected="Transformer, Pooling, Normalize",
        )
    settings.normalize = "Normalize" in kinds
    if pooling == "auto" and "Pooling" in kinds:
        settings.pooling = read_pooling(folder, read_json(folder / kinds["Pooling"] / "config.json") or {})
    prompts = (read_json(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    settings.query_prefix = prompts.get("query") or ""
    settings.passage_prefix = prompts.get("document") or prompts.get("passage") or ""
    return settings


def length_limit(folder: Path | None, config: Any, tokenizer: Any) -> int:
    """The longest text that the model's positions, its tokenizer and a sentence-transformers folder allow."""
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    if folder is not None and not (folder / OWN_SETTINGS).is_file():
        limits.append((read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length"))
    return min(int(n) for n in limits if n)


def read_pooling(folder: Path, config: dict[str, Any]) -> str:
    """The one pooling of a sentence-transformers Pooling module, in its old or new form."""
    old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
    flagged = [k.removeprefix("pooling_mode_") for k, v in config.items() if k.startswith("pooling_mode_") and v]
    modes = [config["pooling_mode"]] if "pooling_mode" in config else flagged or ["mean"]
    names = [old.get(str(m), str(m)) for m in modes]
    if len(names) != 1 or names[0] not in POOLERS or not config.get("include_prompt", True):
        raise UserError(
            f"--retriever {folder}: a pooling that is not supported",
            found=f"{modes}, include_prompt {config.get('include_prompt', True)}",
            expected=f"one of {', '.join(POOLERS)}, prompts included",
            fix="choose one with --pooling",
        )
    return names[0]


def apply_flags(settings: RetrieverSettings, model: ModelConfig, data: DataConfig, limit: int) -> None:
    """Flags win over what the folder says; no length exceeds the limit."""
    if model.pooling != "auto":
        choose(POOLERS, model.pooling, "--pooling")
        settings.pooling = model.pooling
    if model.normalize != "auto":
        settings.normalize = model.normalize == "true"
    if model.query_prefix is not None:
        settings.query_prefix = model.query_prefix
    if model.passage_prefix is not None:
        settings.passage_prefix = model.passage_prefix
    if model.temperature is not None:
        settings.temperature = model.temperature
    settings.learn_temperature = model.learn_temperature
    settings.max_query_length = min(data.max_query_length, limit)
    settings.max_passage_length = min(data.max_passage_length, limit)


def describe_sentence_transformer(hidden_size: int, settings: RetrieverSettings, folder: Path) -> None:
    """sentence-transformers' own description of pooling, normalisation and prompts, and ours beside it."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * settings.normalize
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    write = {
        "modules.json": [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": hidden_size}
        | {f"pooling_mode_{long}": settings.pooling == short for short, long in names.items()},
        "sentence_bert_config.json": {
            "max_seq_length": max(settings.max_query_length, settings.max_passage_length),
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": settings.query_prefix, "document": settings.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if settings.normalize else "dot",
        },
        OWN_SETTINGS: asdict(settings),
    }
    for path, _ in modules:
        (folder / path).mkdir(parents=True, exist_ok=True)
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
