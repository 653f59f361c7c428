"""How long a passage is, in the tokens of the models that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ds_rag.data.bad_rows import Bad
from ds_rag.data.documents.splitting import WIDEST
from ds_rag.data.records import join_title
from ds_rag.runtime.errors import UserError

LEAST = 16  # tokens beside prefix and special tokens: room for any character of any tokenizer, and some words
TITLE = 3  # a title may have one part in so many of a passage


@dataclass(frozen=True)
class Sizes:
    """count: texts as the corpus's reader joins them, "title text" -> tokens of each, with prefix and special tokens.
    most: that a passage may have. key: names the tokenizer and its settings, for the next call."""

    count: Callable[[list[str]], list[int]]
    most: int
    key: str

    def check(self, overlap: int) -> None:
        """Raises UserError where a passage would have no room for text."""
        bare = self.count(["a"])[0] - 1
        if self.most - bare < LEAST:
            raise UserError(
                f"--max_passage_length {self.most}: no room for text",
                found=f"{bare} tokens are the prefix and special tokens",
                expected=f"{bare + LEAST} or more",
            )
        if overlap > (self.most - bare) // 2:
            raise UserError(
                f"--overlap {overlap}: more than half of a passage",
                expected=f"{(self.most - bare) // 2} or less, of {self.most} with {bare} for prefix and special tokens",
            )


@dataclass(frozen=True)
class Frame:
    """What all passages below one heading have in common: their title, which joins their texts."""

    sizes: Sizes
    title: str

    @property
    def most(self) -> int:
        return self.sizes.most

    @cached_property
    def bare(self) -> int:
        """Tokens of a passage without its text."""
        return self.count("a") - 1

    def count(self, body: str) -> int:
        return self.counts([body])[0]

    def counts(self, bodies: list[str]) -> list[int]:
        """Tokens of the passages with these texts."""
        return self.sizes.count([joined(self.title, body) for body in bodies])

    def may_fit(self, body: str) -> bool:
        """A text of very many characters is not even counted."""
        return len(body) <= WIDEST * self.most

    def fits(self, body: str, spare: int = 0) -> bool:
        """spare: tokens that must be left."""
        return self.may_fit(body) and self.count(body) <= self.most - spare


def joined(title: str, body: str) -> str:
    """As the corpus's reader joins them; the title alone where there is no text."""
    try:
        return join_title("", body, title, "text").text
    except Bad:
        return title
