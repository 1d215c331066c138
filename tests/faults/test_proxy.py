"""Each mode of the proxy, in front of a server that answers every line."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Mode, TcpProxy


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            for line in self.rfile:
                self.server.heard.append(line)  # type: ignore[attr-defined]
                self.wfile.write(b"reply to " + line)
        self.server.gone.set()  # type: ignore[attr-defined]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.heard: list[bytes] = []
        self.gone = threading.Event()  # once a connection has ended


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def proxy(server: _Server) -> Iterator[TcpProxy]:
    made = TcpProxy(server.server_address[1])
    yield made
    made.close()


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def ask(connection: socket.socket, line: bytes = b"hello\n") -> bytes:
    """The reply; empty if the connection was closed or reset."""
    try:
        connection.sendall(line)
        return connection.recv(1000)
    except ConnectionError:
        return b""


def test_it_passes_everything_on(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        assert ask(connection) == b"reply to hello\n"
    assert proxy.num_spoiled == 0


def test_a_delay_holds_for_both_directions(proxy: TcpProxy) -> None:
    proxy.set(Mode.DELAY, delay_seconds=0.1)
    with connect(proxy) as connection:
        started = time.monotonic()
        assert ask(connection) == b"reply to hello\n"
        assert time.monotonic() - started >= 0.2


def test_nothing_comes_through_a_hole_and_afterwards_the_connection_is_reset(
    proxy: TcpProxy, server: _Server
) -> None:
    with connect(proxy) as connection:
        assert ask(connection)
        proxy.set(Mode.HOLE)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(connection, b"into the hole\n")
        assert server.heard == [b"hello\n"]
        proxy.set(Mode.PASS)
        connection.settimeout(10)
        assert ask(connection, b"again\n") == b""
    with connect(proxy) as fresh:
        assert ask(fresh) == b"reply to hello\n"


def test_a_reset_ends_open_and_new_connections(proxy: TcpProxy, server: _Server) -> None:
    with connect(proxy) as connection:
        assert ask(connection)
        proxy.set(Mode.RESET)
        assert ask(connection, b"more\n") == b""
    with contextlib.suppress(ConnectionError), connect(proxy) as fresh:  # it may break immediately
        assert ask(fresh, b"new\n") == b""
    assert b"new\n" not in server.heard
    assert proxy.num_spoiled >= 2


def test_a_reset_reaches_both_ends_of_a_connection_on_which_nothing_passes(
    proxy: TcpProxy, server: _Server
) -> None:
    with connect(proxy) as connection:
        assert ask(connection)
        proxy.set(Mode.RESET)
        with pytest.raises(ConnectionResetError):  # without a byte being sent
            connection.recv(1)
        assert server.gone.wait(10)


def test_replies_are_lost_but_the_requests_arrive(proxy: TcpProxy, server: _Server) -> None:
    proxy.set(Mode.LOSE_REPLIES)
    with connect(proxy) as connection:
        assert ask(connection) == b""
    assert server.heard == [b"hello\n"]


def test_replies_are_lost_from_a_word_on(proxy: TcpProxy, server: _Server) -> None:
    proxy.set(Mode.LOSE_AFTER_WORD, word=b"COMMIT")
    with connect(proxy) as connection:
        assert ask(connection) == b"reply to hello\n"
        assert ask(connection, b"COMMIT\n") == b""
    assert server.heard == [b"hello\n", b"COMMIT\n"]


def test_a_server_that_is_away_is_a_connection_that_breaks(server: _Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    proxy = TcpProxy(port)
    try:
        with contextlib.suppress(ConnectionError), connect(proxy) as connection:
            assert ask(connection) == b""
    finally:
        proxy.close()
