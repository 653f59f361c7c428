"""The generator's prompt, in token ids: one template for training, evaluation and `ask`.

Pieces are tokenised apart, each once, and joined by id. Spaces before a placeholder go with the text that fills
it, because byte-level tokenizers put a word's leading space into its first token.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from ds_rag.batch import Ids
from ds_rag.errors import UserError

FIELDS = ("passage", "query")


class Prompt:
    """`context(passage_ids, query_ids, answer_room)` joins literals and fields; `encode` tokenises a field."""

    def __init__(self, tokenizer: Any, template: str, chat: bool = False, max_length: int = 1 << 30):
        self.tokenizer, self.max_length = tokenizer, max_length
        check_template(template)
        if chat:
            template = render_chat(tokenizer, template)
        pieces = [(lit, name) for lit, name, _, _ in string.Formatter().parse(template)]
        tail = pieces[-1][0] if pieces[-1][1] is None else ""
        self.lead = {"answer": "" if tail[-1:].isspace() else " "}
        self.literals: list[Ids] = []
        self.order: list[str] = []
        for literal, name in pieces:
            if name is not None:
                stripped = literal.rstrip(" ")
                self.lead[name] = literal[len(stripped) :]
                self.order.append(name)
                literal = stripped
            self.literals.append(self._ids(literal))
        begin = tokenizer.bos_token_id
        if not chat and begin is not None:  # a chat template brings its own
            self.literals[0] = np.concatenate([np.array([begin], dtype=np.int32), self.literals[0]])
        self.fixed = sum(len(x) for x in self.literals)

    def _ids(self, text: str) -> Ids:
        return np.array(
            self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [], dtype=np.int32
        )

    def encode(self, name: str, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of the texts of one field ('passage', 'query', 'answer'), cut at `length` tokens."""
        texts = [self.lead[name] + t for t in texts]
        ids = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [x + [end] for x in ids] if name == "answer" and end is not None else ids

    def context(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> Ids:
        """What the answer follows. If model length requires it, the passage is cut, never query or answer."""
        room = self.max_length - self.fixed - len(query_ids) - answer_room
        if room < 0:
            raise UserError(
                "prompt, query and answer alone exceed the generator's length",
                found=f"{self.fixed} + {len(query_ids)} + {answer_room} tokens",
                expected=f"at most {self.max_length}",
                fix="lower --max_query_length, --max_answer_length or --max_new_tokens",
            )
        filled = {"passage": passage_ids[:room], "query": query_ids}
        parts: list[Ids] = []
        for n, literal in enumerate(self.literals):
            parts.append(literal)
            if n < len(self.order):
                parts.append(filled[self.order[n]])
        return np.concatenate(parts)


def check_template(template: str) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            "--prompt_template: not a template", found=error, fix="write {{ and }} for braces"
        ) from None
    if sorted(names) != sorted(FIELDS):
        raise UserError(
            "--prompt_template: wrong placeholders",
            found=", ".join(names) or "none",
            expected="{passage} and {query}, each once",
        )


def render_chat(tokenizer: Any, template: str) -> str:
    """The tokenizer's chat template around ours, as one template whose placeholders are still open."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "--chat_template: the generator's tokenizer has none",
            fix="leave the flag out, or use an instruct model",
        )
    marks = {name: f"@@{name}@@" for name in FIELDS}
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": template.format(**marks)}], tokenize=False, add_generation_prompt=True
    )
    rendered = rendered.replace("{", "{{").replace("}", "}}")
    for name, mark in marks.items():
        rendered = rendered.replace(mark, "{" + name + "}")
    return rendered
