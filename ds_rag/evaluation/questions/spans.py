"""Answers that are spans of their passage by construction: the only tokens that may be generated are those with which a
span of the passage goes on, or its end.

A passage's answer comes first, then the question that it answers: a small model that chooses a question first answers
it from memory, or not at all.

Shape legend: R generations of a batch, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ds_rag.data.batch import Ids
from ds_rag.data.seams import InText
from ds_rag.evaluation.questions.text_filters import is_function_word, may_begin

MARKS = ("Ġ", "▁", " ")  # with which a token begins that begins a word
FRACTION = 1 / 3  # of a passage from which the answer of a further question comes
FEW = 3  # beginnings of words from which a passage is taken as one that is written with blanks


class Spans:
    """The spans of passages as token ids. passages: the ids of each passage's own text, and how many characters its
    title has, in which no span begins. most: words of a span.

    then: the ids of what follows a span, `after_word` of the next label; its first is the end of a line.
    """

    def __init__(self, tokenizer: Any, passages: Sequence[tuple[Ids, int]], most: int, then: Sequence[int]):
        self.tokenizer, self.most, self.then = tokenizer, most, list(then)
        self.end = self.then[0]
        self.passages = [ids.tolist() for ids, _ in passages]
        known = {token for ids in self.passages for token in ids}
        self.begins = {token for token in known if str(tokenizer.convert_ids_to_tokens(token)).startswith(MARKS)}
        self.letters = {token for token in known if tokenizer.decode([token]).strip()[:1].isalnum()}
        self.blanks = [sum(token in self.begins for token in ids) >= FEW for ids in self.passages]
        self.starts = []
        for ids, blanks, (_, lead) in zip(self.passages, self.blanks, passages, strict=True):
            body = self._after(ids, lead)
            self.starts.append([n for n in self._starts(ids, blanks) if n >= body])

    def _after(self, ids: list[int], characters: int) -> int:
        """The first place at which that many characters are written, but for a blank at their end."""
        places = (n for n in range(len(ids)) if len(self.tokenizer.decode(ids[:n]).lstrip()) >= characters - 1)
        return next(places, len(ids)) if characters else 0

    def _starts(self, ids: list[int], blanks: bool) -> list[int]:
        """Places at which a word begins that may begin an answer; without blanks each place with a letter."""
        if not blanks:
            return [n for n, token in enumerate(ids) if token in self.letters]
        places = [n for n, token in enumerate(ids) if n == 0 or token in self.begins]
        words = [self.tokenizer.decode(ids[n:end]).strip() for n, end in itertools.pairwise([*places, len(ids)])]
        return [n for n, word in zip(places, words, strict=True) if word[:1].isalnum() and may_begin(word)]

    def window(self, place: int, begin: float) -> list[int]:
        """A part of the passage's starts, `FRACTION` of them, so that spans from different parts differ. begin: from 0
        to 1, where the part begins; after the passage's end it goes on at its beginning."""
        starts = self.starts[place]
        first, size = int(begin * len(starts)), max(FEW, math.ceil(FRACTION * len(starts)))
        return (starts[first:] + starts[:first])[:size]

    def allowed(self, place: int, begun: list[int], starts: Sequence[int]) -> list[int] | None:
        """The tokens that may follow `begun`, what has been generated so far, in the answer from this passage and the
        label after it; None: both are there, or the passage has no word, and any may. starts: places where the answer
        may begin."""
        if not starts:
            return None
        if self.end in begun:
            label = len(begun) - begun.index(self.end)
            return self.then[label : label + 1] or None
        ids, size, blanks = self.passages[place], len(begun), self.blanks[place]
        at = [n + size for n in starts if ids[n : n + size] == begun]
        after = {ids[n] for n in at if n < len(ids)}
        if not begun:
            return sorted(after)
        whole = not blanks or any(t in self.begins or t not in self.letters for t in after)
        may_end = not after or (whole and self._is_answer(begun))
        words = 1 + sum(token in self.begins for token in begun[1:]) if blanks else size
        if may_end and words >= self.most:
            return [self.end]
        return sorted(after | ({self.end} if may_end else set()))

    def forbidden(self, begun: list[int]) -> int | None:
        """The token with which the last word of the answer would begin where the question has the words before it; None
        where it has not. An article at the beginning does not count. A token within a word is never forbidden: half a
        name would go on as another one."""
        if self.end not in begun:
            return None
        end = begun.index(self.end)
        answer, asked = begun[:end], begun[end + len(self.then) :]
        if len(answer) > 1 and self.tokenizer.decode(answer[:1]).strip().lower() in ("a", "an", "the"):
            answer = answer[1:]
        last = max((n for n, token in enumerate(answer) if token in self.begins), default=0)
        fits = answer and len(asked) >= last and asked[len(asked) - last :] == answer[:last]
        return answer[last] if fits and answer[last] in self.begins else None

    def _is_answer(self, begun: list[int]) -> bool:
        """Not before there is a word, nor before a function word has its noun, nor within brackets."""
        text = self.tokenizer.decode(begun)
        words = text.split()  # none where a blank is a token of its own
        return bool(words) and not is_function_word(words[-1]) and text.count("(") == text.count(")")


class OnlySpans:
    """For `generate`: each row begins with a span of its passage and the next label, and what follows does not repeat
    the span, for such questions are rejected.

    rows: of each the number of its passage, and where the part of the passage begins from which its span comes
    (`Spans.window`); None: all of it.
    """

    def __init__(self, spans: Spans, rows: Sequence[tuple[int, float | None]], width: int):
        self.spans, self.width = spans, width
        self.rows = [(n, spans.starts[n] if begin is None else spans.window(n, begin)) for n, begin in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = scores.clone()
        for row, (place, starts) in enumerate(self.rows):
            begun = input_ids[row, self.width :].tolist()
            tokens = self.spans.allowed(place, begun, starts)
            if tokens is not None:
                kept[row] = -torch.inf
                kept[row, tokens] = scores[row, tokens]
            elif starts and (token := self.spans.forbidden(begun)) is not None:
                kept[row, token] = -torch.inf
        return kept


def after_word(tokenizer: Any, label: str) -> list[int] | None:
    """The ids of a new line with this label, after a word; None where the end of a line is no token of its own."""
    word, both = InText(tokenizer).ids(["word", f"word\n{label}"])
    then = both[len(word) :]
    return then if both[: len(word)] == word and then and tokenizer.decode([then[0]]) == "\n" else None
