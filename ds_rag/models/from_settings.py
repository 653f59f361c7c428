"""Opening models: a folder, a name on the hub, or `config:FILE` for a new one whose tokenizer is trained on the
corpus."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_rag.config import DataConfig, ModelConfig, find_file
from ds_rag.models.adapters import ADAPTER_FILE, add_adapters, apply_adapters, base_folder, four_bit, wanted_by
from ds_rag.models.architecture import (
    check_causal,
    check_encoder,
    check_entries,
    check_pad,
    is_half_of_two,
    read_config,
)
from ds_rag.models.behaviour_checks import check_looks_back, check_states, rows_of
from ds_rag.models.folder_safety import opening, out_of_reach
from ds_rag.models.generator import Generator
from ds_rag.models.hub_models import folder_of
from ds_rag.models.retriever import PASSAGE_ENCODER, Retriever
from ds_rag.models.sharded import forget_renamings, is_sharded, loading_sharded
from ds_rag.models.size import check_counted, check_least, stored_bytes
from ds_rag.models.st_folder import RetrieverSettings, apply_flags, described, transformer_folder
from ds_rag.models.tokenizer import check_ids, lower_cased, open_tokenizer, train_tokenizer
from ds_rag.models.weights import open_all
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_readable

Texts = Callable[[], Iterable[str]]
# With these values of flags the retriever's folder decides.
AS_SAVED: dict[str, Any] = {"pooling": "auto", "normalize": "auto"} | dict.fromkeys(
    ("query_prefix", "passage_prefix", "temperature", "lexical_prior")
)
# As `Retriever.embed` expects it; as the generate method of transformers needs it.
PADDING_SIDE = {"--retriever": "right", "--generator": "left"}


def open_retriever(
    model: ModelConfig, data: DataConfig, texts: Texts, scratch: Path, pieces: dict[str, Any] | None = None
) -> Retriever:
    """The retriever that the flags describe, in float32 on the CPU. An adapter in its folder is merged.

    texts: the corpus, read only to train the tokenizer of a `config:FILE`. scratch: the folder for that tokenizer.
    pieces: see `loading_sharded`; the weights of a folder are then sharded, in the configuration's precision.
    """
    if model.retriever.startswith("config:"):
        place = ("AutoModel", model.retriever, "--retriever", texts, scratch / "retriever")
        encoder, tokenizer = new_model(*place)
        two = new_model(*place)[0] if model.encoders == "two" else None
        folder = None
    else:
        folder = model_folder(model.retriever, "--retriever", model.trust_remote_code)
        encoder = open_encoder(folder, model, pieces)
        tokenizer = open_tokenizer(transformer_folder(folder), PADDING_SIDE["--retriever"], model.trust_remote_code)
        own_second = folder / PASSAGE_ENCODER
        two = None
        if own_second.is_dir() or model.encoders == "two" or model.train_side == "query":
            two = open_encoder(own_second if own_second.is_dir() else folder, model, pieces)
    settings = folder_settings(folder, encoder.config, tokenizer, model, data)
    for part in filter(None, (encoder, two)):
        check_ids(tokenizer, rows_of(part), f"--retriever {model.retriever}")
        if not is_sharded(part):
            check_states(part, f"--retriever {model.retriever}")
    checkpoint_activations((encoder, two), model.gradient_checkpointing)
    return Retriever(encoder, tokenizer, settings, two)


def folder_settings(
    folder: Path | None, config: Any, tokenizer: Any, model: ModelConfig, data: DataConfig
) -> RetrieverSettings:
    """The settings of the folder, with changes by flags; sets do_lower_case in the tokenizer."""
    settings = described(folder, config, model)
    apply_flags(settings, model, data, config, tokenizer)
    if settings.do_lower_case:
        lower_cased(tokenizer, f"--retriever {folder}")
    return settings


def retriever_texts(model: ModelConfig, data: DataConfig) -> tuple[Any, RetrieverSettings]:
    """The tokenizer and settings of a retriever's folder, without its weights."""
    folder = model_folder(model.retriever, "--retriever", model.trust_remote_code)
    place = transformer_folder(folder)
    base = base_folder(place, "--retriever")
    config = read_config(base, f"--retriever {folder}", model.trust_remote_code)
    tokenizer = open_tokenizer(place, PADDING_SIDE["--retriever"], model.trust_remote_code)
    return tokenizer, folder_settings(folder, config, tokenizer, model, data)


