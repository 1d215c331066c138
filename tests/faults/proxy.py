"""A TCP proxy that disturbs connections: it delays, drops, resets, or loses the replies.

Each direction of a connection has a thread. A mode applies to all connections as soon as it is set.
Knows nothing of Redis or PostgreSQL, but a word in a request can be the trigger.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from tests.servers import free_port

PIECE_BYTES = 64 * 1024
CONNECT_SECONDS = 2.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST instead of FIN


class Mode(enum.Enum):
    """How the proxy treats the bytes."""

    PASS = "pass"
    DELAY = "delay"  # each piece is delayed, in both directions
    HOLE = "hole"  # nothing passes, without an error
    RESET = "reset"  # connections are reset, also new ones
    LOSE_REPLIES = "lose replies"  # requests pass; the connection is closed at the first reply
    LOSE_AFTER_WORD = "lose after a word"  # the same after a request with the word


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server."""

    client: socket.socket
    server: socket.socket
    is_spoiled: threading.Event = field(default_factory=threading.Event)
    is_reset: bool = False  # the threads that this wakes close it too

    def close(self, *, reset: bool = False) -> None:
        self.is_reset = reset = reset or self.is_reset
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # A thread that waits in recv would keep the socket open. For a reset it must wake
                # without the FIN that ends the other direction.
                side.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            side.close()


class TcpProxy:
    """Listens on its own port and connects every client to one server."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.num_spoiled = 0  # connections that a mode closed or whose bytes it held back
        self._target = (host, target_port)
        self._mode = Mode.PASS
        self._delay_seconds = 0.0
        self._word = b""
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._opened = threading.Event()  # set while bytes may pass
        self._opened.set()
        self._is_closing = False
        self._listener = socket.create_server((host, self.port), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: Mode, *, delay_seconds: float = 0.0, word: bytes = b"") -> None:
        """Set the mode; connections whose bytes were dropped are reset afterwards."""
        with self._lock:
            was, self._mode = self._mode, mode
            self._delay_seconds, self._word = delay_seconds, word
        if mode is Mode.HOLE:
            self._opened.clear()
        if mode is Mode.RESET or was is Mode.HOLE:
            self.reset_links()
        if mode is not Mode.HOLE:
            self._opened.set()

    def reset_links(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            links = list(self._links)
        for link in links:
            self.num_spoiled += 1
            link.close(reset=True)

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._is_closing = True
        self._opened.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    # ---- threads -----------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._opened.wait()
        try:
            server = socket.create_connection(self._target, timeout=CONNECT_SECONDS)
        except OSError:  # the server is unreachable: the client's connection breaks immediately
            _reset(client)
            return
        server.settimeout(None)
        for side in (client, server):
            with contextlib.suppress(OSError):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
            is_refused = self._mode is Mode.RESET
        if is_refused:
            self.num_spoiled += 1
            self._drop(link, reset=True)
            return
        threading.Thread(target=self._pump, args=(link, False), daemon=True).start()
        self._pump(link, True)

    def _pump(self, link: _Link, is_request: bool) -> None:
        source, target = (link.client, link.server) if is_request else (link.server, link.client)
        try:
            while piece := source.recv(PIECE_BYTES):
                if not self._passes(link, piece, is_request):
                    break
                target.sendall(piece)
        except OSError:
            pass
        self._drop(link)

    def _passes(self, link: _Link, piece: bytes, is_request: bool) -> bool:
        """Delay a piece according to the mode; return false if the connection is to be closed."""
        mode = self._mode
        if mode is Mode.DELAY:
            time.sleep(self._delay_seconds)
        elif mode is Mode.HOLE:
            self.num_spoiled += 1
            self._opened.wait()
        elif mode is Mode.LOSE_AFTER_WORD and is_request and self._word in piece:
            link.is_spoiled.set()
        is_lost = mode is Mode.LOSE_REPLIES or link.is_spoiled.is_set()
        if not is_request and is_lost:
            self.num_spoiled += 1
            return False
        return True

    def _drop(self, link: _Link, *, reset: bool = False) -> None:
        with self._lock:
            self._links.discard(link)
        link.close(reset=reset)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
