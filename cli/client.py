"""A small client of Textmill's own API: submit, follow, wait, cancel.

Returns JSON documents as the server sent them, without checking their shape. Knows nothing of the
command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2

from textmill.cli.server_errors import Refused, Unreachable

Document = dict[str, Any]

_VISITOR = "Textmill-Visitor"
_ANSWER_SECONDS = 60.0  # above the 30 s of a long poll and the 15 s between a stream's comments
LONG_POLL_SECONDS = 25


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; ``data`` is its parsed JSON, or ``None`` if it is not JSON."""

    id: str
    kind: str
    data: Any


class Client:
    """Sends requests to one server, each over a connection of its own.

    A connection that was kept open would fail at the first request after the server's restart.

    Args:
        url: the server's address, with an optional path in front of ``/api``.
        transport: for tests.
        api_key: for a server that asks for one. Without a key, a public server gives each client a
            token, which is sent back with the next requests.

    Raises:
        Unreachable: the address is invalid.
    """

    def __init__(
        self, url: str, transport: httpx2.BaseTransport | None = None, *, api_key: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        try:
            is_valid = httpx2.URL(url).scheme in {"http", "https"} and bool(httpx2.URL(url).host)
        except httpx2.InvalidURL:
            is_valid = False
        if not is_valid:
            raise Unreachable(f"{url!r} is not a valid address; write http://HOST:PORT.")
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx2.Client(
            base_url=f"{self.url}/api/v1/",
            headers=headers,
            timeout=_ANSWER_SECONDS,
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=False,
            transport=transport,
        )

    def submit(self, request: Mapping[str, Any], key: str) -> Document:
        """``POST /jobs``: the new job, or the one that an earlier request with this key created."""
        # As ASCII: a prompt from the command line may contain bytes that are not UTF-8.
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return self._call("POST", "jobs", content=body, headers=headers)

    def read(self, job_id: str, wait_seconds: int = 0) -> Document:
        """``GET /jobs/{id}``, which answers when the job ends or ``wait_seconds`` have passed."""
        params = {"wait": wait_seconds} if wait_seconds else None
        return self._call("GET", f"jobs/{quote(job_id)}", params=params)

    def cancel(self, job_id: str) -> Document:
        """``POST /jobs/{id}/cancel``: the job."""
        return self._call("POST", f"jobs/{quote(job_id)}/cancel")

    def follow(self, job_id: str, after: str = "") -> Iterator[Event]:
        """``GET /jobs/{id}/events``: the events after the one with id ``after``.

        An event that was cut off is dropped.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if after:
            headers["Last-Event-ID"] = after
        path = f"jobs/{quote(job_id)}/events"
        with self._reported(), self._http.stream("GET", path, headers=headers) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(response)
            # The last event contains the whole job, so the library's limit on events is lifted.
            for event in httpx2.EventSource(response, max_event_size=None):
                if event.data:
                    yield Event(event.id, event.event, _json(event))

    def _call(self, method: str, path: str, **options: Any) -> Document:
        with self._reported():
            response = self._http.request(method, path, **options)
        if _VISITOR in response.headers:
            self._http.headers[_VISITOR] = response.headers[_VISITOR]
        if response.status_code >= 300:
            raise _refusal(response)
        document = _json(response)
        if not isinstance(document, dict):
            raise Unreachable("This is not the answer of a Textmill server; check the address.")
        return document

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raise what fails between here and the server as :class:`Unreachable`."""
        try:
            yield
        except httpx2.HTTPError as error:
            if _is_refused_connection(error):
                message = f"Nothing answers at {self.url}; is `make up` running?"
            else:
                reason = str(error) or type(error).__name__
                message = f"The connection to {self.url} failed: {reason}."
            raise Unreachable(message) from None


def _is_refused_connection(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _refusal(response: httpx2.Response) -> Refused:
    problem = _json(response)
    if not isinstance(problem, dict):
        problem = {"detail": response.reason_phrase or "The server gave no reason."}
    asked = response.headers.get("Retry-After", "").strip()
    seconds = float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0.0
    return Refused(response.status_code, problem, seconds)


def _json(content: httpx2.Response | httpx2.ServerSentEvent) -> Any:
    try:
        return content.json()
    except ValueError:
        return None
