"""With hundreds of held connections, a real web process still answers all other requests."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.acceptance.stack import Stack, parse_events
from tests.acceptance.test_hostile_wire import JSON, chunked
from tests.servers import RedisServer
from textmill.backend.access.visitors import HEADER
from textmill.migrations.upgrade import upgrade

NUM_HELD = 300
GOOD: dict[str, str | int] = {"prompt": "held", "max_new_tokens": 1}


@pytest.fixture(scope="module")
def web(
    tmp_path_factory: pytest.TempPathFactory, tiny_models_file: Path, redis_server: RedisServer
) -> Iterator[Stack]:
    """A web process without a worker: jobs stay queued."""
    folder = tmp_path_factory.mktemp("held")
    url = f"sqlite:///{folder}/textmill.db"
    upgrade(url)
    stack = Stack(folder, url, redis_server, tiny_models_file)
    stack.start_web()
    stack.wait_alive()
    yield stack
    stack.stop()


@pytest.fixture
def make_web(
    make_stack: Callable[..., Stack], sqlite_url: str, redis_server: RedisServer
) -> Callable[..., Stack]:
    def make(**settings: str) -> Stack:
        stack = make_stack(sqlite_url, redis_server, **settings)
        stack.start_web()
        stack.wait_alive()
        return stack

    return make


def asked(stack: Stack, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", stack.port), timeout=20)
    client.sendall(data)
    return client


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def num_open(stack: Stack, what: str = "streams") -> int:
    return gauge(stack, f"textmill_open_{what}")


def gauge(stack: Stack, name: str) -> int:
    text = stack.request("GET", "/metrics").body.decode()
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)  # another process's counters cannot be awaited
    return time.monotonic() - began


@pytest.mark.parametrize("what", ["stream", "wait", "half a head", "half a body"])
def test_held_connections_hold_nobody_up(web: Stack, what: str) -> None:
    job = web.submit(**GOOD)
    data = {
        "stream": get(job["links"]["events"]),
        "wait": get(job["links"]["self"] + "?wait=30"),
        "half a head": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        "half a body": b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + JSON
        + b"Content-Length: 50\r\n\r\n{",
    }[what]  # fmt: skip
    counted = "streams" if what in {"stream", "wait"} else "connections"
    with contextlib.ExitStack() as held:
        for _ in range(NUM_HELD):
            held.enter_context(asked(web, data))
        until(lambda: num_open(web, counted) >= NUM_HELD)
        for _ in range(3):
            assert web.request("GET", "/healthz", timeout=5).status == 200
            assert web.request("GET", "/", timeout=5).status == 200
            assert web.request("POST", "/api/v1/jobs", GOOD, timeout=5).status == 202
    assert until(lambda: num_open(web, counted) < NUM_HELD / 10) < 2  # an idle machine: 50 ms


def test_healthz_waits_for_no_database(make_web: Callable[..., Stack], sqlite_url: str) -> None:
    web = make_web()
    with (
        contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as database,
        ThreadPoolExecutor(50) as pool,
    ):
        database.execute("BEGIN EXCLUSIVE")
        sent = [pool.submit(web.request, "POST", "/api/v1/jobs", GOOD) for _ in range(50)]
        for _ in range(20):
            began = time.monotonic()
            assert web.request("GET", "/healthz").status == 200
            assert time.monotonic() - began < 2
        database.rollback()
        assert {answer.result().status for answer in sent} <= {202, 503}


def test_beyond_the_limits_is_a_problem_that_says_when_to_come_back(
    make_web: Callable[..., Stack],
) -> None:
    web = make_web(TEXTMILL_MAX_STREAMS="10", TEXTMILL_MAX_STREAMS_PER_VISITOR="4")
    links = web.submit(**GOOD)["links"]
    with contextlib.ExitStack() as held:
        streams = [held.enter_context(asked(web, get(links["events"]))) for _ in range(4)]
        until(lambda: num_open(web) == 4)
        assert gauge(web, "textmill_watched_jobs") == 1
        for path in (links["events"], links["self"] + "?wait=1"):
            answer = web.request("GET", path)
            assert answer.status == 503
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json["code"] == "too_many_streams"
            assert int(answer.headers["Retry-After"]) > 0
        assert web.request("GET", links["self"]).status == 200
        streams[0].close()
        until(lambda: num_open(web) == 3)
        assert web.request("GET", links["self"] + "?wait=0.01").status == 200


def test_one_visitor_cannot_open_all_streams_of_its_address(
    make_web: Callable[..., Stack],
) -> None:
    web = make_web(
        TEXTMILL_ACCESS="demo",
        TEXTMILL_ALLOWED_HOSTS="demo.example.org",
        TEXTMILL_MAX_STREAMS_PER_OWNER="2",
    )

    def visitor() -> tuple[str, str]:
        made = web.request("POST", "/api/v1/jobs", GOOD)
        assert made.status == 202, made.body
        return made.headers[HEADER], made.json["links"]["events"]

    def stream(token: str, path: str) -> socket.socket:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{HEADER}: {token}\r\n\r\n"
        return asked(web, head.encode())

    greedy, other = visitor(), visitor()
    with contextlib.ExitStack() as held:
        for _ in range(2):
            opened = held.enter_context(stream(*greedy))
            assert opened.recv(65_536).startswith(b"HTTP/1.1 200")
        refused = web.request("GET", greedy[1], headers={HEADER: greedy[0]})
        assert (refused.status, refused.json["code"]) == (503, "too_many_streams")
        opened = held.enter_context(stream(*other))
        assert opened.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_stop_ends_open_streams_which_go_on_after_the_next_start(
    make_web: Callable[..., Stack],
) -> None:
    web = make_web()
    job = web.submit(**GOOD)
    with (
        asked(web, get(job["links"]["events"])) as stream,
        asked(web, get(job["links"]["self"] + "?wait=30")) as waiting,
    ):
        until(lambda: num_open(web) == 2)
        began = time.monotonic()
        assert web.web is not None
        web.web.send_signal(signal.SIGTERM)
        assert web.web.wait(10) == 0
        assert time.monotonic() - began < 5
        said = b""
        while piece := stream.recv(65_536):
            said += piece
        assert said.endswith(b"0\r\n\r\n")
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
    lines = "\n".join(re.split(r"\r\n[0-9a-f]+\r\n", said.partition(b"\r\n\r\n")[2].decode()))
    found = parse_events(lines)
    assert [(event_id, name) for event_id, name, _ in found] == [("0-0", "status")]
    web.start_web()
    web.wait_alive()
    assert web.request("DELETE", job["links"]["self"]).status == 204
    assert web.request("GET", job["links"]["events"]).status == 404


# ---- bodies and heads ---------------------------------------------------------------------------


def test_a_session_survives_its_refusals(web: Stack) -> None:
    url = web.url + "/api/v1/jobs"
    padded = json.dumps(GOOD).encode() + b" " * 300_000

    def in_chunks() -> Iterator[bytes]:
        yield padded
        yield b"and anything"

    with requests.Session() as session:
        for _ in range(10):
            for body in (padded, in_chunks()):
                refused = session.post(url, data=body, headers={"Content-Type": "application/json"})
                assert refused.status_code == 413
                assert refused.headers["Content-Type"] == "application/problem+json"
                assert refused.json()["code"] == "request_entity_too_large"
                assert session.post(url, json=GOOD).status_code == 202
        before = session.get(url + "?limit=1").json()["items"][0]["prompt"]
        assert before == GOOD["prompt"]


@pytest.mark.parametrize(
    "coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "noise"]
)
def test_an_encoded_body_is_415_whatever_the_codec(web: Stack, coding: str) -> None:
    body = gzip.compress(json.dumps(GOOD).encode())
    answer = web.request(
        "POST",
        "/api/v1/jobs",
        body,
        {"Content-Type": "application/json", "Content-Encoding": coding},
    )
    assert answer.status == 415
    assert answer.headers["Accept-Encoding"] == "identity"
    assert answer.json["code"] == "unsupported_encoding"


def test_a_body_that_says_it_is_not_encoded_is_read(web: Stack) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "Identity"}
    assert web.request("POST", "/api/v1/jobs", GOOD, headers).status == 202


def test_too_large_a_form_is_refused_with_a_page(web: Stack) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = web.request("POST", "/generate", b"prompt=" + b"a" * 300_000, headers)
    assert answer.status == 413
    assert b"<!doctype html>" in answer.body.lower()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/api/v1/jobs?q=" + "a" * 10_000), 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a" * 10_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n", 400),
        (chunked(b"zz\r\nnoise\r\n"), 400),
        (chunked(b'4\r\n{"a"\r\n5\r\nabcdefgh\r\n0\r\n\r\n'), 400),
    ],
)
def test_what_the_server_answers_itself_is_a_problem_document(
    web: Stack, data: bytes, status: int
) -> None:
    with asked(web, data) as client:
        answer = b""
        while piece := client.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == status
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body)["status"] == status
