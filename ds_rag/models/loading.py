"""Opening models: a folder, or `config:FILE` for a new one whose tokenizer is trained on the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_rag import dist, run_files
from ds_rag.config import DataConfig, ModelConfig, find_file
from ds_rag.errors import UserError, choose
from ds_rag.models.adapters import ADAPTER_FILE, add_adapters, apply_adapters, base_folder, four_bit, wanted_by
from ds_rag.models.generator import Generator
from ds_rag.models.opening import COPY_AGAIN, opening
from ds_rag.models.retriever import OWN_SETTINGS, PASSAGE_ENCODER, Retriever, RetrieverSettings
from ds_rag.models.sharded import keep_todays_names, loading_in_pieces
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.pooling import POOLERS

Texts = Callable[[], Iterable[str]]
# With these flags a retriever's folder decides.
AS_SAVED: dict[str, Any] = {"pooling": "auto", "normalize": "auto"} | dict.fromkeys(
    ("query_prefix", "passage_prefix", "temperature")
)
# As `Retriever.embed` is fed; as transformers' generate needs it.
PADDING_SIDE = {"--retriever": "right", "--generator": "left"}


def load_retriever(
    model: ModelConfig, data: DataConfig, texts: Texts, scratch: Path, pieces: dict[str, Any] | None = None
) -> Retriever:
    """The retriever that the flags describe, in float32 on the CPU; an adapter that its folder holds is merged.

    texts: the corpus, read only to train the tokenizer of a `config:FILE`. scratch: where that is kept.
    pieces: see `loading_in_pieces`; a folder's weights are then on their ranks, in the configuration's precision.
    """
    if model.retriever.startswith("config:"):
        place = ("AutoModel", model.retriever, "--retriever", texts, scratch / "retriever")
        encoder, tokenizer = build(*place)
        two = build(*place)[0] if model.encoders == "two" else None
        folder = None
    else:
        folder = model_folder(model.retriever, "--retriever")
        encoder = open_encoder(folder, model, pieces)
        tokenizer = open_tokenizer(folder, PADDING_SIDE["--retriever"], model.trust_remote_code)
        own_second = folder / PASSAGE_ENCODER
        two = None
        if own_second.is_dir() or model.encoders == "two":
            two = open_encoder(own_second if own_second.is_dir() else folder, model, pieces)
    settings = described(folder, encoder.config, model.pooling)
    apply_flags(settings, model, data, length_limit(folder, encoder.config, tokenizer))
    checkpoint_activations((encoder, two), model.gradient_checkpointing)
    return Retriever(encoder, tokenizer, settings, two)


def retriever_texts(model: ModelConfig, data: DataConfig) -> tuple[Any, RetrieverSettings]:
    """The tokenizer of a retriever's folder and what it is given, without the weights."""
    from transformers import AutoConfig

    folder = model_folder(model.retriever, "--retriever")
    base = base_folder(folder, "--retriever")
    config = AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)
    tokenizer = open_tokenizer(folder, PADDING_SIDE["--retriever"], model.trust_remote_code)
    settings = described(folder, config, model.pooling)
    apply_flags(settings, model, data, length_limit(folder, config, tokenizer))
    return tokenizer, settings


def load_generator(model: ModelConfig, texts: Texts, scratch: Path, pieces: dict[str, Any] | None = None) -> Generator:
    """The causal LM that the flags describe, in float32 on the CPU; arguments as in `load_retriever`."""
    from transformers import AutoModelForCausalLM

    if model.generator.startswith("config:"):
        lm, tokenizer = build("AutoModelForCausalLM", model.generator, "--generator", texts, scratch / "generator")
    else:
        folder = model_folder(model.generator, "--generator")
        tokenizer = open_tokenizer(folder, PADDING_SIDE["--generator"], model.trust_remote_code)
        lm = open_weights(AutoModelForCausalLM, folder, "generator", model, pieces)
    fuse_activations(lm)
    checkpoint_activations((lm,), model.gradient_checkpointing)
    return Generator(lm, tokenizer)


def load_pair(
    run: Path, model: ModelConfig, data: DataConfig, flags: Collection[str] = ()
) -> tuple[Retriever, Generator | None]:
    """The models that a run left in `run/retriever` and `run/generator` (None after `infonce`).

    What turns texts into scores is as the run saved it (a temperature may have been learned), not as its
    configuration began; only `flags`, keys that the user gives now, win over that. A base that was in 4 bits while its
    adapter learned is so again: the adapter, the index and the run's figures are those of the rounded weights.
    """
    adapted = [name for name in ("retriever", "generator") if (run / name / ADAPTER_FILE).is_file()]
    small = [name for name in adapted if wanted_by(model.load_in_4bit, name)]
    saved = replace(
        model,
        retriever=str(run / "retriever"),
        generator=str(run / "generator"),
        encoders="shared",  # the folder itself knows of a second one
        lora="none",  # what was learned is merged when it is opened
        load_in_4bit="both" if len(small) == 2 else next(iter(small), "none"),
        **{key: default for key, default in AS_SAVED.items() if key not in flags},
    )
    retriever = load_retriever(saved, data, list, run)
    return retriever, load_generator(saved, list, run) if (run / "generator").is_dir() else None


