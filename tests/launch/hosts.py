"""Two hosts on one machine: network namespaces that see each other over a pair of virtual cards and nothing else. Where
these cannot be made (no root, no `ip`), two loopback addresses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Host:
    """`enter` goes before a command that is to run there; `card` is the network card on which it has `address`."""

    address: str
    card: str
    enter: list[str] = field(default_factory=list)


CARD = "dsrag0"
LOOPBACK = [Host("127.0.0.1", "lo"), Host("127.0.0.2", "lo")]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    names = [f"ds-rag-{os.getpid()}-{n}" for n in (1, 2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", CARD, "netns", names[0], "type", "veth", "peer", "name", CARD, "netns", names[1])
        hosts = []
        for n, name in enumerate(names, start=1):
            hosts.append(Host(f"192.0.2.{n}", CARD, ["ip", "netns", "exec", name]))
            ip("-n", name, "address", "add", f"192.0.2.{n}/24", "dev", CARD)
            for card in ("lo", CARD):
                ip("-n", name, "link", "set", card, "up")
    except (OSError, subprocess.CalledProcessError):
        hosts = LOOPBACK
    try:
        yield hosts
    finally:
        for name in made:
            ip("netns", "delete", name)
