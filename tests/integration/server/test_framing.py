"""Requests that the server accepts or rejects; the connection stays usable after both."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.integration.server.conftest import MAX_BODY_BYTES, Site, read_all, read_answer, until

BIG = b" " * (MAX_BODY_BYTES + 1)
HOST = b"Host: x\r\n"


def get(path: bytes = b"/", headers: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + HOST + headers + b"\r\n"


def post(body: bytes, headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /p HTTP/1.1\r\n" + HOST + headers + length + b"\r\n" + body


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n", headers: bytes = b"") -> bytes:
    head = b"POST /p HTTP/1.1\r\n" + HOST + headers + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + end


def problem_of(answer: bytes) -> dict[str, object]:
    """The problem document in an answer of the server's own."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    document: dict[str, object] = json.loads(body)
    assert document["status"] == int(head.split(b" ")[1])
    assert document["title"]
    assert document["detail"]
    assert str(document["type"]).startswith("urn:")
    return document


REFUSED: dict[str, tuple[bytes, int]] = {
    "a long line": (get(b"/" + b"a" * 9_000), 414),
    "a line without an end": (b"GET /" + b"a" * 70_000, 414),
    "a line without an end, short of all limits but its own": (b"GET /" + b"a" * 9_000, 414),
    "a long header": (get(headers=b"X: " + b"a" * 9_000 + b"\r\n"), 431),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
    "many headers": (get(headers=b"".join(b"X-%d: y\r\n" % n for n in range(200))), 431),
    "long headers in all": (
        get(headers=b"".join(b"X-%d: %s\r\n" % (n, b"y" * 7_000) for n in range(20))),
        431,
    ),
    "no colon": (get(headers=b"Bad Header\r\n"), 400),
    "NUL in a header": (get(headers=b"X: a\0b\r\n"), 400),
    "a blank before the colon": (get(headers=b"X : a\r\n"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (get(headers=b"Host: y\r\n"), 400),
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "another version": (get(version=b"9.9"), 400),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "raw bytes in a path": (get(b"/\xff\xfe"), 400),
    "a target that is no path": (get(b"nonsense"), 400),
    "a tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 400),
    "an address with a bad port": (get(b"http://x:port/p"), 400),
    "two lengths": (post(b"abc", b"Content-Length: 4\r\n"), 400),
    "a length with a sign": (post(b"", b"Content-Length: +3\r\n"), 400),
    "a negative length": (b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "a length of many digits": (
        b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n",
        400,
    ),
    "a length and chunks": (chunked(b"abc", headers=b"Content-Length: 3\r\n"), 400),
    "chunks in http/1.0": (
        b"POST /p HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "another transfer encoding": (
        b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    "a chunk's length that is none": (chunked(end=b"zz\r\nnoise\r\n0\r\n\r\n"), 400),
    "a chunk that is longer than it says": (chunked(end=b"3\r\nabcdef\r\n0\r\n\r\n"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_rules_is_refused_as_a_problem_document(site: Site, name: str) -> None:
    data, status = REFUSED[name]
    answer = site.exchange(data)
    assert problem_of(answer)["status"] == status
    assert answer.count(b"Date: ") == 1  # what follows is not parsed as a request
    assert site.app.asked == ["/healthz"]  # which the server asked by itself


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHos", chunked(b"abc", end=b""), post(b"abc")[:-1]]
)
def test_a_request_that_ends_half_way_is_refused(site: Site, data: bytes) -> None:
    assert problem_of(site.exchange(data, then_end=True))["status"] == 400


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (get(b"/a%20b?q=%2B"), {"path": "/a b", "query": "q=%2B"}),
        (get(b"/%zz%c3%a9"), {"path": "/%zz\u00c3\u00a9"}),
        (get(b"http://other:81/p?q"), {"path": "/p", "query": "q", "host": "other:81"}),
        (get(b"http://other"), {"path": "/", "host": "other"}),
        (get(b"http://other?q=1"), {"path": "/", "query": "q=1", "host": "other"}),
        (get(b"//double/slash"), {"path": "//double/slash"}),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {"path": "*", "method": "OPTIONS"}),
        (post(b"abc"), {"body": "abc", "length": "3"}),
        (post(b"abc", b"Content-Length: 3\r\n"), {"body": "abc", "length": "3"}),
        (chunked(b"ab", b"c"), {"body": "abc", "length": "3"}),
        (chunked(b"ab", end=b"0\r\nX-Trailer: 1\r\n\r\n"), {"body": "ab", "headers": {}}),
        (get(headers=b"X_A: 1\r\nX-A: 2\r\nX-A: 3\r\n"), {"headers": {"HTTP_X_A": "2,3"}}),
        (get(headers=b"X-Forwarded-Proto: https\r\n"), {"scheme": "https"}),
        (get(headers=b"Upgrade: websocket\r\nConnection: Upgrade\r\n"), {"upgrade": ""}),
    ],
)
def test_what_keeps_the_rules_reaches_the_application(
    site: Site, data: bytes, shown: dict[str, object]
) -> None:
    with site.connect() as client:
        for _ in range(3):  # and the next request on the same connection too
            client.sendall(data)
            status, _, body = read_answer(client)
            assert status == 200
            found = json.loads(body)
            assert {name: found[name] for name in shown} == shown


def test_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    with site.connect() as client:
        client.sendall(
            b"".join(get(b"/%d" % n) for n in range(20)) + get(b"/last", b"Connection: close\r\n")
        )
        answers = read_all(client).decode()
    places = [answers.index(f'"path": "/{n}"') for n in [*range(20), "last"]]
    assert places == sorted(places)


def test_a_head_has_no_body_and_the_connection_goes_on(site: Site) -> None:
    with site.connect() as client:
        for path in (b"/", b"/healthz"):
            client.sendall(b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" + get(b"/next"))
            found = b""
            while b"/next" not in found:
                found += client.recv(65_536)
            assert found.count(b"HTTP/1.1 200") == 2


def test_http_1_0_is_answered_and_closed(site: Site) -> None:
    answer = site.exchange(b"GET /old HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"/old" in answer


# ---- bodies over the limit ----------------------------------------------------------------------

LARGE: dict[str, bytes] = {
    "by its length": post(BIG),
    "in chunks": chunked(*[b" " * 65_536] * 4, b"{}"),
    "in chunks with anything behind": chunked(b'{"a":1}', BIG, b"anything"),
    "much larger": post(b" " * 5_000_000),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_body_over_the_limit_is_413_and_the_next_request_is_answered(
    site: Site, name: str
) -> None:
    with site.connect() as client:
        for _ in range(5):
            client.sendall(LARGE[name])
            assert read_answer(client)[0] == 413
            client.sendall(get(b"/next"))
            assert json.loads(read_answer(client)[2])["path"] == "/next"


def test_a_body_at_the_limit_is_accepted(site: Site) -> None:
    whole = BIG[:-1]
    with site.connect() as client:
        for data in (post(whole), chunked(whole[:100_000], whole[100_000:])):
            client.sendall(data)
            assert len(json.loads(read_answer(client)[2])["body"]) == MAX_BODY_BYTES


def pieces_of(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_keeps_its_connection_survives_refusals(
    site: Site, *, is_chunked: bool
) -> None:
    client = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    for number in range(20):
        size = MAX_BODY_BYTES + 1 + number * 50_000
        body = pieces_of(b" " * size) if is_chunked else b" " * size
        client.request("POST", "/p", body, encode_chunked=is_chunked)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (413, b"too large")
        client.request("POST", "/p", b"small")
        assert json.loads(client.getresponse().read())["body"] == "small"
    client.close()


def test_an_endless_body_gets_its_answer_before_it_is_cut(
    make_server: Callable[..., Site],
) -> None:
    site = make_server(linger_seconds=0.5, linger_bytes=1_000_000)
    with site.connect() as client:
        client.sendall(
            b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n" + BIG
        )
        status, headers, _ = read_answer(client)
        assert (status, headers["connection"]) == (413, "close")
        until(lambda: site.server.connections.num_open == 0)
    with site.connect() as client:
        client.sendall(chunked(BIG, end=b""))
        assert read_answer(client)[0] == 413
        until(lambda: site.server.connections.num_open == 0)  # its end never came


def test_too_large_a_body_is_not_asked_for(site: Site) -> None:
    head = b"POST /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: "
    with site.connect() as client:
        client.sendall(head + b"300000\r\n\r\n")
        status, headers, _ = read_answer(client)
        assert (status, headers["connection"]) == (413, "close")
    with site.connect() as client:
        client.sendall(head + b"3\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"abc")
        assert json.loads(read_answer(client)[2])["body"] == "abc"


def test_a_client_that_is_still_sending_reads_why_it_was_refused(site: Site) -> None:
    for _ in range(10):
        with site.connect() as client:
            client.sendall(get(b"/" + b"a" * 9_000))
            client.sendall(b"b" * 500_000)
            client.shutdown(socket.SHUT_WR)
            assert problem_of(read_all(client))["status"] == 414
