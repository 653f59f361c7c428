"""A console that fails, in each way it may: its reader is gone, its disk is full, it was closed before or at the start,
it cannot say every character, it is slow. (Whole commands on one: tests/faults/test_console.py.)"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_rag.runtime.console import Console
from ds_rag.runtime.standard_streams import Terminal, guarded

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def without_reader() -> Iterator[io.TextIOWrapper]:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def full() -> Iterator[io.TextIOWrapper]:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def closed() -> Iterator[io.TextIOWrapper]:
    stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    stream.close()
    yield stream


@pytest.mark.parametrize(("broken", "kind"), [(without_reader, BrokenPipeError), (full, OSError), (closed, ValueError)])
def test_the_first_failure_switches_it_off_and_is_told_once(broken, kind):
    told: list[Exception] = []
    with broken() as stream:
        terminal = Terminal(stream, told.append)
        console = Console(guarded(terminal))
        for _ in range(3):
            console.say("a line")
            console.table("t", ["a"], [["b"]])
        with console.progress(3, "work") as meter:
            meter.advance(1)
        terminal.flush()
        assert isinstance(terminal.failure, kind) and told == [terminal.failure]
        if not stream.closed:
            stream.flush()  # as at the process's end: what was kept goes nowhere, without an error


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xfc \\u6f22"), ("latin-1", "\xfc \\u6f22")])
def test_what_its_encoding_cannot_say_is_escaped(encoding, shown):
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding=encoding))
    console.say("\xfc \u6f22")
    console.table("\xfc", ["\u6f22"], [["\u2019"]])
    console.say("after")
    text = raw.getvalue().decode(encoding)
    assert text.startswith(shown + "\n") and "\\u2019" in text and text.endswith("after\n")


def test_one_that_is_slow_is_no_failure():
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            if text == "first":
                raise BlockingIOError
            return super().write(text)

    stream = Slow()
    terminal = Terminal(stream)
    terminal.write("first")
    terminal.write("second")
    assert stream.getvalue() == "second" and terminal.failure is None


CLOSED = """
import os, sys
from ds_rag.runtime.standard_streams import flush_standard_streams, guard_standard_streams
guard_standard_streams()
with open(sys.argv[1], "w", encoding="utf-8") as file:
    print("a library prints")
    print("a library complains", file=sys.stderr)
    os.write(1, b"C++ writes")
    file.write(f"number {file.fileno()}")
flush_standard_streams()
"""


ENDS = [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "> /dev/full", "> /dev/full 2> /dev/full"]


@pytest.mark.parametrize("redirections", ENDS)
def test_a_stream_that_is_closed_at_the_start_gets_no_one_else_s_text(tmp_path, redirections):
    """Else the next file that is opened would have its number, and what is printed would be in it."""
    words = [sys.executable, "-c", CLOSED, str(tmp_path / "file")]
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", *words]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    text = (tmp_path / "file").read_text()
    assert done.returncode == 0 and text.startswith("number ") and int(text.split()[1]) > 2
    if redirections == "> /dev/full":
        assert done.stderr.count("note: standard output takes nothing more ([Errno 28]") == 1


IN_ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_what_libraries_open_as_text_is_utf_8_in_every_locale(tmp_path):
    (tmp_path / "file").write_text("f\xfchrt \u6f22", encoding="utf-8")
    code = "import sys\nfrom ds_rag.runtime.standard_streams import read_utf8\n"
    code += "read_utf8()\nprint(ascii(open(sys.argv[1]).read()))"
    words = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **IN_ASCII})
    assert done.returncode == 0 and done.stdout == "'f\\xfchrt \\u6f22'\n", done.stderr
