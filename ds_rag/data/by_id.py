"""Labels by passage id: columns that name passages of the corpus by their ids become the passages themselves.

The corpus is read when the first column of ids is met, so that rows with texts do not wait for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import BY_ID_ROLES, Names, is_id_name
from ds_rag.data.records import Passage, Record, short
from ds_rag.data.written_lists import unfold
from ds_rag.runtime.errors import UserError, nearest

WORD = re.compile(r"\S{1,200}")
MOST_COMPARED = 20_000  # ids among which the nearest one is looked for
GIVE_CORPUS = "--corpus FILE with passages of these ids; or give the passages' texts"
BY_ID = (
    "give the --corpus that has these ids, in a column positive_ids, or the passages' texts; or a BEIR folder "
    "(corpus.jsonl, queries.jsonl, qrels), whose judgments name passages by id"
)


def ids_of(corpus: Iterable[Passage]) -> dict[str, Passage]:
    """id -> passage."""
    return {passage.id: passage for passage in corpus}


def columns_by_id(records: Sequence[Record], names: Names, faults: Faults) -> set[str]:
    """The columns of passages that hold ids of the corpus. Roles of ids are moved to the role of the passages that they
    name, unless the rows have texts for it: then these count. Columns of texts that are ids of the corpus are ids,
    and this is reported.

    Raises UserError for labels by id without a corpus, unless the rows have other passages.
    """
    load, found = faults.reading.corpus_by_id, set[str]()
    others = "positives" in names or "passages" in names
    for id_role, role in BY_ID_ROLES.items():
        columns = names.pop(id_role, ())
        if not columns or role in names:
            continue
        if load is not None:
            names[role] = columns
            found |= set(columns)
        elif others or role == "negatives":
            faults.note(f"'{columns[0]}' is not used: its ids are found in a --corpus alone")
        else:
            raise UserError(
                f"{faults.source}: '{columns[0]}' names passages by id, and there is no corpus",
                found=", ".join(map(repr, some_values(records, columns[0]))),
                expected="a corpus with these ids",
                fix=GIVE_CORPUS,
            )
    if load is None:
        return found
    for role in ("positives", "passages", "negatives"):
        for column in names.get(role, ()):
            if column not in found and holds_ids(records, column, load):
                found.add(column)
                faults.note(f"'{column}' holds ids of the corpus: the {role} are the passages of these ids")
    return found


def holds_ids(records: Sequence[Record], column: str, load: Any) -> bool:
    """Are a column's values ids of the corpus? They are if all are single words or numbers, most of them ids of the
    corpus, and none the text of a passage."""
    values = [value for record in records for value in flat(record.fields.get(column))]
    if not values or not all(is_word(value) for value in values):
        return False
    ids: Mapping[str, Passage] = load()
    known = [value for value in map(str, values) if value.strip() in ids]
    texts = {passage.text for passage in ids.values()} if known else set()
    least = 1 if is_id_name(column) else (len(values) + 1) // 2
    return len(known) >= least and not any(str(value).strip() in texts for value in values)


def is_word(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, str) and WORD.fullmatch(value.strip()) is not None


def flat(value: object) -> Iterator[object]:
    """The values of a cell: one, or those of a list, of lists (AutoRAG's `retrieval_gt`), or of a list that is written
    as text."""
    if isinstance(value, str):
        value = written(value)
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    elif value is not None:
        yield value


def written(text: str) -> object:
    """The list that a text spells out, of numbers too; else the text."""
    if text.strip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = unfold(text, "ids")
        return found if isinstance(found, list) else text
    return text


def some_values(records: Iterable[Record], column: str) -> list[object]:
    """The first three values."""
    return [value for record in records for value in flat(record.fields.get(column))][:3]


def with_passages(records: Iterable[Record], columns: Iterable[str], faults: Faults) -> Iterator[Record]:
    """The records with the ids in these columns replaced by the passages; a record with an unknown id goes to the
    faults."""
    columns = list(columns)
    if not columns:
        yield from records
        return
    assert faults.reading.corpus_by_id is not None
    ids: Mapping[str, Passage] = faults.reading.corpus_by_id()
    for record in records:
        try:
            found = {column: passages_in(record.fields.get(column), column, ids) for column in columns}
            yield record._replace(fields={**record.fields, **found})
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))


def passages_in(value: object, column: str, ids: Mapping[str, Passage]) -> list[Passage]:
    """The passages of the ids in a cell, in their order. Raises Bad for an unknown id, with the nearest one."""
    found = []
    for one in flat(value):
        if not is_word(one) and not isinstance(one, str):
            raise Bad(f"'{column}' holds {short(one)}, expected ids of passages")
        id_ = str(one).strip()
        try:
            found.append(ids[id_])
        except KeyError:
            close = nearest(id_, like(id_, ids))
            hint = f", did you mean '{close}'?" if close else ""
            raise Bad(f"'{column}' names {short(id_)}, and no passage of the corpus has this id{hint}") from None
    return found


def like(id_: str, ids: Mapping[str, Passage]) -> list[str]:
    """The ids worth comparing: all of a small corpus, else those that begin or end like this one, as many as can be
    compared at once."""
    if len(ids) <= MOST_COMPARED:
        return list(ids)
    alike = (one for one in ids if one[:4] == id_[:4] or one[-4:] == id_[-4:])
    return [one for _, one in zip(range(MOST_COMPARED), alike, strict=False)]
