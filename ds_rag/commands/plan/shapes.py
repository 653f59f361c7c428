"""Reads the shape of a model from its configuration, and counts its parameters.

Symbols: d hidden size, f width of the MLP, V vocabulary, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.commands.plan.families import FAMILIES, SIZES, Family
from ds_rag.commands.plan.presets import MODELS
from ds_rag.config import find_file
from ds_rag.config.names import hub_name, spellings
from ds_rag.runtime.errors import UserError, choose, nearest
from ds_rag.runtime.hub import MODEL, Repository

UNKNOWN = "ds-rag plan asks no hub; `hf download NAME config.json` puts what it needs into the cache"


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that a plan needs. head: does it predict tokens (as a generator does)?"""

    name: str
    family: Family
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    positions: int  # maximum tokens of a sequence
    types: int
    tied: bool
    qkv_bias: bool
    out_bias: bool
    dropout: bool
    head: bool

    @property
    def queries(self) -> int:
        """Width of the query vectors of a token, over all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the key vectors of a token, over all heads; the values have the same."""
        return self.kv_heads * self.head_dim

    @property
    def norm_weights(self) -> int:
        return self.hidden * (2 if self.family.norm_bias else 1)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear map of a layer; q, k, v and the parts of a gated MLP count separately."""
        d, f = self.hidden, self.mlp
        maps = {"q": (d, self.queries), "k": (d, self.keys), "v": (d, self.keys), "o": (self.queries, d)}
        maps |= {"up": (d, f), "down": (f, d)}
        return maps | {"gate": (d, f)} if self.family.gated else maps

    @property
    def layer_matmul(self) -> int:
        """Number of weights in the linear maps of a layer."""
        return sum(a * b for a, b in self.matrices.values())

    @property
    def layer_parameters(self) -> int:
        f = self.family
        biases = self.qkv_bias * (self.queries + 2 * self.keys) + self.out_bias * self.hidden
        biases += f.mlp_bias * (self.mlp * (2 if f.gated else 1) + self.hidden)
        return self.layer_matmul + biases + f.norms * self.norm_weights + f.qk_norm * 2 * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embeddings of tokens, and of learned positions and types."""
        extra = self.family.learned_positions
        rows = self.vocabulary + self.types + (0 if extra is None else self.positions + extra)
        return rows * self.hidden + self.family.relative_buckets * self.heads

    @property
    def head_parameters(self) -> int:
        """Parameters of an output matrix that is not tied to the embeddings."""
        return self.vocabulary * self.hidden if self.head and not self.tied else 0

    @property
    def pooler_parameters(self) -> int:
        """Parameters of the pooler, which exists but is never trained (models/retriever.py)."""
        return self.hidden * (self.hidden + 1) if self.family.pooler and not self.head else 0

    @property
    def parameters(self) -> int:
        norms = (self.family.final_norm + self.family.embedding_norm) * self.norm_weights
        norms -= self.family.skips_first_norm * self.norm_weights
        body = self.layers * self.layer_parameters + self.embedding_parameters + norms
        return body + self.head_parameters + self.pooler_parameters

    @property
    def matmul_parameters(self) -> int:
        """Weights that multiply every token that is read: without embeddings and head."""
        return self.layers * self.layer_matmul

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest tensor: the token embedding or a matrix of the MLP."""
        return max(self.vocabulary * self.hidden, self.hidden * self.mlp)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA: two matrices beside every linear map of every layer."""
        return self.layers * rank * sum(a + b for a, b in self.matrices.values())


def read_shape(source: str, flag: str, head: bool) -> ModelShape:
    """The shape of a preset, of a folder with config.json, of a name on the hub whose config.json is in the cache (the
    hub itself is not asked), or of `config:FILE`. head: read it as a generator.

    Raises UserError if `source` is none of these, and for a configuration without the necessary sizes.
    """
    if source.startswith("config:"):
        return shape_from(read_model_json(find_file(source.removeprefix("config:"), flag), flag), source, flag, head)
    file = Path(source).expanduser() / "config.json"
    if file.is_file():
        return shape_from(read_model_json(file, flag), source, flag, head)
    if source in MODELS:
        return shape_from(MODELS[source], source, flag, head)
    if cached := cached_config(source, flag):
        return shape_from(read_model_json(cached, flag), source, flag, head)
    close = nearest(source, MODELS)
    raise UserError(
        f"{flag}: no such model",
        found=source,
        expected=f"{' | '.join(MODELS)}, a folder with config.json, or config:FILE",
        fix=f"did you mean '{close}'?" if close else UNKNOWN if hub_name(source) else None,
    )


def cached_config(source: str, flag: str) -> Path | None:
    """The config.json that the hub's cache has for a name; None where it has none."""
    if (name := hub_name(source)) is None:
        return None
    for one in spellings(name, flag):
        repository = Repository(one.repo, one.revision, MODEL, flag)
        folder = repository.snapshot(repository.cached_commit())
        if folder is not None and (folder / "config.json").is_file():
            return folder / "config.json"
    return None


def read_model_json(file: Path, flag: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{flag}: not a model configuration", found=f"{file}: {error}", expected="JSON") from None


def shape_from(config: Any, name: str, flag: str, head: bool) -> ModelShape:
    """The shape from the keys of a config.json. Of a multimodal model only `text_config` counts."""
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{flag} {name}: not a model configuration", expected="a JSON object with model_type")
    if isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    family = choose(FAMILIES, config["model_type"], f"model_type of {flag} {name}; known are")
    if head and not family.causal:
        raise UserError(f"{flag} {name}: not a causal LM", found=f"model_type {config['model_type']}")
    values = family.defaults | {k: v for k, v in config.items() if v is not None}
    names = SIZES | family.sizes

    def size(key: str, default: int | None = None) -> int:
        found = values.get(names[key], default)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise UserError(
                f"{flag} {name}: a size is missing or wrong",
                found=f"{names[key]}: {values.get(names[key], 'missing')}",
                expected="a whole number, 1 or more",
            )
        return found

    hidden, heads = size("hidden"), size("heads")
    attention_bias = bool(values.get("attention_bias", family.qkv_bias))
    return ModelShape(
        name=name,
        family=family,
        hidden=hidden,
        layers=size("layers"),
        heads=heads,
        kv_heads=size("kv_heads", heads),
        head_dim=size("head_dim", max(1, hidden // heads)),
        mlp=size("mlp", 4 * hidden if config["model_type"] == "gpt2" else None),
        vocabulary=size("vocabulary"),
        positions=size("positions", 1 << 30 if family.learned_positions is None else None),
        types=int(values.get(names["types"], 0)),
        tied=bool(values.get("tie_word_embeddings", family.tied)),
        qkv_bias=attention_bias,
        out_bias=family.out_bias if family.out_bias != family.qkv_bias else attention_bias,
        dropout=bool(values.get(family.dropout, 0.0)),
        head=head,
    )
