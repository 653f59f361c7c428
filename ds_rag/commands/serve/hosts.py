"""Which requests a server answers: those that name it as it is known, from no other site's page.

A page of any site can make a browser send requests to an address of this machine. Two headers give it away: `Host`,
where the site has its own name lead to this address (DNS rebinding), and `Origin`, which a browser adds itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_address

from ds_rag.runtime.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(address: str, named: Sequence[str]) -> frozenset[str]:
    """The names, lower-cased and without a port, by which requests may call the server. Raises UserError where others
    can reach it and no name is given."""
    given = [name if name.count(":") > 1 and "[" not in name else host_of(name) for name in named]  # IPv6 as it is
    if wrong := [n for n, name in enumerate(given) if not name or any(c in name for c in "/ *,@")]:
        found = repr(named[wrong[0]])
        raise UserError("--allow_host: not a host's name", found=found, expected="a name such as box.example")
    if is_loopback(address):
        return frozenset({*LOOPBACK, *given})
    if is_unspecified(address) and not given:
        raise UserError(
            f"--host {address}: every address of this machine, and no name to call it by",
            expected="--allow_host NAME, as it stands in the address bar of those who use it",
        )
    return frozenset({*LOOPBACK, *given} | (set() if is_unspecified(address) else {address.lower()}))


def is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def is_unspecified(address: str) -> bool:
    try:
        return ip_address(address).is_unspecified
    except ValueError:
        return address == ""


def host_of(netloc: str) -> str:
    """The host of `name`, `name:port` or `[address]:port`, lower-cased; "" where it is none of these."""
    text = netloc.strip().lower()
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        return address if bracket and (not rest or is_port(rest)) else ""
    name, colon, port = text.partition(":")
    return name.rstrip(".") if not colon or is_port(f":{port}") else ""


def is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def refusal(host: str | None, origin: str | None, hosts: Collection[str]) -> str | None:
    """Why a request with these headers is not answered; None: it is. An origin must be this very server's."""
    if host is None or host_of(host) not in hosts:
        return "this server is not known by that name (Host): start it with --allow_host NAME"
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return "requests from pages of other sites are not answered (Origin)"
    return None
