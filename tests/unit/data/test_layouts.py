"""Rows of other toolkits as they come: one small file each, with the rows that a reader finds in it by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ds_rag.data.bad_rows import Reading
from ds_rag.data.columns import Columns
from ds_rag.data.corpus_state import source_of, unchanged
from ds_rag.data.formats import Row, detect, read_corpus, read_rows
from ds_rag.data.in_memory_rows import rows_from

SHOWN = ("query", "answers", "positives", "passages", "negatives")


def shown(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Each row without what is empty at its end."""
    found = [tuple(getattr(row, name) for name in SHOWN) for row in rows]
    return [row[: max(n for n, part in enumerate(row, 1) if part)] for row in found]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CHATS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "messages": ({"messages": [turn("user", "who"), turn("assistant", "me")]}, ("who", ("me",))),
    "a system message": (
        {"messages": [turn("system", "be brief"), turn("user", "who"), turn("assistant", "me")]},
        ("who", ("me",)),
    ),
    "several turns": (
        {"messages": [turn("user", "one"), turn("assistant", "1"), turn("user", "two"), turn("assistant", "2")]},
        ("two", ("2",)),
    ),
    "written as text": ({"messages": json.dumps([turn("user", "who"), turn("assistant", "me")])}, ("who", ("me",))),
    "in parts": (
        {"messages": [turn("user", [{"type": "text", "text": "who"}]), turn("assistant", "me")]},
        ("who", ("me",)),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "who"}, {"from": "gpt", "value": "me"}]},
        ("who", ("me",)),
    ),
    "TRL": ({"prompt": "who", "completion": "me"}, ("who", ("me",))),
    "TRL's messages": (
        {"prompt": [turn("user", "who")], "completion": [turn("assistant", "me")]},
        ("who", ("me",)),
    ),
    "beside a passage": (
        {"messages": [turn("user", "who"), turn("assistant", "me")], "passage": "I am"},
        ("who", ("me",), ("I am",)),
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(name: str, files: Any) -> None:
    record, row = CHATS[name]
    reading = Reading()
    path = files.jsonl("r.jsonl", [record])
    assert shown(read_rows(path, need_passages=False, reading=reading)) == [row]
    said = " ".join(reading.notices)
    assert ("have a system message, which is not read" in said) == (name == "a system message")
    assert ("messages before the last question" in said) == (name == "several turns")
    assert shown(rows_from([record], False, True)) == [row], "in memory as in a file"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [turn("assistant", "me")]}, "holds no message of role 'user'"),
        ({"messages": [turn("user", "who")]}, "expected the reply to it"),
        ({"messages": [turn("user", "who"), turn("assistant", "me"), turn("user", "and")]}, "expected the reply to it"),
        ({"messages": [turn("user", 7)]}, "'messages[0]' is dict"),
        ({"messages": ["who", "me"]}, "'messages[0]' is str 'who'"),
        ({"messages": "who"}, "'messages' is str 'who', expected a list of messages"),
        ({"prompt": [turn("system", "x")], "completion": "me"}, "'prompt' holds no message"),
    ],
)
def test_what_is_no_chat_is_a_bad_row(record: dict[str, Any], words: str, files: Any) -> None:
    good = {"messages": [turn("user", "who"), turn("assistant", "me")]}
    path = files.jsonl("r.jsonl", [good, record])
    message = files.error(path, need_passages=False)
    assert f"{path}:2: " in message and words in message
    assert len(read_rows(path, need_passages=False, reading=Reading(skip=True))) == 1


def test_chats_without_any_reply(files: Any) -> None:
    """The error is about the replies, not about columns that the user does not have; labels may train without them."""
    path = files.jsonl("r.jsonl", [{"messages": [turn("user", "who")], "passage": "I am"}] * 2)
    assert "the chat ends with its question" in files.error(path)
    assert shown(read_rows(path, need_answers=False)) == [("who", (), ("I am",))] * 2
    path = files.jsonl("r.jsonl", [{"messages": [turn("user", "who")], "passage": "I am", "answer": "me"}])
    assert shown(read_rows(path)) == [("who", ("me",), ("I am",))]


