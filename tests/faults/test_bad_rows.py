"""Rows 16 to 19 and 21: what is wrong in a file is said with its place, all of it at once, or skipped and counted."""

from __future__ import annotations

import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from bad_input import GOOD, ds_rag, line, put, put_csv, put_jsonl, refused
from commands import DS_RAG, execute, train

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import read_corpus, read_rows

SKIP = "or leave such rows out with --on_bad_row skip"


def test_row_16_truncated_jsonl_is_refused_with_file_line_and_reason(tmp_path):
    path = put(tmp_path / "r.jsonl", line() + line()[:-30])
    message = refused(path)
    assert f"{path}:2: invalid JSON" in message and "is the file cut off?" in message and SKIP in message


def test_row_16_every_bad_line_is_listed_up_to_a_cap_with_the_total(tmp_path):
    path = put(tmp_path / "r.jsonl", line() + "".join(line(query="") if n % 2 else "{\n" for n in range(40)))
    message = refused(path)
    assert "40 bad places, the first 20:" in message
    assert [int(n) for n in re.findall(r"r\.jsonl:(\d+): ", message)] == list(range(2, 22))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_row_16_bom_crlf_and_no_final_newline_are_read(name, tmp_path):
    text = line() + line(query="what") if name == "r.jsonl" else "query,answer,passage\nwho,me,I am\nwhat,me,I am\n"
    odd = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").rstrip().encode()
    assert [row.query for row in read_rows(put(tmp_path / name, odd))] == ["who", "what"]


def test_row_16_a_json_array_is_read_and_one_that_is_cut_is_refused(tmp_path):
    whole = json.dumps([GOOD, GOOD | {"query": "what"}])
    assert [row.query for row in read_rows(put(tmp_path / "r.json", whole))] == [GOOD["query"], "what"]
    assert "r.json:1" in refused(put(tmp_path / "cut.json", whole[:-9])).replace("cut.json", "r.json")


def test_row_16_a_stray_quote_in_csv_is_refused_and_cannot_be_skipped(tmp_path):
    """What follows it may be good rows that nobody can tell apart."""
    path = put(tmp_path / "r.csv", 'query,answer,passage\nwho,me,I am\nwho,"m"e,I am\nwhat,it,it is\n')
    for reading in (Reading(), Reading(skip=True)):
        message = refused(path, reading=reading)
        assert f"{path}:3: stray or unclosed quote" in message and SKIP not in message
    assert reading.notices == []


BAD_LINES = {
    "cut": '{"query": "wh\n',
    "empty": line(query=" "),
    "null": line(answer=None),
    "type": line(passage=17),
    "array": "[1]\n",
    "bytes": b'{"query": "caf\xe9", "answer": "a", "passage": "p"}\n',
    "nul": b'{"query": "a\0b", "answer": "a", "passage": "p"}\n',
    "surrogate": '{"query": "\\ud800", "answer": "a", "passage": "p"}\n',
    "same id": line(id=1, query="other"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_row_16_skipping_leaves_the_bad_row_out_and_says_so_once(kind, tmp_path):
    bad = BAD_LINES[kind]
    good = [line(id=n, query=f"q{n}").encode() for n in (1, 2)]
    path = put(tmp_path / "r.jsonl", good[0] + (bad if isinstance(bad, bytes) else bad.encode()) + good[1])
    assert f"{path}:2: " in refused(path)
    reading = Reading(skip=True)
    assert [row.query for row in read_rows(path, reading=reading)] == ["q1", "q2"]
    (notice,) = reading.notices
    assert f"1 bad row is left out (--on_bad_row skip): {path}:2: " in notice


def test_row_16_skipping_csv_with_broken_bytes_and_missing_cells(tmp_path):
    content = b'query,answer,passage\nw\xfc,m,i\n"two\nlines \xff",m,i\nw,m\ngood,m,i\n'
    path, reading = put(tmp_path / "r.csv", content), Reading(skip=True)
    assert [row.query for row in read_rows(path, reading=reading)] == ["good"]
    assert "3 bad rows are left out" in reading.notices[0]


def test_row_16_nothing_but_bad_rows_is_an_error_all_the_same(tmp_path):
    path = put(tmp_path / "r.jsonl", "{\n" + line(query=""))
    assert "2 bad places" in refused(path, reading=Reading(skip=True))


def test_row_16_a_header_that_cannot_be_read_is_an_error_all_the_same(tmp_path):
    path = put(tmp_path / "r.csv", b"query,answer,passage,\xff\nw,m,i,x\n")
    assert f"{path}:1: byte 0xff" in refused(path, reading=Reading(skip=True))


def test_row_16_a_corpus_is_skipped_likewise(tmp_path):
    path = put_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "a"}, {"id": 2, "text": ""}, {"id": 3, "text": "b"}])
    assert f"{path}:2: 'text' is empty" in refused(path, corpus=True)
    reading = Reading(skip=True)
    assert [p.text for p in read_corpus(path, reading=reading)] == ["a", "b"] and "1 bad row" in reading.notices[0]


