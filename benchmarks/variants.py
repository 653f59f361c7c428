"""The variants of one step that step.py compares, on the same models and rows, with the library's own classes.

    (a) padded          the DALM toolkit's step, re-created: one sequence per query, padded to 256 tokens, logits at
                        every position, only the positive passage
    (b) naive           the in-batch marginal as a careful engineer would write it: each (query, passage) pair as its
                        own sequence, no padding, SDPA, logits at answers only, one graph
    (c) one pass, exact, posterior, sample   the ways of `--generator_backward`
    (d) positive only   the loss of (a) with our code     (e) the same, language-model loss on answer tokens only

Shape legend: B queries and passages, K = B candidates, C cells, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ds_rag.config import ObjectiveConfig, ScoringConfig
from ds_rag.data.batch import Batch, Cells, Ids, lay_out_plain, pad_right
from ds_rag.data.prompt import Prompt
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.plain import PlainEngine
from ds_rag.losses import positive_only, rag_sequence
from ds_rag.models.from_settings import fuse_activations
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.step.generator_side import Scoring, StepOptions
from ds_rag.step.objectives import Micro, Objective, make_objective
from ds_rag.step.retriever_side import Embedding

PADDED, NAIVE, ONE_PASS = "padded (DALM)", "naive", "one pass"
PADDED_LENGTH = 256
ENCODER_VOCABULARY = 30522
# (generator's GPT2Config, retriever's BertConfig)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8000, "n_positions": 1024},
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    ),
    "gpt2": (
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
}


@dataclass(frozen=True)
class Size:
    """Name of a shape, queries in the batch, and tokens of a passage, a query and an answer."""

    shape: str
    batch: int
    passage: int
    query: int
    answer: int


class Joined(Prompt):
    """A prompt of passage and query, with nothing between."""

    def __init__(self) -> None:
        self.max_length = 1 << 30

    def split(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> tuple[Ids, Ids]:
        return passage_ids, query_ids


class Bench:
    """Models, one batch, and `variants`: each runs forward and backward of a step."""

    def __init__(self, size: Size, device: str = "cpu"):
        from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        self.size = size
        lm_shape, encoder_shape = SHAPES[size.shape]
        no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
        lm = GPT2LMHeadModel(GPT2Config(**lm_shape, **no_dropout, **ends))
        fuse_activations(lm)  # for all variants
        none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        encoder = BertModel(BertConfig(vocab_size=ENCODER_VOCABULARY, **encoder_shape, **none), add_pooling_layer=False)
        self.generator = Generator(lm, None)
        reason = share_prefixes(self.generator)
        assert reason is None, reason
        self.retriever = Retriever(encoder, None, RetrieverSettings())
        self.engines = Engines(still(self.retriever), still(self.generator), 0.0)
        self.batch = make_batch(size, lm.config.vocab_size)
        self.marginal = make_objective(ObjectiveConfig(candidates="all"))
        self.positive = make_objective(ObjectiveConfig(objective="positive_only"))
        self.answers = make_objective(ObjectiveConfig(objective="positive_only", lm_tokens="answer"))
        self.variants = self.make_variants()
        # Variant -> variants that must have the same gradients.
        self.equal = {NAIVE: [ONE_PASS, "exact", "posterior, all kept"], PADDED: ["positive only"]}
        self.variants["posterior, all kept"] = lambda: self.ours("posterior", threshold=0.0)

    def make_variants(self) -> dict[str, Callable[[], None]]:
        B = self.size.batch
        kept = {f"posterior {n}/{d}": B * n // d for n, d in ((1, 8), (1, 4), (1, 2)) if B % d == 0}
        if B != 8:
            kept = {"posterior 1 cell": 1} | kept
        return {
            PADDED: self.padded,
            NAIVE: self.naive,
            ONE_PASS: lambda: self.ours("one_pass"),
            "exact": lambda: self.ours("exact"),
            **{name: partial(self.ours, "posterior", kept=cells) for name, cells in kept.items()},
            "sample": lambda: self.ours("sample"),
            "positive only": lambda: self.ours("one_pass", self.positive),
            "positive only, answer tokens": lambda: self.ours("one_pass", self.answers),
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.retriever.parameters()
        yield from self.generator.parameters()

    def gradients(self) -> torch.Tensor:
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.parameters()]
        )

    def run(self, name: str, keep_gradients: bool = True) -> None:
        """Runs one step. Gradients are zeroed, not freed, like an engine's buffers."""
        if keep_gradients:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.zero_()
        self.variants[name]()

    def scores(self) -> torch.Tensor:
        q_BD, p_ND, temperature = self.retriever(self.batch.queries, self.batch.passages)
        return q_BD @ p_ND.T / temperature

    def padded(self) -> None:
        cells = self.positive.cells(self.batch, torch.zeros(self.size.batch, 1), Joined())
        ids, mask = pad_to(lay_out_plain(cells, 0), PADDED_LENGTH)
        logits = self.generator.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        logp = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        token_mask = mask[:, 1:].bool()
        ends = mask.sum(1, keepdim=True) - 1
        place = torch.arange(logp.shape[1])
        answer_mask = (place < ends) & (place >= ends - self.size.answer)
        index_B = torch.arange(self.size.batch)
        positive_only(self.scores(), index_B, logp, token_mask, answer_mask).loss().backward()

    def naive(self) -> None:
        B = self.size.batch
        cells = self.marginal.cells(self.batch, torch.arange(B).expand(B, B), Joined())
        logp_CA = self.generator.plain(lay_out_plain(cells, 0))
        loss_B = rag_sequence(self.scores(), logp_CA.view(B, B, -1), self.batch.answer_mask_BT)
        loss_B.mean().backward()

    def ours(
        self, how: str, objective: Objective | None = None, kept: int | None = None, threshold: float = 0.01
    ) -> None:
        """kept: for how many cells of each query the (synthetic) weight is not zero: the positive's and those after
        it."""
        B, objective = self.size.batch, objective or self.marginal
        config = ScoringConfig(generator_backward=how, micro_cells=str(B), posterior_threshold=threshold)
        embedding, scoring = Embedding(self.engines), Scoring(self.engines, self.generator, 0, StepOptions(config))
        embedded = embedding.forward(self.batch, last=True)
        scores_BN, candidates_BK = embedded.scores_BN, torch.arange(B).expand(B, B)
        cells = objective.cells(self.batch, candidates_BK, Joined())
        scored = scoring.forward(cells, self.batch, last=True)
        totals = objective.counts([self.batch], [objective.cells_ahead(self.batch, Joined())])
        micro = Micro(self.batch, scores_BN, candidates_BK, cells, scored.outputs)
        found = objective.differentiate(micro, totals)
        assert found.d_logp_CA is not None
        if kept is not None:
            chosen = ((torch.arange(B)[None, :] - torch.arange(B)[:, None]) % B < kept).flatten()
            weights = torch.where(chosen[:, None], -1.0 / (B * kept), 0.0)
            found.d_logp_CA = weights.expand(scored.outputs.shape).contiguous()
        embedded.backward(torch.autograd.grad(scores_BN, embedded.outputs, found.d_scores_BN))
        scored.backward(found.d_logp_CA, (0, 0))


