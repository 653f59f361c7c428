"""Decodes answers with a generator: one from each passage, rescored by the marginal, or one from the best passage.

An answer is made token by token from prompts that are each read alone: transformers' `generate` takes plain sequences.
What scores texts that are there (the rescoring, the posterior) reads cells as training does, so that after
`share_prefixes` a passage is read once for all questions and answers that stand on it in one forward.

Shape legend: B queries, K passages per query, C cells, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import Ids, list_cells
from ds_rag.data.prompt import Prompt
from ds_rag.models.generator import Generator
from ds_rag.models.sharded import is_sharded
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import choose

Context = tuple[Ids, Ids]  # a prompt in two parts: what all cells of one passage share, and the rest


@dataclass
class Answer:
    """A decoded text and its log-probability in nats: under rag_sequence that of the marginal over the passages.
    ended: by the generator; False: cut at the most tokens."""

    text: str
    logprob: float
    ended: bool = True


class Answerer:
    """Decodes answers to queries from their passages. decode: a name in `DECODERS`; batch: contexts in one forward."""

    def __init__(self, generator: Generator, prompt: Prompt, decode: str, max_new_tokens: int, batch: int):
        self.generator, self.prompt, self.batch = generator, prompt, batch
        self.max_new_tokens = max_new_tokens
        # Under ZeRO-3 a forward is a collective, so every rank must run as many as the rank with the most.
        self.in_step = is_sharded(generator) and collectives.world() > 1
        self.pick = choose(DECODERS, decode, "--decode")

    @torch.no_grad()
    def answer(
        self, queries: Sequence[Ids], passages: Sequence[Sequence[Ids]], log_priors: Sequence[Sequence[float]]
    ) -> list[Answer]:
        """One answer for each query. `passages[i]`: token ids of query i's passages, best first; `log_priors[i]`: the
        retriever's log-probabilities of them. With an empty passage the prompt is closed-book."""
        self.generator.eval()
        return self.pick(self, queries, passages, [np.asarray(row, dtype=np.float64) for row in log_priors])

    @torch.no_grad()
    def score(
        self, queries: Sequence[Ids], passages: Sequence[Sequence[Ids]], targets: Sequence[Ids]
    ) -> list[np.ndarray]:
        """For each query the (K,) log p(target | passage, query) of its passages, summed over tokens, in nats."""
        self.generator.eval()
        contexts = [self.contexts(q, p) for q, p in zip(queries, passages, strict=True)]
        pairs = [(c, target) for row, target in zip(contexts, targets, strict=True) for c in row]
        logp_C = self.log_probs([c for c, _ in pairs], [target for _, target in pairs])
        return np.split(logp_C, np.cumsum([len(row) for row in contexts])[:-1]) if contexts else []

    def greedy(self, contexts: list[Context]) -> list[Ids]:
        """The greedy continuation of each context, with its end-of-sequence token where one was reached."""
        return self._greedy([np.concatenate(context) for context in contexts])

    def _greedy(self, contexts: list[Ids]) -> list[Ids]:
        out: list[Ids] = []
        for part in self.parts(len(contexts)):
            found = self._greedy_batch(contexts[part] or contexts[:1])
            out += found[: len(contexts[part])]
        return out

    def parts(self, count: int) -> list[slice]:
        """Batches of `count` items; under ZeRO-3 equally many on every rank, the surplus ones empty."""
        rounds = -(-count // self.batch)
        if self.in_step:
            rounds = int(collectives.all_max({"n": rounds}, self.device)["n"])
        return [slice(n * self.batch, (n + 1) * self.batch) for n in range(rounds)]

    @property
    def device(self) -> torch.device:
        return next(self.generator.lm.parameters()).device

    def _greedy_batch(self, contexts: list[Ids]) -> list[Ids]:
        tokenizer, lm = self.generator.tokenizer, self.generator.lm
        self.generator.check_known(contexts)
        width = max(len(c) for c in contexts)
        ids = np.full((len(contexts), width), tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, context in enumerate(contexts):
            ids[row, width - len(context) :], mask[row, width - len(context) :] = context, 1
        generated = lm.generate(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
            generation_config=plain_greedy(tokenizer, self.max_new_tokens),
            synced_gpus=self.in_step,
        )
        return [until_end(row[width:], tokenizer.eos_token_id) for row in generated.cpu().numpy().astype(np.int32)]

    def log_probs(self, contexts: list[Context], targets: list[Ids]) -> np.ndarray:
        """(C,) summed log-probability of each target after its context. Cells of one passage are read together."""
        number: dict[bytes, int] = {}
        place_C = [number.setdefault(prefix.tobytes(), len(number)) for prefix, _ in contexts]
        order = sorted(range(len(contexts)), key=place_C.__getitem__)
        sums = np.zeros(len(contexts))
        for part in self.parts(len(contexts)):
            chosen = order[part] or order[:1]
            cells = list_cells(
                [contexts[c][0] for c in chosen],
                [np.concatenate([contexts[c][1], targets[c]]) for c in chosen],
                [len(targets[c]) for c in chosen],
            )
            laid_out = self.generator.lay_out(cells, self.generator.tokenizer.pad_token_id)
            logp_CA = self.generator(laid_out.to(self.device)).cpu()
            for c, row in zip(order[part], logp_CA, strict=False):
                sums[c] = float(row[: len(targets[c])].sum())
        return sums

    def contexts(self, query: Ids, passages: Sequence[Ids]) -> list[Context]:
        return [self.prompt.split(p, query, self.max_new_tokens + 1) for p in passages]

    def text(self, ids: Ids) -> str:
        return self.generator.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def ended(self, ids: Ids) -> bool:
        return bool(len(ids) and ids[-1] == self.generator.tokenizer.eos_token_id)


def plain_greedy(tokenizer: Any, max_new_tokens: int) -> Any:
    """A configuration of greedy search alone. The model folder's own may have a repetition penalty, say, which would
    punish copying from the passage."""
    from transformers import GenerationConfig

    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **ends)


def until_end(ids: Ids, end: Any) -> Ids:
    """The ids up to and including the first end-of-sequence token."""
    stops = np.flatnonzero(ids == end) if end is not None else np.zeros(0, int)
    return ids[: stops[0] + 1] if len(stops) else ids


def decode_top1(
    self: Answerer,
    queries: Sequence[Ids],
    passages: Sequence[Sequence[Ids]],
    log_priors: Sequence[np.ndarray],
) -> list[Answer]:
    """The greedy answer from the best passage."""
    contexts = [self.contexts(q, p[:1])[0] for q, p in zip(queries, passages, strict=True)]
    answers = self.greedy(contexts)
    scores = self.log_probs(contexts, answers)
    return [Answer(self.text(a), s, self.ended(a)) for a, s in zip(answers, scores, strict=True)]


def decode_rag_sequence(
    self: Answerer,
    queries: Sequence[Ids],
    passages: Sequence[Sequence[Ids]],
    log_priors: Sequence[np.ndarray],
) -> list[Answer]:
    """Decodes an answer from each passage, scores each under every passage, and returns the best for each query:
    argmax_y log sum_j p(z_j|x) p(y|x,z_j) ("thorough decoding" of Lewis et al. 2020, arXiv 2005.11401, with greedy
    search in place of beam search)."""
    contexts = [self.contexts(q, p) for q, p in zip(queries, passages, strict=True)]
    greedy = iter(self.greedy([c for row in contexts for c in row]))
    distinct = [list({tuple(a): a for a in (next(greedy) for _ in row)}.values()) for row in contexts]
    pairs = [(c, a) for row, answers in zip(contexts, distinct, strict=True) for a in answers for c in row]
    G = iter(self.log_probs([c for c, _ in pairs], [a for _, a in pairs]))
    results = []
    for row, answers, log_prior_K in zip(contexts, distinct, log_priors, strict=True):
        scores = [np.logaddexp.reduce(log_prior_K + [next(G) for _ in row]) for _ in answers]
        best = int(np.argmax(scores))
        results.append(Answer(self.text(answers[best]), float(scores[best]), self.ended(answers[best])))
    return results


DECODERS = {"rag_sequence": decode_rag_sequence, "top1": decode_top1}
