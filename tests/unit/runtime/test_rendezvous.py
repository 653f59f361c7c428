"""Ranks that meet, and all that may keep them from it: one that never comes, nobody who listens, a name that is none, a
port that is taken, two processes of one rank, a signal meanwhile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from ds_rag.runtime import collectives, rendezvous, stop_signals
from ds_rag.runtime.errors import RankError
from ds_rag.runtime.rendezvous import Meeting
from ds_rag.runtime.stop_signals import Stopped

SHORT = 0.005  # minutes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Meeting]:
    """rank(1, 2): the second of two, on a port of this test's own."""
    port, said = free_port(), []

    def make(number: int, world: int, minutes: float = SHORT, look: Callable[[], None] = lambda: None, **env: str):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": str(world)}
        for name, value in (place | env).items():
            monkeypatch.setenv(name, value)
        made = Meeting(minutes, said.append, look)
        made.heard = said
        return made

    return make


def test_ranks_that_come_one_after_the_other_meet(rank):
    ranks = [rank(n, 3, minutes=1) for n in range(3)]
    stores: list = []
    threads = [threading.Thread(target=lambda r=r: stores.append(r.wait())) for r in reversed(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stores) == 3


@pytest.mark.parametrize(("number", "missing"), [(0, "rank 1, 2 (1 of 3 are there)"), (2, "rank 0, which listens")])
def test_who_does_not_come_is_named_with_the_variables(rank, monkeypatch, number, missing):
    monkeypatch.setattr(rendezvous, "TOLD_AFTER", 0.0)
    waiting = rank(number, 3)
    with pytest.raises(RankError) as caught:
        waiting.wait()
    told = str(caught.value)
    assert missing in told and f"rank {number} waited 0.005 minutes in vain" in told and "to fix" in told
    assert all(f"{name}=" in told for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"))
    assert len(waiting.heard) == 1 and missing in waiting.heard[0], "said while it waits, once"


def test_a_host_that_has_no_address(rank):
    with pytest.raises(RankError, match=r"MASTER_ADDR=no-such-host\.invalid"):
        rank(1, 2, MASTER_ADDR="no-such-host.invalid").wait()


def test_a_port_that_is_taken_is_an_error_at_once(rank):
    first = rank(0, 2, minutes=10)
    with socket.socket() as other:
        other.bind(("0.0.0.0", first.port))
        other.listen()
        with pytest.raises(RankError, match="port at which the ranks meet is taken"):
            first.wait()


def test_two_processes_of_one_rank(rank):
    server = rank(0, 3, minutes=1)
    thread = threading.Thread(target=server.wait)
    thread.start()
    store = rank(1, 3).store()
    store.add(f"{rendezvous.KEY}/1", 1)
    with pytest.raises(RankError, match="two processes are rank 1 of 3"):
        rank(1, 3).wait()
    store.add(rendezvous.KEY, 2)  # the others come
    thread.join(60)


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_ends_the_wait(rank, monkeypatch, tmp_path, number):
    monkeypatch.setattr(stop_signals, "_wish", "SIGTERM")
    with pytest.raises(Stopped, match="SIGTERM"):
        rank(number, 2, minutes=10, look=lambda: stop_signals.raise_if_asked(tmp_path)).wait()


@pytest.mark.parametrize(("world", "agent", "meets"), [("1", "", False), ("2", "", True), ("2", "True", False)])
def test_who_meets(monkeypatch, world, agent, meets):
    """A world of one has nobody to meet, and torchrun's ranks have met."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    for name, value in {"RANK": "0", "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done: list[str] = []

    class Met:
        def __init__(self, *args: object):
            done.append("met")

        def wait(self) -> None:
            pass

    monkeypatch.setattr(collectives, "Meeting", Met)
    monkeypatch.setattr(collectives, "join_ranks", lambda *args: done.append("joined"))
    collectives.start(1)
    assert done == ["met", "joined"][not meets :]
