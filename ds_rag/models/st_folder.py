"""Reads and writes a retriever's folder in the format of sentence-transformers (pooling, normalisation, prompts,
lengths), with a file of our own settings.

Every key that is set there either has the same effect as in `SentenceTransformer`, so that vectors (of unit length for
cosine similarity) and ranking are the same, or the folder is refused with an error that names the key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.architecture import usable_positions
from ds_rag.models.folder_safety import COPY_AGAIN
from ds_rag.models.pooling import POOLERS
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError, choose

OWN_SETTINGS = "ds_rag.json"  # settings for which the files of sentence-transformers have no key
# sentence-transformers reads the first of these files that exists.
TRANSFORMER_FILES = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
PIPELINES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
# Keys of these files, and of the dictionaries in them, with the values that change nothing here.
HONOURED = {"max_seq_length", "do_lower_case", "query_length", "document_length", "unpad_inputs"}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "module_output_name": ("token_embeddings",),
}
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
# We decide precision, device and kernels ourselves; trusting code is a flag of the user.
IDLE_ARGUMENTS = {
    "torch_dtype", "dtype", "device_map", "attn_implementation", "use_safetensors", "add_pooling_layer", "use_cache",
    "trust_remote_code", "padding_side",
}  # fmt: skip
PASSAGE_PROMPTS = ("document", "passage", "corpus")


@dataclass
class RetrieverSettings:
    """Settings that turn texts into tokens and hidden states into embeddings; saved beside the weights.

    Fields with `repr=False` are not part of the fingerprint of an index (fingerprint.py), so that older indexes stay
    valid.

    Lengths are in tokens, special ones included; the temperature, which divides the scores, has no unit.

    Example:
        >>> settings = ds_rag.RetrieverSettings(pooling="cls", temperature=0.02, query_prefix="query: ")
        >>> ds_rag.Retriever(retriever.encoder, retriever.tokenizer, settings).temperature
        tensor(0.0200)
    """

    pooling: str = "mean"
    normalize: bool = True
    query_prefix: str = ""
    passage_prefix: str = ""
    max_query_length: int = 64
    max_passage_length: int = 200
    temperature: float = 0.05
    learn_temperature: bool = False
    do_lower_case: bool = field(default=False, repr=False)  # lower-case texts before the tokenizer's own rules
    prompts: dict[str, str] = field(default_factory=dict, repr=False)  # all prompts of the folder, by name
    default_prompt_name: str | None = field(default=None, repr=False)
    limits: dict[str, int] = field(default_factory=dict, repr=False)  # side -> most tokens, if the folder says so
    lexical_weight: float | None = field(default=None, repr=False)  # of BM25 in the scores; None: they have none


def transformer_folder(folder: Path) -> Path:
    """The folder with weights and tokenizer: `folder` itself, or a subfolder named in modules.json, as older versions
    of sentence-transformers wrote it (0_Transformer)."""
    modules = modules_of(folder)
    if not modules or (folder / OWN_SETTINGS).is_file():
        return folder
    place = PurePosixPath(modules[0]["path"])
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"--retriever {folder}: modules.json names a folder outside", found=place)
    return folder / place


def modules_of(folder: Path) -> list[dict[str, str]] | None:
    """Type and path of each module; None where there is no modules.json. Raises UserError."""
    modules = read_json_or_none(folder / "modules.json", list)
    for module in modules or ():
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise UserError(f"{folder / 'modules.json'}: not a module", found=module, expected="type and path")
    return modules


def is_decoder(config: Any) -> bool:
    """Does transformers have a causal LM of this type, and no masked LM?"""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    return config.model_type in CAUSAL and config.model_type not in MASKED


def described(folder: Path | None, config: Any, model: ModelConfig) -> RetrieverSettings:
    """Pooling, normalisation and prompts as the folder's own files describe them, else the usual defaults.

    model: the flags. What a flag sets is not checked in the folder.
    """
    settings = RetrieverSettings(pooling="last" if is_decoder(config) else "mean")
    if folder is None:
        return settings
    if (own := read_json_or_none(folder / OWN_SETTINGS)) is not None:
        return json_files.record(RetrieverSettings, own, folder / OWN_SETTINGS, None)
    modules = modules_of(folder)
    if modules is None:
        return settings
    kinds = check_modules(folder, modules, model)
    pooling, normalize = (folder / kinds[kind] / "config.json" if kind in kinds else None for kind in PIPELINES[1][1:])
    if normalize is not None:
        for key, value in (read_json_or_none(normalize) or {}).items():
            refuse_unless(folder, f"{key} of Normalize", value, (None, "sentence_embedding"))
    if model.pooling == "auto" and pooling is not None:
        settings.pooling = read_pooling(folder, read_json_or_none(pooling) or {})
    keys = transformer_settings(folder)
    refuse_unless(folder, "do_lower_case", keys.get("do_lower_case"), (None, False, True))
    settings.do_lower_case = bool(keys.get("do_lower_case"))
    for key in ("max_seq_length", "query_length", "document_length"):
        length = keys.get(key)
        if length is not None and (not isinstance(length, int) or length < 1):
            raise UserError(f"--retriever {folder}: {key} is no length", found=length, expected="tokens, 1 or more")
    sides = {"query": keys.get("query_length"), "passage": keys.get("document_length")}
    given = {side: [n for n in (keys.get("max_seq_length"), length) if n] for side, length in sides.items()}
    settings.limits = {side: min(numbers) for side, numbers in given.items() if numbers}
    read_modules(folder, settings, normalize is not None, model)
    return settings


def check_modules(folder: Path, modules: list[dict[str, str]], model: ModelConfig) -> dict[str, str]:
    """Kind of module -> its folder. Raises UserError for modules, or an order of modules, that would give other
    vectors."""
    foreign = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
    if foreign:
        raise UserError(
            f"--retriever {folder}: modules.json names code of its own, which is not run",
            found=", ".join(foreign),
            expected="modules of sentence_transformers",
        )
    kinds = [m["type"].rsplit(".", 1)[-1] for m in modules]
    unknown = sorted(set(kinds) - set(PIPELINES[1]))
    pooled_by_flag = model.pooling != "auto" and kinds in (["Transformer"], ["Transformer", "Normalize"])
    if unknown or (kinds not in PIPELINES and not pooled_by_flag):
        raise UserError(
            f"--retriever {folder}: a module that is not supported" if unknown else
            f"--retriever {folder}: modules in an order that is not supported",
            found=", ".join(unknown or kinds),
            expected="Transformer, Pooling, Normalize",
            fix=None if unknown or "Pooling" in kinds else "choose one with --pooling",
        )  # fmt: skip
    return dict(zip(kinds, (m["path"] for m in modules), strict=True))


def transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer module. Raises UserError for a key that is not supported here."""
    place = transformer_folder(folder)
    keys: dict[str, Any] = next(filter(None, (read_json_or_none(place / name) for name in TRANSFORMER_FILES)), {})
    for key, value in keys.items():
        if key in ARGUMENTS:
            for name, inner in (value or {}).items():
                if name not in IDLE_ARGUMENTS:
                    refuse_unless(folder, f"{name} in {key}", inner, (None,))
        elif key not in HONOURED:
            refuse_unless(folder, key, value, (None, {}, *WITHOUT_EFFECT.get(key, ())))
    return keys


