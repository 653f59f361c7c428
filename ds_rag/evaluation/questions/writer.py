"""Generates questions about passages with transformers' `generate`: batched, each passage read once for its questions.

The part of the prompt that all passages share (the task and the examples) is read once, each passage once after it, and
every question continues from the keys and values of its passage. What is drawn depends on the seed, the passage's text
and the question's number alone: the same for any number of ranks, up to rounding in batches of other sizes.

Shape legend: R generations of a batch, T tokens of a prompt, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import Ids
from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.decoding import plain_greedy, until_end
from ds_rag.evaluation.questions.asking import ORDER, Style, is_complete
from ds_rag.evaluation.questions.examples import EXTRACTIVE
from ds_rag.evaluation.questions.prefixes import Prefixes, followed, misfit, pad_left
from ds_rag.evaluation.questions.spans import OnlySpans, Spans, after_word
from ds_rag.models.generator import Generator

TOP_K = 50  # tokens among which one is drawn, as in transformers' default


@dataclass(frozen=True)
class Drawing:
    """temperature: of sampling, 0: always the likeliest token. top_p: the least mass of the likeliest tokens that are
    drawn from (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751). max_tokens: of a question and its answer.
    max_answer_words: of an answer that is a span."""

    temperature: float
    top_p: float
    max_tokens: int
    max_answer_words: int
    seed: int


@dataclass(frozen=True)
class Ask:
    """One question to write. place: of its passage in the batch; hash: of the passage's text; number: of the question,
    from 0, which is the likeliest one; the others are drawn. lead: characters of the passage's title, in which no
    answer begins."""

    place: int
    hash: str
    number: int
    lead: int = 0


@dataclass(frozen=True)
class Generation:
    """text: as it was generated. ended: by the model's end-of-sequence token. tokens: how many were generated."""

    text: str
    ended: bool
    tokens: int


class Writer:
    """Writes questions with `generator` and a prompt of `writing_prompt`, in the same style. On one rank alone.

    misfit: None where prefixes are read once, else why they are not. then: the ids between an extractive answer, which
    can only be a span of its passage, and its question; None: with a tokenizer whose line ends are no tokens, and for
    other answers.
    """

    def __init__(self, generator: Generator, prompt: Prompt, style: Style, drawing: Drawing):
        self.generator, self.prompt, self.style, self.drawing = generator, prompt, style, drawing
        (hint,) = prompt.encode("query", [style.hint], 1 << 20)
        self.hint_ids = np.array(hint, dtype=np.int32)
        (lead,) = prompt.pieces.ids([style.lead] if style.chat else [""])
        self.lead_ids = np.array(lead, dtype=np.int32)
        self.prefixes = Prefixes(generator, prompt.literals[0])
        self.misfit = misfit(generator)
        self.then = after_word(generator.tokenizer, ORDER[EXTRACTIVE][1]) if style.answers == EXTRACTIVE else None

    @property
    def room(self) -> int:
        """Tokens of a passage that fit into the prompt, beside its examples and what is to be written."""
        return self.prompt.room(len(self.hint_ids), len(self.lead_ids) + self.drawing.max_tokens)

    @torch.no_grad()
    def write(self, passages: Sequence[Ids], asks: Sequence[Ask]) -> list[Generation]:
        """One generation for each of `asks`. passages: ids, as the prompt's `encode` makes them."""
        self.generator.eval()
        self.generator.check_known(list(passages))
        room = len(self.lead_ids) + self.drawing.max_tokens
        halves = [self.prompt.split(ids, self.hint_ids, room) for ids in passages]
        more, tensor, places = dict[str, Any](), self.prefixes.tensor, [ask.place for ask in asks]
        if self.misfit is None:
            own = [common[len(self.prefixes.first) :] for common, _ in halves]
            rows, more["past_key_values"] = self.prefixes.read(own, places)
        else:
            rows = pad_left([halves[place][0] for place in places], self.prefixes.pad)
        ids_RT, mask_RT = followed(rows, np.concatenate([halves[0][1], self.lead_ids]))
        width, until = ids_RT.shape[1], self.then[0] if self.then else None
        generated = self.generator.lm.generate(
            input_ids=tensor(ids_RT),
            attention_mask=tensor(mask_RT),
            generation_config=plain_greedy(self.generator.tokenizer, self.drawing.max_tokens),
            logits_processor=[*self._only_spans(passages, asks, width), Draw(asks, self.drawing, width, until)],
            stopping_criteria=[Finished(self.generator.tokenizer, self.style, width)],
            **more,
        )
        return [self._generation(row) for row in generated[:, width:].cpu().numpy().astype(np.int32)]

    def _only_spans(self, passages: Sequence[Ids], asks: Sequence[Ask], width: int) -> list[OnlySpans]:
        if not self.then:
            return []
        around = self.prompt.around["passage"]
        texts = [ids[around.head : len(ids) - len(around.tail)][: self.room] for ids in passages]  # as it is read
        # One word more than an answer may have: what is cut there is rejected as too long.
        leads = {ask.place: ask.lead for ask in asks}
        titled = [(ids, leads.get(place, 0)) for place, ids in enumerate(texts)]
        spans = Spans(self.generator.tokenizer, titled, self.drawing.max_answer_words + 1, self.then)
        begins = [float(uniform(ask, self.drawing, "part")[0]) if ask.number else None for ask in asks]
        return [OnlySpans(spans, list(zip([ask.place for ask in asks], begins, strict=True)), width)]

    def _generation(self, ids: Ids) -> Generation:
        """Of one row, which is padded after its end."""
        tokenizer = self.generator.tokenizer
        kept = until_end(ids, tokenizer.eos_token_id)
        ended = bool(len(kept) and kept[-1] == tokenizer.eos_token_id)
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            kept = until_end(kept, tokenizer.pad_token_id)
        text = tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(text, ended and not is_complete(text, self.style), len(kept))


