"""The server's limits, and the counters of what is open, in total and per visitor."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of the server. Times are in seconds.

    Attributes:
        max_body_bytes: size of a body; 413 above it.
        max_line_bytes: size of a request line; 414 above it.
        max_field_bytes: size of a header, name and value together; 431 above it.
        max_fields: number of headers; 431 above it.
        max_head_bytes: size of the request line and the headers together; 431 above it.
        max_connections: open connections; 503 above it.
        max_connections_per_visitor: open connections of one visitor; 503 above it.
        max_held: responses that stay open, event streams and waits; 503 above it.
        max_held_per_visitor: such responses of one visitor; 503 above it.
        num_threads: requests that the application handles at once.
        max_waiting: requests that wait for a thread; 503 above it.
        wait_seconds: how long a request may wait for a thread; then 503.
        idle_seconds: how long a connection may stay open without a request.
        head_seconds: from the first byte of a request to the end of its headers.
        body_seconds: from the end of the headers to the end of the body.
        body_pause_seconds: between two pieces of a body.
        send_seconds: how long a client may take to read 64 KiB of a response.
        linger_seconds: how long input is discarded before a connection is closed. A client that is
            still sending would otherwise get a reset and never see its response.
        linger_bytes: how much input is discarded then.
        stop_seconds: how long a stop waits for requests that are in progress.
    """

    max_body_bytes: int
    max_line_bytes: int = 8_190
    max_field_bytes: int = 8_190
    max_fields: int = 100
    max_head_bytes: int = 64 * 1024
    max_connections: int = 5_120
    max_connections_per_visitor: int = 2_560
    max_held: int = 4_096
    max_held_per_visitor: int = 2_048
    num_threads: int = 32
    max_waiting: int = 4_096
    wait_seconds: float = 15.0
    idle_seconds: float = 15.0
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_pause_seconds: float = 10.0
    send_seconds: float = 30.0
    linger_seconds: float = 10.0
    linger_bytes: int = 64 * 1024 * 1024
    stop_seconds: float = 4.0


class Allowance:
    """Counts what is open, in total and per visitor. Any thread may call it."""

    def __init__(self, total: int, per_visitor: int) -> None:
        self._total = total
        self._per_visitor = per_visitor
        self._open: Counter[str] = Counter()  # guarded by _lock
        self._num_open = 0  # guarded by _lock
        self._lock = threading.Lock()

    @property
    def num_open(self) -> int:
        """The number that is open."""
        return self._num_open

    def acquire(self, visitor: str, owner: str = "", per_owner: int = 0) -> bool:
        """Count one more; returns false, and counts nothing, if a limit is reached.

        Args:
            visitor: the address that it is counted for.
            owner: a client with a limit of its own, whatever its address; empty: none.
            per_owner: that limit.
        """
        with self._lock:
            if self._num_open >= self._total or self._open[visitor] >= self._per_visitor:
                return False
            if owner and self._open[owner] >= per_owner:
                return False
            self._num_open += 1
            self._open.update(_names(visitor, owner))
            return True

    def release(self, visitor: str, owner: str = "") -> None:
        """Count one less, with the names that were acquired."""
        with self._lock:
            self._num_open -= 1
            self._open.subtract(_names(visitor, owner))
            for name in _names(visitor, owner):
                if not self._open[name]:
                    del self._open[name]


def _names(visitor: str, owner: str) -> list[str]:
    return [visitor, owner] if owner else [visitor]


def visitor_of(address: str) -> str:
    """Return the visitor of an address: an IPv6 host owns the 2^64 addresses of its network."""
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address):
            if ip.ipv4_mapped is not None:
                return str(ip.ipv4_mapped)
            return str(ipaddress.ip_network((ip, 64), strict=False))
    return address
