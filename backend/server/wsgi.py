"""One call of a WSGI application, in steps, so that no thread waits for a slow client.

Source: PEP 3333. Deviation: ``write`` is not supported; current applications do not use it.
"""

from __future__ import annotations

import contextvars
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import h11

TOO_LARGE_KEY = (
    "textmill.too_large"  # in the WSGI environment: the body was too large and discarded
)
ARRIVED_KEY = "textmill.arrived"  # in the WSGI environment: when the request was complete
PIECE_BYTES = 64 * 1024  # of a body, collected in one step
_LOOPBACK = ("127.", "::1", "::ffff:127.")
_OWN_NAMES = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Any], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of an application, as far as it is known.

    Attributes:
        status: the status code.
        headers: in order, as bytes.
        piece: the body, or its first part.
        is_whole: whether ``piece`` is the whole body.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    piece: bytes
    is_whole: bool


class Exchange:
    """One call of the application. Its methods run on threads, one at a time."""

    def __init__(self, app: WsgiApp, environ: Environ) -> None:
        self._app = app
        self._environ = environ
        # Flask keeps its request in context variables, which all steps share.
        self._context = contextvars.Context()
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._body: Iterable[bytes] = ()
        self._pieces: Iterator[bytes] = iter(())

    def begin(self) -> Answer:
        """Call the application and collect the beginning of its response."""
        return self._context.run(self._begin)

    def go_on(self) -> tuple[bytes, bool]:
        """Return the next part of the body, and whether it is the last."""
        return self._context.run(self._gather)

    def close(self) -> None:
        """End a response before its end."""
        self._context.run(self._close)

    def _begin(self) -> Answer:
        self._body = self._app(self._environ, self._start_response)
        self._pieces = iter(self._body)
        piece, is_whole = self._gather()
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in self._headers]
        return Answer(int(self._status[:3]), headers, piece, is_whole)

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        self._status, self._headers = status, list(headers)
        return _no_write

    def _gather(self) -> tuple[bytes, bool]:
        pieces, num_bytes = [], 0
        try:
            for piece in self._pieces:
                pieces.append(piece)
                num_bytes += len(piece)
                if num_bytes >= PIECE_BYTES:
                    return b"".join(pieces), False
        except BaseException:
            self._close()
            raise
        self._close()
        return b"".join(pieces), True

    def _close(self) -> None:
        body, self._body = self._body, ()
        if hasattr(body, "close"):
            body.close()


def _no_write(data: bytes) -> object:
    raise RuntimeError("this server has no write(); return the body")


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a request target; ``authority`` is set if it was an absolute address."""

    path: str
    query: str
    authority: bytes | None


def parse_target(method: bytes, target: bytes) -> Target | None:
    """Parse a request target; returns ``None`` if it has no form of RFC 9112 that is supported."""
    authority = None
    if target == b"*" and method == b"OPTIONS":
        return Target("*", "", None)
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            return None
        authority, _, path = rest.partition(b"/")
        if b"?" in authority:
            authority, _, path = rest.partition(b"?")
            path = b"?" + path
        if not authority or b"@" in authority or not _is_host(authority):
            return None
        target = b"/" + path
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return Target(unquote_to_bytes(path).decode("latin-1"), query.decode("latin-1"), authority)


def _is_host(authority: bytes) -> bool:
    try:
        parts = urlsplit(b"//" + authority)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is not a number, or a bracket that is not closed
        return False


def environ_of(
    request: h11.Request, target: Target, body: bytes, *, client: str, server: tuple[str, int]
) -> Environ:
    """Return the WSGI environment of a request."""
    environ: Environ = {
        "REQUEST_METHOD": request.method.decode("ascii"),
        "SCRIPT_NAME": "",
        "PATH_INFO": target.path,
        "QUERY_STRING": target.query,
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{request.http_version.decode('ascii')}",
        "SERVER_SOFTWARE": "textmill",
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers:
        _add_header(environ, name, value.decode("latin-1"))
    if "HTTP_TRANSFER_ENCODING" in environ:  # the chunks are joined already
        del environ["HTTP_TRANSFER_ENCODING"]
        environ["CONTENT_LENGTH"] = str(len(body))
    if target.authority is not None:
        environ["HTTP_HOST"] = target.authority.decode("latin-1")
    if environ.get("HTTP_X_FORWARDED_PROTO") == "https" and client.startswith(_LOOPBACK):
        environ["wsgi.url_scheme"] = "https"  # a proxy on this machine speaks TLS for us
    return environ


def _add_header(environ: Environ, name: bytes, value: str) -> None:
    if b"_" in name:  # in the environment it would equal the name with a hyphen
        return
    if name == b"upgrade":  # may be ignored; Werkzeug would look for a WebSocket's address
        return
    key = _OWN_NAMES.get(name) or "HTTP_" + name.decode("ascii").upper().replace("-", "_")
    if key in environ:
        value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
    environ[key] = value