def test_columns_that_a_flag_names_are_no_layout(files: Any) -> None:
    path = files.jsonl("r.jsonl", [{"prompt": "who", "completion": "me", "passage": "p"}])
    rows = read_rows(path, Columns(query="completion", answer="prompt"))
    assert shown(rows) == [("me", ("who",), ("p",))]
    path = files.jsonl("r.jsonl", [{"query": "who", "answer": "me", "passage": "p", "messages": [], "prompt": "x"}])
    assert shown(read_rows(path)) == [("who", ("me",), ("p",))]


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Zor",
            "paragraphs": [
                {
                    "context": "Ann leads Zor.",
                    "qas": [
                        {"id": "1", "question": "Who leads Zor?", "answers": [{"text": "Ann", "answer_start": 0}] * 2},
                        {"id": "2", "question": "Who leads Mel?", "answers": [], "is_impossible": True},
                    ],
                },
                {
                    "context": "Zor is old.",
                    "qas": [{"id": "3", "question": "Is Zor old?", "answers": [{"text": "old"}]}],
                },
            ],
        },
        {"title": "Via", "paragraphs": [{"context": "Bob leads Via.", "qas": []}]},
    ],
}
OF_SQUAD = [("Who leads Zor?", ("Ann",), ("Ann leads Zor.",)), ("Is Zor old?", ("old",), ("Zor is old.",))]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_squads_own_file(indent: int | None, suffix: str, files: Any) -> None:
    """On one line or over many; questions without an answer are counted, and their articles are documents."""
    text = json.dumps(SQUAD, indent=indent).encode()
    path = files.put(f"train-v2.0{suffix}", gzip.compress(text) if suffix.endswith("gz") else text)
    reading = Reading()
    rows = read_rows(path, reading=reading)
    assert shown(rows) == OF_SQUAD and [row.id for row in rows] == ["1", "3"]
    assert {row.origin.document for row in rows} == {"Zor"} and len({row.where for row in rows}) == 2
    assert "1 questions have no answer and are left out" in " ".join(reading.notices)
    held = read_rows(path, flag="--eval_data", need_answers=False)
    assert [row.id for row in held] == ["1", "2", "3"], "retrieval is measured on them all the same"
    by_article = files.jsonl("a.jsonl", SQUAD["data"])
    assert shown(read_rows(by_article)) == OF_SQUAD


def test_a_broken_part_of_squads_file_is_named(files: Any) -> None:
    broken = json.loads(json.dumps(SQUAD))
    del broken["data"][0]["paragraphs"][1]["qas"][0]["question"]
    message = files.error(files.put("r.json", json.dumps(broken)))
    assert "data[0].paragraphs[1].qas[0] has no 'question'" in message
    broken["data"][0]["paragraphs"] = {"context": "x"}
    assert "'paragraphs' of data[0] is dict" in files.error(files.put("r.json", json.dumps(broken)))


