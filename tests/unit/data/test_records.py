"""What is wrong in a row or a passage is said with its place; what is right is cleaned."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import Passage, read_corpus, read_rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": ""}, "'query' is empty, expected text"),
        ({"query": None}, "'query' is missing or null"),
        ({"query": 17}, "'query' is int 17, expected text"),
        ({"query": ["who"]}, "'query' is list ['who'], expected text"),
        ({"answer": " "}, "'answer' is empty"),
        ({"answer": []}, "'answer' holds no answer"),
        ({"answer": None}, "'answer' holds no answer"),
        ({"answer": ["me", ""]}, "'answer[1]' is empty"),
        ({"answer": 4.5}, "'answer' is float 4.5, expected a text"),
        ({"answer": True}, "'answer' is bool True"),
        ({"passage": ""}, "'passage' is empty"),
        ({"passage": ["x", None]}, "'passage[1]' is NoneType None"),
        ({"passage": [{"title": "t"}]}, "'passage[0]' is an object with title, expected one with 'text'"),
        ({"passage": {"title": 3, "text": "x"}}, "the title of 'passage' is int 3"),
        ({"passage": {"title": ["t"], "text": ["x", "y"]}}, "other titles than texts"),
        ({"passage": []}, "neither labelled nor unlabelled passages, expected some in 'passage'"),
        ({"passage": None, "passages": []}, "expected some in 'passage' and 'passages'"),
        ({"passage": None, "negatives": ["n"]}, "neither labelled nor unlabelled passages"),
        ({"passage": "a\0b"}, "'passage' holds a NUL at character 1"),
        ({"passage": "é\ud800"}, "'passage' holds a lone surrogate at character 1"),
        ({"id": None}, "'id' is missing or null"),
        ({"id": "same"}, "id 'same' is already that of another row at"),
    ],
)
def test_row_faults(changes: dict, words: str, files: Any) -> None:
    first = files.line(id="same", query="other") if "id" in changes else files.line()
    path = files.put("r.jsonl", first + files.line(**changes))
    assert f"{path}:2: " in files.error(path) and words in files.error(path)


def test_faults_are_listed_in_file_order_up_to_twenty_with_their_total(files: Any) -> None:
    lines = [files.line(query="") if n % 2 else "{\n" for n in range(1, 31)]
    message = files.error(files.put("r.jsonl", files.line() + "".join(lines)))
    assert "30 bad places, the first 20:" in message
    assert [int(n) for n in re.findall(r"r\.jsonl:(\d+): ", message)] == list(range(2, 22))


CELLS = [
    ('["a b", "c"]', ("a b", "c")),
    ('[{"title": "t", "text": "a"}]', ("t a",)),
    ('{"text": "a", "title": "t"}', ("t a",)),
    ("['a', 'b']", ("a", "b")),
    (r"""["it's", 'b']""", ("it's", "b")),
    ("('a', 'b')", ("a", "b")),
    ("{'a', 'b'}", ("a", "b")),
    ("[{'text': 'a', 'title': None}, {'text': 'b'}]", ("a", "b")),
    ("{'text': ['a', 'b'], 'answer_start': [3, -1]}", ("a", "b")),
    ("{'text': array(['a'], dtype=object), 'answer_start': array([29], dtype=int32)}", ("a",)),
    ("array(['a', 'b'], dtype=object)", ("a", "b")),
    ("np.array([np.str_('a')])", ("a",)),
    ("array([{'text': 'a', 'score': nan}], dtype=object)", ("a",)),
    ('["a", "[b]", "{c}"]', ("a", "[b]", "{c}")),
    ("[1] a footnote", ("[1] a footnote",)),
    ("[2020]", ("[2020]",)),
    ("[1, 2, 3]", ("[1, 2, 3]",)),
    ("[sic]", ("[sic]",)),
    ("(a) and (b)", ("(a) and (b)",)),
    ("{x | x > 0}", ("{x | x > 0}",)),
    ('["Well", he said]', ('["Well", he said]',)),
    ("array(3)", ("array(3)",)),
]


@pytest.mark.parametrize(("cell", "texts"), CELLS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_structure_that_is_written_as_text_is_read(cell: str, texts: tuple[str, ...], kind: str, files: Any) -> None:
    """In a cell and in a JSON string alike; what merely begins with a bracket is a text."""
    row = {"query": "q", "answer": cell, "positives": cell}
    path = files.csv("r.csv", [row]) if kind == "csv" else files.jsonl("r.jsonl", [row])
    assert read_rows(path)[0].positives == read_rows(path)[0].answers == texts


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['a' 'b']", "looks like a list but is no JSON"),
        ('["a" "b"]', "looks like a list but is no JSON"),
        ("['a', ..., 'z']", "looks like a list but is no JSON"),
        ("array(['a', ..., 'z'], dtype=object)", "looks like a list but is no JSON"),
        ("{'text': ['a', 'answer_start': 3}", "looks like a list but is no JSON"),
        ('{"city": "Rome"}', "is an object with city, expected one with 'text' (a text that is JSON itself"),
        ("['a', 3]", "'answers[1]' is int 3"),
        ("[['a']]", "'answers[0]' is list"),
        ("[" * 50_000 + '"' + "]" * 50_000, ""),  # deeper than any parser goes: a text
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_structure_that_cannot_be_read_is_refused_by_line(cell: str, words: str, kind: str, files: Any) -> None:
    row = {"query": "q", "answers": cell, "passage": "p"}
    path = files.csv("r.csv", [row]) if kind == "csv" else files.jsonl("r.jsonl", [row])
    if not words:
        assert read_rows(path)[0].answers == (cell,)
        return
    assert re.search(rf"{path}:[12]: 'answers", message := files.error(path)) and words in message


def test_json_strings_inside_a_list_are_passages(files: Any) -> None:
    texts = [json.dumps({"title": "t", "text": "a"}), "{'text': 'b'}", '{"code": 1}']
    path = files.jsonl("r.jsonl", [{"query": "q", "answer": ['{"city": "Rome"}'], "positives": texts}])
    (row,) = read_rows(path)
    assert (row.positives, row.answers) == (("t a", "b", '{"code": 1}'), ('{"city": "Rome"}',))


def test_one_text_where_one_is_wanted(files: Any) -> None:
    """A query, a passage of a corpus: a list of one is its text, of several is refused, a JSON document is a text."""
    cells = ["['who']", '{"text": "who"}', '{"id": 7}', "[sic] who"]
    path = files.jsonl("r.jsonl", [{"query": cell, "answer": "a", "positives": "p"} for cell in cells])
    assert [row.query for row in read_rows(path)] == ["who", "who", '{"id": 7}', "[sic] who"]
    corpus = files.jsonl("c.jsonl", [{"text": cell} for cell in cells])
    assert [passage.text for passage in read_corpus(corpus)] == ["who", "who", '{"id": 7}', "[sic] who"]
    for name, field in (("r.jsonl", "query"), ("c.jsonl", "text")):
        path = files.jsonl(name, [{field: "['a', 'b']", "answer": "a", "positives": "p"}])
        message = files.error(path, corpus=field == "text")
        assert f"{path}:1: '{field}' is a list of 2 written as text" in message


def test_a_text_is_in_one_role_once(files: Any) -> None:
    fields: dict = {"positives": ["p", "p "], "passages": ["c", "p", "n", "c"], "negatives": ["n", "p", "n"]}
    fields |= {"query": "q", "answers": ["a", " a", "b"]}
    row = read_rows(files.jsonl("r.jsonl", [fields]))[0]
    assert (row.answers, row.positives, row.passages, row.negatives) == (("a", "b"), ("p",), ("c",), ("n",))


def test_what_is_not_needed_may_be_absent(files: Any) -> None:
    path = files.put("r.jsonl", files.line(answer=None) + files.line(answer="") + files.line(answer=["x", ""]))
    assert [row.answers for row in read_rows(path, need_answers=False)] == [(), (), ("x",)]
    path = files.put("r.csv", "query,answer\nwho,me\n")
    row = read_rows(path, need_passages=False)[0]
    assert row.positives + row.passages + row.negatives == () and row.answers == ("me",)
    path = files.put("r.csv", "query,passage\nwho,me\n")
    assert read_rows(path, need_answers=False)[0].answers == ()


def test_repeated_rows_are_merged_with_a_notice(files: Any) -> None:
    path, reading = files.put("r.jsonl", files.line(id=1) * 2 + files.line(id=2)), Reading()
    assert [row.id for row in read_rows(path, reading=reading)] == ["1", "2"]
    assert reading.notices == [f"--train_data: {path}: 1 repeated rows (same id, same content) merged"]


def test_corpus_ids(files: Any) -> None:
    lines = [{"docid": 1, "text": "a"}, {"docid": "1", "text": "a"}, {"docid": 2, "text": "a"}]
    reading = Reading()
    assert read_corpus(files.jsonl("c.jsonl", lines), reading=reading) == [Passage("1", "a"), Passage("2", "a")]
    assert len(reading.notices) == 1 and "1 repeated passages" in reading.notices[0]
    path = files.jsonl("c.jsonl", [*lines, {"docid": 2, "text": "b"}, {"docid": 3, "text": ""}])
    message = files.error(path, corpus=True)
    assert f"{path}:4: id '2' is already that of another text at {path}:3" in message
    assert f"{path}:5: 'text' is empty" in message and message.startswith("--corpus: ")
    assert read_corpus(files.put("c.csv", "Text\nb\nc\n")) == [
        Passage("passage-1", "b"),
        Passage("passage-2", "c"),
    ]
    assert "rename the column to 'text'" in files.error(files.put("c.csv", "body\nb\n"), corpus=True)
    assert "rename or remove" in files.error(files.put("c.csv", "text,content\nb,c\n"), corpus=True)
    assert "holds no passages" in files.error(files.put("c.csv", "text\n"), corpus=True)
