"""Whose end is a wish to stop. (That a run heeds it: tests/faults.)"""

from __future__ import annotations

import os
import signal

import pytest

from ds_rag.runtime import stop_signals


@pytest.mark.parametrize(
    ("above", "sessions", "gone"),
    [
        ([7, 1], {7: 5, 1: 1}, True),  # its parent's session is not process 1's: it was started by another
        ([7, 1], {7: 1, 1: 1}, False),  # in a container process 1 starts it
        ([7, 6], {7: 5, 1: 1}, False),
        ([1], {1: 1}, False),
    ],
)
def test_an_upper_launcher_that_was_gone_before_the_first_look(monkeypatch, tmp_path, above, sessions, gone):
    monkeypatch.setattr(stop_signals, "launchers", lambda: above)
    monkeypatch.setattr(stop_signals, "_launchers", above)
    monkeypatch.setattr(os, "getsid", sessions.__getitem__)
    assert stop_signals.wish(tmp_path) == ("the launcher's end" if gone else None)


@pytest.mark.parametrize("launched", [True, False])
def test_the_end_of_a_shell_is_not_the_end_of_a_launcher(monkeypatch, tmp_path, launched):
    """`nohup python launch/train.py &`, and the shell is closed: a run that no launcher started goes on."""
    before = {number: signal.getsignal(number) for number in stop_signals.SIGNALS}
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    try:
        stop_signals.watch()
        monkeypatch.setenv("LOCAL_RANK", "0")  # as a world of one sets it for itself
        monkeypatch.setattr(stop_signals, "launchers", lambda: [1])
        assert (stop_signals.wish(tmp_path) is not None) == launched
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        monkeypatch.setattr(stop_signals, "_launchers", [])


@pytest.fixture
def handlers(monkeypatch):
    """The signals' handlers, put back afterwards; no launcher."""
    before = {number: signal.getsignal(number) for number in {*stop_signals.SIGNALS, signal.SIGHUP}}
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def unheard(number: int, frame: object) -> None:
        raise AssertionError(f"{signal.Signals(number).name} is not heard")

    for number in stop_signals.SIGNALS:
        signal.signal(number, unheard)
    signal.signal(signal.SIGHUP, unheard)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_wish(handlers, tmp_path, number):
    stop_signals.watch()
    os.kill(os.getpid(), number)
    assert stop_signals.wish(tmp_path) == number.name


@pytest.mark.parametrize(("torchrun", "heard"), [(False, None), (True, "SIGHUP")])
def test_nohup_holds_but_under_torchrun_which_ends_its_ranks_all_the_same(
    handlers, monkeypatch, tmp_path, torchrun, heard
):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop_signals.watch()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop_signals.wish(tmp_path) == heard
