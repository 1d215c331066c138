"""Addresses as people and sockets write them."""

from __future__ import annotations

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def reachable_host(host: str) -> str:
    """Where a client on this machine finds a server that listens on ``host``."""
    return _ANY.get(host, host)


def url_of(host: str, port: int) -> str:
    """The address of the web process, as it is printed."""
    return f"http://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """``host`` as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