def test_row_16_training_refuses_or_skips_as_the_flag_says(tmp_path):
    rows = [line(query=f"who {n}", passage=f"I am {n} of many", answer=str(n)) for n in range(40)]
    path = put(tmp_path / "r.jsonl", "".join(rows[:20]) + "{\n" + line(query="") + "".join(rows[20:]))
    little = ["--max_steps", "1", "--lm_warmup_steps", "0", "--save_steps", "0", "--refresh_index", "0"]
    flags = ["--train_data", path, *little, "--per_device_train_batch_size", "1"]
    message = train(tmp_path / "one", *flags, code=2).stderr
    assert f"{path}:21: invalid JSON" in message and f"{path}:22: 'query' is empty" in message
    assert "2 bad places" in message and SKIP in message and "Traceback" not in message
    printed = train(tmp_path / "two", *flags, "--on_bad_row", "skip").stdout
    assert printed.count("2 bad rows are left out (--on_bad_row skip)") == 1 and "40 rows" in printed


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"qeury": "q", "answer": "a", "passage": "p"}, {}, ["no column for the query", "did you mean 'qeury'?"]),
        ({"query": "q", "answr": "a", "passage": "p"}, {}, ["no column for the answers", "did you mean 'answr'?"]),
        ({"query": "q", "answer": "a", "pasage": "p"}, {}, ["neither labelled nor", "did you mean 'pasage'?"]),
    ],
    ids=["query", "answer", "passage"],
)
def test_row_17_a_missing_column_names_what_was_found_wanted_and_nearest(row, options, words, tmp_path):
    message = refused(put_jsonl(tmp_path / "r.jsonl", [row]), **options)
    for word in [*words, "found:    columns ", "expected: one of ", "_column"]:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": 17}, "'query' is int 17, expected text"),
        ({"query": None}, "'query' is missing or null, expected text"),
        ({"answer": {"start": 1}}, "'answer' is an object with start, expected one with 'text'"),
        ({"answer": None}, "'answer' holds no answer, expected a text or a list of texts"),
        ({"passage": [["p"]]}, "'passage[0]' is list ['p'], expected a text, an object with 'text', or a list"),
        ({"passage": None}, "neither labelled nor unlabelled passages, expected some in 'passage'"),
    ],
    ids=["query-int", "query-null", "answer-object", "answer-null", "passage-list", "passage-null"],
)
def test_row_17_a_wrong_type_or_null_names_line_found_and_expected(changes, words, tmp_path):
    path = put(tmp_path / "r.jsonl", line() + line(**changes))
    message = refused(path)
    assert f"{path}:2: {words}" in message and "to fix:" in message


@pytest.mark.parametrize("empty", ["", "  \n", "\u200b\u00a0"], ids=["nothing", "blanks", "invisible"])
@pytest.mark.parametrize("column", ["query", "answer", "passage"])
def test_row_18_an_empty_text_is_refused_with_its_line(column, empty, tmp_path):
    path = put(tmp_path / "r.jsonl", line() + line(**{column: empty}))
    assert f"{path}:2: '{column}' is empty, expected text" in refused(path)
    path = put_csv(tmp_path / "r.csv", [GOOD, GOOD | {column: empty}])  # there an empty cell is no value
    assert f"{path}:3: " in refused(path) and f"'{column}'" in refused(path)