def test_squad_as_a_data_set(files: Any) -> None:
    """`context, question, answers{text, answer_start}`, as the hub has it: here a saved data set and Parquet."""
    rows = [
        {"id": "1", "title": "Zor", "context": "Ann leads Zor.", "question": "Who leads Zor?",
         "answers": {"text": ["Ann", "Ann"], "answer_start": [0, 0]}},
        {"id": "2", "title": "Zor", "context": "Ann leads Zor.", "question": "Who leads Mel?",
         "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).save_to_disk(str(files.folder / "squad"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files.folder / "r.parquet")
    for path in (files.folder / "squad", files.folder / "r.parquet"):
        reading = Reading()
        (row,) = read_rows(path, reading=reading)
        assert shown([row]) == OF_SQUAD[:1] and row.origin.title == "Zor"
        assert "1 questions have no answer and are left out, the first at" in reading.notices[0]
        assert len(read_rows(path, flag="--eval_data", need_answers=False)) == 2


def test_dpr(files: Any) -> None:
    """A JSON list, over several lines; titles precede the texts."""
    ctx = {"title": "Zor", "text": "Ann leads Zor.", "score": 1000, "title_score": 1, "passage_id": "77"}
    row = {
        "dataset": "nq_train_psgs_w100",
        "question": "who leads zor",
        "answers": ["Ann"],
        "positive_ctxs": [ctx],
        "negative_ctxs": [ctx | {"text": "a random passage", "passage_id": "5"}],
        "hard_negative_ctxs": [ctx | {"title": "Via", "text": "Bob leads Via.", "passage_id": "78"}],
    }
    path = files.put("biencoder-nq-train.json", json.dumps([row], indent=4))
    wanted = ("who leads zor", ("Ann",), ("Zor Ann leads Zor.",), (), ("Via Bob leads Via.",))
    assert shown(read_rows(path)) == [wanted]
    psgs = 'id\ttext\ttitle\n77\t"Ann leads Zor."\tZor\n78\t"Bob said ""no""."\tVia\n'
    corpus = read_corpus(files.put("psgs_w100.tsv.gz", gzip.compress(psgs.encode())))
    assert [(p.id, p.text) for p in corpus] == [("77", "Zor Ann leads Zor."), ("78", 'Via Bob said "no".')]


def test_tevatron_and_flag_embedding(files: Any) -> None:
    tevatron = {
        "query_id": "1",
        "query": "who",
        "positive_passages": [{"docid": "7", "title": "Zor", "text": "Ann"}],
        "negative_passages": [{"docid": "8", "title": "", "text": "Bob"}],
    }
    path = files.put("r.jsonl.gz", gzip.compress((json.dumps(tevatron) + "\n").encode()))
    (row,) = read_rows(path, need_answers=False)
    assert shown([row]) == [("who", (), ("Zor Ann",), (), ("Bob",))] and row.id == "1"
    assert [(p.id, p.lead) for p in row.given] == [("7", 4), ("8", 0)]
    flag = {"query": "who", "pos": ["Ann"], "neg": ["Bob", "Cy"], "pos_scores": [0.9], "neg_scores": [0.1, 0.2]}
    path = files.jsonl("r.jsonl", [flag | {"type": "normal"}])
    (row,) = read_rows(path, need_answers=False, reading=Reading(scores=None))
    assert shown([row]) == [("who", (), ("Ann",), (), ("Bob", "Cy"))]
    assert row.scores == {"Ann": 0.9, "Bob": 0.1, "Cy": 0.2}


@pytest.mark.parametrize("turned", [False, True])
def test_ms_marco_as_a_data_set(turned: bool, files: Any) -> None:
    """v1.1 and v2.1: `passages` as an object of lists, or as a list of objects."""
    texts, urls = ["Ann leads Zor.", "Bob leads Via."], ["u", "v"]

    def row(n: int, selected: list[int], answers: list[str]) -> dict[str, Any]:
        passages: Any = {"is_selected": selected, "passage_text": texts, "url": urls}
        if turned:
            passages = [dict(zip(passages, values, strict=True)) for values in zip(*passages.values(), strict=True)]
        return {"query_id": n, "query": f"q{n}", "answers": answers, "passages": passages, "wellFormedAnswers": []}

    none = row(2, [0, 0], ["No Answer Present."])
    path, reading = files.jsonl("r.jsonl", [row(1, [1, 0], ["Ann"]), none]), Reading()
    (read,) = read_rows(path, reading=reading)
    assert shown([read]) == [("q1", ("Ann",), (texts[0],), (), (texts[1],))] and read.judged
    assert "1 questions have no answer and are left out" in " ".join(reading.notices)
    held = read_rows(path, flag="--eval_data", need_answers=False)
    assert [row.positives for row in held] == [(texts[0],), ()]


def test_ms_marcos_triples(files: Any) -> None:
    """No header, and a quotation mark is one."""
    lines = 'who leads zor\t"Ann" leads Zor.\tBob leads Via.\nwho\tAnn\tBob "\n'
    path = files.put("triples.train.small.tsv", lines)
    rows = read_rows(path, need_answers=False)
    assert shown(rows) == [
        ("who leads zor", (), ('"Ann" leads Zor.',), (), ("Bob leads Via.",)),
        ("who", (), ("Ann",), (), ('Bob "',)),
    ]
    message = files.error(files.put("triples.tsv", "a\tb\n"), need_answers=False)
    assert "triples.tsv:1: 2 cells, expected 3 between tabs: query, positive, negative" in message
    headed = files.put("triples.tsv", "query\tpositive\tnegative\nwho\tAnn\tBob\n")
    assert shown(read_rows(headed, need_answers=False)) == [("who", (), ("Ann",), (), ("Bob",))]


@pytest.fixture
def marco(files: Any) -> Path:
    folder = files.folder / "marco"
    folder.mkdir()
    files.put("marco/collection.tsv", 'd0\t"Ann" leads Zor.\nd1\tBob leads Via.\nd2\tkelp\n')
    files.put("marco/queries.train.tsv", "1\twho leads zor\n2\twho leads via\n9\tnever judged\n")
    files.put("marco/queries.dev.tsv", "5\twhat grows\n")
    files.put("marco/qrels.train.tsv", "1\t0\td0\t1\n2\t0\td1\t1\n")
    files.put("marco/qrels.dev.tsv", "5\t0\td2\t1\n5\t0\td1\t0\n")
    return folder


def test_ms_marcos_folder(marco: Path, files: Any) -> None:
    assert detect(marco, "--corpus") == "msmarco"
    corpus = [("d0", '"Ann" leads Zor.'), ("d1", "Bob leads Via."), ("d2", "kelp")]
    assert [(p.id, p.text) for p in read_corpus(marco)] == corpus
    reading = Reading()
    rows = read_rows(marco, need_answers=False, reading=reading)
    assert [(row.id, row.query, row.positives) for row in rows] == [
        ("1", "who leads zor", ('"Ann" leads Zor.',)),
        ("2", "who leads via", ("Bob leads Via.",)),
    ]
    assert "1 queries are not in qrels.train.tsv" in " ".join(reading.notices)
    (row,) = read_rows(marco, flag="--eval_data", need_answers=False)
    assert (row.id, row.positives, row.judged) == ("5", ("kelp",), True)
    assert read_rows(f"{marco}:dev", need_answers=False) == [row]
    assert "qrels: which file?" in files.error(f"{marco}:test", need_answers=False)
    assert "no column for the answers" in files.error(marco)
    files.put("marco/qrels.train.tsv", "1\t0\tgone\t1\n")
    assert "qrels.train.tsv:1: corpus-id 'gone' is not in collection.tsv" in files.error(marco, need_answers=False)


def test_what_an_index_knows_of_such_files(marco: Path, files: Any) -> None:
    """Changed since they were read, or not: also of a packed file, and of one split of a folder."""
    packed = files.put("c.jsonl.gz", gzip.compress(b'{"text": "x"}\n'))
    saved = files.folder / "saved"
    parts = {split: datasets.Dataset.from_list([{"text": f"of {split}"}]) for split in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(saved))
    for path in (str(marco), str(packed), f"{saved}:test"):
        source = source_of(path)
        assert str(source.path) == path and unchanged(source.path, source.sealed())
    assert [p.text for p in read_corpus(f"{saved}:test")] == ["of test"]
    sealed = source_of(packed).sealed()
    packed.write_bytes(gzip.compress(b'{"text": "y!"}\n'))
    assert not unchanged(packed, sealed)


def test_shards_in_folders(files: Any) -> None:
    """As the hub lays them out: data/train-00000-of-00002.parquet, or a folder for each split."""

    def put(name: str, query: str) -> None:
        place = files.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"query": query, "answer": "a", "passage": "p"}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place)

    for n in range(2):
        put(f"one/data/train-0000{n}-of-00002.parquet", f"train {n}")
    put("one/data/test-00000-of-00001.parquet", "test")
    put("two/train/0000.parquet", "train 0")
    put("two/train/0001.parquet", "train 1")
    put("two/test/0000.parquet", "test")
    files.put("one/README.md", "# a card")
    for name in ("one", "two"):
        path = files.folder / name
        assert [row.query for row in read_rows(path)] == ["train 0", "train 1"]
        assert [row.query for row in read_rows(f"{path}:test", flag="--eval_data")] == ["test"]
        assert "more than one split" in files.error(path, flag="--eval_data")
    assert f"{files.folder}/one:test" in files.error(files.folder / "one", flag="--eval_data")
    put("three/a/train-00000-of-00001.parquet", "a")  # two configurations, each with a split `train`
    put("three/b/train-00000-of-00001.parquet", "b")
    message = files.error(files.folder / "three")
    assert "found:    a/train, b/train" in message and f"{files.folder}/three:a/train" in message
    assert [row.query for row in read_rows(f"{files.folder}/three:b/train")] == ["b"]


