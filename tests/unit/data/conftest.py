"""Files of every format, made of random rows."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ds_rag.data.formats import read_corpus, read_rows
from ds_rag.runtime.errors import UserError

WORDS = ["zor", "via", "tel", "ésk", "日本", 'quote"d', "comma,ed", "line\nbroken", "[1]", "'single'"]


class Files:
    """Writes into one folder, and reads what must not be readable."""

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def csv(self, name: str, rows: list[dict], mark: str = ",") -> Path:
        """Lists are written as JSON in their cell."""
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=mark)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
        return self.folder / name

    def jsonl(self, name: str, rows: list[dict]) -> Path:
        return self.put(name, "".join(json.dumps(row) + "\n" for row in rows))

    def beir(self, name: str, rows: list[dict], split: str = "test") -> Path:
        """Positives score 1, negatives -1. Unlabelled candidates have no place in BEIR and are left out."""
        (self.folder / name / "qrels").mkdir(parents=True, exist_ok=True)
        corpus: list[dict] = []
        qrels = ["query-id\tcorpus-id\tscore\n"]
        for row in rows:
            for kind, score in (("positives", 1), ("negatives", -1)):
                for passage in row.get(kind, []):
                    corpus.append({"_id": f"d{len(corpus)}", "title": "", "text": passage})
                    qrels.append(f"{row['id']}\t{corpus[-1]['_id']}\t{score}\n")
        self.jsonl(f"{name}/corpus.jsonl", corpus)
        queries = [{"_id": row["id"], "text": row["query"], "answers": row["answers"]} for row in rows]
        self.jsonl(f"{name}/queries.jsonl", queries)
        self.put(f"{name}/qrels/{split}.tsv", "".join(qrels))
        return self.folder / name

    def write(self, kind: str, rows: list[dict]) -> Path:
        """`rows` in the format `kind` of READERS; a new format needs a branch here."""
        if kind == "csv":
            return self.csv("rows.csv", rows)
        if kind == "tsv":
            return self.csv("rows.tsv", rows, "\t")
        if kind == "jsonl":
            return self.jsonl("rows.jsonl", rows)
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / "rows.parquet")
            return self.folder / "rows.parquet"
        if kind == "datasets":
            datasets.Dataset.from_list(rows).save_to_disk(str(self.folder / "saved"))
            return self.folder / "saved"
        if kind == "shards":
            (self.folder / "pieces").mkdir(exist_ok=True)
            for n, part in enumerate((rows[:3], rows[3:])):
                self.jsonl(f"pieces/rows-{n:05d}-of-00002.jsonl", part)
            return self.folder / "pieces"
        assert kind == "beir", f"no writer for the format {kind}"
        return self.beir("beir", rows)

    @staticmethod
    def text(rng: random.Random) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))

    def rows(self, seed: int, n: int = 7) -> list[dict]:
        """Rows with labelled and unlabelled passages and negatives, in our own column names."""
        rng = random.Random(seed)
        return [
            {
                "id": f"q{i}",
                "query": f"{self.text(rng)} {i}?",
                "answers": [f"{self.text(rng)} a{i}{j}" for j in range(1 + i % 2)],
                "positives": [f"{self.text(rng)} p{i}{j}" for j in range(1 + i % 3)],
                "passages": [f"{self.text(rng)} c{i}{j}" for j in range(i % 4)],
                "negatives": [f"{self.text(rng)} n{i}{j}" for j in range(i % 2)],
            }
            for i in range(n)
        ]

    @staticmethod
    def line(**changes: object) -> str:
        """A good line of JSONL, but for the changes."""
        return json.dumps({"query": "who", "answer": "me", "passage": "I am"} | changes) + "\n"

    @staticmethod
    def error(path: Path, *args, corpus: bool = False, **kwargs) -> str:
        """The message with which `path` is refused."""
        with pytest.raises(UserError) as caught:
            (read_corpus if corpus else read_rows)(path, *args, **kwargs)
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