class Draw:
    """For `generate`, which takes the highest score: leaves in each row one token, drawn by the row's own numbers; rows
    of number 0, and all without a temperature, stay as they are. until: the token after which a row is drawn no more.
    So the answers to different questions are drawn, and each question is the likeliest one.

    Drawn is by inverting the distribution: the first of the kept tokens, likeliest first, at which their summed
    probability exceeds a uniform number.
    """

    def __init__(self, asks: Sequence[Ask], drawing: Drawing, width: int, until: int | None = None):
        self.drawing, self.width, self.until = drawing, width, until
        drawn = [n for n, ask in enumerate(asks) if ask.number and drawing.temperature]
        self.uniform_T = {n: uniform(asks[n], drawing) for n in drawn}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        written_RT = input_ids[:, self.width :]
        rows = [n for n in self.uniform_T if self.until is None or self.until not in written_RT[n].tolist()]
        if not rows:
            return scores
        numbers_R = torch.tensor([self.uniform_T[n][written_RT.shape[1]] for n in rows], device=scores.device)
        chosen_R = pick(scores[rows], numbers_R, self.drawing)
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, chosen_R] = 0.0
        return scores


def uniform(ask: Ask, drawing: Drawing, of: str = "tokens") -> np.ndarray:
    """(max_tokens,) numbers from 0 to 1 that belong to this question alone. of: what they are drawn for."""
    digest = hashlib.sha256(f"{drawing.seed} {ask.hash} {ask.number} {of}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16])).random(drawing.max_tokens)


def pick(scores_RV: torch.Tensor, uniform_R: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """(R,) the token that each row's uniform number draws."""
    top_RK, ids_RK = scores_RV.double().topk(min(TOP_K, scores_RV.shape[1]))
    p_RK = torch.softmax(top_RK / drawing.temperature, dim=-1)
    p_RK = p_RK * (p_RK.cumsum(-1) - p_RK < drawing.top_p)  # the first is always kept
    below_RK = p_RK.cumsum(-1) / p_RK.sum(-1, keepdim=True) <= uniform_R[:, None]
    place_R = torch.minimum(below_RK.sum(-1), (p_RK > 0).sum(-1) - 1)
    return ids_RK.gather(1, place_R[:, None])[:, 0]


class Finished:
    """For `generate`: rows whose question and answer are there need no further token."""

    def __init__(self, tokenizer: Any, style: Style, width: int):
        self.tokenizer, self.style, self.width = tokenizer, style, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
        return torch.tensor([is_complete(text, self.style) for text in texts], device=input_ids.device)
