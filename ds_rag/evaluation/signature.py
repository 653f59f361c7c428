"""The signature of an evaluation: what was measured on what, and how. Two figures of one signature were taken alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ds_rag
from ds_rag.config import DataConfig, EvaluationConfig, RunConfig
from ds_rag.config.names import NAMED, pinned_name

if TYPE_CHECKING:  # a signature is also read where there is no torch
    from torch import nn

    from ds_rag.data.dataset import Example, RagData
    from ds_rag.data.prompt import Prompt
    from ds_rag.models.retriever import RetrieverSettings

BM25 = "bm25"
SHORT = 8  # characters of a hash in the line
COMPARED = ("data_hash", "corpus_hash")  # what two results must have in common to be compared


def facts_of_data(data: RagData) -> dict[str, Any]:
    """Hashes of the evaluation rows and of the passages that are searched, and their number."""
    from ds_rag.index.store import hash_texts  # torch comes with it

    corpus = data.texts[: data.corpus_size]
    return {"data_hash": hash_rows(data), "corpus_hash": hash_texts(corpus), "passages": len(corpus)}


def hash_rows(data: RagData) -> str:
    """sha256 of the evaluation rows: query, answers, labelled passages with their grades. The order of the rows does
    not count."""

    def of(row: Example) -> str:
        labels = sorted((data.texts[p], grade) for p, grade in row.qrels.items())
        fields = [row.query, list(row.answers), labels, sorted(row.absent), row.judged]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    return hashlib.sha256("".join(sorted(map(of, data.evaluation))).encode()).hexdigest()


def facts_of_settings(
    settings: EvaluationConfig, retriever: RetrieverSettings | None, prompt: Prompt | None
) -> dict[str, Any]:
    """How passages are compared and answers are made. Without a retriever BM25 searches; without a prompt there are no
    answers."""
    facts: dict[str, Any] = {"similarity": BM25, "index": "words", "top_k": settings.top_k}
    if retriever is not None:
        facts["similarity"] = "cosine" if retriever.normalize else "dot product"
        facts["index"] = settings.index_factory
        if settings.hybrid != "none":
            facts["similarity"] += f" + {BM25}"
        if retriever.lexical_weight:
            facts["similarity"] += f" + {BM25} by its weight in the retriever"
    if prompt is not None:
        facts["prompt_hash"] = hash_prompt(prompt)
        facts["decoding"] = f"{settings.decode}, greedy, at most {settings.max_new_tokens} tokens"
    return facts


def hash_prompt(prompt: Prompt) -> str:
    """sha256 of the prompt as the generator's tokenizer reads it."""
    around = [[a.lead, a.trail, list(map(int, a.tail))] for _, a in sorted(prompt.around.items())]
    parts = [prompt.order, [list(map(int, ids)) for ids in prompt.literals], around]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def precision(modules: Mapping[str, nn.Module | None]) -> str:
    """The types and the device of the models' parameters; "no model" where there are none."""
    parameters = [p for module in modules.values() if module is not None for p in module.parameters()]
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    devices = sorted({p.device.type for p in parameters})
    return f"{' and '.join(kinds)} on {' and '.join(devices)}" if kinds else "no model"


def facts_of_split(data: DataConfig) -> dict[str, Any]:
    """Which rows are held out of which, and whether training knew the passages of held-out documents."""
    if data.folds:
        candidates = "the training folds" if data.fold_corpus == "train" else "all documents"
        return {"further": [f"fold {data.fold} of {data.folds}, candidates in training from {candidates}"]}
    if data.eval_fraction and data.eval_data is None:
        return {"further": [f"{data.eval_fraction:g} of the rows held out"]}
    return {}


def facts_of_names(config: RunConfig) -> dict[str, Any]:
    """The names on the hub, with their commits, that rows, passages and the models before training came from."""
    values = config.flat()
    named = {key: values[key] for key, data in NAMED.items() if pinned_name(values[key], data)}
    return {"sources": named} if named else {}


def sign(facts: Mapping[str, Any], model_hashes: Mapping[str, str], seed: int | None) -> dict[str, Any]:
    """The whole signature. facts: those above; model_hashes: of the weights, by the model's name; seed: of the training
    run that the models come from, None where they come from none."""
    return {"version": ds_rag.__version__, **facts, "model_hashes": dict(model_hashes), "seed": seed}


def line(signature: Mapping[str, Any]) -> str:
    """A signature in one line, hashes shortened."""
    s = signature
    models = [f"{name} {hash_[:SHORT]}" for name, hash_ in s.get("model_hashes", {}).items()]
    parts = [
        f"ds_rag {s.get('version')}",
        f"rows {s.get('data_hash', '')[:SHORT]}",
        f"corpus {s.get('corpus_hash', '')[:SHORT]} ({s.get('passages')} passages)",
        f"{s.get('similarity')}, {s.get('index')}, top {s.get('top_k')}",
        f"prompt {s['prompt_hash'][:SHORT]}, {s['decoding']}" if "prompt_hash" in s else "no answers",
        *models,
        str(s.get("precision")),
        f"seed {s.get('seed')}" if s.get("seed") is not None else "no seed",
        *s.get("further", ()),
    ]
    return " | ".join(parts)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two signatures differ so that their figures are of different questions or of another search: of `rows`
    and `corpus`. Nothing is known of a signature that is empty."""
    return [key.removesuffix("_hash") for key in COMPARED if one and other and one.get(key) != other.get(key)]


def unlike(evaluation: Mapping[str, Any]) -> str | None:
    """What has to be said beside figures before and after that are not of the same questions and corpus. evaluation:
    as results.json has it; None: they are, as far as is known."""
    signatures = [(evaluation.get(when) or {}).get("signature") or {} for when in ("before", "after")]
    apart = differing(*signatures)
    return f"before and after are not comparable: other {' and other '.join(apart)}" if apart else None
