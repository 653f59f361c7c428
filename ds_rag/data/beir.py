"""Reader of BEIR folders: corpus.jsonl, queries.jsonl and qrels/*.tsv."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rag.data.bad_rows import Faults
from ds_rag.data.records import Record, corpus_passages
from ds_rag.data.text_files import read_jsonl, read_lines
from ds_rag.errors import UserError


def read_beir(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """The corpus; or the judged queries with their positives (score > 0) and negatives (score < 0)."""
    for name in ("corpus.jsonl",) if what == "corpus" else ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (path / name).exists():
            found = ", ".join(sorted(entry.name for entry in path.iterdir()))
            raise UserError(f"{faults.source}: a BEIR folder without {name}", found=found, expected=name)
    corpus = read_jsonl(path / "corpus.jsonl", what, faults)
    if what == "corpus":
        yield from corpus
        return
    texts = {passage.id: passage.text for passage in corpus_passages(list(corpus), faults)}
    qrels = _choose_qrels(path, faults)
    judged = _read_qrels(qrels, texts, faults)
    unjudged, known = 0, set()
    for record in read_jsonl(path / "queries.jsonl", what, faults):
        fields = record.fields
        id_ = str(fields.get("_id"))
        known.add(id_)
        if fields.get("_id") is None:
            faults.add(record.number, record.where, "no '_id', expected the id that the qrels name")
        elif id_ not in judged:
            unjudged += 1
        else:
            extra = fields.get("metadata")
            places = [fields, extra if isinstance(extra, dict) else {}]
            answers = [place[key] for place in places for key in ("answers", "answer") if place.get(key)]
            row: dict[str, Any] = {
                "id": id_,
                "query": fields.get("text"),
                "positives": [texts[doc] for _, _, doc, score in judged[id_] if score > 0],
                "negatives": [texts[doc] for _, _, doc, score in judged[id_] if score < 0],
            }
            grades = {texts[doc].strip(): round(score) for _, _, doc, score in judged[id_] if score > 0}
            graded = grades if set(grades.values()) - {1} else None
            yield record._replace(fields=row | {"answers": answers[0]} if answers else row, grades=graded)
    for id_ in judged.keys() - known:
        number, where, *_ = judged[id_][0]
        faults.add(number, where, f"query-id '{id_}' is not in queries.jsonl")
    if unjudged:
        faults.note(f"{unjudged} queries are not in {qrels.name} and are left out")


def _choose_qrels(path: Path, faults: Faults) -> Path:
    files = {file.stem: file for file in sorted((path / "qrels").glob("*.tsv"))}
    if len(files) == 1:
        return next(iter(files.values()))
    for name in ("train",) if faults.of_training else ("test", "dev"):
        if name in files:
            return files[name]
    wanted = "train.tsv" if faults.of_training else "test.tsv or dev.tsv"
    found = ", ".join(file.name for file in files.values()) or "none"
    raise UserError(f"{faults.source}/qrels: which file?", found=found, expected=f"{wanted}, or only one .tsv")


def _read_qrels(path: Path, texts: dict[str, str], faults: Faults) -> dict[str, list[tuple[int, str, str, float]]]:
    """Query id -> [(line, where, corpus id, score)]. A faulty corpus is not searched for missing ids."""
    judged: dict[str, list[tuple[int, str, str, float]]] = {}
    whole = not faults.found
    for number, line in read_lines(path, faults):
        cells = [cell.strip() for cell in line.strip("\r\n").split("\t")]
        where = f"{path}:{number}"
        try:
            query, document, score = cells[0], cells[1], float(cells[2])
            if len(cells) != 3 or not math.isfinite(score):
                raise ValueError
        except (IndexError, ValueError):
            if line.strip() and number > 1:  # the first line may be a header
                faults.add(number, where, f"{cells}, expected query-id, corpus-id and a score between tabs")
            continue
        if document in texts:
            judged.setdefault(query, []).append((number, where, document, score))
        elif whole:
            faults.add(number, where, f"corpus-id '{document}' is not in corpus.jsonl")
    return judged
