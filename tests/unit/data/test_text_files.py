"""Files that are no proper CSV or JSON lines, and odd ones that are."""

from __future__ import annotations

from typing import Any

import pytest

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
        ("r.json", f"[{ROW}]", [":1: a JSON array", "jq -c"]),
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
        ("r.csv", b"query,answer,passage\nw,m,i\nw,\xfc,i\n", [":3: byte 0xfc", "byte offset 29"]),
        ("r.csv", 'query,answer,passage\nw,m,i\n"w"x,m,i\n', [":3: ", "quotes"]),
        ("r.csv", 'query,answer,passage\n"a\nb",m,i\nw,"m,i\nw,m,i\n', [":4: ", "quotes"]),
        ("r.csv", "query,answer,passage\nw,m\nw,m,i,j\n", [":2: 2 cells, expected 3", ":3: 4 cells"]),
        ("r.csv", "query;answer;passage\nw;m;i\n", [":1: not separated by commas"]),
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
