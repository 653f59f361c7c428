from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from ds_rag.runtime.command_exit import run_command
from ds_rag.runtime.errors import RankError, UserError


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


def test_other_outcomes_of_a_command():
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    with pytest.raises(UserError):
        run_command(fail, debug=True)
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