def open_generator(model: ModelConfig, texts: Texts, scratch: Path, pieces: dict[str, Any] | None = None) -> Generator:
    """The causal LM that the flags describe, in float32 on the CPU; arguments as in `open_retriever`."""
    from transformers import AutoModelForCausalLM

    if model.generator.startswith("config:"):
        lm, tokenizer = new_model("AutoModelForCausalLM", model.generator, "--generator", texts, scratch / "generator")
    else:
        folder = model_folder(model.generator, "--generator", model.trust_remote_code)
        lm = open_weights(lambda config: AutoModelForCausalLM, folder, "generator", model, pieces)
        tokenizer = open_tokenizer(folder, PADDING_SIDE["--generator"], model.trust_remote_code)
    check_ids(tokenizer, rows_of(lm), f"--generator {model.generator}")
    fuse_activations(lm)
    generator = Generator(lm, tokenizer)
    if not is_sharded(lm):  # else once it has its engine
        check_looks_back(generator, f"--generator {model.generator}")
    checkpoint_activations((lm,), model.gradient_checkpointing)
    return generator


def open_pair(
    run: Path, model: ModelConfig, data: DataConfig, flags: Collection[str] = ()
) -> tuple[Retriever, Generator | None]:
    """The models that a run left in `run/retriever` and `run/generator` (None after `infonce`).

    Everything that turns texts into scores is taken from what the run saved (a temperature may have been trained), not
    from its configuration; only `flags`, the keys that the user gives now, override it. A base model that was in 4 bits
    while its adapter was trained is loaded in 4 bits again: the adapter, the index and the metrics of the run belong to
    the rounded weights.
    """
    adapted = [name for name in ("retriever", "generator") if (run / name / ADAPTER_FILE).is_file()]
    small = [name for name in adapted if wanted_by(model.load_in_4bit, name)]
    saved = replace(
        model,
        retriever=str(run / "retriever"),
        generator=str(run / "generator"),
        encoders="shared",  # the folder itself says whether there is a second one
        train_side="both",
        lora="none",  # a trained adapter is merged when the folder is opened
        load_in_4bit="both" if len(small) == 2 else next(iter(small), "none"),
        **{key: default for key, default in AS_SAVED.items() if key not in flags},
    )
    retriever = open_retriever(saved, data, list, run)
    return retriever, open_generator(saved, list, run) if (run / "generator").is_dir() else None


def new_model(auto_class: str, source: str, flag: str, texts: Texts, tokenizer_folder: Path) -> tuple[Any, Any]:
    """A new model from a configuration file and its tokenizer, trained once and then read from its folder."""
    import transformers

    file = find_file(source.removeprefix("config:"), flag)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind, vocab_size = settings.pop("model_type"), settings.pop("vocab_size")
        if kind not in transformers.CONFIG_MAPPING:
            raise ValueError(f"model_type {kind}, which transformers does not know")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{flag} {source}: not a model configuration",
            found=f"no {error}" if isinstance(error, KeyError) else error,
            expected="a JSON object with model_type and vocab_size",
        ) from None
    what = f"{flag} {source}"
    check_entries(settings, file.name, what)
    check_least(settings | {"model_type": kind, "vocab_size": vocab_size}, what, 0)
    if not (tokenizer_folder / "tokenizer_config.json").exists() and collectives.rank() == 0:
        train_tokenizer(texts(), vocab_size, tokenizer_folder)
    collectives.barrier()
    tokenizer = open_tokenizer(tokenizer_folder, PADDING_SIDE[flag])
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    with opening(what):
        config = transformers.AutoConfig.for_model(kind, **settings | tokens | {"vocab_size": len(tokenizer)})
    if hasattr(config, "cls_token_id"):  # ModernBERT's default ids, which this vocabulary does not have
        config.cls_token_id = config.sep_token_id = None
    auto = getattr(transformers, auto_class)
    try:
        check_kind(config, flag.removeprefix("--"), what, False)
        check_counted(lambda: auto.from_config(config), what, 0)
        return auto.from_config(config), tokenizer
    except ValueError:
        raise UserError(f"{what}: not a model that {auto_class} builds", found=f"model_type {kind}") from None


