"""Conversions between host names, socket addresses and URLs."""

from __future__ import annotations

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def reachable_host(host: str) -> str:
    """The host under which this machine reaches a server that listens on ``host``."""
    return _ANY.get(host, host)


def url_of(host: str, port: int) -> str:
    """The URL of the web process."""
    return f"http://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """``host`` as it is written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
