"""Rows and passages, and how the fields of a record become checked and cleaned texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import BY_NAME, CORPUS_NAMES, Columns, match_corpus_columns
from ds_rag.data.origin import NOWHERE, Origin, as_name, origin_in
from ds_rag.data.written_lists import unfold

HASH = "hash"  # column of what `ds-rag chunk` writes, for the next call
INVISIBLE = ("Zs", "Zl", "Zp", "Cf")  # blanks and format characters: a text of these alone is empty to a tokenizer too


@dataclass(frozen=True)
class Passage:
    id: str
    text: str  # "title text" where there is a title
    lead: int = field(default=0, compare=False)  # number of characters of the title and the blank after it
    origin: Origin = field(default=NOWHERE, compare=False)  # without the title that is part of the text

    @property
    def body(self) -> str:
        """The text without its title."""
        return self.text[self.lead :]

    @property
    def document(self) -> str | None:
        return self.origin.document


@dataclass(frozen=True)
class Row:
    """One query with its answers and passages, as stripped, distinct texts; no text is in two of the three passage
    fields."""

    id: str
    query: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]  # labelled as relevant
    passages: tuple[str, ...]  # candidates without a label
    negatives: tuple[str, ...]  # labelled as not relevant
    where: str  # "file:line"; "file:row N" for formats without lines
    grades: tuple[int, ...] = ()  # how relevant each positive is (BEIR's scores); empty: 1 each
    given: tuple[Passage, ...] = field(
        default=(), compare=False
    )  # those of the passages that came with an id, a title, a document or a place
    judged: bool = False  # its relevant passages are known, even if there are none
    absent: tuple[int, ...] = ()  # grades of relevant passages without any text, which no corpus can hold
    origin: Origin = field(default=NOWHERE, compare=False)  # of the row itself, and of its positives
    cluster: str | None = field(default=None, compare=False)  # what the column named by `--cluster_column` holds
    listed: tuple[str, ...] = ()  # labelled passages that stand among its candidates too
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)  # a teacher's, by the text of the passage


class Record(NamedTuple):
    """What a reader yields: the fields as the file holds them."""

    fields: Mapping[str, Any]
    number: int  # line or row, from 1
    where: str
    grades: Mapping[str, int] | None = None  # text of a positive -> its grade, for formats with grades
    judged: bool = False
    absent: tuple[int, ...] = ()
    given: tuple[Passage, ...] = ()  # passages of the row whose origin the reader knows


def field_names(records: Iterable[Record]) -> list[str]:
    """Every field that some record has, in order of appearance."""
    return list(dict.fromkeys(name for record in records for name in record.fields))


def corpus_passages(records: list[Record], faults: Faults, columns: Columns = BY_NAME) -> list[Passage]:
    """Passages of the good records; bad ones are added to `faults`. A repeated id with the same text is merged.
    columns: as the flags name them.

    Raises UserError where no column, or more than one, can hold the text.
    """
    if not records:
        return []
    found = field_names(records)
    with faults.first():
        names = match_corpus_columns(found, faults.source, columns)
    faults.note_unused(name for name in found if name not in names.values() and name != HASH)
    seen: dict[str, tuple[Passage, str]] = {}
    merged = 0
    for count, record in enumerate(records, start=1):
        try:
            passage = to_passage(record.fields, names, f"passage-{count}")
            first, first_where = seen.setdefault(passage.id, (passage, record.where))
            if first.text != passage.text:
                raise Bad(f"id '{passage.id}' is already that of another text at {first_where}, expected distinct ids")
            merged += first_where != record.where
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
    faults.merged += merged
    if merged:
        faults.note(f"{merged} repeated passages (same id, same text) merged")
    return [passage for passage, _ in seen.values()]


def to_passage(fields: Mapping[str, Any], names: Mapping[str, str], default_id: str) -> Passage:
    """The passage of one record. names: role -> column, from `match_corpus_columns`. Raises Bad."""
    title = fields.get(names["title"]) if "title" in names else None
    text = single(fields.get(names["text"]), names["text"])
    id_ = to_id(fields.get(names["id"]), names["id"]) if "id" in names else default_id
    origin = origin_in(fields, {role: name for role, name in names.items() if role != "title"})
    return join_title(id_, text, title, names["text"], origin)


def join_title(id_: str, text: object, title: object, column: str, origin: Origin = NOWHERE) -> Passage:
    """Joins title and text to "title text": the only place that does so. Raises Bad."""
    if title is not None and not isinstance(title, str):
        raise Bad(f"the title of '{column}' is {short(title)}, expected text")
    head = title.strip() if title else ""
    if not isinstance(text, str) or not head:
        return Passage(id_, clean(text, column), origin=origin)
    whole, body = clean(f"{head} {text.strip()}", column), text.strip()
    return Passage(id_, whole, len(whole) - len(body) if body else 0, origin)


def single(value: object, column: str) -> object:
    """The single text of a field, also where it is written as a list of one text, or as an object with 'text'."""
    found = unfold(value, column)
    if found is value or not found or (isinstance(found, Mapping) and "text" not in found):  # a document may be JSON
        return value
    texts = [passage.text for passage in items(found, column)]
    if len(texts) != 1:
        raise Bad(f"'{column}' is a list of {len(texts)} written as text, expected one text")
    return texts[0]


def clean(value: object, column: str) -> str:
    """The text without outer blanks. Raises Bad where there is none or where it cannot be encoded as UTF-8."""
    if value is None:
        raise Bad(f"'{column}' is missing or null, expected text")
    if not isinstance(value, str):
        raise Bad(f"'{column}' is {short(value)}, expected text")
    text = value.strip()
    if is_blank(text):
        raise Bad(f"'{column}' is empty, expected text")
    if "\0" in text:
        raise Bad(f"'{column}' holds a NUL at character {value.index(chr(0))}, expected text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            at = next(i for i, char in enumerate(value) if "\ud800" <= char <= "\udfff")
            raise Bad(f"'{column}' holds a lone surrogate at character {at}, expected Unicode text") from None
    return text


def is_blank(text: str) -> bool:
    return all(unicodedata.category(char) in INVISIBLE or char.isspace() for char in text)


def to_id(value: object, column: str) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if number else clean(value, column)


def items(value: object, column: str, drop_empty: bool = False) -> Iterator[Passage]:
    """The passages of a cell, in order. A cell holds a text, an object with `text` and optionally `title` and an id, or
    a list of these, any of them possibly written as text. The id of a plain text is "". Raises Bad."""
    value = unfold(value, column)
    if value is None:
        return
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # a column of structs, turned
        titles = value.get("title") or [None] * len(value["text"])
        if not isinstance(titles, list) or len(titles) != len(value["text"]):
            raise Bad(f"'{column}' has other titles than texts, expected a title for each text")
        rest = {k: v for k, v in value.items() if isinstance(v, list) and len(v) == len(titles)} | {"title": titles}
        value = [dict(zip(rest, several, strict=True)) for several in zip(*rest.values(), strict=True)]
    several = isinstance(value, list | tuple)
    for i, item in enumerate(value if isinstance(value, list | tuple) else [value]):
        label = f"{column}[{i}]" if several else column
        if drop_empty and (item is None or (isinstance(item, str) and not item.strip())):
            continue
        if several and isinstance(item, str) and item.lstrip().startswith("{"):
            written = unfold(item, label)
            item = written if isinstance(written, Mapping) and "text" in written else item
        if isinstance(item, Mapping):
            if "text" not in item:
                literal = " (a text that is JSON itself: in a list of one)" if not several else ""
                raise Bad(f"'{label}' is an object with {', '.join(map(str, item))}, expected one with 'text'{literal}")
            yield join_title(id_of(item), item["text"], item.get("title"), label, origin_of(item))
        elif isinstance(item, str):
            yield Passage("", clean(item, label))
        elif isinstance(item, Passage):  # of the corpus, which an id named
            yield item
        else:
            raise Bad(f"'{label}' is {short(item)}, expected a text, an object with 'text', or a list of these")


def id_of(item: Mapping[str, Any]) -> str:
    """The passage's id, under any name that a corpus may use for it; "" where there is none."""
    found = next((item[name] for name in CORPUS_NAMES["id"] if item.get(name) is not None), "")
    return str(found) if isinstance(found, str | int) else ""


def origin_of(item: Mapping[str, Any]) -> Origin:
    """The document and place of a passage that is an object."""
    found = (first_name(item, CORPUS_NAMES["document"]), None, first_name(item, CORPUS_NAMES["place"]))
    return Origin(*found) if any(found) else NOWHERE


def first_name(item: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((text for name in names if (text := as_name(item.get(name)))), None)


def short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"