def model_folder(path: str, flag: str, trusted: bool = False) -> Path:
    """The folder of a path or of a name on the hub, after checking that it is a model's. Raises UserError."""
    folder = folder_of(path, flag, trusted)
    place = transformer_folder(folder) if flag == "--retriever" else folder
    if not (place / "config.json").is_file() and not (place / ADAPTER_FILE).is_file():
        raise UserError(
            f"{flag}: not a model folder",
            found=f"no config.json in {place}, nor {ADAPTER_FILE}",
            expected="a folder that from_pretrained opens, a name on the hub such as org/name, or config:FILE",
        )
    check_readable(folder, flag)
    return folder


def open_encoder(folder: Path, model: ModelConfig, pieces: dict[str, Any] | None) -> Any:
    """The encoder alone, also of an encoder-decoder such as T5."""
    from transformers import AutoModel, AutoModelForTextEncoding

    def kind(config: Any) -> Any:
        return AutoModelForTextEncoding if is_half_of_two(config) else AutoModel

    return open_weights(kind, transformer_folder(folder), "retriever", model, pieces)


def open_weights(
    kind: Callable[[Any], Any], folder: Path, name: str, model: ModelConfig, pieces: dict[str, Any] | None
) -> Any:
    """`from_pretrained`, with the folder's own adapter merged (kept separate for weights in 4 bits), and new adapters
    if --lora asks for them. kind: configuration -> class of transformers to open it with."""
    what, trusted = f"--{name} {folder}", model.trust_remote_code
    base = base_folder(folder, f"--{name}")
    config = read_config(base, what, trusted)
    check_kind(config, name, what, trusted)
    auto = kind(config)
    check_counted(lambda: auto.from_config(config, trust_remote_code=trusted), what, stored_bytes(base))
    small = four_bit(model, name)
    merges = base != folder
    if merges and wanted_by(model.lora, name):  # saved alone, the new one would name a base without this one
        raise UserError(
            f"--lora {model.lora}: the {name}'s folder is itself an adapter",
            found=f"{ADAPTER_FILE} in {folder}",
            expected="whole weights",
            fix=f"`ds-rag merge --run RUN`, then --{name} RUN/merged/{name}",
        )
    for needs, on in (("--load_in_4bit", small), ("an adapter that is to be merged", merges)):
        if pieces is not None and on:
            raise UserError(
                f"--{name} {folder}: ZeRO stage 3 together with {needs}", expected="stage 0, 1 or 2, or whole weights"
            )
    load = partial(auto.from_pretrained, base, dtype=torch.float32, trust_remote_code=trusted, **small)
    with opening(what), out_of_reach(trusted), loading_sharded(pieces):
        weights = open_all(load, base, what, pieces is not None)
    if pieces is not None:
        forget_renamings(weights)
    with opening(what), out_of_reach(trusted):
        weights = apply_adapters(weights, folder, merge=not small)
    if wanted_by(model.lora, name):
        add_adapters(weights, model, base)
    return weights


def check_kind(config: Any, name: str, what: str, trusted: bool) -> None:
    """Raises UserError unless the configuration is that of a model of this kind."""
    with opening(what):  # values may be of any type
        if name == "generator":
            check_causal(config, what, trusted)
        else:
            check_encoder(config, what)
        check_pad(config, what)


def checkpoint_activations(models: Iterable[Any], on: bool) -> None:
    """Turns activation checkpointing on, in its non-reentrant form: the reentrant one fails, or is silently wrong,
    under ZeRO."""
    for model in models:
        if on and model is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def fuse_activations(model: nn.Module) -> None:
    """Replaces GPT-2's GELU, eight operations, by one: the same function (torch's GELU with approximate="tanh"), faster
    and without intermediate tensors."""
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
