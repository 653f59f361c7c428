from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ds_rag.runtime import console as console_module
from ds_rag.runtime.credentials import printable
from ds_rag.runtime.errors import RankError, UserError
from ds_rag.runtime.log import Console, Metrics, run_command

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def console():
    return Console(io.StringIO())


def printed(console: Console) -> str:
    return console.rich.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ntwo lines", "plain\ntwo lines"),
        ("\x1b[2J\x1b]0;title\x07gone", "\ufffd[2J\ufffd]0;title\ufffdgone"),
        ("back\x08\rover\ttab\x00", "back\ufffd\ufffdover\ufffdtab\ufffd"),
        ("Ünï 漢字 😀", "Ünï 漢字 😀"),
        ("bidi \u202e trick", "bidi \ufffd trick"),
    ],
)
def test_printable(text, shown, console):
    assert printable(text) == shown
    console.say(text, lines=True)
    assert printed(console) == shown + "\n"


def test_data_is_not_markup(console):
    console.say("[bold]not bold[/bold] [/] \\[x] [red]")
    console.table("title", ["[name]", "value"], [["[b]x", "1\x1b[0m"]])
    assert "[bold]not bold[/bold] [/] \\[x] [red]" in printed(console)
    assert "[b]x" in printed(console)
    assert "\x1b" not in printed(console)


def test_a_text_of_a_row_stays_on_its_line(console):
    """Or it could look like a line of the program's own. Every kind of line end; in tables and errors too."""
    ends = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]
    for end in ends:
        console.say(f"question   who?{end}error: forged")
        console.table("t", ["a", "b"], [[f"x{end}error: forged", "y"]])
        print(f"error: {UserError('a bad row', found=f'x{end}error: forged', fix='mend it')}", file=console.rich.file)
    shown = [line for line in printable(printed(console)).split("\n") if "forged" in line]
    assert len(shown) == 3 * len(ends) and not any(line.startswith("error: forged") for line in shown)


def test_lines_of_the_program_s_own_stay(console):
    console.say("warning: x\n  to try: y", lines=True)
    assert printed(console) == "warning: x\n  to try: y\n"
    assert str(UserError("bad", found="\n    - a\n    - b")) == "bad\n  found:    \n    - a\n    - b"


def test_other_ranks_are_silent():
    quiet = Console(io.StringIO(), speaks=False)
    quiet.say("x")
    quiet.table("t", ["a"], [["b"]])
    with quiet.progress(3, "work") as meter:
        meter.advance(3)
    assert printed(quiet) == ""


