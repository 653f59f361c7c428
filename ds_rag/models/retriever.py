"""The retriever: an encoder, a pooling, a normalisation, prompts and a temperature.

Queries and passages embed in one forward, which is what DeepSpeed's bookkeeping of gradients needs.

Shape legend: B queries, N passages, T tokens, D embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ds_rag.data.batch import Tokens, pad_right
from ds_rag.data.truncation import CutIds, cut_ids
from ds_rag.models.behaviour_checks import rows_of, states
from ds_rag.models.pooling import POOLERS
from ds_rag.models.saving import save_model
from ds_rag.models.sharded import gathered
from ds_rag.models.st_folder import RetrieverSettings, describe_sentence_transformer
from ds_rag.models.tokenizer import check_token_ids
from ds_rag.runtime.errors import choose

PASSAGE_ENCODER = "passage_encoder"  # subfolder of the passage encoder, if there are two encoders


class Retriever(nn.Module):
    """An encoder whose pooled token states are embeddings; `retriever(queries, passages)` embeds both sides at once.

    Returns (embeddings_BD, embeddings_ND, temperature): float32, of unit length where `settings.normalize` says so; the
    temperature is 0-d. Scores are `embeddings_BD @ embeddings_ND.T / temperature`, without a unit. With
    `settings.lexical_weight` w a fourth output is w, 0-d: the scores are then plus w times BM25's
    (`ds_rag/index/lexical_pairs.py`), after CLEAR (Gao et al. 2021, arXiv:2004.13969).

    Args:
        encoder: a transformers model whose output has `last_hidden_state`.
        tokenizer: its tokenizer, with a pad token.
        settings: pooling, normalisation, prefixes, lengths (tokens) and temperature; by default mean pooling to unit
            length, 64 and 200 tokens, 0.05.
        passage_encoder: a second encoder for passages; None: one for both sides.

    Raises:
        UserError: an unknown pooling; a text with a token that the encoder has no embedding for.

    Source: the dual encoder of Karpukhin et al. 2020, arXiv:2004.04906, section 3.1.

    Example:
        >>> queries = retriever.tokens(["who leads zor ?"], "query")
        >>> passages = retriever.tokens(["ann leads zor", "kelp grows in pool nine"], "passage")
        >>> q_BD, p_ND, temperature = retriever(queries, passages)
        >>> scores_BN = q_BD @ p_ND.T / temperature
        >>> tuple(scores_BN.shape)
        (1, 2)
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        settings: RetrieverSettings | None = None,
        passage_encoder: Any = None,
    ):
        super().__init__()
        settings = settings or RetrieverSettings()
        self.encoder, self.passage_encoder = encoder, passage_encoder
        self.tokenizer, self.settings = tokenizer, settings
        self.pool = choose(POOLERS, settings.pooling, "pooling")
        start = torch.tensor(math.log(settings.temperature))
        # Part of this module and returned with the embeddings: otherwise a trainable temperature would get no gradient.
        if settings.learn_temperature:
            self.log_temperature = nn.Parameter(start[None])  # DeepSpeed cannot broadcast a 0-d parameter
        else:
            self.register_buffer("log_temperature", start, persistent=False)
        self.log_lexical_weight: nn.Parameter | None = None
        if settings.lexical_weight:
            self.log_lexical_weight = nn.Parameter(torch.tensor([math.log(settings.lexical_weight)]))
        for part in filter(None, (encoder, passage_encoder)):
            pooler = getattr(part, "pooler", None)
            if isinstance(pooler, nn.Module):  # its output is not used, so its parameters would get no gradient
                pooler.requires_grad_(False)

    @property
    def hidden_size(self) -> int:
        return int(self.encoder.config.hidden_size)

    def forward(self, queries: Tokens | None, passages: Tokens | None) -> tuple[torch.Tensor | None, ...]:
        """Embeddings of both sides, or of one: then None for the other; temperature, and BM25's weight if there is
        one."""
        q_BD = None if queries is None else self._embed(queries, "query")
        p_ND = None if passages is None else self._embed(passages, "passage")
        return (q_BD, p_ND, self.temperature, *([self.lexical_weight] if self.reads_words else []))

    def keep_passages(self) -> None:
        """Freezes the passages' side, so that their vectors are constants: the passage encoder, or, where one encoder
        is for both sides, a copy of it, which becomes the passage encoder."""
        if self.passage_encoder is None:
            self.passage_encoder = copy.deepcopy(self.encoder)
        self.passage_encoder.requires_grad_(False)

    @property
    def temperature(self) -> torch.Tensor:
        """0-d float32. A fixed temperature is exact; a buffer would be cast to bfloat16 by the engine.

        To be called on all ranks: under ZeRO-3 a trainable temperature is gathered, outside of a forward."""
        if self.settings.learn_temperature:
            with gathered([self.log_temperature]):
                return self.log_temperature[0].float().exp()
        return torch.tensor(self.settings.temperature, device=self.log_temperature.device)

    @property
    def reads_words(self) -> bool:
        """Are its scores a sum of inner products and BM25?"""
        return self.log_lexical_weight is not None

    @property
    def lexical_weight(self) -> torch.Tensor:
        """0-d float32: the weight of BM25 in the scores, 0 where they have none. On all ranks, as the temperature."""
        if self.log_lexical_weight is None:
            return torch.zeros((), device=self.log_temperature.device)
        with gathered([self.log_lexical_weight]):
            return self.log_lexical_weight[0].float().exp()

    def embed(self, tokens: Tokens, side: str) -> torch.Tensor:
        """(B, D) float32 embeddings of one side: 'query' or 'passage'; a forward of the whole module, which is where
        ZeRO-3 begins to gather."""
        q_BD, p_ND, *_ = self(*((tokens, None) if side == "query" else (None, tokens)))
        return q_BD if side == "query" else p_ND

    def _embed(self, tokens: Tokens, side: str) -> torch.Tensor:
        encoder = self.passage_encoder if side == "passage" and self.passage_encoder is not None else self.encoder
        hidden_BTD = states(encoder, encoder(input_ids=tokens.ids_BT, attention_mask=tokens.mask_BT))
        pooled_BD = self.pool(hidden_BTD, tokens.mask_BT).float()
        return F.normalize(pooled_BD, dim=-1) if self.settings.normalize else pooled_BD

    def tokenize(self, texts: list[str], side: str) -> CutIds:
        """Token ids with the side's prefix and the tokenizer's special tokens, cut at the side's length."""
        s = self.settings
        prefix = s.query_prefix if side == "query" else s.passage_prefix
        ids = cut_ids(self.tokenizer, [prefix + t for t in texts], self.length(side))
        largest = max((max(text, default=0) for text in ids), default=0)
        check_token_ids(self.tokenizer, largest, rows_of(self.encoder), f"a {side}")
        return ids

    def tokens(self, texts: Sequence[str], side: str) -> Tokens:
        """The texts of a side ('query' or 'passage') as a forward takes them: (B, T) ids and mask on the module's
        device, padded to the longest. Raises as `tokenize`."""
        ids = [np.array(x, dtype=np.int32) for x in self.tokenize(list(texts), side)]
        return pad_right(ids, self.tokenizer.pad_token_id).to(self.log_temperature.device)

    def length(self, side: str) -> int:
        """Tokens that a text of this side may have."""
        return self.settings.max_query_length if side == "query" else self.settings.max_passage_length

    def save(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Writes a folder that `SentenceTransformer(folder)` opens and that gives the same vectors.

        `state` replaces the module's own weights (this wrapper's names), as a sharded engine gathers them.
        """
        state = state if state is not None else self.state_dict()
        settings = self.settings
        if "log_temperature" in state:  # absent where it is fixed
            settings = replace(settings, temperature=float(state["log_temperature"].float().exp()))
        if "log_lexical_weight" in state:
            settings = replace(settings, lexical_weight=float(state["log_lexical_weight"].float().exp()))
        save_model(self.encoder, state, "encoder.", folder)
        self._describe(self.encoder, settings, folder)
        if self.passage_encoder is not None:
            save_model(self.passage_encoder, state, f"{PASSAGE_ENCODER}.", folder / PASSAGE_ENCODER)
            self._describe(self.passage_encoder, settings, folder / PASSAGE_ENCODER)

    def _describe(self, encoder: Any, settings: RetrieverSettings, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        describe_sentence_transformer(int(encoder.config.hidden_size), settings, folder)
