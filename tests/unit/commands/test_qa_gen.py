"""`ds-rag qa-gen` as a command: files, a second call, what is kept. What the model writes is prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small import small_generator, small_retriever

from ds_rag.commands import cli
from ds_rag.commands.qa_gen import command
from ds_rag.config import DataConfig
from ds_rag.data.dataset import read_evaluation
from ds_rag.evaluation.questions.writer import Ask, Generation

NAMES = ["ann", "bob", "eve", "kim", "lou", "max", "nell", "oda", "pia", "quin", "rob", "sue"]
PLACES = ["zor", "via", "tal", "mor"]


def passages(documents: int) -> list[dict[str, str]]:
    """Four passages a document, of different words each."""
    return [
        {
            "id": f"d{d}-{place}",
            "text": f"In {place} of {NAMES[d]} the kelp of {NAMES[d]} grows on {place} hill beside the number {d} {n}.",
            "document": f"d{d}",
        }
        for d in range(documents)
        for n, place in enumerate(PLACES)
    ]


class Prepared:
    """In place of a `Writer`: the first question about a passage is good, the second means nothing alone. asked: how
    many passages were asked about, call by call."""

    misfit = None
    room = 4096
    asked: ClassVar[list[int]] = []

    def __init__(self, generator: Any, prompt: Any, style: Any, drawing: Any):
        self.prompt = prompt

    def write(self, ids: Sequence[Any], asks: Sequence[Ask]) -> list[Generation]:
        self.asked.append(len(ids))
        texts = [self.prompt.tokenizer.decode(x).replace("Passage:", "").split() for x in ids]
        return [Generation(self.said(texts[ask.place], ask.number), True, 7) for ask in asks]

    def said(self, words: list[str], number: int) -> str:
        place, name = words[1], words[3]
        asked = f"What grows in {place} near {name} hill?" if number == 0 else "What does this passage say?"
        return f" kelp of {name}\nQuestion: {asked}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    small_retriever(seed=4).save(folder / "retriever")
    generator = small_generator(seed=5)
    generator.lm.config.max_position_embeddings = 4096
    generator.save(folder / "generator")
    return folder


Call = Callable[..., int]


@pytest.fixture
def call(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Writer", Prepared)
    Prepared.asked.clear()

    def called(*flags: str, documents: int = 3) -> int:
        lines = [json.dumps(p) + "\n" for p in passages(documents)]
        Path("passages.jsonl").write_text("".join(lines))
        fixed = ["passages.jsonl", "--generator", str(models / "generator"), "--out", "rows.jsonl", "--min_words", "3"]
        return cli.main(["qa-gen", *fixed, *flags])

    return called


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


NO_GAIN = ("--skip_filters", "gain")


def test_rows_of_what_passes_and_a_second_call_for_new_passages(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*NO_GAIN, "--rejected", "rejected.jsonl", "--json", "counts.json") == 0
    shown = capsys.readouterr().out
    rows, rejected, counts = lines("rows.jsonl"), lines("rejected.jsonl"), json.loads(Path("counts.json").read_text())
    assert len(rows) == len(rejected) == 12 and counts["kept"] == 12 and counts["written"] == 24
    assert rows[5] == {
        "id": "d1-via-q0",
        "query": "What grows in via near bob hill?",
        "answer": "kelp of bob",
        "positive_ids": ["d1-via"],
        "document": "d1",
        "rank": 1,
    }
    assert {(r["filter"], r["reason"]) for r in rejected} == {("standalone", "points at its passage: 'this'")}
    assert [f["rejected"] for f in counts["filters"] if f["filter"] == "standalone"] == [12]
    assert "50% were rejected" in shown and "not applied: gain" in shown and "parameters writes mostly poor" in shown
    read = read_evaluation(DataConfig(eval_data="rows.jsonl", corpus="passages.jsonl"), False, from_index=True)
    assert [r.query for r in read.evaluation] == [r["query"] for r in rows], "further columns are no error"
    before, asked = Path("rows.jsonl").read_text(), sum(Prepared.asked)
    assert call(*NO_GAIN) == 0 and Path("rows.jsonl").read_text() == before and sum(Prepared.asked) == asked == 12
    assert call(*NO_GAIN, documents=4) == 0 and sum(Prepared.asked) == 16, "the four passages of the new document"
    assert Path("rows.jsonl").read_text().startswith(before)
    assert call(*NO_GAIN, "--seed", "1", documents=4) == 0 and sum(Prepared.asked) == 32, "other settings are all new"


def test_with_models_ranks_and_gains_stand_in_the_rows(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--retriever", str(models / "retriever"), "--round_trip_by", "either", "--teacher_cache", "cache")
    flags += ("--gain_margin", "-100", "--gain_candidates", "0", "--duplicate_above", "1")
    assert call(*flags) == 0
    first = lines("rows.jsonl")
    assert first and all(1 <= row["rank"] <= 10 and isinstance(row["gain"], float) for row in first)
    assert "24 of 24 pairs scored" in capsys.readouterr().out, "each question with its passage and without"
    assert call(*flags) == 0 and lines("rows.jsonl") == first
    assert "0 of 24 pairs scored" in capsys.readouterr().out


def test_nothing_left_names_the_filter_and_keeps_the_old_rows(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--skip_filters",
        "gain,round_trip",
        "--max_answer_words",
        "2",
        "--rejected",
        "no.jsonl",
        "--json",
        "c.json",
    )
    assert call(*flags) == 1
    said = capsys.readouterr().err
    assert "none of 24 questions passed the filters" in said and "most by form: answer too long" in said
    assert len(lines("no.jsonl")) == 24 and not Path("rows.jsonl").exists()
    assert json.loads(Path("c.json").read_text())["kept"] == 0


def test_whole_documents_go_to_the_held_out_rows(call: Call) -> None:
    assert call(*NO_GAIN, "--eval_out", "dev.jsonl", "--eval_fraction", "0.45", documents=12) == 0
    train, held = lines("rows.jsonl"), lines("dev.jsonl")
    documents = [{row["document"] for row in some} for some in (train, held)]
    assert len(held) == 24 and len(train) + len(held) == 48 and not documents[0] & documents[1]
    assert call(*NO_GAIN, "--eval_out", "dev.jsonl", "--eval_fraction", "0.9") == 2, "too few rows"
    assert lines("dev.jsonl") == held


def test_examples_of_own_rows_name_their_passage_by_id(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    example = {"query": "What grows in zor near ann hill?", "answer": "kelp of ann", "positive_ids": ["d0-zor"]}
    Path("mine.jsonl").write_text(json.dumps(example) + "\n")
    assert call(*NO_GAIN, "--examples", "mine.jsonl", "--rejected", "rejected.jsonl") == 0
    again = [row["query"] for row in lines("rejected.jsonl") if row["filter"] == "duplicate"]
    assert again == [example["query"]], "an example is not written once more"
    Path("mine.jsonl").write_text(json.dumps(example | {"positive_ids": ["gone"]}) + "\n")
    capsys.readouterr()
    assert call(*NO_GAIN, "--examples", "mine.jsonl") == 2
    assert "no passage of the corpus has this id" in capsys.readouterr().err
    Path("mine.jsonl").write_text(json.dumps(example | {"answer": "nothing of it"}) + "\n")
    assert call(*NO_GAIN, "--examples", "mine.jsonl") == 2
    assert "--examples: no row can be an example" in capsys.readouterr().err


WRONG = [
    (["--skip_filters", "gains"], "did you mean 'gain'?"),
    (["--round_trip_by", "index"], "--round_trip_by index without a retriever"),
    (["--temperature", "0"], "all questions about a passage would be the same"),
    (["--rejected", "rows.jsonl"], "--out and --rejected: the same file"),
    (["--eval_out", "passages.jsonl"], "--eval_out and the passages: the same file"),
    (["--min_words", "1000"], "no passage is long enough to ask about"),
    (["--chat_template"], "the generator's tokenizer has none"),
    (["--train_data", "x"], "unknown flag: --train_data"),
]


@pytest.mark.parametrize(("flags", "says"), WRONG)
def test_mistakes_are_said_before_anything_is_written(
    call: Call, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert says in capsys.readouterr().err and not Path("rows.jsonl").exists() and not Prepared.asked


def test_another_commands_file_is_replaced_only_when_asked(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text("my rows\n")
    assert call(*NO_GAIN) == 2 and "--overwrite" in capsys.readouterr().err
    assert Path("rows.jsonl").read_text() == "my rows\n"
    assert call(*NO_GAIN, "--overwrite") == 0 and len(lines("rows.jsonl")) == 12


@pytest.mark.parametrize(("room", "says"), [(17, "12 passages are cut at 17 tokens"), (3, "fewer --shots")])
def test_passages_that_the_examples_leave_no_room_for_are_told(
    call: Call, room: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Prepared, "room", room)
    assert call(*NO_GAIN) == (2 if room < 16 else 0)
    shown = capsys.readouterr()
    assert says in " ".join((shown.out + shown.err).split())
