from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


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


NOISE = """
import ctypes, logging, os, sys, warnings
from pathlib import Path
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.command_exit import run_command
from ds_rag.runtime.log_capture import capture

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
from ds_rag.runtime import log_capture
noise()
log_capture.redirect(Path(sys.argv[1]).with_name("after"), 1)
log_capture.redirect(Path(sys.argv[1]).with_name("after"), 1)
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
