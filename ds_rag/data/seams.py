"""Where to split a prompt so that its parts, each tokenised separately, have the ids of the complete text.

The text of a placeholder is tokenised together with the literal after it, up to a seam in that literal. The best
position of the seam depends on the tokenizer: before a space for byte-level tokenizers, whose words begin with a space.
So positions are tried out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

# Examples of what the text of a placeholder may end and begin with.
ENDS = ("word", "end.", "7", "x)", 'x"', "é", "中", "x?", "x ", "x\n", "x. \n", "")
STARTS = ("what", "Who", "7", "(x", '"x', "'s", "é", "中", "-x", "...", " x", "\nx", "  x")
REACH = 32  # number of characters before a placeholder to try as seams


class InText:
    """Token ids of parts of a text, as the tokenizer would give them within the text."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.anchor = anchor_of(tokenizer)
        self.anchor_length = len(self.raw([self.anchor])[0])
        added = {t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
        longest_first = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def raw(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """Token ids as at the beginning of a text."""
        return self.tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]

    def ids(self, texts: Sequence[str], fresh: bool = False, limit: int = 0, **options: Any) -> list[list[int]]:
        """Token ids as in the middle of a text, where no tokenizer adds a space; fresh: as at its beginning. limit: the
        number of tokens wanted; used where the tokenizer truncates on the right."""
        anchor, skipped = ("", 0) if fresh else (self.anchor, self.anchor_length)
        if limit and self.tokenizer.truncation_side == "right":
            options |= {"truncation": True, "max_length": limit + skipped}
        return [x[skipped:] for x in self.raw([anchor + t for t in texts], **options)]

    def begins_anew(self, special: str) -> bool:
        """Is text after this special token tokenised as at the beginning of a text?"""
        whole, token, start = self.raw([special + "a", special, "a"])
        return whole == token + start


def anchor_of(tokenizer: Any) -> str:
    """A line break if the tokenizer begins every text with a space (Llama 2, Mistral), else "".

    A part of a prompt is tokenised after this line break, whose ids are then dropped: there no space is added.
    """
    start, line, middle = tokenizer(["a", "\n", "\n a"], add_special_tokens=False)["input_ids"]
    return "\n" if line + start == middle else ""


def special_prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer itself puts before a text: a BOS, or nothing, even for many tokenizers that have a
    BOS."""
    (plain,), (whole,) = tokenizer(["x"], add_special_tokens=False)["input_ids"], tokenizer(["x"])["input_ids"]
    starts = (n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain)
    return whole[: next(starts, 0)]


@dataclass(frozen=True)
class Seam:
    """A literal in three parts: tokenised with the text before it, separately, and with the text after it."""

    trail: str
    fixed: str
    lead: str
    fresh: bool = False  # `lead` is tokenised as at a text's beginning


def first_seam(pieces: InText, literal: str) -> Seam:
    """The seam of the literal before the first placeholder."""
    special, plain = at_last_special(pieces, literal)
    fresh = pieces.begins_anew(special) if special else True
    k = best_split(pieces, [special], plain, fresh)
    fixed = literal[: len(literal) - len(plain) + k]
    return Seam("", fixed, plain[k:], fresh and k == 0)


def middle_seam(pieces: InText, literal: str) -> Seam:
    """The seam of the literal between the placeholders. A special token splits a text by itself."""
    if not pieces.special.search(literal):
        k = best_split(pieces, ENDS, literal, False)
        return Seam(literal[:k], "", literal[k:])
    trail = literal[: pieces.special.search(literal).start()]  # type: ignore[union-attr]
    seam = first_seam(pieces, literal[len(trail) :])
    return Seam(trail, seam.fixed, seam.lead, seam.fresh)


def last_seam(pieces: InText, literal: str, lead: str) -> Seam:
    """The seam of the literal before the answer: all of it belongs to the prompt that the generator continues. lead:
    see `Seam`."""
    found = pieces.special.search(literal)
    trail = literal[: found.start()] if found else literal
    special, plain = at_last_special(pieces, literal)
    return Seam(trail, literal[len(trail) :], lead, bool(special) and not plain and pieces.begins_anew(special))


def of_its_own(literal: str) -> Seam:
    """The seam of a literal that is tokenised separately, except for its last spaces."""
    kept = literal.rstrip(" ")
    return Seam("", kept, literal[len(kept) :])


def at_last_special(pieces: InText, literal: str) -> tuple[str, str]:
    """(last special token in the literal, the text after it); ("", literal) if there is none."""
    found = list(pieces.special.finditer(literal))
    return (found[-1].group(), literal[found[-1].end() :]) if found else ("", literal)


def best_split(pieces: InText, before: Sequence[str], literal: str, fresh: bool) -> int:
    """Where to split `literal` so that, for most texts around it, both sides together have the ids of the complete
    text: before a space if possible (trials cannot show which words a vocabulary joins to a space), and as late as
    possible.

    before: texts that may precede the literal; fresh: nothing precedes it, or a token after which a text begins anew.
    """
    pairs = list(product(before, STARTS))
    wholes = pieces.raw([b + literal + s for b, s in pairs])
    places = range(len(literal), max(-1, len(literal) - REACH - 1), -1)
    spaces = [k for k in places if literal[k : k + 1].isspace() and not literal[k - 1 : k].isspace()]
    best, most = len(literal), -1
    for k in dict.fromkeys([*spaces, *places]):
        lefts = dict(zip(before, pieces.raw([b + literal[:k] for b in before]), strict=True))
        rights = dict(zip(STARTS, pieces.ids([literal[k:] + s for s in STARTS], fresh and k == 0), strict=True))
        agree = sum(lefts[b] + rights[s] == whole for (b, s), whole in zip(pairs, wholes, strict=True))
        if agree > most:
            best, most = k, agree
    return best
