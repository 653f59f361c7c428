"""COVID-QA for evaluation by folds: both splits of the data joined into one folder, whose documents are the articles.

    python benchmarks/covidqa_folds.py SOURCE FOLDER --folds 5
    ds-rag train --train_data FOLDER/rows.jsonl --corpus FOLDER/corpus.jsonl --folds 5 --fold 0 ...

SOURCE has `train.jsonl` (id, query, passage, answer, passage_id) and the BEIR folders `train_beir` and `dev_beir`; an
article is the part of a passage's id before the hyphen. FOLDER gets `rows.jsonl`, `corpus.jsonl` (all windows of all
articles), `qrels.tsv` and `folds.json`: the folds that `--folds` gives for these rows. The counts are checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ds_rag.data.splits import FOLDS, SplitOptions, Unit, split_rows
from ds_rag.data.statistics import effective_number
from ds_rag.runtime.errors import UserError

# articles of the training part and of dev_beir, questions, windows
EXPECTED = {"train articles": 64, "dev articles": 17, "questions": 1041, "windows": 2861}


def article(passage_id: str) -> str:
    return passage_id.rpartition("-")[0]


def lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def of_train(source: Path) -> list[dict[str, Any]]:
    """The rows of train.jsonl, whose passages have ids."""
    return [
        row_of(str(row["id"]), row["query"], [row["answer"]], row["passage_id"], row["passage"])
        for row in lines(source / "train.jsonl")
    ]


def of_beir(folder: Path) -> list[dict[str, Any]]:
    """The rows of a BEIR folder whose queries have one relevant passage each."""
    texts = {passage["_id"]: passage["text"] for passage in lines(folder / "corpus.jsonl")}
    judged = [line.split("\t") for line in (folder / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    gold = {query: passage for query, passage, score in judged if int(score) > 0}
    return [
        row_of(query["_id"], query["text"], query["answers"], gold[query["_id"]], texts[gold[query["_id"]]])
        for query in lines(folder / "queries.jsonl")
    ]


def row_of(id_: str, query: str, answers: list[str], passage_id: str, passage: str) -> dict[str, Any]:
    positive = {"id": passage_id, "text": passage}
    return {"id": id_, "query": query, "answers": answers, "positive": positive, "document": article(passage_id)}


def windows(source: Path) -> list[dict[str, Any]]:
    """All windows of all articles, each with its article and its number in it."""
    found = [passage for part in ("train_beir", "dev_beir") for passage in lines(source / part / "corpus.jsonl")]
    return [
        {"id": p["_id"], "text": p["text"], "document": article(p["_id"]), "place": p["_id"].rpartition("-")[2]}
        for p in found
    ]


def counts(train: list[dict[str, Any]], dev: list[dict[str, Any]], corpus: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "train articles": len({row["document"] for row in train}),
        "dev articles": len({row["document"] for row in dev}),
        "questions": len({row["id"] for row in train + dev}),
        "windows": len({passage["id"] for passage in corpus}),
    }


def check(found: dict[str, int], rows: list[dict[str, Any]], corpus: list[dict[str, Any]]) -> None:
    """Raises UserError where the data is another than COVID-QA of 2020-04-23, or a row's passage is not in the corpus
    under its id."""
    if found != EXPECTED:
        raise UserError("not the COVID-QA that these folds are for", found=found, expected=EXPECTED)
    texts = {passage["id"]: passage["text"] for passage in corpus}
    lost = [row["id"] for row in rows if texts.get(row["positive"]["id"]) != row["positive"]["text"]]
    if lost:
        raise UserError("rows whose passage is not in the corpus", found=", ".join(lost[:5]), expected="all there")


def join(source: Path, folder: Path, folds: int) -> dict[str, Any]:
    """Writes the folder; returns the counts, the effective number of articles, and the questions of each fold."""
    train, dev, corpus = of_train(source), of_beir(source / "dev_beir"), windows(source)
    rows, found = train + dev, counts(train, dev, corpus)
    check(found, rows, corpus)
    units = [Unit(row["document"], row["query"]) for row in rows]
    split, fold_of_row = split_rows(units, SplitOptions(FOLDS, folds, 0))
    sizes = Counter(row["document"] for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "rows.jsonl", map(json.dumps, rows))
    write(folder / "corpus.jsonl", map(json.dumps, corpus))
    write(folder / "qrels.tsv", ["query-id\tcorpus-id\tscore", *(f"{r['id']}\t{r['positive']['id']}\t1" for r in rows)])
    write(folder / "folds.json", [json.dumps({"folds": folds, "documents": split.documents}, indent=1, sort_keys=True)])
    return {
        **found,
        "effective number of articles": round(effective_number(sizes.values()), 1),
        "questions of each fold": [Counter(fold_of_row)[fold] for fold in range(folds)],
        "articles of each fold": [list(split.documents.values()).count(fold) for fold in range(folds)],
    }


def write(file: Path, texts: Iterable[str]) -> None:
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    try:
        found = join(args.source, args.folder, args.folds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for what, count in found.items():
        print(f"{what:30} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
