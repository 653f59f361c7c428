"""Reader of MS MARCO's passage files as they come: a folder with collection.tsv, queries*.tsv and qrels*.tsv.

The collection and the queries have two cells a line, an id and a text, the judgments TREC's four: query, 0, passage, 1.
None has a header or quotes; each may be compressed (`.gz`). Rows have no answers. Source: the files of
microsoft.github.io/msmarco (Nguyen et al. 2016, arXiv 1611.09268).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds_rag.data.bad_rows import Faults
from ds_rag.data.beir import Files, choose_qrels, documents, judged_rows
from ds_rag.data.format import Format, holds, plain_name
from ds_rag.data.records import Record
from ds_rag.data.text_files import read_cells
from ds_rag.runtime.errors import UserError

COLLECTIONS = ("collection.tsv", "collection.tsv.gz")


def read_texts(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    return read_cells(path, ("_id", "text"), faults)


def read_ms_marco(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """The corpus; or the judged queries with their passages, in the order of the queries."""
    corpus = next(path / name for name in COLLECTIONS if (path / name).exists())
    if what == "corpus":
        yield from documents(corpus, read_texts, faults)
        return
    qrels = named(path, "qrels")
    chosen = choose_qrels(qrels, faults)
    split = next(name for name, file in qrels.items() if file == chosen)
    queries = named(path, "queries")
    file = queries.get(split) or queries.get("") or (next(iter(queries.values())) if len(queries) == 1 else None)
    if file is None:
        raise UserError(
            f"{faults.source}: no queries for {chosen.name}",
            found=", ".join(file.name for file in queries.values()) or "no queries*.tsv",
            expected=f"queries.{split}.tsv" if split else "queries.tsv",
        )
    yield from judged_rows(Files(corpus, file, chosen, read_texts), faults)


def named(path: Path, begin: str) -> dict[str, Path]:
    """Split -> file, of files such as qrels.dev.small.tsv: "dev.small"; "" for qrels.tsv."""
    files = [file for file in sorted(path.iterdir()) if plain_name(file).suffix == ".tsv"]
    stems = {file: plain_name(file).stem for file in files}
    return {
        stem[len(begin) + 1 :]: file for file, stem in stems.items() if stem == begin or stem.startswith(begin + ".")
    }


MS_MARCO = Format(
    "a folder of MS MARCO (collection.tsv, queries*.tsv, qrels*.tsv)",
    holds(*COLLECTIONS),
    read_ms_marco,
    corpus_files=COLLECTIONS,
    fixed_columns=True,
    has_splits=True,
)
