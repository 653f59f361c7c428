"""The generator's prompt as token ids: the same template in training, evaluation and `ask`.

The ids are those that the tokenizer gives for the complete text, its own special tokens included. Still, the prompt is
joined from parts that are each tokenised once (see seams.py): the generator reads a passage once for all its queries,
and a passage can be truncated where the model's length requires it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_rag.config import DEFAULT_TEMPLATE, ModelConfig
from ds_rag.data.batch import Ids
from ds_rag.data.seams import InText, Seam, first_seam, last_seam, middle_seam, of_its_own, special_prefix
from ds_rag.data.truncation import CutIds
from ds_rag.runtime.errors import UserError

FIELDS = ("passage", "query")


@dataclass(frozen=True)
class Around:
    """The parts of the template that are tokenised together with each text of a field: `lead` before it, `trail` after
    it."""

    lead: str
    trail: str
    fresh: bool  # `lead` is tokenised as at the beginning of a text
    head: int  # tokens of `lead` without its last spaces, which become part of the text's first token
    tail: list[int]  # ids of `trail`
    empty: list[int]  # ids of an empty text with `lead` and `trail`

    @property
    def size(self) -> int:
        """Number of tokens that are not the text's own."""
        return self.head + len(self.tail)


class Prompt:
    """The template around passage and query, as token ids: those that the tokenizer gives for the whole text.

    `encode` tokenises the texts of a field; `context(passage_ids, query_ids, answer_room)` joins their ids to a
    prompt. `ds_rag.cells` does both.

    Args:
        tokenizer: the generator's.
        template: has {passage} and {query}, each once; {{ and }} are braces.
        chat: put the tokenizer's chat template around it.
        max_length: tokens that the generator can read, `generator.max_length`; a passage is cut to fit.
        version: '1' gives the tokens of the first version of this class, for runs that were trained with it: literals
            tokenised separately, and a BOS at the beginning whenever the tokenizer has one.

    Raises:
        UserError: other placeholders, `chat` without a chat template, a query and an answer that leave no room.

    Example:
        >>> prompt = ds_rag.Prompt(generator.tokenizer, "{passage}\\nQ: {query}\\nA:", max_length=generator.max_length)
        >>> (passage,) = prompt.encode("passage", ["ann leads zor"], length=200)
        >>> (query,) = prompt.encode("query", ["who ?"], length=64)
        >>> generator.tokenizer.decode(prompt.context(passage, query, answer_room=8))
        'ann leads zor\\nQ: who ?\\nA:'
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = DEFAULT_TEMPLATE,
        chat: bool = False,
        max_length: int = 1 << 30,
        version: str = "2",
    ):
        self.tokenizer, self.max_length = tokenizer, max_length
        check_template(template)
        gap = None
        if chat:
            template, gap = render_chat(tokenizer, template)
        literals, self.order = split_template(template)
        if gap is None or version == "1":
            gap = "" if literals[-1][-1:].isspace() else " "
        self.pieces = InText(tokenizer)
        seams = (seams_before if version == "1" else seams_of)(self.pieces, literals, gap)
        begin = [] if chat else special_prefix(tokenizer)  # a chat template contains its own
        if version == "1" and not chat:
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        fixed = [begin + self.pieces.ids([seams[0].fixed], fresh=True)[0]]
        fixed += self.pieces.ids([seam.fixed for seam in seams[1:]])
        self.literals: list[Ids] = [np.array(ids, dtype=np.int32) for ids in fixed]
        after = [seam.trail for seam in seams[1:]] + [""]
        self.around = {
            name: self._around(seam, trail, keep_empty=version != "1")
            for name, seam, trail in zip([*self.order, "answer"], seams, after, strict=True)
        }
        self.fixed = sum(map(len, fixed)) + sum(self.around[name].size for name in FIELDS)

    def _around(self, seam: Seam, trail: str, keep_empty: bool) -> Around:
        head, empty = self.pieces.ids([seam.lead.rstrip(" "), seam.lead + trail], seam.fresh)
        (tail,) = self.pieces.ids([trail])
        return Around(seam.lead, trail, seam.fresh, len(head), tail, empty if keep_empty else [])

    def encode(self, name: str, texts: Sequence[str], length: int) -> CutIds:
        """Token ids of the texts of one field ('passage', 'query', 'answer'), truncated to `length` tokens, including
        the parts of the template that are tokenised with them. A text without any token has no ids.

        Special tokens inside the texts are tokenised as plain text: a passage cannot end the prompt with "</s>".
        """
        around = self.around[name]
        most = around.size + length
        several = [around.lead + text + around.trail for text in texts]
        ids = CutIds(self.pieces.ids(several, around.fresh, most + 1, split_special_tokens=True))
        ids.cut = sum(len(x) > most for x in ids)
        end = [self.tokenizer.eos_token_id] if name == "answer" and self.tokenizer.eos_token_id is not None else []
        ids[:] = [([] if x == around.empty else self._cut(name, x, length)) + end for x in ids]
        return ids

    def _cut(self, name: str, ids: Any, length: int) -> Any:
        """The ids of one field, with at most `length` tokens of the text."""
        around = self.around[name]
        if len(ids) <= around.size + length:
            return ids
        start = ids[: around.head + length]
        if isinstance(ids, list):
            return start + around.tail
        return np.concatenate([start, np.array(around.tail, dtype=np.int32)])

    def own_length(self, name: str, ids: Sized) -> int:
        """How many of a field's ids belong to the text itself."""
        end = name == "answer" and self.tokenizer.eos_token_id is not None
        return max(0, len(ids) - self.around[name].size - end)

    def alone(self, name: str, ids: Ids) -> Ids:
        """A field's ids without the part of the template after the text."""
        return ids[: len(ids) - len(self.around[name].tail)]

    def room(self, query_length: int, answer_room: int) -> int:
        """Number of tokens left for the passage itself, given query ids of this length."""
        return self.max_length - self.fixed - max(0, query_length - self.around["query"].size) - answer_room

    def context(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> Ids:
        """The prompt before the answer. If the model's length requires it, the passage is truncated, never query or
        answer. Empty `passage_ids` give the prompt of an empty passage."""
        return np.concatenate(self.split(passage_ids, query_ids, answer_room))

    def split(self, passage_ids: Ids, query_ids: Ids, answer_room: int) -> tuple[Ids, Ids]:
        """`context` in two parts: the part that all cells of one passage share (of one query, where the template begins
        with the query), and the rest. The first part has at least one token."""
        room = self.room(len(query_ids), answer_room)
        if room < 0:
            raise UserError(
                "prompt, query and answer alone exceed the generator's length",
                found=f"{self.fixed} + {self.max_length - self.fixed - answer_room - room} + {answer_room} tokens",
                expected=f"at most {self.max_length}",
                fix="lower --max_query_length, --max_answer_length or --max_new_tokens",
            )
        filled = {"passage": self._cut("passage", passage_ids, room), "query": query_ids}
        first, second = (
            filled[name] if len(filled[name]) else np.array(self.around[name].empty, dtype=np.int32)
            for name in self.order
        )
        common = np.concatenate([self.literals[0], first, self.literals[1]])
        rest = np.concatenate([second, self.literals[2]])
        return (common, rest) if len(common) else (rest, common)


def make_prompt(model: ModelConfig, tokenizer: Any, max_length: int = 1 << 30) -> Prompt:
    """The prompt that the settings ask for. tokenizer: the generator's; max_length: tokens that it can read."""
    return Prompt(tokenizer, model.prompt_template, model.chat_template, max_length, model.prompt_version)


def seams_of(pieces: InText, literals: Sequence[str], gap: str) -> list[Seam]:
    """Where each literal is split between the texts around it. gap: the text between the last literal and the
    answer."""
    kept = literals[2].rstrip(" ")
    last = last_seam(pieces, kept, literals[2][len(kept) :] + gap)
    return [first_seam(pieces, literals[0]), middle_seam(pieces, literals[1]), last]


def seams_before(pieces: InText, literals: Sequence[str], gap: str) -> list[Seam]:
    """The same for prompt version 1: only spaces are tokenised with the text after them."""
    seams = [of_its_own(literal) for literal in literals[:2]] + [Seam("", literals[2], gap)]
    if pieces.anchor and not seams[0].fixed:  # at the very beginning, the space that the tokenizer adds
        seams[0] = Seam("", "", " ")
    return seams


def split_template(template: str) -> tuple[list[str], list[str]]:
    """(literals, names of the placeholders); there is one literal more than placeholders."""
    literals, names = [""], []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        literals[-1] += literal  # an escaped brace ends a literal too
        if name is not None:
            names.append(name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
            literals.append("")
    return literals, names


def check_template(template: str) -> None:
    """Raises UserError unless the template has each of FIELDS once, without a format or conversion."""
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


def render_chat(tokenizer: Any, template: str) -> tuple[str, str | None]:
    """(our template inside the tokenizer's chat template, placeholders still open; the text that the chat template puts
    between the generation prompt and the answer, None where that cannot be found out)."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "--chat_template: the generator's tokenizer has none",
            fix="leave the flag out, or use an instruct model",
        )
    marks = {name: f"@@{name}@@" for name in FIELDS}
    messages = [{"role": "user", "content": template.format(**marks)}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answered = [*messages, {"role": "assistant", "content": "@@answer@@"}]
    opening, found, _ = tokenizer.apply_chat_template(answered, tokenize=False).partition("@@answer@@")
    gap = opening[len(rendered) :] if found and opening.startswith(rendered) else None
    rendered = rendered.replace("{", "{{").replace("}", "}}")
    for name, mark in marks.items():
        rendered = rendered.replace(mark, "{" + name + "}")
    return rendered, gap