def test_files_named_like_a_split(files: Any) -> None:
    (files.folder / "d").mkdir()
    for split in ("train", "validation"):
        files.put(f"d/{split}.jsonl.gz", gzip.compress(files.line(query=split).encode()))
    assert [row.query for row in read_rows(files.folder / "d")] == ["train"]
    assert [row.query for row in read_rows(f"{files.folder}/d:validation", flag="--eval_data")] == ["validation"]
    assert "no split 'test'" in files.error(f"{files.folder}/d:test")


def test_a_list_of_objects_is_read_object_by_object(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the borders of what is read at a time; with the lines at which objects begin."""
    from ds_rag.data import json_values

    monkeypatch.setattr(json_values, "PORTION", 16)
    rows = [{"query": f"q{n} {'ü' * n}", "answer": "a", "passage": "]},{"} for n in range(9)]
    path = files.put(
        "r.json", "\ufeff\n[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    )
    read = read_rows(path)
    assert [row.query for row in read] == [row["query"].strip() for row in rows]
    assert [row.where for row in read] == [f"{path}:{n + 3} (item {n + 1})" for n in range(9)]
    assert [row.query.split()[0] for row in read_rows(path, limit=2)] == ["q0", "q1"]
    over = files.put("o.json", "\n".join(json.dumps(row, indent=2) for row in rows))
    assert [row.where for row in read_rows(over)][:2] == [f"{over}:1 (item 1)", f"{over}:6 (item 2)"]


def test_squad_without_any_answer_says_why_no_row_is_left(files: Any) -> None:
    asked = {"id": "2", "question": "Who leads Mel?", "answers": [], "is_impossible": True}
    path = files.jsonl("r.jsonl", [{"data": [{"paragraphs": [{"context": "Ann leads Zor.", "qas": [asked]}]}]}])
    message = files.error(path)
    assert "holds no rows" in message and "1 questions have no answer and are left out" in message