def build(auto_class: str, source: str, flag: str, texts: Texts, tokenizer_folder: Path) -> tuple[Any, Any]:
    """A new model from a configuration file and its tokenizer, trained once and then read from its folder."""
    import transformers

    file = find_file(source.removeprefix("config:"), flag)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind, vocab_size = settings.pop("model_type"), settings.pop("vocab_size")
        if kind not in transformers.CONFIG_MAPPING:
            raise ValueError(f"model_type {kind}, which transformers does not know")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{flag} {source}: not a model configuration",
            found=f"no {error}" if isinstance(error, KeyError) else error,
            expected="a JSON object with model_type and vocab_size",
        ) from None
    if not (tokenizer_folder / "tokenizer_config.json").exists() and dist.rank() == 0:
        train_tokenizer(texts(), vocab_size, tokenizer_folder)
    dist.barrier()
    tokenizer = open_tokenizer(tokenizer_folder, PADDING_SIDE[flag])
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **tokens, **settings)
    if hasattr(config, "cls_token_id"):  # ModernBERT's default ids, which this vocabulary does not have
        config.cls_token_id = config.sep_token_id = None
    try:
        return getattr(transformers, auto_class).from_config(config), tokenizer
    except ValueError:
        raise UserError(f"{flag} {source}: not a model that {auto_class} builds", found=f"model_type {kind}") from None


def model_folder(path: str, flag: str) -> Path:
    folder = Path(path)
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_FILE).is_file():
        raise UserError(
            f"{flag}: not a model folder",
            found=f"no config.json in {path}, nor {ADAPTER_FILE}",
            expected="a folder that from_pretrained opens, or config:FILE (nothing is downloaded)",
        )
    return folder


def open_encoder(folder: Path, model: ModelConfig, pieces: dict[str, Any] | None) -> Any:
    """The encoder alone, also of an encoder-decoder such as T5."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    base = base_folder(folder, "--retriever")
    with opening(f"--retriever {folder}"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)
    auto: Any = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
    return open_weights(auto, folder, "retriever", model, pieces)


def open_weights(auto: Any, folder: Path, name: str, model: ModelConfig, pieces: dict[str, Any] | None) -> Any:
    """`from_pretrained`, with the folder's own adapter merged (beside weights in 4 bits), and new ones where --lora
    wants them."""
    base = base_folder(folder, f"--{name}")
    small = four_bit(model, name)
    merges = base != folder
    if merges and wanted_by(model.lora, name):  # saved alone, the new one would name the base without the first
        raise UserError(
            f"--lora {model.lora}: the {name}'s folder is itself an adapter",
            found=f"{ADAPTER_FILE} in {folder}",
            expected="whole weights",
            fix=f"`ds-rag merge --run RUN`, then --{name} RUN/merged/{name}",
        )
    for what, on in (("--load_in_4bit", small), ("an adapter that is to be merged", merges)):
        if pieces is not None and on:
            raise UserError(
                f"--{name} {folder}: ZeRO stage 3 together with {what}", expected="stage 0, 1 or 2, or whole weights"
            )
    with opening(f"--{name} {folder}"), loading_in_pieces(pieces):
        weights = auto.from_pretrained(base, dtype=torch.float32, trust_remote_code=model.trust_remote_code, **small)
    if pieces is not None:
        keep_todays_names(weights)
    with opening(f"--{name} {folder}"):
        weights = apply_adapters(weights, folder, merge=not small)
    if wanted_by(model.lora, name):
        add_adapters(weights, model, base)
    return weights


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
        return run_files.record(RetrieverSettings, own, folder / OWN_SETTINGS, None)
    modules = read_json(folder / "modules.json", list)
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


def checkpoint_activations(models: Iterable[Any], on: bool) -> None:
    """Non-reentrant only: the reentrant form fails or is silently wrong under ZeRO."""
    for model in models:
        if on and model is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's GELU as one operation instead of eight: the same function (torch's GELU with approximate="tanh"), in
    less time and without the intermediate tensors."""
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def read_json(path: Path, kind: type = dict) -> Any:
    """None where there is no such file. Raises UserError where it holds no `kind`."""
    return run_files.read_json(path, kind, COPY_AGAIN) if path.is_file() else None
