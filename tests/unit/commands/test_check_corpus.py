"""ds-rag check of a corpus alone, and what it says about the number of questions; against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import small_retriever

from ds_rag.commands import cli
from ds_rag.data.near_repeats import almost_repeated

PAGE = "amber basalt copper dolomite emerald flint garnet halite iolite jasper kelp lazurite marble nickel opal"
WORDS = PAGE.split()


def check(tmp_path: Path, passages: list[Any], *argv: str, code: int = 0) -> dict[str, Any]:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    words = ["check", "--corpus", str(tmp_path / "c.jsonl"), *argv, "--json", str(tmp_path / "found.json")]
    assert cli.main(words) == code
    return json.loads((tmp_path / "found.json").read_text())


def test_a_good_corpus(tmp_path, capsys):
    passages = [
        {"id": "a", "title": "T", "text": PAGE, "document": "one"},
        {"id": "b", "text": PAGE.replace("opal", "onyx"), "document": "one"},
        {"id": "c", "text": "日本語の本文", "document": "two"},
        {"id": "d", "text": "日本語の本文"},
    ]
    found = check(tmp_path, passages)
    assert found["corpus"]["good"] == 4 and "rows" not in found and found["documents"] == {}
    assert found["corpus"]["counts"] == {
        "repeated texts": 1,
        "repeated but for case and blanks": 1,
        "almost repeated": 1,
        "with a title": 1,
        "documents": 2,
    }
    assert found["lengths"]["passage"]["words"] == {"texts": 3, "min": 1, "median": 15, "95%": 16, "max": 16}
    assert capsys.readouterr().out.splitlines()[-1] == "no bad rows"


def test_what_is_no_passage(tmp_path, capsys):
    passages = [{"id": 1, "text": "x"}, {"id": 1, "text": "y"}, {"id": 2, "text": " "}, {"id": 3, "text": 5}, {"id": 4}]
    listed = check(tmp_path, [*passages, {"id": 1, "text": "x"}], code=1)["corpus"]["listed"]
    assert [line.split(": ", 1)[1].split(",")[0] for line in listed] == [
        f"id '1' is already that of another text at {tmp_path}/c.jsonl:1",
        "'text' is empty",
        "'text' is int 5",
        "'text' is missing or null",
    ]
    assert check(tmp_path, [], code=1)["empty"] == ["corpus"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("no bad rows; corpus: nothing in")


def test_how_many_passages_a_retriever_reads_in_part(tmp_path):
    tiny_encoder = tmp_path / "retriever"
    small_retriever().save(tiny_encoder)
    passages = [{"id": n, "text": " ".join(WORDS[: n + 1])} for n in range(10)]
    found = check(tmp_path, passages, "--retriever", str(tiny_encoder), "--max_passage_length", "5")
    (notice,) = found["notices"]
    tokens = found["lengths"]["passage"]["retriever tokens"]
    share = f"{100 * tokens['cut'] / 10:.0f} %"
    assert 0 < tokens["cut"] < 10 and notice.startswith(f"warning: {tokens['cut']} of 10 passages ({share}) are longer")
    assert "--max_passage_length 5" in notice and "their ends are not read" in notice
    assert not check(tmp_path, passages, "--retriever", str(tiny_encoder))["notices"]


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ([PAGE, PAGE + " quartz"], 1),
        ([PAGE, "Welcome to the page. " + PAGE], 1),
        ([PAGE, PAGE.upper()], 0),  # it repeats the text but for case: counted elsewhere
        ([PAGE, " ".join(reversed(WORDS))], 0),
        ([PAGE, " ".join(WORDS[:7] + WORDS[:7][::-1] + ["rutile"])], 0),
        (["a b c", "a b d", "a b c d"], 0),
        ([PAGE.replace(" ", ""), PAGE.replace(" ", "") + "z"], 1),
        ([], 0),
    ],
)
def test_texts_that_almost_repeat_another(texts: list[str], count: int) -> None:
    assert almost_repeated(texts) == count


def test_the_number_of_questions_is_that_of_the_rows_with_labels(tmp_path, capsys):
    rows = [{"query": f"q{n}", "answer": "a", "positive": f"p{n}"} for n in range(34)]
    place = tmp_path / "r.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"query": "q", "answer": "a"}]))
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "p0"}) + "\n")
    flags = ["--eval_data", str(place), "--corpus", str(tmp_path / "c.jsonl"), "--json", str(tmp_path / "found.json")]
    assert cli.main(["check", str(place), *flags]) == 0
    (line,) = json.loads((tmp_path / "found.json").read_text())["questions"]
    assert line.startswith("warning: 34 evaluation rows with labels: they show differences of about ")
    assert line.endswith("it takes about 780 to see a difference of 5 points")
    assert "it takes about 780" in " ".join(capsys.readouterr().out.split())
