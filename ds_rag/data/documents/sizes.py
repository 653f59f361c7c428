"""How long a passage is, in the tokens of the models that read it: exactly, and by the sum of its words' tokens.

Most tokenizers cut at blanks first, so that the sum is right or nearly so, and far cheaper while places to cut are
looked for. What is found is then measured exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from ds_rag.data.bad_rows import Bad
from ds_rag.data.records import join_title
from ds_rag.runtime.errors import UserError

LEAST = 16  # tokens beside prefix and special tokens: room for any character of any tokenizer, and some words
TITLE = 3  # a title may have one part in so many of a passage
WIDEST = 50  # characters a token, above which a text is taken for too long: nobody reads it
# Line ends and runs of blanks, which some tokenizers count; words, long ones in parts; characters of scripts without
# blanks between words, each by itself.
UNIT = re.compile(r"\n+|[ \t]{2,}|[^\s\u2e80-\uffff]{1,30}|[\u2e80-\uffff]")
SAMPLE = 20_000  # characters of a document by which the sum is corrected
MOST_KNOWN = 1_000_000  # words that are remembered
BATCH = 1000


@dataclass(frozen=True)
class Sizes:
    """count: texts as the corpus's reader joins them, "title text" -> tokens of each, with prefix and special tokens.
    most: that a passage may have. key: names the tokenizer and its settings, for the next call."""

    count: Callable[[list[str]], list[int]]
    most: int
    key: str
    known: dict[str, int] = field(default_factory=dict, repr=False, compare=False)  # tokens of a unit

    def check(self, overlap: int) -> None:
        """Raises UserError where a passage would have no room for text."""
        bare, room = self.bare, self.most - self.bare
        if room < LEAST:
            raise UserError(
                f"--max_passage_length {self.most}: no room for text",
                found=f"{bare} tokens are the prefix and special tokens",
                expected=f"{bare + LEAST} or more",
            )
        if overlap > room // 2:
            raise UserError(
                f"--overlap {overlap}: more than half of a passage",
                expected=f"{room // 2} or less, of {self.most} with {bare} for prefix and special tokens",
            )

    @cached_property
    def bare(self) -> int:
        """Of prefix and special tokens alone."""
        return max(0, self.count(["a"])[0] - 1)

    def about(self, text: str) -> int:
        """The sum of the tokens of a text's units, without prefix and special tokens."""
        units = UNIT.findall(text)
        if new := [unit for unit in dict.fromkeys(units) if unit not in self.known]:
            self._learn(new)
        return sum(map(self.known.__getitem__, units))

    def _learn(self, units: list[str]) -> None:
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        word, two = self.count(["a", "a a"])
        for begin in range(0, len(units), BATCH):
            some = units[begin : begin + BATCH]
            counts = self.count([f"a{unit}a" if unit.isspace() else f"a {unit}" for unit in some])
            for unit, count in zip(some, counts, strict=True):
                self.known[unit] = max(0, count - (two if unit.isspace() else word))

    def ratio(self, text: str) -> float:
        """Tokens of a text in units of its sum: below 1 where the tokenizer joins characters that are units here."""
        sample = text[:SAMPLE]
        about = self.about(sample)
        found = (self.count([sample])[0] - self.bare) / about if about else 1.0
        return found if abs(found - 1) > 0.02 else 1.0


@dataclass(frozen=True)
class Frame:
    """What all passages below one heading have in common: their title, which joins their texts. Its counts are sums,
    corrected by `ratio`."""

    sizes: Sizes
    title: str
    ratio: float = 1.0

    @property
    def most(self) -> int:
        return self.sizes.most

    @cached_property
    def bare(self) -> int:
        """Tokens of a passage without its text."""
        return self.sizes.bare + self.sizes.about(self.title)

    def count(self, body: str) -> int:
        """Tokens of the passage with this text."""
        return self.bare + round(self.ratio * self.sizes.about(body))

    def fits(self, body: str, spare: int = 0) -> bool:
        """spare: tokens that must be left."""
        return len(body) <= WIDEST * self.most and self.count(body) <= self.most - spare


def joined(title: str, body: str) -> str:
    """As the corpus's reader joins them; the title alone where there is no text."""
    try:
        return join_title("", body, title, "text").text
    except Bad:
        return title
