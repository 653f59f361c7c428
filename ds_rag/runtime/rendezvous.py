"""Ranks meet at MASTER_ADDR and MASTER_PORT before torch's own rendezvous, which waits silently and ignores signals.
Here missing ranks are named, the wait can be interrupted at any time, and a port in use is an error at once.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import DistError, TCPStore

from ds_rag.runtime.errors import RankError

TOLD_AFTER = 20.0  # seconds; ranks started together arrive sooner
PAUSE = 0.1
REPLY = 30.0  # seconds in which a server at the address must answer
KEY = "ds_rag/here"
FIX = "start all ranks, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE and each its own RANK; torchrun does"


def say_on_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Meeting:
    """The meeting from this rank's side. say: called with what it waits for, if that takes long; look: called
    repeatedly while waiting, and may raise to end the wait."""

    def __init__(self, minutes: float, say: Callable[[str], None], look: Callable[[], None]):
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.host, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.minutes, self.say, self.look = minutes, say, look
        self.began, self.told = time.monotonic(), False
        self.absent = "rank 0, which listens there"

    def wait(self) -> TCPStore:
        """Waits for all ranks. Keep the returned store until the process group exists: torch's own store uses the same
        server. Raises RankError."""
        store = self.store()
        if store.add(f"{KEY}/{self.rank}", 1) > 1:
            raise RankError(f"two processes are rank {self.rank} of {self.world}", found=self.address, fix=FIX)
        store.add(KEY, 1)
        while (count := store.add(KEY, 0)) < self.world:
            if not self.told or self.over:  # needed only for the message about missing ranks
                missing = [str(r) for r in range(self.world) if not store.check([f"{KEY}/{r}"])]
                self.absent = f"rank {', '.join(missing[:20])} ({count} of {self.world} are there)"
            self.pause()
        return store

    def store(self) -> TCPStore:
        """The store: rank 0 is its server; the others wait until it listens."""
        listens, limit = self.rank == 0, timedelta(seconds=max(REPLY, 60 * self.minutes))
        while not listens:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                break
            except OSError as error:
                self.absent = f"rank 0, which listens there ({error})"
                self.pause()
        try:
            return TCPStore(
                self.host, self.port, None, listens, limit if listens else timedelta(seconds=REPLY),
                wait_for_workers=False, multi_tenant=True,
            )  # fmt: skip
        except DistError as error:
            raise not_met(error, self.address) from None

    @property
    def address(self) -> str:
        return f"MASTER_ADDR={self.host}, MASTER_PORT={self.port}"

    @property
    def over(self) -> bool:
        return time.monotonic() - self.began > 60 * self.minutes

    def pause(self) -> None:
        """Waits a moment; raises RankError after the time-out."""
        self.look()
        if self.over:
            raise RankError(
                f"rank {self.rank} waited {self.minutes:g} minutes in vain for {self.absent}",
                found=f"{self.address}, RANK={self.rank}, WORLD_SIZE={self.world}",
                expected=f"{self.world} ranks at one address",
                fix=FIX,
            )
        if not self.told and time.monotonic() - self.began > TOLD_AFTER:
            self.told = True
            limit = f"it gives up after {self.minutes:g} minutes"
            self.say(f"rank {self.rank} waits at {self.address} for {self.absent}; {limit}")
        time.sleep(PAUSE)


def not_met(error: Exception, address: str) -> RankError:
    """The error for a store or a process group that could not be created."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return RankError(
            "the port at which the ranks meet is taken",
            found=f"{address}, where another process listens",
            expected="a free port of rank 0's host",
            fix="another MASTER_PORT, or --master_port of torchrun and deepspeed; or end what listens there",
        )
    return RankError("the ranks could not meet", found=f"{address}: {text}", expected="rank 0 there", fix=FIX)
