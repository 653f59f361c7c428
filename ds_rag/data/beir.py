"""Reader of BEIR folders: corpus.jsonl, queries.jsonl and qrels/*.tsv. `ms_marco.py` reads other files in the same
way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import CORPUS_NAMES, DESCRIBING, ROW_NAMES, match_corpus_columns
from ds_rag.data.format import Format, Reader, holds
from ds_rag.data.origin import NOWHERE, Origin
from ds_rag.data.records import Passage, Record, field_names, first_name, is_blank, to_passage
from ds_rag.data.text_files import read_jsonl, read_lines
from ds_rag.runtime.errors import UserError

LAYOUT = {"id": "_id", "text": "text", "title": "title"}
ANSWERS = ("answers", "answer")
OF_QUERIES = {"_id", "text", "metadata", *ANSWERS} | {name for role in DESCRIBING for name in ROW_NAMES[role]}


class Judgment(NamedTuple):
    """One line of the qrels."""

    number: int
    where: str
    grade: int


Judged = dict[str, dict[str, Judgment]]  # query id -> document id -> its judgment


class Files(NamedTuple):
    """The files of a data set. read: of the corpus and the queries, records with `_id` and `text`."""

    corpus: Path
    queries: Path
    qrels: Path
    read: Reader


def read_beir(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """The corpus; or the judged queries with their positives (score > 0) and negatives (score < 0), in the order of
    queries.jsonl. A judged query without any relevant document is included."""
    for name in ("corpus.jsonl",) if what == "corpus" else ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (path / name).exists():
            found = ", ".join(sorted(entry.name for entry in path.iterdir()))
            raise UserError(f"{faults.source}: a BEIR folder without {name}", found=found, expected=name)
    if what == "corpus":
        yield from documents(path / "corpus.jsonl", read_jsonl, faults)
        return
    qrels = choose_qrels({file.stem: file for file in sorted((path / "qrels").glob("*.tsv"))}, faults)
    yield from judged_rows(Files(path / "corpus.jsonl", path / "queries.jsonl", qrels, read_jsonl), faults)


def judged_rows(files: Files, faults: Faults) -> Iterator[Record]:
    """The judged queries in their order, each with the texts of its documents."""
    judged, header = _read_qrels(files.qrels, faults)
    queries = _judged_queries(files, judged, header, faults)
    wanted = {document for id_ in queries for document in judged[id_]}
    found = _find(files, wanted, faults)
    for id_ in queries:
        for document, judgment in judged[id_].items():
            if document not in found.known:
                missing = f"corpus-id '{document}' is not in {files.corpus.name}"
                faults.add(judgment.number, judgment.where, missing)
    for id_, record in queries.items():
        yield _row(id_, record, judged[id_], found)
    if found.bad and faults.reading.skip:
        lost = sum(document in found.bad for id_ in queries for document in judged[id_])
        faults.note(f"{lost} judgments name documents that are left out as bad", warning=True)


def _row(id_: str, record: Record, judged: dict[str, Judgment], documents: _Found) -> Record:
    """One row. A text with several ids gets the highest of their grades."""
    fields, grades = record.fields, dict[str, int]()
    absent = []
    for document, judgment in judged.items():
        text = documents.texts.get(document)
        if text is not None:
            grades[text] = max(judgment.grade, grades.get(text, judgment.grade))
        elif document in documents.empty and judgment.grade > 0:
            absent.append(judgment.grade)
    extra = fields.get("metadata")
    places = [fields, extra if isinstance(extra, dict) else {}]
    answers = [place[key] for place in places for key in ANSWERS if place.get(key)]
    row: dict[str, Any] = {
        "id": id_,
        "query": fields.get("text"),
        "positives": [text for text, grade in grades.items() if grade > 0],
        "negatives": [text for text, grade in grades.items() if grade < 0],
    }
    row |= {"answers": answers[0]} if answers else {}
    named = {role: [first_name(place, ROW_NAMES[role]) for place in places] for role in DESCRIBING}
    row |= {role: next(filter(None, names)) for role, names in named.items() if any(names)}
    known = (Passage("", text, origin=documents.origins[text]) for text in grades if text in documents.origins)
    graded = grades if {grade for grade in grades.values() if grade > 0} - {1} else None
    return record._replace(fields=row, grades=graded, judged=True, absent=tuple(absent), given=tuple(known))


@dataclass
class _Found:
    """The documents that judgments name."""

    texts: dict[str, str] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)  # by text, of those that have any
    empty: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)

    @property
    def known(self) -> set[str]:
        return self.texts.keys() | self.empty | self.bad


def documents(corpus: Path, read: Reader, faults: Faults) -> Iterator[Record]:
    """The corpus without documents that have no text at all; public data sets have such documents."""
    empty: list[str] = []
    for record in read(corpus, "corpus", faults):
        if _is_empty(record, LAYOUT):
            empty.append(record.where)
        else:
            yield _lift(record)
    if empty:
        faults.note(f"{len(empty)} documents without any text are left out, the first at {empty[0]}")


def _lift(record: Record) -> Record:
    """The record with the document and place that its `metadata` names as fields of its own."""
    extra, fields = record.fields.get("metadata"), record.fields
    if not isinstance(extra, dict):
        return record
    names = [name for role in ("document", "place") for name in CORPUS_NAMES[role]]
    lifted = {name: extra[name] for name in names if name in extra and name not in fields}
    return record._replace(fields={k: v for k, v in fields.items() if k != "metadata"} | lifted) if lifted else record


def _is_empty(record: Record, names: dict[str, str]) -> bool:
    text, title = record.fields.get(names["text"]), record.fields.get(names["title"])
    return isinstance(text, str) and is_blank(text) and (not title or (isinstance(title, str) and is_blank(title)))


def _find(files: Files, wanted: set[str], faults: Faults) -> _Found:
    """The wanted documents; bad ones among all that are read are added to `faults`. Where only some rows are wanted,
    reading ends with the last of their documents."""
    stream = files.read(files.corpus, "rows", faults)
    stream = map(_lift, stream)
    first = list(islice(stream, 1000))
    found, places = _Found(), dict[str, str]()
    if not first:
        return found
    with faults.first():
        names = LAYOUT | match_corpus_columns(field_names(first), faults.source)
    left = set(wanted)
    for record in chain(first, stream):
        id_ = str(record.fields.get(names["id"]))
        try:
            if _is_empty(record, names):
                found.empty.add(id_)
                continue
            passage = to_passage(record.fields, names, id_)
            if id_ in wanted:
                if found.texts.setdefault(id_, passage.text) != passage.text:
                    raise Bad(f"id '{id_}' is already that of another text at {places[id_]}, expected distinct ids")
                places.setdefault(id_, record.where)
                if passage.origin is not NOWHERE:
                    found.origins.setdefault(passage.text, passage.origin)
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
            found.bad.add(id_)
        finally:
            left.discard(id_)
        if faults.most is not None and not left:
            break
    return found


def _judged_queries(files: Files, judged: Judged, header: str, faults: Faults) -> dict[str, Record]:
    """The first `faults.most` queries that have judgments."""
    kept: dict[str, Record] = {}
    known, unused = set(), dict[str, None]()
    unjudged = 0
    for record in files.read(files.queries, "rows", faults):
        id_ = str(record.fields.get("_id"))
        unused |= dict.fromkeys(name for name in record.fields if name not in OF_QUERIES)
        if record.fields.get("_id") is None:
            faults.add(record.number, record.where, "no '_id', expected the id that the qrels name")
        elif id_ in known:
            if id_ in kept and kept[id_].fields != record.fields:
                faults.add(record.number, record.where, f"_id '{id_}' is already that of another query")
        elif id_ in judged:
            kept[id_] = record
        else:
            unjudged += 1
        known.add(id_)
        if len(kept) == faults.most:
            break
    else:
        _check_queries(files, judged, header, known, faults)
        if unjudged:
            faults.note(f"{unjudged} queries are not in {files.qrels.name} and are left out")
    faults.note_unused(unused)
    return kept


def _check_queries(files: Files, judged: Judged, header: str, known: set[str], faults: Faults) -> None:
    for id_ in judged.keys() - known:
        number, where, _ = next(iter(judged[id_].values()))
        faults.add(number, where, f"query-id '{id_}' is not in {files.queries.name}")
    if header in known:
        faults.add(1, f"{files.qrels}:1", f"a judgment of query '{header}' without a number for its score")


def choose_qrels(files: Mapping[str, Path], faults: Faults) -> Path:
    """Of the judgments of several splits those that `FOLDER:SPLIT` names; else the only ones, or those to train on
    (`train`) or to evaluate on (`test`, else `dev`). Raises UserError where none fits."""
    if faults.split is None and len(files) == 1:
        return next(iter(files.values()))
    names = (faults.split,) if faults.split else ("train",) if faults.of_training else ("test", "dev", "dev.small")
    for name in names:
        if name in files:
            return files[name]
    wanted = faults.split or ("train" if faults.of_training else "test or dev")
    raise UserError(
        f"{faults.source}/qrels: which file?",
        found=", ".join(file.name for file in files.values()) or "none",
        expected=" or ".join(f"{name}.tsv" for name in wanted.split(" or ")) + ", or only one .tsv",
        fix=f"{faults.flag} {faults.path}:{next(iter(files))}" if len(files) > 1 else None,
    )


def _read_qrels(path: Path, faults: Faults) -> tuple[Judged, str]:
    """The judgments, and the first cell of the header; "" where there is none."""
    judged: Judged = {}
    header = ""
    for number, line in read_lines(path, faults):
        cells = [cell.strip() for cell in line.strip("\r\n").split("\t")]
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if number == 1 and len(cells) == 3 and not _is_score(cells[2]):
            header = cells[0]
            continue
        try:
            query, document, grade = _judgment(cells)
            first = judged.setdefault(query, {}).setdefault(document, Judgment(number, where, grade))
            if first.grade != grade:
                raise Bad(f"query '{query}' and corpus '{document}' have another score at {first.where}")
        except Bad as bad:
            faults.add(number, where, str(bad))
    return judged, header


def _is_score(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _judgment(cells: list[str]) -> tuple[str, str, int]:
    """(query, document, grade). The grade is a whole number, as in trec_eval: a score between 0 and 1 would be neither
    relevant nor irrelevant. Raises Bad."""
    if len(cells) == 4 and cells[1] in ("0", "Q0"):  # TREC's, with tabs, as MS MARCO has them
        cells = [cells[0], *cells[2:]]
    if len(cells) != 3 or not _is_score(cells[2]):
        four = " (TREC's four columns? leave out the second)" if len(cells) == 4 or len(cells[0].split()) == 4 else ""
        raise Bad(f"{cells}, expected query-id, corpus-id and a score between tabs{four}")
    score = float(cells[2])
    if score != int(score) or abs(score) >= 2**31:
        raise Bad(f"a score of {cells[2]}, expected a whole number: above 0 is relevant, 0 is not")
    return cells[0], cells[1], int(score)


BEIR = Format(
    "a BEIR folder",
    holds("corpus.jsonl", "queries.jsonl"),
    read_beir,
    corpus_files=("corpus.jsonl",),
    fixed_columns=True,
    has_splits=True,
)
