"""Files that are no proper CSV or JSON lines, and odd ones that are."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import read_rows

ROW = '{"query": "who", "answer": "me", "passage": "I am"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "r.jsonl",
            ROW + '{"query": "wh\n' + ROW,
            [":2: invalid JSON", "one object on each line"],
        ),
        ("r.jsonl", ROW + '{"query": "who"', [":2: invalid JSON", "cut off", "at character 16"]),
        ("r.jsonl", ROW + "17\n", [":2: JSON int, expected an object"]),
        ("r.jsonl", ROW + "[" * 100_000 + "\n", [":2: invalid JSON"]),
        ("r.json", f"[{ROW},\n17]", [":3 (item 2): JSON int, expected an object"]),
        ("r.json", f"[{ROW},\n{ROW[:20]}", [":3 (item 2): invalid JSON in the object that begins here"]),
        ("r.json", f"[{ROW},\n{ROW}", [":4: the JSON list does not end", "cut off"]),
        (
            "r.jsonl",
            ROW.encode() + b'{"query": "caf\xe9"}\n',
            [":2: byte 0xe9", f"byte offset {len(ROW) + 14}"],
        ),
        (
            "r.jsonl",
            b"\xef\xbb\xbf" + '{"query": "日"}\r\n'.encode() + b"\xff",
            [":2: byte 0xff", "byte offset 21"],
        ),
        ("r.jsonl", b"\xef\xbb\xbf{\xff}", [":1: byte 0xff", "byte offset 4"]),
        ("r.jsonl", ROW.encode() + b"\0", [f":2: a NUL byte at byte offset {len(ROW)}"]),
        ("r.csv", "query,answer,passage\nw,m,i\n".encode("utf-16"), [":1: not UTF-8", "UTF-16", "iconv"]),
        ("r.csv", "query,answer,passage\n".encode("utf-32"), [":1: not UTF-8", "UTF-32", "iconv -f UTF-32 -t UTF-8"]),
        ("r.csv", "query,answer,passage\n".encode("utf-16-le"), ["UTF-16LE", "iconv -f UTF-16LE", "> r.utf8.csv"]),
        ("r.csv", "query,answer,passage\n".encode("utf-16-be"), ["UTF-16BE", "iconv -f UTF-16BE"]),
        ("r.jsonl", '{\n  "query": "q"\n}\n', [":1: a JSON object over several lines", "jq -c . ", "> r.lines.jsonl"]),
        ("r.tsv", "query,answer,passage\nw,m,i\n", [":1: not separated by tabs", "sep=,"]),
        ("r.tsv", "query\tanswer\tpassage\nw\tm\n", [":2: 2 cells, expected 3"]),
        ("r.csv.gz", b"query,answer,passage\n", ["cannot be read", "gzip"]),
        ("r.jsonl.gz", gzip.compress(ROW.encode() * 99, mtime=0)[:-12], ["cannot be read"]),
        (
            "r.csv.gz",
            gzip.compress("query,answer\nw,m\n".encode("utf-16"), mtime=0),
            ["UTF-16", "gunzip -c ", "> r.utf8.csv"],
        ),
        ("r.jsonl.gz", gzip.compress(ROW.encode() + b"\xff", mtime=0), [":2: byte 0xff", f"byte offset {len(ROW)}"]),
        ("r.md", b"# Title", ["unknown kind of file", "ds-rag chunk"]),
        ("r.jsonl", f"[{ROW}]", [":1: a JSON array", "> r.lines.jsonl"]),  # not > r.jsonl, which it would empty
        ("r.csv", b"query,answer,passage\nw,m,i\nw,\xfc,i\n", [":3: byte 0xfc", "byte offset 29"]),
        ("r.csv", 'query,answer,passage\nw,m,i\n"w"x,m,i\n', [":3: ", "quotes"]),
        ("r.csv", 'query,answer,passage\n"a\nb",m,i\nw,"m,i\nw,m,i\n', [":4: ", "quotes"]),
        ("r.csv", "query,answer,passage\nw,m\nw,m,i,j\n", [":2: 2 cells, expected 3", ":3: 4 cells"]),
        ("r.csv", "query;answer;passage\nw;m;i\n", [":1: not separated by commas", "sep=;"]),
        ("r.csv", "query,answer,query,passage\nw,m,w,i\n", [":1: repeated column names", "query"]),
        ("r.csv", "query,answer,passage\n", ["holds no rows"]),
        ("r.jsonl", "\n", ["holds no rows"]),
        ("r.parquet", b"PAR1 is not enough", ["no readable Parquet file"]),
        ("r.xlsx", b"PK", ["unknown kind of file", "'.xlsx'", ".parquet"]),
    ],
)
def test_file_faults(name: str, content: str | bytes, words: list[str], files: Any) -> None:
    path = files.put(name, content)
    message = files.error(path)
    for word in words:
        assert (f"{path}{word}" if word.startswith(":") else word) in message
    assert "--train_data" in message


def test_csv_lines_are_physical_lines(files: Any) -> None:
    content = 'query,answer,passage\r\n"two\r\nlines",a,p\r\n\r\nq,a,"three\n\nlines"\r\n,a,p\r\nq,a,'
    message = files.error(files.put("r.csv", content))
    assert "r.csv:8: 'query' is missing" in message and "r.csv:9: neither labelled" in message
    good = files.put("good.csv", content.rsplit("\r\n", 2)[0])
    assert [row.where for row in read_rows(good)] == [f"{good}:2", f"{good}:5"]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_bom_crlf_and_no_final_newline(name: str, files: Any) -> None:
    plain = "query,answer,passage\nwho,mé,I am\nwhat,it,it is\n"
    plain = plain if name == "r.csv" else ROW.replace("me", "mé") + ROW.replace("who", "what")
    expected = read_rows(files.put(name, plain))
    odd = b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").rstrip().encode()
    assert read_rows(files.put(name, odd)) == expected and len(expected) == 2


def test_a_long_cell_is_read(files: Any) -> None:
    long = "word " * 1_000_000 + "end"
    path = files.csv("r.csv", [{"query": "q", "answer": "a", "passage": long}])
    assert read_rows(path)[0].positives == (long,)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_every_end_of_a_line(end: str, name: str, files: Any) -> None:
    """Old Macs and their Excel end lines with CR alone; inside quotes each of them is text."""
    plain = 'query,answer,passage\nwho,me,"I\nam"\nwhat,it,it is\n' if name == "r.csv" else ROW * 2
    path = files.put(name, plain.replace("\n", end).encode())
    rows = read_rows(path)
    assert len(rows) == 2 and rows[0].positives == (f"I{end}am" if name == "r.csv" else "I am",)
    assert rows[1].where == f"{path}:{4 if name == 'r.csv' else 2}"


@pytest.mark.parametrize(("first", "mark"), [("sep=,", ","), ("SEP=;", ";"), ('"sep=|"', "|"), ("sep=\t", "\t")])
def test_the_line_by_which_excel_names_the_separator(first: str, mark: str, files: Any) -> None:
    content = f"{first}\r\nquery,answer,passage\r\nwho,me,I am\r\n,me,I am\r\n".replace(",", mark)
    content = content.replace(f"sep={mark}", first.strip('"')) if mark == "," else content
    path = files.put("r.csv", b"\xef\xbb\xbf" + content.encode())
    assert f"{path}:4: 'query' is missing" in files.error(path)
    (row,) = read_rows(path, reading=Reading(skip=True))
    assert (row.query, row.positives, row.where) == ("who", ("I am",), f"{path}:3")


@pytest.mark.parametrize("number", ["01", "04", "07", "11", "13", "20"])
def test_public_reports(number: str, shared_dir: Path) -> None:
    (folder,) = (shared_dir / "cases").glob(f"{number}-*")
    rows = read_rows(folder / "data" if number == "20" else next(folder.iterdir()))
    assert len(rows) == {"01": 1, "13": 1, "11": 2, "20": 6}.get(number, 3)
    texts = [text for row in rows for text in (row.query, *row.answers, *row.positives)]
    assert not any(set("[]{}\r") & set(text) for text in texts)
    if number == "01":
        assert len(rows[0].negatives) == 2
    if number == "04":
        assert [row.answers for row in rows] == [("amber",), ("flint",), ("kelp",)]
