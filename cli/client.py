"""A small HTTP client for Textmill's own API: submit, follow, wait, cancel.

Standard library only. Knows nothing of the command line, and gives JSON documents back as they
came: the server is the one that vouches for their shape.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from textmill.core.errors import TextmillError

Document = dict[str, Any]

_ANSWER_SECONDS = 60.0  # above the 30 s of a long poll and the 15 s between a stream's comments
LONG_POLL_SECONDS = 25


class Unreachable(TextmillError):
    """Nobody answers at the address, or the connection broke."""

    code = "unreachable"


class Refused(TextmillError):
    """The server answered with a problem document (RFC 9457)."""

    code = "refused"

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_seconds: float = 0.0
    ) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds  # 0: the server asked for no pause
        lines = [str(problem.get("detail") or problem.get("title") or "The request was refused.")]
        for error in problem.get("errors") or ():
            lines.append(f"  {error.get('field') or 'body'}: {error.get('message')}")
        super().__init__("\n".join(lines) + f" (HTTP {status})" * (len(lines) == 1))


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; ``data`` is its JSON, or ``None`` where it has none."""

    id: str
    kind: str
    data: Any


class Client:
    """Talks to one server. Opens a connection per request: a stream occupies its own anyway.

    Args:
        url: address of the server, with an optional path in front of ``/api``.

    Raises:
        Unreachable: the address cannot be used.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Unreachable(f"{url!r} is no address; write http://HOST:PORT.")
        secure = parts.scheme == "https"
        self._connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self.url = url.rstrip("/")

    def submit(self, request: Mapping[str, Any], key: str) -> Document:
        """``POST /jobs``: the new job, or the one that the same key made before."""
        return self._call("POST", "/api/v1/jobs", request, {"Idempotency-Key": key})

    def read(self, job_id: str, wait_seconds: int = 0) -> Document:
        """``GET /jobs/{id}``, held until the job ends or the time is up."""
        query = f"?wait={wait_seconds}" if wait_seconds else ""
        return self._call("GET", f"/api/v1/jobs/{quote(job_id)}{query}")

    def cancel(self, job_id: str) -> Document:
        """``POST /jobs/{id}/cancel``: the job."""
        return self._call("POST", f"/api/v1/jobs/{quote(job_id)}/cancel")

    def follow(self, job_id: str, after: str = "") -> Iterator[Event]:
        """``GET /jobs/{id}/events`` from after an id to the end of the stream."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if after:
            headers["Last-Event-ID"] = after
        with closing(self._connection()) as connection, _reported(self.url):
            path = f"{self._prefix}/api/v1/jobs/{quote(job_id)}/events"
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response)
            yield from read_events(line.decode(errors="replace") for line in response)

    def _connection(self) -> http.client.HTTPConnection:
        return self._connect(self._host, self._port, timeout=_ANSWER_SECONDS)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> Document:
        headers = {"Accept": "application/json", **(more_headers or {})}
        payload = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            payload = json.dumps(body).encode()
        with closing(self._connection()) as connection, _reported(self.url):
            connection.request(method, self._prefix + path, body=payload, headers=headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise _refusal(response)
            return _document(response.read())


def read_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse server-sent events (WHATWG HTML 9.2); an event that was cut off is dropped.

    Deviation: an ``id`` belongs to its own event alone; Textmill gives one to every event.
    """
    identifier, kind, data = "", "message", list[str]()
    for raw in lines:
        line = raw.rstrip("\r\n")
        if not line:
            if data:
                yield Event(identifier, kind, _json("\n".join(data)))
            identifier, kind, data = "", "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                identifier = value
            case "event":
                kind = value
            case "data":
                data.append(value)


class _reported:  # noqa: N801 - reads as a statement
    """Turns what sockets and ``http.client`` raise into :class:`Unreachable`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ConnectionRefusedError):
            raise Unreachable(f"Nobody answers at {self._url}; is `make up` running?") from None
        if isinstance(error, (OSError, http.client.HTTPException)):
            reason = str(error) or type(error).__name__
            raise Unreachable(f"The connection to {self._url} failed: {reason}.") from None


def _refusal(response: http.client.HTTPResponse) -> Refused:
    problem = _json(response.read().decode(errors="replace"))
    if not isinstance(problem, dict):
        problem = {"detail": response.reason or "The server gave no reason."}
    asked = response.getheader("Retry-After", "").strip()
    seconds = float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0.0
    return Refused(response.status, problem, seconds)


def _document(body: bytes) -> Document:
    document = _json(body.decode(errors="replace"))
    if not isinstance(document, dict):
        raise Unreachable("The server's answer is not Textmill's; look at the address.")
    return document


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
