"""Held connections use no thread, are limited in number and time, and end with the server."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.integration.server.conftest import Site, read_all, read_answer, until
from tests.integration.server.test_framing import get, problem_of

STREAM, WAIT, ALIVE = get(b"/stream"), get(b"/wait"), get(b"/healthz")
HALF_HEAD = b"GET /p HTTP/1.1\r\nHost: x\r\n"
HALF_BODY = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"


def is_answered(site: Site, path: bytes = b"/p") -> bool:
    with site.connect() as client:
        client.sendall(get(path))
        return read_answer(client)[0] == 200


def head_of(client: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        piece = client.recv(65_536)
        assert piece, found
        found += piece
    return found


@pytest.mark.parametrize("data", [STREAM, WAIT, HALF_HEAD, HALF_BODY, b""])
def test_two_hundred_held_connections_leave_the_one_thread_free(
    make_server: Callable[..., Site], data: bytes
) -> None:
    site = make_server(num_threads=1)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(site.connect()).sendall(data)
        until(lambda: site.server.connections.num_open >= 200)
        assert is_answered(site)
        assert is_answered(site, b"/healthz")
    until(lambda: site.server.connections.num_open == 0)
    assert site.server.held.num_open == 0


def test_healthz_needs_no_thread(make_server: Callable[..., Site]) -> None:
    site = make_server(num_threads=1)
    with site.connect() as slow:
        slow.sendall(get(b"/slow"))
        assert site.app.begun.acquire(timeout=10)
        assert is_answered(site, b"/healthz")
        site.app.gate.set()
        assert read_answer(slow)[0] == 200


def test_what_finds_no_thread_is_503_and_its_connection_goes_on(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(num_threads=1, max_waiting=1)
    with site.connect() as first, site.connect() as second, site.connect() as third:
        first.sendall(get(b"/slow"))
        assert site.app.begun.acquire(timeout=10)
        second.sendall(get(b"/second"))
        until(lambda: site.server._threads.num_open == 2)
        third.sendall(get(b"/third"))
        status, headers, body = read_answer(third)
        assert (status, headers["content-type"]) == (503, "application/problem+json")
        assert int(headers["retry-after"]) > 0
        assert json.loads(body)["code"] == "busy"
        site.app.gate.set()
        assert read_answer(first)[0] == read_answer(second)[0] == 200
        third.sendall(get(b"/again"))
        assert json.loads(read_answer(third)[2])["path"] == "/again"


def test_a_request_that_waited_too_long_for_a_thread_is_503(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(num_threads=1, wait_seconds=0.05)
    with site.connect() as first, site.connect() as second:
        first.sendall(get(b"/slow"))
        assert site.app.begun.acquire(timeout=10)
        second.sendall(get(b"/second"))
        until(lambda: site.server._threads.num_open == 2)
        time.sleep(0.1)  # longer than it may wait
        site.app.gate.set()
        assert read_answer(second)[0] == 503
    assert "/second" not in site.app.asked


@pytest.mark.parametrize("path", [b"/broken", b"/panic"])
def test_an_application_that_breaks_is_500_and_leaves_the_thread_alive(
    make_server: Callable[..., Site], path: bytes
) -> None:
    site = make_server(num_threads=1)
    with site.connect() as client:
        for _ in range(3):
            client.sendall(get(path))
            status, _, body = read_answer(client)
            assert (status, json.loads(body)["code"]) == (500, "internal")
        client.sendall(get(b"/next"))
        assert read_answer(client)[0] == 200


# ---- slow clients -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [HALF_HEAD, HALF_BODY, b"G"])
def test_what_comes_too_slowly_is_408(make_server: Callable[..., Site], data: bytes) -> None:
    site = make_server(head_seconds=0.1, body_seconds=0.1)
    assert problem_of(site.exchange(data))["status"] == 408


def test_a_drop_now_and_then_does_not_keep_a_request_alive(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(head_seconds=0.3, body_seconds=0.3)
    for data in (HALF_HEAD, HALF_BODY.replace(b": 10", b": 1000")):
        with site.connect() as client:
            client.sendall(data)
            began = time.monotonic()
            client.settimeout(0.03)
            answer = b""
            while not answer:
                assert time.monotonic() - began < 5
                try:
                    client.sendall(b"X")
                    answer = client.recv(65_536)
                except TimeoutError:
                    continue
            assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_pauses_is_cut_before_its_time_is_up(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(body_seconds=60, body_pause_seconds=0.1)
    assert problem_of(site.exchange(HALF_BODY))["status"] == 408


def test_a_connection_without_a_request_is_closed_without_a_word(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(idle_seconds=0.1)
    assert site.exchange(b"") == b""
    with site.connect() as client:
        client.sendall(get())
        assert read_answer(client)[0] == 200
        assert client.recv(100) == b""


def test_an_export_that_is_not_read_uses_no_thread_and_is_closed(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(num_threads=1, send_seconds=0.3)
    with site.connect(receive_buffer=4_096) as client:
        client.sendall(get(b"/export"))
        assert client.recv(10) == b"HTTP/1.1 2"
        assert is_answered(site)
        assert site.app.closed.wait(10)
        until(lambda: site.server.connections.num_open == 0)


def test_an_export_whose_client_disconnects_is_closed(site: Site) -> None:
    with site.connect() as client:
        client.sendall(get(b"/export"))
        assert client.recv(10) == b"HTTP/1.1 2"
    assert site.app.closed.wait(10)


def test_a_stream_that_is_not_read_is_cut(make_server: Callable[..., Site]) -> None:
    site = make_server(send_seconds=0.2)
    with site.connect(receive_buffer=4_096) as client:
        client.sendall(STREAM)
        until(lambda: len(site.app.held) == 1)
        for _ in range(200):
            site.say(site.app.held[0], "x" * 65_536)
        until(lambda: site.server.held.num_open == 0)


# ---- streams and waits --------------------------------------------------------------------------


def test_a_stream_says_what_comes_until_it_is_over(site: Site) -> None:
    with site.connect() as client:
        client.sendall(STREAM + get(b"/next"))
        assert b"transfer-encoding: chunked" in head_of(client).lower()
        for text in ("one", "two", None):
            site.say(site.app.held[0], text)
        found = b""
        while b"/next" not in found:
            found += client.recv(65_536)
        assert found.startswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200")


def test_a_stream_for_http_1_0_ends_with_the_connection(site: Site) -> None:
    with site.connect() as client:
        client.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        head_of(client)
        for text in ("one", "two", None):
            site.say(site.app.held[0], text)
        assert read_all(client) == b"onetwo"


def test_after_a_wait_the_application_is_asked_again(site: Site) -> None:
    with site.connect() as client:
        client.sendall(WAIT)
        until(lambda: len(site.app.held) == 1)
        site.say(site.app.held[0], None)
        assert json.loads(read_answer(client)[2])["path"] == "/wait"
    assert site.app.asked.count("/wait") == 2


@pytest.mark.parametrize("data", [STREAM, WAIT])
def test_a_client_that_disconnects_releases_its_stream_at_once(site: Site, data: bytes) -> None:
    with site.connect() as client:
        client.sendall(data)
        until(lambda: len(site.app.held) == 1)
        client.shutdown(socket.SHUT_RDWR)
        began = time.monotonic()
        until(lambda: site.server.held.num_open == 0)
        assert time.monotonic() - began < 1
    assert site.app.held[0].has_left.wait(1)
    assert site.app.held[0].is_abandoned.wait(1)
    assert site.app.asked.count("/wait") < 2  # no client is left


def test_a_head_of_a_stream_is_not_held(site: Site) -> None:
    with site.connect() as client:
        client.sendall(b"HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n" + get(b"/next"))
        assert head_of(client).startswith(b"HTTP/1.1 200")
        until(lambda: site.server.held.num_open == 0)
    assert site.app.held == []


def test_a_flood_behind_a_stream_ends_it(site: Site) -> None:
    with site.connect() as client:
        client.sendall(STREAM)
        head_of(client)
        client.sendall(get(b"/flood") * 20_000)
        assert site.app.held[0].has_left.wait(10)


@pytest.mark.parametrize("limit", [{"max_held": 3}, {"max_held_per_visitor": 3}])
def test_beyond_the_limit_of_streams_is_503_until_one_goes(
    make_server: Callable[..., Site], limit: dict[str, int]
) -> None:
    site = make_server(**limit)
    with ExitStack() as stack:
        clients = [stack.enter_context(site.connect()) for _ in range(4)]
        for client, data in zip(clients, (STREAM, WAIT, STREAM), strict=False):
            client.sendall(data)
        until(lambda: site.server.held.num_open == 3)
        clients[3].sendall(STREAM)
        assert answer_of(clients[3]).startswith(b"HTTP/1.1 503")
        clients[0].close()
        until(lambda: site.server.held.num_open == 2)
        clients[3].sendall(STREAM)
        assert head_of(clients[3]).startswith(b"HTTP/1.1 200")


def answer_of(client: socket.socket) -> bytes:
    """The head and as much of a body as it announces."""
    found = head_of(client)
    length = re.search(rb"content-length: (\d+)", found, re.IGNORECASE)
    assert length is not None, found
    end = found.index(b"\r\n\r\n") + 4 + int(length[1])
    while len(found) < end:
        piece = client.recv(end - len(found))
        assert piece, found
        found += piece
    return found


@pytest.mark.parametrize("limit", [{"max_connections": 3}, {"max_connections_per_visitor": 3}])
def test_beyond_the_limit_of_connections_is_503(
    make_server: Callable[..., Site], limit: dict[str, int]
) -> None:
    site = make_server(**limit)
    with ExitStack() as stack:
        clients = [stack.enter_context(site.connect()) for _ in range(3)]
        until(lambda: site.server.connections.num_open == 3)
        answer = site.exchange(get())
        assert problem_of(answer)["code"] == "too_many_connections"
        assert b"retry-after: " in answer.lower()
        clients[0].close()
        until(lambda: site.server.connections.num_open == 2)
        assert is_answered(site)


# ---- the end ------------------------------------------------------------------------------------


def test_a_stop_ends_streams_and_waits_and_lets_answers_be_finished(site: Site) -> None:
    with ExitStack() as stack:
        stream, wait, slow, idle, half = (stack.enter_context(site.connect()) for _ in range(5))
        stream.sendall(STREAM)
        wait.sendall(WAIT)
        slow.sendall(get(b"/slow"))
        half.sendall(HALF_HEAD)
        assert site.app.begun.acquire(timeout=10)
        head_of(stream)
        until(lambda: len(site.app.held) == 2)
        until(lambda: site.server.connections.num_open == 5)
        stopping = site.stop()
        assert read_all(stream) == b"0\r\n\r\n"  # whole: the client comes back with its last id
        status, headers, _ = read_answer(wait)
        assert (status, headers["connection"]) == (200, "close")
        site.app.gate.set()
        status, headers, _ = read_answer(slow)
        assert (status, headers["connection"]) == (200, "close")
        assert idle.recv(10) == half.recv(10) == b""
        for client in (stream, wait, slow):
            client.close()
        stopping.result(5)
        with pytest.raises(ConnectionRefusedError):
            site.connect()


def test_a_stop_does_not_wait_for_what_never_ends(make_server: Callable[..., Site]) -> None:
    site = make_server(stop_seconds=0.2)
    with site.connect() as slow:
        slow.sendall(get(b"/slow"))
        assert site.app.begun.acquire(timeout=10)
        began = time.monotonic()
        site.stop().result(10)
        assert time.monotonic() - began < 2
        site.app.gate.set()


def test_a_stop_does_not_wait_for_clients_that_stay_connected(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(stop_seconds=30)
    with site.connect() as stream, site.connect() as refused:
        stream.sendall(STREAM)
        head_of(stream)
        refused.sendall(get(b"nonsense"))
        assert refused.recv(65_536).startswith(b"HTTP/1.1 400")
        began = time.monotonic()
        site.stop().result(20)
        assert time.monotonic() - began < 5