def test_row_19_duplicate_ids_with_the_same_text_are_merged_with_a_warning(tmp_path):
    reading = Reading()
    path = put(tmp_path / "r.jsonl", line(id="a") * 3 + line(id="b"))
    assert [row.id for row in read_rows(path, reading=reading)] == ["a", "b"]
    corpus = put_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "x"}] * 2)
    assert len(read_corpus(corpus, reading=reading)) == 1
    assert "2 repeated rows (same id, same content) merged" in reading.notices[0]
    assert "1 repeated passages (same id, same text) merged" in reading.notices[1]


def test_row_19_duplicate_ids_with_different_text_are_refused_naming_both_places(tmp_path):
    path = put(tmp_path / "r.jsonl", line(id="a") + line(id="a", query="other"))
    assert f"{path}:2: id 'a' is already that of another row at {path}:1" in refused(path)
    corpus = put_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "x"}, {"id": 1, "text": "y"}])
    assert f"{corpus}:2: id '1' is already that of another text at {corpus}:1" in refused(corpus, corpus=True)


def test_row_21_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path):
    path = put(tmp_path / "r.jsonl", line().encode() + b'{"query": "caf\xe9"}\n')
    assert f"{path}:2: byte 0xe9, which is not UTF-8, at byte offset {len(line()) + 14}" in refused(path)
    path = put(tmp_path / "r.csv", "query,answer,passage\nw,m,i\n".encode("utf-16"))
    message = refused(path)
    assert f"{path}:1: not UTF-8 (byte offset 0)" in message and "iconv -f UTF-16" in message


def test_row_21_nul_bytes_are_refused_with_their_offset(tmp_path):
    path = put(tmp_path / "r.jsonl", line().encode() + b'{"query": "a\0"}\n')
    assert f"{path}:2: a NUL byte at byte offset {len(line()) + 12}" in refused(path)
    assert "'passage' holds a NUL at character 1" in refused(put(tmp_path / "e.jsonl", line(passage="a\0b")))


def test_row_21_lone_surrogates_are_refused_with_line_and_character(tmp_path):
    path = put(tmp_path / "r.jsonl", line() + '{"query": "a\\ud800b", "answer": "x", "passage": "y"}\n')
    assert f"{path}:2: 'query' holds a lone surrogate at character 1" in refused(path)


def test_row_21_parquet_with_broken_text_names_its_row_alone(tmp_path):
    columns = {name: [b"a", b"b", b"c"] for name in GOOD} | {"query": [b"one", b"t\xffwo", b"three"]}
    arrays = [pyarrow.array(values, pyarrow.binary()).view(pyarrow.string()) for values in columns.values()]
    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=list(columns)), path)
    message = refused(path)
    assert f"{path}:row 2: a value cannot be read" in message and "'query' holds byte 0xff at byte offset 1" in message
    assert [row.query for row in read_rows(path, reading=Reading(skip=True))] == ["one", "three"]


def test_row_16_to_19_check_reports_every_bad_row_at_once_and_returns_1(tmp_path, capsys):
    bad = "".join(x for x in BAD_LINES.values() if isinstance(x, str))
    path = put(tmp_path / "r.jsonl", line(id=1) * 2 + bad)
    printed = ds_rag(capsys, "check", path, "--json", tmp_path / "found.json", code=1)
    found = json.loads((tmp_path / "found.json").read_text())
    lines = [int(re.search(r":(\d+): ", message)[1]) for message in found["rows"]["listed"]]
    assert lines == list(range(3, 3 + bad.count("\n"))) and found["bad_rows"] == len(lines)
    assert found["rows"]["good"] == found["rows"]["merged"] == 1
    for message in found["rows"]["listed"]:
        assert message[:60] in printed
    ds_rag(capsys, "check", put(tmp_path / "good.jsonl", line()), code=0)


@pytest.mark.parametrize("command", ["train", "evaluate", "mine", "index"])
def test_row_16_the_commands_that_read_rows_have_the_flag(command):
    assert "--on_bad_row" in execute([*DS_RAG, command, "--help", "all"]).stdout
