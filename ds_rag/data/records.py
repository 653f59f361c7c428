"""From the fields of a record to a checked Row or Passage."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import match_corpus_columns

INVISIBLE = ("Zs", "Zl", "Zp", "Cf")  # blanks and marks of format: a text of nothing else is empty to a tokenizer too


@dataclass(frozen=True)
class Row:
    """One question: texts only, stripped and distinct; no text is in two of the three passage fields."""

    id: str
    query: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]  # labelled as relevant
    passages: tuple[str, ...]  # candidates without a label
    negatives: tuple[str, ...]  # labelled as not relevant
    where: str  # "file:line"; "file:row N" for formats without lines
    grades: tuple[int, ...] = ()  # how relevant each positive is (BEIR's scores); empty: 1 each


@dataclass(frozen=True)
class Passage:
    id: str
    text: str  # "title text" where there is a title


class Record(NamedTuple):
    """What a reader yields: the fields as the file holds them."""

    fields: Mapping[str, Any]
    number: int  # line or row, from 1
    where: str
    flat: bool = False  # cells are text only (CSV), so a list is written as JSON in its cell
    grades: Mapping[str, int] | None = None  # text of a positive -> its grade, where a format grades


def to_rows(
    records: Iterable[Record],
    names: Mapping[str, str],
    faults: Faults,
    *,
    need_passages: bool,
    need_answers: bool,
) -> list[Row]:
    """Rows of the good records; the others go to `faults`. Repeated rows are merged, with a notice."""
    rows: dict[str, Row] = {}
    merged = 0
    for count, record in enumerate(records, start=1):
        try:
            row = _to_row(record, names, count, need_passages, need_answers)
            first = rows.setdefault(row.id, row)
            if replace(first, where=row.where) != row:
                raise Bad(f"id '{row.id}' is already that of another row at {first.where}, expected distinct ids")
            merged += first is not row
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
    faults.merged += merged
    if merged:
        faults.note(f"{merged} repeated rows (same id, same content) merged")
    return list(rows.values())


def _to_row(record: Record, names: Mapping[str, str], count: int, need_passages: bool, need_answers: bool) -> Row:
    def texts(role: str, *, drop_empty: bool = False) -> tuple[str, ...]:
        if role not in names:
            return ()
        value = record.fields.get(names[role])
        value = _unfold(value, names[role]) if record.flat else value
        return _texts(value, names[role], drop_empty)

    query = clean(record.fields.get(names["query"]), names["query"])
    answers = texts("answers", drop_empty=not need_answers)
    if need_answers and not answers:
        raise Bad(f"'{names['answers']}' holds no answer, expected a text or a list of texts")
    positives, negatives = texts("positives"), texts("negatives")
    # Labels decide: a positive is nothing else, and a labelled negative is no unlabelled candidate.
    negatives = tuple(text for text in negatives if text not in positives)
    passages = tuple(text for text in texts("passages") if text not in positives + negatives)
    if need_passages and not positives + passages:
        empty = " and ".join(f"'{names[role]}'" for role in ("positives", "passages") if role in names)
        other = "or --candidates_from index --corpus FILE"
        raise Bad(f"neither labelled nor unlabelled passages, expected some in {empty}, {other}")
    return Row(
        id=_id(record.fields.get(names["id"]), names["id"]) if "id" in names else f"row-{count}",
        query=query,
        answers=answers,
        positives=positives,
        passages=passages,
        negatives=negatives,
        where=record.where,
        grades=tuple(record.grades[text] for text in positives) if record.grades else (),
    )


def field_names(records: Iterable[Record]) -> list[str]:
    """Every field that some record has, in order of appearance."""
    return list(dict.fromkeys(name for record in records for name in record.fields))


def corpus_passages(records: list[Record], faults: Faults) -> list[Passage]:
    """Passages of the good records; the others go to `faults`. A repeated id with the same text is merged.

    Raises UserError where no column holds the text, or more than one can.
    """
    if not records:
        return []
    with faults.first():
        names = match_corpus_columns(field_names(records), faults.source)
    seen: dict[str, tuple[str, str]] = {}
    merged = 0
    for count, record in enumerate(records, start=1):
        fields = record.fields
        try:
            title = fields.get(names["title"]) if "title" in names else None
            text = passage_text(fields.get(names["text"]), title, names["text"])
            id_ = _id(fields.get(names["id"]), names["id"]) if "id" in names else f"passage-{count}"
            first_text, first_where = seen.setdefault(id_, (text, record.where))
            if first_text != text:
                raise Bad(f"id '{id_}' is already that of another text at {first_where}, expected distinct ids")
            merged += first_where != record.where
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
    faults.merged += merged
    if merged:
        faults.note(f"{merged} repeated passages (same id, same text) merged")
    return [Passage(id_, text) for id_, (text, _) in seen.items()]


def passage_text(text: object, title: object, column: str) -> str:
    """The one rule for a passage with a title: "title text"."""
    if isinstance(text, str) and isinstance(title, str) and title.strip():
        text = f"{title.strip()} {text.strip()}"
    elif title is not None and not isinstance(title, str):
        raise Bad(f"the title of '{column}' is {_short(title)}, expected text")
    return clean(text, column)


def clean(value: object, column: str) -> str:
    """The text without outer blanks; a fault where there is none or where it cannot be written as UTF-8."""
    if value is None:
        raise Bad(f"'{column}' is missing or null, expected text")
    if not isinstance(value, str):
        raise Bad(f"'{column}' is {_short(value)}, expected text")
    text = value.strip()
    if all(unicodedata.category(char) in INVISIBLE for char in text):
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


def _id(value: object, column: str) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if number else clean(value, column)


def _texts(value: object, column: str, drop_empty: bool) -> tuple[str, ...]:
    """The distinct texts of a cell, in order: a text, an object with `text` and `title`, or a list."""
    if value is None:
        return ()
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # a column of structs, turned
        titles = value.get("title") or [None] * len(value["text"])
        if not isinstance(titles, list) or len(titles) != len(value["text"]):
            raise Bad(f"'{column}' has other titles than texts, expected a title for each text")
        value = [{"text": text, "title": title} for text, title in zip(value["text"], titles, strict=True)]
    several = isinstance(value, list | tuple)
    items: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    texts: dict[str, None] = {}
    for i, item in enumerate(items):
        label = f"{column}[{i}]" if several else column
        if drop_empty and (item is None or (isinstance(item, str) and not item.strip())):
            continue
        if isinstance(item, Mapping):
            if "text" not in item:
                raise Bad(f"'{label}' is an object with {', '.join(map(str, item))}, expected one with 'text'")
            texts[passage_text(item["text"], item.get("title"), label)] = None
        elif isinstance(item, str):
            texts[clean(item, label)] = None
        else:
            raise Bad(f"'{label}' is {_short(item)}, expected a text, an object with 'text', or a list of these")
    return tuple(texts)


def _unfold(value: object, column: str) -> object:
    """A CSV cell: the list, where it holds a JSON list of texts or objects; else the cell."""
    if not isinstance(value, str) or not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        items = json.loads(value)
        return items if all(isinstance(item, str | dict) for item in items) else value
    except (ValueError, RecursionError):
        # str() of a Python or NumPy list: taken as one text it would train on brackets and quotes.
        if re.fullmatch(r"""\[\s*(['"]).*\1\s*\]""", value, re.DOTALL):
            raise Bad(f'\'{column}\' looks like a list but is no JSON, expected ["one", "two"]') from None
        return value


def _short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"
