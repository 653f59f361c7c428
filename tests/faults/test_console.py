"""Row 37: what becomes of the console, and of the keyboard, does not decide what becomes of the work.

Every command with a reader that is gone (`| head`), a full disk under standard output, an ASCII console; a training
whose terminal is closed; Ctrl-C in every command. (The stream itself: tests/unit/runtime/test_standard_streams.py.)
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import start
from small_run import lines

from ds_rag.commands import cli
from ds_rag.run.checkpoint import checkpoints

Whole = dict[str, Path]


def argv_of(command: str, run: Path, data: list[str], out: Path) -> list[str]:
    rows = data[data.index("--eval_data") + 1]
    return {
        "evaluate": ["evaluate", "--run", str(run), "--json", str(out)],
        "ask": ["ask", str(run), "who leads zor via ?", "--json", str(out)],
        "index": ["index", "--run", str(run), "--out", str(out)],
        "mine": ["mine", "--run", str(run), "--data", rows, "--out", str(out), "--negatives", "1"],
        "check": ["check", rows, "--json", str(out)],
        "verify": ["verify", str(run), "--json", str(out)],
        "plan": ["plan", "--retriever", "bge-base", "--generator", "llama-1b", "--json", str(out)],
        "report": ["report", str(run)],
    }[command]


COMMANDS = ["evaluate", "ask", "index", "mine", "check", "verify", "plan", "report"]


@pytest.fixture(scope="module")
def run(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console") / "run"
    shutil.copytree(whole["1"], folder)
    return folder


@pytest.fixture(params=["reader gone", "full disk", "ascii", "closed at the start"])
def console(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Standard output that fails, or can say little."""
    if request.param == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        stream: Any = os.fdopen(writer, "w", encoding="utf-8")
    elif request.param == "full disk":
        stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    else:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii") if request.param == "ascii" else None
    monkeypatch.setattr("sys.stdout", stream)
    return stream


@pytest.mark.parametrize("command", COMMANDS)
def test_row_37_a_command_does_its_work_whatever_the_console_does(
    run: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Any, command: str
) -> None:
    """To the end, with its own exit code, and without a traceback."""
    monkeypatch.delenv("RANK", raising=False)
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    if command == "report":
        (run / "report.html").unlink(missing_ok=True)
    assert cli.main(argv_of(command, run, data, tmp_path / "out")) == 0
    assert (run / "report.html" if command == "report" else tmp_path / "out").exists()
    assert "Traceback" not in said.getvalue()
    if isinstance(console, io.TextIOWrapper) and console.encoding == "ascii":
        console.flush()
        assert console.buffer.getvalue().isascii()  # type: ignore[attr-defined]


def test_row_37_a_training_whose_terminal_is_closed_saves_and_ends_with_75(tmp_path: Path, flags: list[str]) -> None:
    """SIGHUP comes, and nobody reads any more what is printed. The log says both."""
    run = tmp_path / "run"
    argv = ["train", "--output_dir", run, *flags]
    assert start(argv, 1, "micro_batch:0:hup:5", heard=False).wait() == [75]
    word = json.loads((run / "exit.json").read_text())
    assert (word["reason"], word["code"], word["step"]) == ("SIGHUP", 75, 5)
    assert [f.name for f in checkpoints(run)][-1] == "step-5"
    assert "the console takes nothing more ([Errno 32] Broken pipe)" in (run / "run.log").read_text()
    assert start([*argv, "--resume", "auto"], 1, heard=False).wait() == [0], "to the end, unheard"
    assert [step for step, _ in lines(run, "train", "loss")] == list(range(1, 9)) and (run / "report.html").exists()


@pytest.mark.parametrize(("command", "forward"), [("evaluate", 1), ("ask", 1), ("index", 2), ("mine", 1)])
def test_row_37_ctrl_c_is_one_line_and_130(
    run: Path, data: list[str], tmp_path: Path, command: str, forward: int
) -> None:
    """While texts are encoded. An indexing goes on when it is called again."""
    argv = argv_of(command, run, data, tmp_path / "out")
    if command == "index":  # of passages that the run's own index has nothing would be encoded
        texts = Path(data[data.index("--corpus") + 1]).read_text().replace('"text": "', '"text": "again ')
        (tmp_path / "new.jsonl").write_text(texts)
        argv += ["--corpus", str(tmp_path / "new.jsonl")]
    ranks = start(argv, 1, f"encode:0:int:{forward}", where=tmp_path)
    assert ranks.wait() == [128 + signal.SIGINT]
    said = ranks.console[0].read_text()
    assert said.splitlines()[-1] == "stopped (Ctrl-C)" and "Traceback" not in said and "KeyboardInterrupt" not in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.tmp*"))
    if command == "index":
        assert start(argv, where=tmp_path).wait() == [0] and (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("command", ["check", "verify", "plan", "report"])
def test_row_37_ctrl_c_in_a_command_that_encodes_nothing(
    run: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str
) -> None:
    place = {
        "check": "ds_rag.commands.check.command.scan_rows",
        "verify": "ds_rag.commands.verify.command.findings_of",
        "plan": "ds_rag.commands.plan.command.ways",
    }

    def interrupt(*args: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(place.get(command, "ds_rag.run.report.page.read_metrics"), interrupt)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(argv_of(command, run, data, tmp_path / "out")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "stopped (Ctrl-C)"
