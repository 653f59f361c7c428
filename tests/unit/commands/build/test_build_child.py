"""A stage's process: what it prints is shown and kept, and signals are passed on to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ds_rag.commands.build.child import command_of, run

ASK = "import os, signal, sys, time; asked = []\n"
ASK += "signal.signal(signal.{0}, lambda *_: sys.exit({1})); os.kill(os.getppid(), signal.{0}); time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("raise SystemExit(4)", (4, False)),
        (ASK.format("SIGTERM", 75), (75, True)),  # training saves a checkpoint, and says so by its code
        (ASK.format("SIGINT", 75), (130, True)),
        ("import os; os.kill(os.getpid(), 9)", (137, False)),
    ],
    ids=["code", "term", "ctrl-c", "killed"],
)
def test_how_it_ends(tmp_path, code, ends):
    assert run([sys.executable, "-c", code], tmp_path / "log") == ends


def test_a_second_ctrl_c_kills(tmp_path):
    deaf = "import os, signal, time; signal.signal(2, signal.SIG_IGN); p = os.getppid()\n"
    deaf += "os.kill(p, 2); time.sleep(0.3); os.kill(p, 2); time.sleep(60)"
    assert run([sys.executable, "-c", deaf], tmp_path / "log") == (130, True)


def test_what_it_prints_is_shown_and_kept(tmp_path: Path, capsys):
    log = tmp_path / "logs/chunk.log"
    for word in ("one", "two"):
        code = f"import sys; print('{word}'); print('\\xe9', file=sys.stderr); sys.stdout.buffer.write(bytes([255]))"
        assert run([sys.executable, "-X", "utf8", "-c", code], log)[0] == 0
    shown = capsys.readouterr().out
    assert shown.count("é") == 2 and shown.index("one") < shown.index("two")
    kept = log.read_bytes()
    assert b"one" in kept and b"two" in kept and kept.count(b"\xff") == 2 and kept.count(b"$ ") == 2


def test_tables_are_as_wide_as_the_terminal(tmp_path, capsys, monkeypatch):
    code = "from ds_rag.runtime.console import Console; print('width', Console().rich.width)"
    for terminal, width in ((False, 110), (True, 77)):
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
            patch.setenv("COLUMNS", "77")  # what the terminal's size is asked for
            run([sys.executable, "-c", code], tmp_path / "log")
        assert f"width {width}" in capsys.readouterr().out


def test_the_command_as_it_is_typed():
    words = ["train", "--retriever", "my encoder"]
    command, shown = command_of(words, 1)
    assert command[1:] == ["-m", "ds_rag.commands.cli", *words] and shown == "ds-rag train --retriever 'my encoder'"
    command, shown = command_of(words, 2)
    assert shown == "torchrun --standalone --nproc_per_node 2 --no-python -- ds-rag train --retriever 'my encoder'"
    assert (
        command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        and command[-3:] == words
    )