def still(module: nn.Module) -> PlainEngine:
    """An engine without optimizer steps: only gradients are compared."""
    return PlainEngine(module, torch.optim.SGD(module.parameters(), lr=0.0))


def make_batch(size: Size, vocabulary: int) -> Batch:
    """B rows of random tokens, each with its own passage, of the lengths in `size`."""
    rng = np.random.default_rng(0)

    def texts(length: int) -> list[Ids]:
        return [rng.integers(5, vocabulary, length).astype(np.int32) for _ in range(size.batch)]

    queries, passages = texts(size.query), texts(size.passage)
    own = torch.eye(size.batch, dtype=torch.bool)
    return Batch(
        queries=pad_right([ids % ENCODER_VOCABULARY for ids in queries], 0),
        passages=pad_right([ids % ENCODER_VOCABULARY for ids in passages], 0),
        own_BN=own,
        positive_BN=own.clone(),
        query_ids=queries,
        passage_ids=passages,
        answer_ids=texts(size.answer),
        rows=list(range(size.batch)),
    )


def pad_to(cells: Cells, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask (B, length), padded on the right. The rows have equal lengths, so they have no padding yet."""
    ids, mask = cells.ids_CT, cells.mask_CT
    missing = max(0, length - ids.shape[1])
    return F.pad(ids, (0, missing)), F.pad(mask, (0, missing))
