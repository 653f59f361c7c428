"""Files that are wrong in one way, and what is said of them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands import cli
from ds_rag.data.formats import read_corpus, read_rows
from ds_rag.runtime.errors import UserError

TESTS = Path(__file__).resolve().parents[1]
for folder in ("e2e", "distributed", "unit"):  # commands.py; ranks.py; small.py
    sys.path.append(str(TESTS / folder))

GOOD = {"query": "who", "answer": "me", "passage": "I am"}


def line(**changes: Any) -> str:
    """A good line of JSONL, but for the changes."""
    return json.dumps(GOOD | changes) + "\n"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def refused(path: Path, corpus: bool = False, **options: Any) -> str:
    """The message with which the file is refused."""
    with pytest.raises(UserError) as caught:
        (read_corpus if corpus else read_rows)(path, **options)
    return str(caught.value)


def ds_rag(capsys: pytest.CaptureFixture[str], *argv: str | Path, code: int = 0) -> str:
    """What a command of this process prints, on either stream; its exit code must be `code`."""
    capsys.readouterr()
    found = cli.main([str(word) for word in argv])
    printed = capsys.readouterr()
    assert found == code, f"exit code {found}: {printed.out}\n{printed.err}"
    assert "Traceback" not in printed.err
    return printed.out + printed.err
