"""The generator's prompt, in token ids: one template for training, evaluation and `ask`.

Pieces are tokenised apart, each once, and joined by id. Spaces before a placeholder go with the text that
fills it, because byte-level tokenizers put a word's leading space into its first token.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from ds_rag.batch import Ids
from ds_rag.errors import UserError
from ds_rag.truncation import CutIds, cut_ids

FIELDS = ("passage", "query")


class Prompt:
    """`context(passage_ids, query_ids, answer_room)` joins literals and fields; `encode` makes field ids."""

    def __init__(self, tokenizer: Any, template: str, chat: bool = False, max_length: int = 1 << 30):
        self.tokenizer, self.max_length = tokenizer, max_length
        check_template(template)
        if chat:
            template = render_chat(tokenizer, template)
        self.anchor = anchor_of(tokenizer)
        self.anchor_length = len(self._raw([self.anchor])[0])
        literals, self.order = split_template(template)
        self.lead = {"answer": "" if literals[-1][-1:].isspace() else " "}
        for n, name in enumerate(self.order):
            stripped = literals[n].rstrip(" ")
            self.lead[name], literals[n] = literals[n][len(stripped) :], stripped
        if self.anchor and not literals[0]:  # at the start of all, the tokenizer's own space
            self.lead[self.order[0]] = " "
        ids = self._raw(literals[:1]) + self._middle(literals[1:])
        self.literals: list[Ids] = [np.array(x, dtype=np.int32) for x in ids]
        begin = tokenizer.bos_token_id
        if not chat and begin is not None:  # a chat template brings its own
            self.literals[0] = np.concatenate([np.array([begin], dtype=np.int32), self.literals[0]])
        self.fixed = sum(len(x) for x in self.literals)

    def _raw(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _middle(self, texts: list[str]) -> list[list[int]]:
        """Token ids as in the middle of a text, where no tokenizer adds a space."""
        return [x[self.anchor_length :] for x in self._raw([self.anchor + t for t in texts])]

    def encode(self, name: str, texts: Sequence[str], length: int) -> CutIds:
        """Token ids of the texts of one field ('passage', 'query', 'answer'), cut at `length` tokens.

        What looks like a special token in them is text: a passage cannot end the prompt with "</s>".
        """
        texts = [self.anchor + self.lead[name] + t for t in texts]
        options = {"add_special_tokens": False, "split_special_tokens": True}
        ids = cut_ids(self.tokenizer, texts, self.anchor_length + length, **options)
        end = [self.tokenizer.eos_token_id] if name == "answer" and self.tokenizer.eos_token_id is not None else []
        ids[:] = [x[self.anchor_length :] + end for x in ids]
        return ids

    def room(self, query_length: int, answer_room: int) -> int:
        """Tokens that are left for the passage."""
        return self.max_length - self.fixed - query_length - answer_room

    def context(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> Ids:
        """What the answer follows. If model length requires it, the passage is cut, never query or answer."""
        return np.concatenate(self.split(passage_ids, query_ids, answer_room))

    def split(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> tuple[Ids, Ids]:
        """`context` in two pieces: up to the second placeholder, which all cells of one passage (of one query, where
        the template begins with it) have in common, and the rest. The first piece has at least one token."""
        room = self.room(len(query_ids), answer_room)
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
        common, rest = np.concatenate(parts[:3]), np.concatenate(parts[3:])
        return (common, rest) if len(common) else (rest, common)


def anchor_of(tokenizer: Any) -> str:
    """A line break where the tokenizer begins every text with a space (Llama 2, Mistral), else nothing.

    A piece of a prompt is tokenised behind it, whose ids are then dropped: only there does no space appear.
    """
    start, line, middle = tokenizer(["a", "\n", "\n a"], add_special_tokens=False)["input_ids"]
    return "\n" if line + start == middle else ""


def split_template(template: str) -> tuple[list[str], list[str]]:
    """The literals around the placeholders, one more than these, and the placeholders' names."""
    literals, names = [""], []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        literals[-1] += literal  # an escaped brace ends a literal too
        if name is not None:
            names.append(name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
            literals.append("")
    return literals, names


def check_template(template: str) -> None:
    """Raises UserError unless each of FIELDS stands in it once, plainly."""
    try:
        _, names = split_template(template)
    except ValueError as error:
        raise UserError("--prompt_template: not a template", found=error, fix="write {{ and }} for braces") from None
    if sorted(names) != sorted(FIELDS):
        raise UserError(
            "--prompt_template: wrong placeholders",
            found=", ".join(f"{{{name}}}" for name in names) or "none",
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
