"""The two files that an evaluation leaves: read again as written, and as other tools read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_rag.evaluation.per_question import PerQuestion, read_per_question, trec_lines, trec_word, write_per_question
from ds_rag.runtime.errors import UserError

FOUND = PerQuestion(
    ids=["q1", "q 2", "q3"],
    documents=["a", None, "b"],
    metrics={"recall@1": np.array([1.0, 0.0, np.nan]), "f1": np.array([0.1 + 0.2, 0.0, 1.0])},
    retrieved=[["p1", "p\t2"], ["p2"], []],
    scores=[[0.1 + 0.2, -1.5], [2.0], []],
    details={"query": ["who", "wer", "何"], "gold": [["p1"], [], ["p9", "p2"]]},
    signature={"version": "1", "top_k": 4},
)


def test_it_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    table, run = write_per_question(FOUND, tmp_path / "some.json")
    assert (table.name, run.name) == ("some.json.questions.parquet", "some.json.trec")
    again = read_per_question(table)
    for name in ("ids", "documents", "retrieved", "scores", "details", "signature"):
        assert getattr(again, name) == getattr(FOUND, name), name
    assert list(again.metrics) == ["recall@1", "f1"]
    for name, values in FOUND.metrics.items():
        np.testing.assert_array_equal(again.metrics[name], values)
    assert again.means() == {"recall@1": 0.5, "f1": pytest.approx(1.3 / 3)}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([table.name, run.name])  # nothing else is left


def test_trec_eval_reads_the_run(tmp_path: Path) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    _, run = write_per_question(FOUND, tmp_path / "found")
    docs = list(ir_measures.read_trec_run(str(run)))
    assert [(d.query_id, d.doc_id, d.score) for d in docs] == [
        ("q1", "p1", 0.1 + 0.2),
        ("q1", "p%092", -1.5),
        ("q%202", "p2", 2.0),
    ]
    assert all(len(line.split()) == 6 for line in trec_lines(FOUND))


def test_ids_stay_distinct_without_blanks() -> None:
    ids = ["a b", "a%20b", "a\u3000b", "ab", "ünï"]
    spelled = [trec_word(id_) for id_ in ids]
    assert len(set(spelled)) == len(ids) and not any(c.isspace() for s in spelled for c in s)
    assert spelled[-2:] == ["ab", "ünï"]


@pytest.mark.parametrize("content", [b"", b"not parquet", None])
def test_another_file_is_an_error_that_says_what_was_expected(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.questions.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="not a table of results per question"):
        read_per_question(file)


def test_another_parquet_table_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="not a table"):
        read_per_question(tmp_path / "rows.parquet")
