"""Requests to addresses that somebody else chose: bounded time and size, no redirects.

A name is resolved once, and the connection goes to the address that was checked, so that a second
resolution cannot lead elsewhere. Private, loopback and link-local addresses, and others that are
not of the public network, are refused unless they are allowed.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from textmill.core.errors import TextmillError

MAX_RESPONSE_BYTES = 64 * 1024
NUM_THREADS = 8  # a resolver that hangs keeps its thread
_PIECE_BYTES = 8 * 1024
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="outbound")


class OutboundError(TextmillError):
    """The request could not be made, or had no usable response; the message says why."""

    code = "outbound_failed"


@dataclass(frozen=True, slots=True)
class OutboundResponse:
    """The status and the body of a response."""

    status: int
    body: bytes


def post_json(
    url: str,
    document: object,
    *,
    seconds: float,
    allows_private: bool = False,
    headers: Mapping[str, str] | None = None,
) -> OutboundResponse:
    """Send a JSON document.

    Args:
        url: http or https.
        document: is sent as JSON.
        seconds: for everything, the resolution of the name included.
        allows_private: whether addresses that are not of the public network are allowed.
        headers: further headers.

    Raises:
        OutboundError: the address is refused or does not answer in time.
    """
    body = json.dumps(document).encode()
    return post(url, body, seconds=seconds, allows_private=allows_private, headers=headers)


def post(
    url: str,
    body: bytes,
    *,
    seconds: float,
    allows_private: bool = False,
    headers: Mapping[str, str] | None = None,
) -> OutboundResponse:
    """Send the bytes of a JSON document; see ``post_json``."""
    parts = check_url(url)
    until = time.monotonic() + seconds
    sent = {"Content-Type": "application/json", "User-Agent": "textmill"} | dict(headers or {})
    call: Future[OutboundResponse] = _threads.submit(
        _post, parts, body, sent, until, allows_private=allows_private
    )
    try:
        return call.result(seconds)
    except TimeoutError:
        call.cancel()
        raise OutboundError(f"there was no answer within {seconds:g} s") from None


def check_url(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        OutboundError: it is not an http or https address with a host, or contains a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is not a number
    except ValueError:
        raise OutboundError("this is not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OutboundError("the address must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise OutboundError("the address must not contain a user or a password")
    return parts


def is_public(address: str) -> bool:
    """Whether an IP address is of the public network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _post(
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    until: float,
    *,
    allows_private: bool,
) -> OutboundResponse:
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = _resolve(host, port, allows_private=allows_private)
        with socket.create_connection((address, port), _left(until)) as plain:
            if parts.scheme == "http":
                return _exchange(plain, parts, body, headers, until)
            context = ssl.create_default_context()
            with context.wrap_socket(plain, server_hostname=host) as stream:
                return _exchange(stream, parts, body, headers, until)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise OutboundError(f"it cannot be reached ({type(error).__name__})") from None


def _resolve(host: str, port: int, *, allows_private: bool) -> str:
    """The first address of a host; all of them must be allowed."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found:
        raise OutboundError("its name has no address")
    if not allows_private and not all(map(is_public, found)):
        raise OutboundError("its address is private, or otherwise not of the public network")
    return found[0]


def _exchange(
    stream: socket.socket,
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    until: float,
) -> OutboundResponse:
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    connection.sock = stream
    stream.settimeout(_left(until))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("POST", path, body, {**headers, "Host": parts.netloc, "Connection": "close"})
    pieces: list[bytes] = []
    with connection.getresponse() as response:
        while piece := response.read1(_PIECE_BYTES):
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_RESPONSE_BYTES:
                raise OutboundError(f"its answer has more than {MAX_RESPONSE_BYTES // 1024} KiB")
            stream.settimeout(_left(until))
        return OutboundResponse(response.status, b"".join(pieces))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise OutboundError("there was no answer in time")
    return left
