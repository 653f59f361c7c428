"""What the examples take where no model is named: a few facts, and two small new models that train in seconds."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import ds_rag
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer

SYLLABLES = [consonant + vowel for consonant in "bdklmnrst" for vowel in "aeio"]
TREES = ["oak", "elm", "ash", "fir", "yew", "ivy", "fig", "bay"]
draw = random.Random(0)
PLACES = ["".join(names) for names in draw.sample(list(itertools.product(SYLLABLES, repeat=3)), 64)]
FACTS = {place: draw.choice(TREES) for place in PLACES}
CORPUS = [f"the emblem of {place} is {tree}" for place, tree in FACTS.items()]
ROWS = [
    {"query": f"what is the emblem of {place} ?", "answer": tree, "positive": f"the emblem of {place} is {tree}"}
    for place, tree in FACTS.items()
]
TRAINING, HELD_OUT = ROWS[:48], ROWS[48:]


def open_pair(retriever: str | None, generator: str | None) -> tuple[ds_rag.Retriever, ds_rag.Generator]:
    """The models of two folders or names on the hub; where one is not given, a small new one."""
    first, second = new_pair()
    return (
        ds_rag.load_retriever(retriever) if retriever else first,
        ds_rag.load_generator(generator) if generator else second,
    )


def new_pair(rows: Sequence[Mapping[str, str]] = ROWS, seed: int = 0) -> tuple[ds_rag.Retriever, ds_rag.Generator]:
    """A BERT and a Llama of two layers, with a tokenizer trained on the texts of these rows."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        texts = [row["positive"] for row in rows] + [f"{row['query']} {row['answer']}" for row in rows]
        train_tokenizer(texts, 400, Path(folder))
        tokenizers = [open_tokenizer(folder, side) for side in ("right", "left")]
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"vocab_size": len(tokenizers[0]), "max_position_embeddings": 128}
    ids = {name: getattr(tokenizers[1], name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    no_dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = transformers.BertModel(transformers.BertConfig(**shape, **no_dropout), add_pooling_layer=False)
    lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **ids))
    settings = ds_rag.RetrieverSettings(max_query_length=32, max_passage_length=32, temperature=0.1)
    return ds_rag.Retriever(encoder, tokenizers[0], settings), ds_rag.Generator(lm, tokenizers[1])


def open_run(run: Path | None) -> ds_rag.Index:
    """The index of a finished run, with its retriever; without a run, one of the facts by a small new model."""
    if run is None:
        return ds_rag.Index.build(new_pair()[0], CORPUS)
    return ds_rag.Index.open(run / "index", ds_rag.load_retriever(run / "retriever"))