def read_modules(folder: Path, settings: RetrieverSettings, normalized: bool, model: ModelConfig) -> None:
    """Reads config_sentence_transformers.json: similarity, dimension, prompts."""
    whole = read_json_or_none(folder / "config_sentence_transformers.json") or {}
    refuse_unless(folder, "model_type", whole.get("model_type"), (None, "SentenceTransformer"))
    refuse_unless(folder, "truncate_dim", whole.get("truncate_dim"), (None,))
    similarity = whole.get("similarity_fn_name")
    settings.normalize = normalized or similarity == "cosine"
    if model.normalize == "auto":  # for unit vectors all three similarities rank like the dot product
        known = (None, "cosine", "dot", "dot_score", *(("euclidean",) if normalized else ()))
        fix = "choose one with --normalize: true (cosine) or false (dot)"
        refuse_unless(folder, "similarity_fn_name", similarity, known, fix)
    prompts = whole.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"--retriever {folder}: prompts that are none", found=prompts, expected="texts by name")
    prompts = {name: text for name, text in prompts.items() if text is not None}
    settings.prompts, default = prompts, whole.get("default_prompt_name")
    settings.query_prefix = prompts.get("query", "")
    settings.passage_prefix = next((prompts[name] for name in PASSAGE_PROMPTS if prompts.get(name)), "")
    if default is None:
        return
    if default not in prompts:
        refuse_unless(folder, "default_prompt_name", default, tuple(prompts), "correct it there")
    settings.default_prompt_name = default
    # `encode` puts it before every text, `encode_query` and `encode_document` never: only the user knows which to use
    sides = {"query": (("query",), model.query_prefix), "passage": (PASSAGE_PROMPTS, model.passage_prefix)}
    for side, (names, flag) in sides.items():
        if prompts[default] and flag is None and not set(names) & set(prompts):
            fix = f'--{side}_prefix "{prompts[default]}", or --{side}_prefix ""'
            refuse_unless(folder, f"default_prompt_name, and no prompt for a {side}", default, names, fix)


