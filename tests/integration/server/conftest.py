"""The server with a test application, on a loop in a thread, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from textmill.backend.server.hold import HOLD_KEY, TooManyHeld
from textmill.backend.server.limits import ServerLimits
from textmill.backend.server.listener import Server
from textmill.backend.server.wsgi import TOO_LARGE_KEY

MAX_BODY_BYTES = 256 * 1024


class Stream:
    """A stream that sends the test's items until the test or the client ends it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.has_left = threading.Event()
        self.is_abandoned = threading.Event()

    def close(self) -> None:
        self.has_left.set()
        self.queue.put_nowait(None)

    async def chunks(self) -> AsyncIterator[str]:
        while (text := await self.queue.get()) is not None:
            yield text

    async def finished(self) -> None:
        """Return immediately; a stream is a separate response."""

    def abandon(self) -> None:
        self.is_abandoned.set()


class Wait(Stream):
    def chunks(self) -> None:  # type: ignore[override]
        """Return ``None``: the application is called again."""

    async def finished(self) -> None:
        await self.queue.get()


@dataclass
class App:
    """An application with one behaviour for each path."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closed: threading.Event = field(default_factory=threading.Event)
    held: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, spec: object) -> Stream:
        made = Wait() if spec == "wait" else Stream()
        self.held.append(made)
        return made

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.asked.append(path)
        hold = environ.get(HOLD_KEY)
        if path == "/slow":
            self.begun.release()
            self.gate.wait(30)
        if path in {"/stream", "/wait"} and hold is not None and not hold.is_over:
            try:
                hold.reserve()
            except TooManyHeld:
                start("503 Service Unavailable", [("Retry-After", "5")])
                return [b"full"]
            hold.spec = path[1:]
            start("200 OK", [("Content-Type", "text/event-stream")])
            return iter(())
        if path == "/export":
            start("200 OK", [("Content-Type", "text/plain")])
            return Pieces(self.closed)
        if path == "/broken":
            raise MemoryError("no")
        if path == "/panic":
            raise Panic("no")
        if environ.get(TOO_LARGE_KEY):
            start("413 Content Too Large", [("Content-Type", "text/plain")])
            return [b"too large"]
        shown = {
            "path": path,
            "query": environ["QUERY_STRING"],
            "method": environ["REQUEST_METHOD"],
            "host": environ.get("HTTP_HOST"),
            "scheme": environ["wsgi.url_scheme"],
            "body": environ["wsgi.input"].read().decode("latin-1"),
            "length": environ.get("CONTENT_LENGTH"),
            "headers": {k: v for k, v in environ.items() if k.startswith("HTTP_X")},
            "upgrade": environ.get("HTTP_UPGRADE", ""),
        }
        body = json.dumps(shown).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class Panic(BaseException):
    """An exception like a panic of native code."""


class Pieces:
    """An endless body that records when it was closed."""

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 16_384

    def close(self) -> None:
        self._closed.set()


@dataclass
class Site:
    """A running server."""

    app: App
    server: Server
    loop: asyncio.AbstractEventLoop
    port: int

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        made = socket.socket()
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(20)
        try:
            made.connect(("127.0.0.1", self.port))
        except OSError:
            made.close()
            raise
        return made

    def exchange(self, data: bytes, *, then_end: bool = False) -> bytes:
        """Return everything received until the server closes."""
        with self.connect() as client:
            client.sendall(data)
            if then_end:
                client.shutdown(socket.SHUT_WR)
            return read_all(client)

    def stop(self) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop)

    def say(self, held: Stream, text: str | None) -> None:
        self.loop.call_soon_threadsafe(held.queue.put_nowait, text)


def read_all(client: socket.socket) -> bytes:
    found = b""
    while piece := client.recv(65_536):
        found += piece
    return found


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read a response with a Content-Length; returns status, headers in lower case, and body."""
    found = b""
    while b"\r\n\r\n" not in found:
        piece = client.recv(65_536)
        assert piece, found
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        body += client.recv(65_536)
    assert len(body) == length
    return int(status.split(" ")[1]), headers, body


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the server's counters cannot be awaited


@pytest.fixture
def make_server() -> Iterator[Callable[..., Site]]:
    """Servers of a test's own: ``make_server(head_seconds=0.2)``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made: list[Site] = []

    def make(**limits: Any) -> Site:
        app = App()
        chosen = ServerLimits(**{"max_body_bytes": MAX_BODY_BYTES, "stop_seconds": 1.0, **limits})
        server = Server(app, chosen, opener=app, ready_paths=("/healthz",))
        asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(10)
        made.append(Site(app, server, loop, server.port))
        return made[-1]

    yield make
    for site in made:
        site.app.gate.set()
        site.stop().result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def site(make_server: Callable[..., Site]) -> Site:
    return make_server()
