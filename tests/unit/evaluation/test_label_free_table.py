"""benchmarks/label_free.py: tables, the share of the gain with gold, and teachers that are no language model."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import label_free
import teachers
from test_covidqa_table import write_piece

BEFORE = {"bm25/": 0.5, "": 0.25, "hybrid/": 0.5}
TEXTS = ["ann leads zor", "bob leads kan", "kelp grows in zor", "nothing here"]
ROWS = [
    {"query": "who leads zor ?", "answers": ["Ann"], "passages": TEXTS[:3], "teacher_scores": [-2.0, -6.0, -10.0]},
    {"query": "what grows ?", "answers": ["kelp"], "passages": [TEXTS[3], TEXTS[2]], "teacher_scores": [-8.0, -4.0]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for fold in range(label_free.FOLDS):
        best = 0.0 if fold == 0 else 1.0  # fold 0 is no judge
        write_piece(tmp_path, "infonce_gold", fold, {"before": BEFORE, "after": {"": 0.75, "hybrid/": 0.75}})
        write_piece(tmp_path, "label_free", fold, {"before": BEFORE, "after": {"": 0.5, "hybrid/": best}})
    return tmp_path


def test_folds_that_chose_nothing_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = label_free.table(folder, label_free.JUDGES)
    assert found["hybrid_label_free"]["recall@1"] == pytest.approx(1.0)
    assert label_free.table(folder, range(label_free.FOLDS))["hybrid_label_free"]["recall@1"] == pytest.approx(0.8)
    assert {"bm25", "zero_shot", "hybrid_zero_shot", "infonce_gold", "label_free"} <= found.keys()
    assert found["label_free"]["minutes"] == 1.0 and set(found["label_free"]["interval"]) == {"recall@1", "mrr@10"}
    assert found["share_of_gold_gain"]["share"] == pytest.approx(0.5)
    assert 0 < found["p_label_free_vs_zero_shot"] <= 1
    above = found["label_free_against"]["infonce_gold"]
    assert above["recall@1"]["difference"] == pytest.approx(-0.25), "label-free minus the other, in this order"
    assert above["hybrid/recall@1"]["difference"] == pytest.approx(0.25)
    said = capsys.readouterr().out
    assert "Share of the gain of InfoNCE with gold in recall@1, label-free: 0.50" in said
    assert "| InfoNCE with gold | -0.250 (" in said


def test_the_share_is_of_the_same_documents(folder: Path) -> None:
    """A system with gold's figures has all of its gain, surely; one with half of it has an interval around a half."""
    pieces = label_free.complete_pieces(folder, ["infonce_gold", "label_free"], label_free.JUDGES)
    lines = {name: label_free.LINES[name] for name in ("zero-shot", "InfoNCE with gold", "label-free")}
    zero, gold, free = label_free.systems_of(pieces, lines)
    assert label_free.share_of_gain(gold, zero, gold) == pytest.approx((1, 1, 1))
    share, low, high = label_free.share_of_gain(free, zero, gold)
    assert share == pytest.approx(0.5) and low < 0.5 < high


def test_teachers_by_eye() -> None:
    rng = np.random.default_rng(0)
    words = teachers.overlap(TEXTS)
    assert words(ROWS[0], rng) == pytest.approx([math.log(4), 0, 0]), "only the first passage has the answer's word"
    assert words(ROWS[1], rng) == pytest.approx([0, math.log(4)])
    by_words = teachers.by_words(TEXTS)(ROWS[0], rng)
    assert by_words[0] > by_words[1] > 0 and by_words[0] > by_words[2] > 0
    assert sorted(teachers.permuted(ROWS[0], rng)) == [-10.0, -6.0, -2.0]


def test_rows_have_the_best_passages_and_a_common_spread(tmp_path: Path) -> None:
    scored, out = tmp_path / "scored.jsonl", tmp_path / "out.jsonl"
    scored.write_text("".join(json.dumps(row | {"teacher_tokens": 2}) + "\n" for row in ROWS))
    teachers.write_rows(scored, out, lambda row, rng: [100.0 * s for s in row["teacher_scores"]], keep=2)
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["passages"] == TEXTS[:2] and first["teacher_scores"] == pytest.approx([-1, -3])
    assert second["passages"] == ROWS[1]["passages"] and second["teacher_scores"] == pytest.approx([-4, -2])
    teachers.write_rows(scored, out, teachers.overlap(TEXTS), keep=2)
    spreads = [teachers.spread([json.loads(line)["teacher_scores"] for line in out.read_text().splitlines()])]
    assert spreads[0] > 0


def test_no_row_keeps_its_answer(tmp_path: Path) -> None:
    """Also where an answer is frequent; questions and labels stay, and all answers are given once more."""
    answers = ["yes"] * 5 + ["ann", "bob", "kelp", "no", "no", "zor"]
    rows = [{"id": str(n), "query": f"q{n}", "answers": [a], "positive": f"p{n}"} for n, a in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers.permute_answers(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(new["answers"] != old["answers"] for new, old in zip(found, rows, strict=True))
    assert sorted(row["answers"] for row in found) == sorted([answer] for answer in answers)
    assert [row | {"answers": 0} for row in found] == [row | {"answers": 0} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    with pytest.raises(SystemExit, match="5 of 6 rows have the same answer"):
        teachers.permute_answers(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
