"""`ds-rag chunk` with the tokenizers of small models: what it writes is never truncated, what it says, its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import small_generator, small_retriever

from ds_rag.commands import cli
from ds_rag.data.formats import read_corpus
from ds_rag.data.prompt import Prompt
from ds_rag.models.retriever import Retriever

TEXT = " ".join(f"the tavern {n} of zor is flint. kelp grows in pool nine, 日本 and \U0001f600!" for n in range(40))
WORD, SIGNS = "".join(f"x{n}" for n in range(500)), "".join(map(chr, range(0x4E00, 0x5000)))  # without any blank


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    small_retriever(passage_prefix="passage: ").save(folder / "retriever")
    small_generator().save(folder / "generator")
    return folder


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(f"# Of zor\n\n{TEXT}\n\n## Code\n\n```\n{'x = 1  # one' * 3}\n\n\ny = 2\n```\n")
    (tmp_path / "docs/b.txt").write_text(f"{WORD}\n\n{SIGNS}")
    return tmp_path / "docs"


def chunk(models: Path, *argv: str, code: int = 0) -> dict[str, Any]:
    words = ["chunk", "docs", "--out", "p.jsonl", "--json", "found.json", "--retriever", str(models / "retriever")]
    assert cli.main([*words, *argv]) == code
    return json.loads(Path("found.json").read_text())


def cut(retriever: Retriever, length: int) -> tuple[list[str], int]:
    """(the corpus as training reads it, how many of it the retriever's tokenizer would truncate)."""
    retriever.settings.max_passage_length = length
    texts = [passage.text for passage in read_corpus("p.jsonl")]
    return texts, retriever.tokenize(texts, "passage").cut


@pytest.mark.parametrize("flags", [[], ["--overlap", "8"], ["--min_tokens", "0"]], ids=["plain", "overlap", "short"])
def test_no_passage_is_truncated_in_training(models, docs, flags):
    found = chunk(models, "--max_passage_length", "60", *flags)
    retriever = small_retriever(passage_prefix="passage: ")
    texts, lost = cut(retriever, 60)
    assert lost == 0 and found["tokens"]["max"] <= 60 and found["passages"]["written"] == len(texts) > 10
    assert cut(retriever, found["tokens"]["max"] - 1)[1] > 0, "the figure is that of the tokenizer"
    assert found["tokens"]["median"] > 45, "they are filled"
    if not flags:
        written = "".join("".join(p["text"].split()) for p in map(json.loads, Path("p.jsonl").read_text().splitlines()))
        assert all("".join(part.split()) in written for part in (TEXT, WORD, SIGNS))


def test_with_a_generator_it_fits_both(models, docs):
    chunk(models, "--max_passage_length", "60", "--generator", str(models / "generator"))
    assert cut(small_retriever(passage_prefix="passage: "), 60)[1] == 0
    prompt = Prompt(small_generator().tokenizer)
    assert prompt.encode("passage", [passage.text for passage in read_corpus("p.jsonl")], 60).cut == 0


def test_a_second_call_and_what_is_said(models, docs, capsys):
    (docs / "bad name\n.txt").write_bytes(b"\0")
    (docs / "picture.png").write_text("")
    assert chunk(models, code=1)["files"]["new"] == ["a.md", "b.txt"]
    printed = capsys.readouterr().out
    assert (
        "NUL byte" in printed and "bad name\\n.txt" in printed and "1 .png" in printed and "--corpus p.jsonl" in printed
    )
    before = Path("p.jsonl").read_bytes()
    (docs / "bad name\n.txt").unlink()
    found = chunk(models)
    assert found["files"]["same"] == ["a.md", "b.txt"] and Path("p.jsonl").read_bytes() == before
    assert found["passages"]["kept"] == found["passages"]["written"]
    assert chunk(models, "--max_passage_length", "50")["read_again"] == "other settings: max_passage_length"
    assert (
        chunk(models, "--max_passage_length", "50", "--passage_prefix", "")["read_again"] == "other settings: tokenizer"
    )


def test_check_takes_what_was_written_and_knows_all_of_its_keys(models, docs, capsys):
    chunk(models)
    Path("rows.jsonl").write_text('{"query": "who", "answer": "a"}\n')
    capsys.readouterr()
    assert cli.main(["check", "rows.jsonl", "--corpus", "p.jsonl"]) == 0
    assert "not used" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["docs", "--out", "p.jsonl"], "no retriever to measure passages with"),
        (["docs", "--out", "p.jsonl", "--retriever", "config:x.json"], "no tokenizer yet"),
        (["docs", "--out", "rows.jsonl", "--retriever", "MODEL"], "exists already"),
        (["docs", "--out", "docs", "--retriever", "MODEL"], "a folder is there"),
        (["none", "--out", "p.jsonl", "--retriever", "MODEL"], "does not exist"),
        (["docs", "--out", "p.jsonl", "--retriever", "MODEL", "--max_passage_length", "9"], "no room for text"),
        (["--out", "p.jsonl"], "arguments are required: DOCS"),
    ],
)
def test_mistakes(models, docs, capsys, argv, says):
    Path("rows.jsonl").write_text("{}")
    assert cli.main(["chunk", *(str(models / "retriever") if word == "MODEL" else word for word in argv)]) == 2
    assert says in capsys.readouterr().err and Path("rows.jsonl").read_text() == "{}"
    assert not Path("p.jsonl").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "docs"],
        ["score", "--teacher_cache", "cache", "--freeze", "generator", "--train_data", "docs"],
        ["check", "docs/a.md"],
    ],
)
def test_documents_in_place_of_rows_lead_here(docs, capsys, argv):
    assert cli.main(argv) == 2
    assert f"ds-rag chunk {argv[-1]} --out passages.jsonl" in capsys.readouterr().err
