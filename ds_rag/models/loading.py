"""Opening models: a folder, or `config:FILE` for a new one whose tokenizer is trained on the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ds_rag import dist
from ds_rag.config import DataConfig, ModelConfig, find_file
from ds_rag.errors import UserError, choose
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import PASSAGE_ENCODER, Retriever, RetrieverSettings
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.pooling import POOLERS

Texts = Callable[[], Iterable[str]]


def load_retriever(model: ModelConfig, data: DataConfig, texts: Texts, scratch: Path) -> Retriever:
    """The retriever that the flags describe, in float32 on the CPU.

    texts: the corpus, read only to train the tokenizer of a `config:FILE`. scratch: where that tokenizer is kept.
    """
    if model.retriever.startswith("config:"):
        encoder, tokenizer = build("AutoModel", model.retriever, "--retriever", texts, scratch / "retriever")
        second = build("AutoModel", model.retriever, "--retriever", texts, scratch / "retriever")[0]
        settings = described(None, encoder.config)
        two = second if model.encoders == "two" else None
    else:
        folder = model_folder(model.retriever, "--retriever")
        encoder, tokenizer = (
            open_encoder(folder, model.trust_remote_code),
            open_tokenizer(folder, model.trust_remote_code),
        )
        settings = described(folder, encoder.config)
        own_second = folder / PASSAGE_ENCODER
        two = None
        if own_second.is_dir() or model.encoders == "two":
            two = open_encoder(own_second if own_second.is_dir() else folder, model.trust_remote_code)
    apply_flags(settings, model, data, encoder.config)
    checkpoint_activations((encoder, two), model.gradient_checkpointing)
    return Retriever(encoder, tokenizer, settings, two)


def load_generator(model: ModelConfig, texts: Texts, scratch: Path) -> Generator:
    """The causal LM that the flags describe, in float32 on the CPU; arguments as in `load_retriever`."""
    from transformers import AutoModelForCausalLM

    if model.generator.startswith("config:"):
        lm, tokenizer = build(
            "AutoModelForCausalLM", model.generator, "--generator", texts, scratch / "generator"
        )
    else:
        folder = model_folder(model.generator, "--generator")
        tokenizer = open_tokenizer(folder, model.trust_remote_code)
        lm = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=model.trust_remote_code
        )
    checkpoint_activations((lm,), model.gradient_checkpointing)
    return Generator(lm, tokenizer)


def load_pair(run: Path, model: ModelConfig, data: DataConfig) -> tuple[Retriever, Generator | None]:
    """The models that a run left in `run/retriever` and `run/generator` (the latter absent after `infonce`)."""
    saved = ModelConfig(
        **{**vars(model), "retriever": str(run / "retriever"), "generator": str(run / "generator")}
    )
    retriever = load_retriever(saved, data, list, run)
    return retriever, load_generator(saved, list, run) if (run / "generator").is_dir() else None


def build(auto_class: str, source: str, flag: str, texts: Texts, tokenizer_folder: Path) -> tuple[Any, Any]:
    """A new model from a configuration file and its tokenizer, trained once and then read from its folder."""
    import transformers

    file = find_file(source.removeprefix("config:"), flag)
    try:
        settings = json.loads(file.read_text())
        kind = settings.pop("model_type")
        vocab_size = settings.pop("vocab_size")
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(
            f"{flag} {source}: not a model configuration",
            found=error,
            expected="JSON with model_type and vocab_size",
        ) from None
    if not (tokenizer_folder / "tokenizer_config.json").exists() and dist.rank() == 0:
        train_tokenizer(texts(), vocab_size, tokenizer_folder)
    dist.barrier()
    tokenizer = open_tokenizer(tokenizer_folder)
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **tokens, **settings)
    if config.architectures is None and hasattr(config, "cls_token_id"):
        config.cls_token_id = config.sep_token_id = None
    return getattr(transformers, auto_class).from_config(config), tokenizer


def model_folder(path: str, flag: str) -> Path:
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{flag}: not a model folder",
            found=f"no config.json in {path}",
            expected="a folder that from_pretrained opens, or config:FILE (nothing is downloaded)",
        )
    return folder


def open_encoder(folder: Path, trust_remote_code: bool) -> Any:
    """The encoder alone, also of an encoder-decoder such as T5."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    auto: Any = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
    return auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)


def described(folder: Path | None, config: Any) -> RetrieverSettings:
    """Pooling, normalisation and prompts as the folder's own files describe them, else the usual defaults."""
    decoder = any("CausalLM" in name for name in config.architectures or [])
    settings = RetrieverSettings(pooling="last" if decoder else "mean")
    if folder is None:
        return settings
    if (own := read_json(folder / "ds_rag.json")) is not None:
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
    settings.pooling = read_pooling(
        folder, read_json(folder / kinds.get("Pooling", "") / "config.json") or {}
    )
    prompts = (read_json(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    settings.query_prefix = prompts.get("query") or ""
    settings.passage_prefix = prompts.get("document") or prompts.get("passage") or ""
    limit = (read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if limit:
        settings.max_query_length = settings.max_passage_length = int(limit)
    return settings


def read_pooling(folder: Path, config: dict[str, Any]) -> str:
    """The one pooling of a sentence-transformers Pooling module, in its old or new form."""
    old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
    modes = [config["pooling_mode"]] if "pooling_mode" in config else []
    modes += [
        k.removeprefix("pooling_mode_") for k, v in config.items() if k.startswith("pooling_mode_") and v
    ]
    names = [old.get(str(m), str(m)) for m in modes]
    if len(names) != 1 or names[0] not in POOLERS or not config.get("include_prompt", True):
        raise UserError(
            f"--retriever {folder}: a pooling that is not supported",
            found=f"{modes}, include_prompt {config.get('include_prompt', True)}",
            expected=f"one of {', '.join(POOLERS)}, prompts included",
            fix="choose one with --pooling",
        )
    return names[0]


def apply_flags(settings: RetrieverSettings, model: ModelConfig, data: DataConfig, config: Any) -> None:
    """Flags win over what the folder says; no length exceeds the folder's or the model's own limit."""
    if model.pooling != "auto":
        choose(POOLERS, model.pooling, "--pooling")
        settings.pooling = model.pooling
    if model.normalize != "auto":
        settings.normalize = model.normalize == "true"
    if model.query_prefix is not None:
        settings.query_prefix = model.query_prefix
    if model.passage_prefix is not None:
        settings.passage_prefix = model.passage_prefix
    room = getattr(config, "max_position_embeddings", None) or 1 << 30
    settings.max_query_length = min(data.max_query_length, room)
    settings.max_passage_length = min(data.max_passage_length, room)
    settings.temperature, settings.learn_temperature = model.temperature, model.learn_temperature


def checkpoint_activations(models: Iterable[Any], on: bool) -> None:
    """Non-reentrant only: the reentrant form fails or is silently wrong under ZeRO."""
    for model in models:
        if on and model is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
