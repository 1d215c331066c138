"""Bytes that no HTTP client would send, and bodies at the edges of JSON, written to the socket."""

from __future__ import annotations

import gzip
import json
import socket
import time
from typing import Any

import pytest

from tests.acceptance.stack import Stack

JSON = b"Content-Type: application/json\r\n"
GOOD = b'{"prompt":"wire","max_new_tokens":1}'


def sent(stack: Stack, data: bytes, *, then_close: bool = True) -> int | None:
    """The status that comes back; ``None`` where the connection is closed without an answer."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        try:
            connection.sendall(data)
            if then_close:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
        except ConnectionError:
            return None
    if not answer:
        return None
    assert answer.startswith(b"HTTP/1."), answer[:80]
    return int(answer.split(b" ", 2)[1])


def post(body: bytes, headers: bytes = JSON, length: object = None) -> bytes:
    told = len(body) if length is None else length
    return (
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        + headers
        + f"Content-Length: {told}\r\n\r\n".encode()
        + body
    )


def chunked(body: bytes) -> bytes:
    return (
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        + JSON
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + body
    )


WIRES: dict[str, bytes] = {
    "nothing": b"",
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "noise": bytes(range(256)) * 8 + b"\r\n\r\n",
    "no version": b"GET /api/v1/jobs\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "endless line": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(500)),
    "bad header": b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "bad escape": b"GET /api/v1/jobs/%zz%c0%80 HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: close\r\n\r\n",
    "raw bytes in a path": b"GET /api/v1/jobs/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: close\r\n\r\n",
    "dots": b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "unknown method": b"BREW /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "length too long": post(GOOD, length=len(GOOD) + 50),
    "length too short": post(GOOD, length=len(GOOD) - 5),
    "length negative": post(GOOD, length=-1),
    "length no number": post(GOOD, length="ten"),
    "length huge": post(GOOD, length=10**18),
    "length twice": post(GOOD, JSON + b"Content-Length: 3\r\n"),
    "length and chunks": post(GOOD, JSON + b"Transfer-Encoding: chunked\r\n"),
    "chunks of noise": chunked(b"zz\r\nnoise\r\n0\r\n\r\n"),
    "chunks cut off": chunked(b"ffff\r\n{"),
    "chunks over the limit": chunked(
        b"".join(b"10000\r\n" + b" " * 65_536 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    ),
    "compressed": post(gzip.compress(GOOD), JSON + b"Content-Encoding: gzip\r\n"),
    "two types": post(GOOD, JSON + b"Content-Type: text/plain\r\n"),
    "type of noise": post(GOOD, b"Content-Type: \xff\xfe;;;=\r\n"),
    "key of noise": post(GOOD, JSON + b"Idempotency-Key: \xff\x01\xfe\r\n"),
    "cookie of noise": post(b"{", JSON + b"Cookie: \xff=\xfe; textmill_owner=\x01\r\n"),
    "etag of noise": b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b'If-None-Match: "\xff, W/,,"\r\n\r\n',
}


@pytest.mark.parametrize("name", WIRES)
def test_no_bytes_get_a_500(stack: Stack, name: str) -> None:
    status = sent(stack, WIRES[name])
    assert status is None or status < 500 or status == 501, name
    assert stack.request("GET", "/healthz").status == 200


BODIES: dict[str, tuple[bytes, set[int]]] = {
    "utf-16": (GOOD.decode().encode("utf-16"), {400}),
    "latin-1": ('{"prompt":"é"}'.encode("latin-1"), {400}),
    "overlong utf-8": (b'{"prompt":"\xc0\x80"}', {400}),
    "surrogate in utf-8": (b'{"prompt":"\xed\xa0\x80"}', {400}),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, {202, 400}),
    "cut off": (GOOD[:-1], {400}),
    "two values": (GOOD + GOOD, {400}),
    "comment": (b"/* */" + GOOD, {400}),
    "nested lists": (b"[" * 130_000 + b"]" * 130_000, {400, 422}),
    "nested objects": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, {400, 422}),
    "nested in a field": (b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}", {400, 422}),
    "a number of many digits": (b'{"prompt":"a","seed":' + b"9" * 4000 + b"}", {422}),
    "a number of too many digits": (b'{"prompt":"a","seed":' + b"9" * 40_000 + b"}", {400}),
    "a huge exponent": (b'{"prompt":"a","seed":1e999999}', {422}),
    "a tiny number": (
        b'{"prompt":"a","strategy":"sampling","temperature":1e-320,"max_new_tokens":2}',
        {202},
    ),
    "infinity": (b'{"prompt":"a","seed":Infinity}', {400}),
    "many fields": (
        b'{"prompt":"a",' + b",".join(b'"f%d":1' % n for n in range(9000)) + b"}",
        {422},
    ),
    "many stops": (b'{"prompt":"a","stop":[' + b'"s",' * 9000 + b'"s"]}', {422}),
    "a field of NULs": (b'{"prompt":"a","\\u0000\\u0000":1}', {422}),
    "just over the limit": (b'{"prompt":"' + b"a" * (256 * 1024) + b'"}', {413}),
}


@pytest.mark.parametrize("name", BODIES)
def test_no_body_at_the_edge_of_json_surprises(stack: Stack, name: str) -> None:
    body, statuses = BODIES[name]
    answer = stack.request("POST", "/api/v1/jobs", body)
    assert answer.status in statuses, answer.body[:300]
    if answer.status != 202:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["status"] == answer.status
        assert len(answer.body) < 2_000_000
    else:
        assert stack.wait(answer.json["id"])["status"] == "succeeded"


def test_a_run_nested_in_itself_is_refused(stack: Stack) -> None:
    value: Any = {"strategy": "greedy"}
    for _ in range(50):
        value = {"strategy": "greedy", "variants": [value]}
    answer = stack.request("POST", "/api/v1/runs", {"prompt": "a", "variants": [value]})
    assert answer.status == 422
    assert answer.json["errors"][0]["field"] == "variants.0.variants"


def test_clients_that_stop_half_way_hold_nobody_up(stack: Stack) -> None:
    halves = [socket.create_connection(("127.0.0.1", stack.port), timeout=30) for _ in range(40)]
    try:
        for number, half in enumerate(halves):
            half.sendall(post(GOOD)[: 20 + 3 * number])
        began = time.monotonic()
        for _ in range(5):
            assert stack.request("GET", "/healthz").status == 200
        assert time.monotonic() - began < 20
    finally:
        for half in halves:
            half.close()


def test_watchers_that_go_away_hold_nobody_up(stack: Stack) -> None:
    job = stack.submit(strategy="sampling", max_new_tokens=1500)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as watcher:
            path = job["links"]["events"]
            watcher.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert watcher.recv(64).startswith(b"HTTP/1.1 200")
    assert stack.request("DELETE", job["links"]["self"]).status == 204
    assert stack.generate(max_new_tokens=2)["status"] == "succeeded"


def test_nothing_is_left_stuck_after_all_that(stack: Stack) -> None:
    """All jobs that were accepted meanwhile end, and the queue is empty."""
    for status in ("queued", "running"):
        listed = stack.request("GET", f"/api/v1/jobs?status={status}&limit=200").json["items"]
        for job in listed:
            assert stack.wait(job["id"])["finished_at"] is not None
    queue = stack.request("GET", "/api/v1/queue").json
    assert (queue["depth"], queue["running"]) == (0, 0)
    failed = stack.request("GET", "/api/v1/jobs?status=failed&limit=200").json["items"]
    assert failed == [], json.dumps(failed)[:500]