def test_progress_without_a_terminal_is_lines(console, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    with console.progress(100, "train", done=10) as meter:
        for seconds, note in ((4, "loss 3"), (11, "loss 2"), (12, None), (23, None)):
            clock[0] = seconds
            meter.advance(10, note)
    lines = printed(console).splitlines()
    assert lines == [
        "train 30/100  1.8 step/s  38 s left  loss 2",
        "train 50/100  1.7 step/s  29 s left  loss 2",
    ]


def test_metrics_are_a_line_each(tmp_path):
    for resumed_at in (None, 2):
        metrics = Metrics(tmp_path, resumed_at=resumed_at)
        metrics.write("step", 1, {"loss": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n"), "written at once"
        metrics.write("evaluation", 2, {"recall@1": 1, "name": "x"})
        metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == 2 * [
        {"kind": "step", "step": 1, "loss": 0.5},
        {"kind": "evaluation", "step": 2, "recall@1": 1, "name": "x"},
    ]
    Metrics(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "", "a new run starts anew"


def test_what_comes_after_the_step_that_is_resumed_is_taken_back(tmp_path):
    first = '{"kind": "train", "step": 3}\n{"kind": "eval", "step": 4}\n'
    torn = '{"kind": "train", "step": 5}\nnot json\n{"kind": "train", "ste'
    (tmp_path / "metrics.jsonl").write_text(first + torn)
    Metrics(tmp_path, resumed_at=4).close()
    assert (tmp_path / "metrics.jsonl").read_text() == first


def test_metrics_without_a_folder_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(None, "tensorboard")
    metrics.write("step", 1, {"loss": 0.5})
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--report_to tensorboard"):
        Metrics(tmp_path, "tensorboard")


def fail() -> int:
    raise UserError("--flag: wrong\x1b[2J", found="x", expected="y")


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_user_errors_are_told_once(rank, speaks, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert run_command(fail) == 2
    shown = "error: --flag: wrong\ufffd[2J\n  found:    x\n  expected: y\n"
    assert capsys.readouterr().err == (shown if speaks else "")


def test_a_rank_s_own_trouble_is_told_by_that_rank(monkeypatch, capsys):
    def lost() -> int:
        raise RankError("rank 1 waited in vain")

    monkeypatch.setenv("RANK", "1")
    assert run_command(lost) == 1
    assert capsys.readouterr().err == "error: rank 1 waited in vain\n"


def test_a_full_disk_is_told_without_a_traceback(tmp_path, monkeypatch, capsys):
    """By whichever rank it is; other errors of the system stay what they are."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RANK", "1")
    metrics = Metrics(None)
    metrics.file = SimpleNamespace(write=lambda text: None, flush=full, name="run/metrics.jsonl")
    assert run_command(lambda: metrics.write("train", 1, {"loss": 1.0})) == 1
    told = capsys.readouterr().err
    assert "run/metrics.jsonl" in told and "No space left on device" in told and "--resume auto" in told
    with pytest.raises(OSError, match="No space"):
        run_command(lambda: metrics.write("train", 1, {"loss": 1.0}), debug=True)
    with pytest.raises(FileNotFoundError):
        run_command(lambda: print((tmp_path / "none").read_text()))


def interrupt() -> int:
    raise KeyboardInterrupt


def code_of(body: Callable[[], int]) -> int | None:
    """Of the command; None where the interrupt went through it, which would end the tests."""
    try:
        return run_command(body)
    except KeyboardInterrupt:
        return None


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("1", False)])
def test_ctrl_c_is_one_line_and_130(rank, speaks, monkeypatch, capsys, sigint):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert code_of(interrupt) == 130
    assert capsys.readouterr().err == ("stopped (Ctrl-C)\n" if speaks else "")
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "a second one would be a traceback at the end"
    with pytest.raises(KeyboardInterrupt):
        run_command(interrupt, debug=True)


def test_too_many_open_files_names_the_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)

    def too_many() -> int:
        raise OSError(24, "Too many open files", str(tmp_path / "rows.jsonl"))

    assert run_command(too_many) == 1
    told = capsys.readouterr().err
    assert "rows.jsonl" in told and "Too many open files" in told and "ulimit -n" in told


def test_a_console_that_fails_is_noted_in_the_log_and_ends_nothing(tmp_path):
    """Also at once: a user error and a crash keep their exit codes, though nobody hears of them."""
    full = "import os\nfull = os.open('/dev/full', os.O_WRONLY)\nos.dup2(full, 1)\nos.dup2(full, 2)\n"
    for n, (body, code) in enumerate(
        [("", 0), (COMMAND, 2), ("raise ValueError", 1), ("console.say('again')\nprint('a library prints')", 0)]
    ):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", full + NOISE + body, str(folder)], cwd=ROOT, capture_output=True, text=True
        )
        log = (folder / "run.log").read_text()
        assert done.returncode == code and log.count("the console takes nothing more") == (1 if code == 0 else 2)
        assert "No space left on device" in log


def test_a_log_on_the_full_disk_does_not_hide_the_message(tmp_path):
    full = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nos.dup2(1, 2)\n"
    done = script(full + "sys.exit(run_command(lambda: print('a library', flush=True)))", tmp_path)
    assert (done.returncode, done.stdout) == (1, "our line\n")
    assert f"error: {tmp_path}: the disk" in done.stderr and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    crash = script(full + "raise ValueError('broken')", tmp_path)
    assert crash.returncode == 1 and "ValueError: broken" in crash.stderr


def test_other_outcomes_of_a_command():
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    with pytest.raises(UserError):
        run_command(fail, debug=True)
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


NOISE = """
import ctypes, logging, os, sys, warnings
from pathlib import Path
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.log import capture, run_command

def noise():
    print("a library prints")
    print("a library complains", file=sys.stderr)
    logging.getLogger("library").info("a library logs")
    warnings.warn("a library warns")
    os.write(1, b"C++ writes\\n")
    os.write(2, b"C++ complains\\n")
    ctypes.CDLL(None).puts(b"C prints")

console = capture(Path(sys.argv[1]), int(os.environ.get("RANK", 0)))
console.say("our line")
"""
PHRASES = ["a library prints", "a library complains", "INFO library: a library logs", "a library warns"]
PHRASES += ["C++ writes", "C++ complains", "C prints"]


def script(body: str, folder: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", NOISE + body, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_after_capture_the_console_is_ours(tmp_path):
    done = script("noise()\nconsole.say('and [another]')", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "our line\nand [another]\n", "")
    text = (tmp_path / "run.log").read_text()
    assert all(phrase in text for phrase in PHRASES)
    assert "our line" not in text


def test_a_crash_shows_its_traceback_and_names_the_log(tmp_path):
    done = script("noise()\nraise ValueError('[b]roken')", tmp_path)
    assert (done.returncode, done.stdout) == (1, "our line\n")
    assert "Traceback" in done.stderr
    assert "ValueError: [b]roken" in done.stderr
    assert "rank 0 stopped: ValueError" in done.stderr
    assert str(tmp_path / "run.log") in done.stderr.replace("\n", "")
    assert "a library" not in done.stderr
    assert "ValueError: [b]roken" in (tmp_path / "run.log").read_text()


def test_a_log_moves_to_the_run_s_folder_and_leaves_nothing_behind(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    body = """
from ds_rag.runtime import log
noise()
log.redirect(Path(sys.argv[1]).with_name("after"), 1)
log.redirect(Path(sys.argv[1]).with_name("after"), 1)
print("later")
raise ValueError
"""
    done = script(body, before, RANK="1")
    text = (after / "run-rank1.log").read_text()
    assert all(phrase in text for phrase in PHRASES)
    assert text.count("a library prints") == text.count("later") == 1
    assert not before.exists()
    assert str(after / "run-rank1.log") in done.stderr.replace("\n", "")


COMMAND = "sys.exit(run_command(lambda: (_ for _ in ()).throw(UserError('--flag: wrong'))))"


def test_a_user_error_after_capture_reaches_the_terminal(tmp_path):
    done = script(COMMAND, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "our line\n", "error: --flag: wrong\n")
    assert "error: --flag: wrong" in (tmp_path / "run.log").read_text()


def test_other_ranks_have_a_log_of_their_own(tmp_path):
    done = script("noise()\n" + COMMAND, tmp_path, RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    text = (tmp_path / "run-rank1.log").read_text()
    assert all(phrase in text for phrase in [*PHRASES, "error: --flag: wrong"])
    crash = script("raise ValueError('broken')", tmp_path, RANK="1")
    assert "rank 1 stopped: ValueError" in crash.stderr


def test_libraries_stay_in_the_log_while_a_bar_is_live(tmp_path):
    """On a terminal, where the bar redraws itself and would otherwise take their lines in."""
    ours, theirs = pty.openpty()
    body = """
with console.progress(3, "train") as meter:
    for step in range(3):
        meter.advance(1, f"loss {step}")
        noise()
        meter.bar.refresh()
"""
    command = [sys.executable, "-c", NOISE + body, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as child:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
    assert child.returncode == 0
    assert b"train" in shown
    assert b"loss 2" in shown
    assert b"library" not in shown
    assert b"C++" not in shown
    assert (tmp_path / "run.log").read_text().count("a library prints") == 3