def refuse_unless(folder: Path, key: str, value: Any, known: tuple[Any, ...], fix: str | None = None) -> None:
    """Raises UserError unless the value is one of `known`."""
    if value not in known:
        raise UserError(
            f"--retriever {folder}: sentence-transformers' {key} is not supported",
            found=f"{value}",
            expected=" | ".join("unset" if v is None else str(v) for v in known if v != {}),
            fix=fix,
        )


def length_limit(settings: RetrieverSettings, side: str, config: Any, tokenizer: Any) -> int:
    """The most tokens of a text of one side that positions, tokenizer and folder allow. As in sentence-transformers,
    the folder's limit replaces that of the tokenizer."""
    own = settings.limits.get(side) or tokenizer.model_max_length
    return min(int(n) for n in (usable_positions(config), own) if n)


def read_pooling(folder: Path, config: dict[str, Any]) -> str:
    """The pooling of a Pooling module, in the old or new format of sentence-transformers."""
    old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
    flagged = [k.removeprefix("pooling_mode_") for k, v in config.items() if k.startswith("pooling_mode_") and v]
    new = config.get("pooling_mode")
    modes = (new if isinstance(new, list) else [new]) if "pooling_mode" in config else flagged or ["mean"]
    names = [old.get(str(m), str(m)) for m in modes]
    if len(names) != 1 or names[0] not in POOLERS or not config.get("include_prompt", True):
        raise UserError(
            f"--retriever {folder}: a pooling that is not supported",
            found=f"{modes}, include_prompt {config.get('include_prompt', True)}",
            expected=f"one of {', '.join(POOLERS)}, prompts included",
            fix="another model; training may give it another --pooling than its own, which it then has to learn",
        )
    return names[0]


def apply_flags(settings: RetrieverSettings, model: ModelConfig, data: DataConfig, config: Any, tokenizer: Any) -> None:
    """Applies the flags, which override the folder, and limits the lengths."""
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
    if model.lexical_prior is not None:
        settings.lexical_weight = model.lexical_prior or None
    settings.max_query_length = min(data.max_query_length, length_limit(settings, "query", config, tokenizer))
    limit = length_limit(settings, "passage", config, tokenizer)
    settings.max_passage_length = min(data.max_passage_length, limit)


def describe_sentence_transformer(hidden_size: int, settings: RetrieverSettings, folder: Path) -> None:
    """Writes the files of sentence-transformers for pooling, normalisation and prompts, and the file of our own
    settings."""
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
            "do_lower_case": settings.do_lower_case,
        },
        "config_sentence_transformers.json": {
            "prompts": settings.prompts | {"query": settings.query_prefix, "document": settings.passage_prefix},
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": "cosine" if settings.normalize else "dot",
        },
        OWN_SETTINGS: asdict(settings),
    }
    for path, _ in modules:
        (folder / path).mkdir(parents=True, exist_ok=True)
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_json_or_none(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file; None where there is no such file. Raises UserError where it is not a `kind`."""
    return json_files.read_json(path, kind, COPY_AGAIN) if path.is_file() else None
