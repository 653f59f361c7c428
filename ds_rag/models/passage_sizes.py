"""How long a passage is for the models that read it: what documents are cut by, so that training truncates none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from ds_rag.config import RunConfig
from ds_rag.data.documents.sizes import Sizes
from ds_rag.data.prompt import make_prompt
from ds_rag.models.from_settings import PADDING_SIDE, model_folder, retriever_texts
from ds_rag.models.tokenizer import open_tokenizer
from ds_rag.runtime.errors import UserError

UNCUT = 1 << 30
Count = Callable[[list[str]], list[int]]


def passage_sizes(config: RunConfig, flags: frozenset[str]) -> Sizes:
    """Tokens of the retriever, with the prefix of passages and special tokens; where --generator is given too, a
    passage fits both models. flags: the settings that are given. Opens tokenizers, no weights. Raises UserError."""
    if "retriever" not in flags:
        raise UserError(
            "no retriever to measure passages with",
            expected="--retriever MODEL: the folder or name of the encoder that will be trained",
            fix="a passage's length counts in the tokens of its tokenizer",
        )
    for name in {"retriever", "generator"} & flags:
        if getattr(config.model, name).startswith("config:"):
            raise UserError(
                f"--{name} {getattr(config.model, name)}: it has no tokenizer yet",
                found="a new model, whose tokenizer is trained on the passages",
                expected="a model that has one",
            )
    count, most, key = of_retriever(config)
    if "generator" not in flags:
        return Sizes(count, most, key)
    other, length, other_key = of_generator(config)

    def longer(texts: list[str]) -> list[int]:
        """At most `most` where both models read all of it."""
        return [max(one, two - length + most) for one, two in zip(count(texts), other(texts), strict=True)]

    return Sizes(longer, most, f"{key} {other_key}")


def of_retriever(config: RunConfig) -> tuple[Count, int, str]:
    """(tokens of texts, most that training reads, key of the tokenizer)."""
    tokenizer, settings = retriever_texts(config.model, config.data)
    prefix = settings.passage_prefix

    def count(texts: list[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in tokenizer([prefix + text for text in texts], verbose=False)["input_ids"]]

    return count, settings.max_passage_length, f"{fingerprint(tokenizer)} {prefix!r}"


def of_generator(config: RunConfig) -> tuple[Count, int, str]:
    """The same of a generator, without the template around the passage."""
    model = config.model
    folder = model_folder(model.generator, "--generator")
    tokenizer = open_tokenizer(folder, PADDING_SIDE["--generator"], model.trust_remote_code)
    prompt = make_prompt(model, tokenizer)

    def count(texts: list[str]) -> list[int]:
        return [prompt.own_length("passage", ids) for ids in prompt.encode("passage", texts, UNCUT)] if texts else []

    return (
        count,
        config.data.max_passage_length,
        f"{fingerprint(tokenizer)} {model.prompt_template!r} {model.chat_template} {model.prompt_version}",
    )


def fingerprint(tokenizer: Any) -> str:
    """Of a tokenizer's rules and vocabulary."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    facts: Any = sorted(tokenizer.get_vocab().items())
    if inner is not None:  # what was truncated or padded last is no rule
        facts = json.loads(inner.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
