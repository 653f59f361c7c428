"""Opening models with one plain call: a folder, or a model's name on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ds_rag.config import build
from ds_rag.config.names import hub_name
from ds_rag.models import from_settings
from ds_rag.models.generator import Generator
from ds_rag.models.hub_models import fetch_model
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.errors import UserError, nearest


class GeneratorOptions(TypedDict, total=False):
    """revision: of a hub's repository, a branch, a tag or a commit. The others are flags of `ds-rag train`."""

    revision: str
    trust_remote_code: bool
    gradient_checkpointing: bool


class RetrieverOptions(GeneratorOptions, total=False):
    """The flags of `ds-rag train` that say how texts become embeddings; what is left out is as the folder says."""

    pooling: str  # "cls", "mean", "last", "max"
    normalize: bool
    query_prefix: str
    passage_prefix: str
    max_query_length: int
    max_passage_length: int
    temperature: float
    learn_temperature: bool
    lexical_prior: float  # weight of BM25 in the scores
    encoders: str  # "two": one for queries, one for passages


def load_retriever(source: str | Path, **options: Unpack[RetrieverOptions]) -> Retriever:
    """The retriever of a folder, or of a name on the hub such as "sentence-transformers/all-MiniLM-L6-v2".

    A sentence-transformers folder gives the vectors that `SentenceTransformer` gives: its pooling, normalisation,
    prompts and lengths are read. Any other encoder pools the mean of its tokens, a decoder takes the last. In float32
    on the CPU and in evaluation mode: `.to(device)` and `.train()` are yours.

    Only a name that is no folder asks the hub; with HF_HUB_OFFLINE=1 its cache must have the model. "org/name@revision"
    is the option `revision`; a bare name is looked for below "sentence-transformers/" first.

    Args:
        source: a folder that `from_pretrained` opens, a run's `retriever` folder, or a name on the hub.
        options: see `RetrieverOptions`.

    Raises:
        UserError: no such folder or model, an unknown option, an option out of its bounds, a folder that is damaged or
            wants its own code run.

    Example:
        >>> retriever.save(folder / "retriever")
        >>> again = ds_rag.load_retriever(folder / "retriever", max_query_length=16)
        >>> again.settings.pooling, again.settings.max_query_length, again.training
        ('mean', 16, False)
    """
    values = checked(dict(options), RetrieverOptions, "load_retriever")
    trusted = bool(values.get("trust_remote_code", False))
    folder = find_model(source, values.pop("revision", None), "--retriever", trusted)
    if "normalize" in values:
        values["normalize"] = str(values["normalize"]).lower()
    config = build({"retriever": str(folder)} | values)
    return from_settings.open_retriever(config.model, config.data, list, folder).eval()


def load_generator(source: str | Path, **options: Unpack[GeneratorOptions]) -> Generator:
    """The causal language model of a folder, or of a name on the hub such as "HuggingFaceTB/SmolLM2-135M".

    In float32 on the CPU and in evaluation mode. `share_prefixes` then has it read every passage once.

    Args and errors as in `load_retriever`; options: see `GeneratorOptions`. UserError, too, for a model whose tokens
    see those after them.

    Example:
        >>> generator.save(folder / "generator")
        >>> again = ds_rag.load_generator(folder / "generator")
        >>> again.vocabulary == generator.vocabulary, again.training
        (True, False)
    """
    values = checked(dict(options), GeneratorOptions, "load_generator")
    trusted = bool(values.get("trust_remote_code", False))
    folder = find_model(source, values.pop("revision", None), "--generator", trusted)
    config = build({"generator": str(folder)} | values)
    return from_settings.open_generator(config.model, list, folder).eval()


def checked(options: dict[str, Any], known: type, function: str) -> dict[str, Any]:
    """The options, if all of them are known. Raises UserError."""
    names = [*known.__annotations__]
    for name in options:
        if name not in names:
            close = nearest(name, names)
            raise UserError(
                f"{function}: unknown option '{name}'",
                expected=" | ".join(names),
                fix=f"did you mean '{close}'?" if close else None,
            )
    return options


def find_model(source: str | Path, revision: str | None, flag: str, trusted: bool = False) -> Path:
    """The model's folder; of a name on the hub its place in the hub's cache, fetched where it is not there. revision:
    an option's, in place of one in the name. Raises UserError."""
    if str(source).startswith("config:"):
        raise UserError(
            f"{source}: a new model", expected="a folder or a name on the hub", fix="Retriever(...) or Generator(...)"
        )
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = hub_name(source) if isinstance(source, str) else None
    if name is None:
        raise UserError(
            f"{source}: no such folder",
            found=f"nothing there, from {Path.cwd()}",
            expected="a folder, or a name on the hub: org/name, org/name@revision",
        )
    if revision and name.revision:
        raise UserError(f"{source}: two revisions", found=f"{name.revision} and {revision}", expected="one of them")
    return fetch_model(str(replace(name, revision=revision or name.revision)), flag, trusted)[1]
