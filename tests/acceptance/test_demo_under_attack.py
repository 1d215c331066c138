"""A public demo under a hostile script: a second visitor is served throughout."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.acceptance.up import FIRST_START_SECONDS, Up, up_environment
from tests.tiny_models import build_tiny_llama

NUM_COOKIES, NUM_CONNECTIONS, NUM_ATTACKERS = 1_000, 300, 8
JOBS = "/api/v1/jobs"
BODY = {"prompt": "hello", "max_new_tokens": 8}
Answer = tuple[int, dict[str, str], Any]


class Client:
    """Sends requests as one address behind the proxy."""

    def __init__(self, port: int, address: str) -> None:
        self.url, self.address = f"http://127.0.0.1:{port}", address

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        given = {"X-Forwarded-For": self.address, "Host": "demo.example.org", **headers}
        if data is not None:
            given["Content-Type"] = "application/json"
        asked = urllib.request.Request(self.url + path, data, given, method=method)
        try:
            answer = urllib.request.urlopen(asked, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            fields = dict(answer.headers)
            is_json = "json" in fields.get("Content-Type", "")
            return answer.status, fields, json.loads(text) if is_json and text else text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("demo")
    build_tiny_llama(folder / "tiny")
    models = folder / "models.toml"
    models.write_text('[[models]]\nname = "tiny"\nsource = "./tiny"\ndefault = true\n')
    environment = up_environment(
        folder / "home",
        TEXTMILL_MODELS=str(models),
        TEXTMILL_ACCESS="demo",
        TEXTMILL_ALLOWED_HOSTS="demo.example.org",
        TEXTMILL_TRUSTED_PROXIES="1",
    )
    with Up(environment).killed_at_the_end() as up:
        up.await_ready(FIRST_START_SECONDS)
        yield up
        up.process.terminate()
        up.finish()


class Visitor(Client):
    """The honest one: writes a text, reads it, and opens the history."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(port, address)
        self.token = ""

    def visit(self) -> float:
        """Seconds until the text is there."""
        started = time.monotonic()
        known = {"Textmill-Visitor": self.token} if self.token else {}
        status, fields, job = self.send("POST", JOBS, BODY, **known)
        assert status == 202, job
        self.token = self.token or fields["Textmill-Visitor"]
        own = {"Textmill-Visitor": self.token}
        status, _, job = self.send("GET", f"{JOBS}/{job['id']}?wait=30", **own)
        assert (status, job["status"]) == (200, "succeeded"), job
        assert self.send("GET", "/history", **own)[0] == 200
        return time.monotonic() - started


def invented_cookies(client: Client) -> Counter[int]:
    """Requests with cookies that were not signed here, each trying to store something."""
    found: Counter[int] = Counter()
    for _ in range(NUM_COOKIES // NUM_ATTACKERS):
        token = f"{secrets.token_hex(16)}.{secrets.token_urlsafe(32)}"
        found[client.send("POST", JOBS, BODY, Cookie=f"textmill_visitor={token}")[0]] += 1
    return found


def guessed_ids(client: Client) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(40):
        for path in (f"{JOBS}/{uuid.uuid4()}", f"/shared/{secrets.token_urlsafe(16)}"):
            found[client.send("GET", path)[0]] += 1
    return found


def expensive_prompts(client: Client) -> Counter[int]:
    found: Counter[int] = Counter()
    bodies: list[tuple[str, dict[str, Any]]] = [
        (JOBS, {"prompt": "x", "strategy": "beam", "num_beams": 16, "max_new_tokens": 120}),
        ("/api/v1/runs", {"prompt": "x", "max_new_tokens": 120,
                          "variants": [{"strategy": "sampling", "samples": 16}] * 4}),
        (JOBS, {"prompt": "9" * 200_000}),
        ("/api/v1/tokenize", {"text": "9" * 60_000}),
    ]  # fmt: skip
    for path, body in bodies * 5:
        found[client.send("POST", path, body)[0]] += 1
    return found


def foreign_pages(client: Client) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(20):
        found[client.send("GET", "/history", Host="evil.example")[0]] += 1
        site = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        found[client.send("POST", f"{JOBS}/x/cancel", **site)[0]] += 1
    return found


def test_a_second_visitor_is_served_throughout(demo: Up) -> None:
    visitor = Visitor(demo.port, "198.51.100.1")
    visitor.visit()
    is_over = threading.Event()
    times: list[float] = []

    def keep_visiting() -> None:
        while not is_over.is_set():
            times.append(visitor.visit())
            time.sleep(2.0)  # people read; the budget is for people

    attacks: list[Callable[[Client], Counter[int]]] = [
        *[invented_cookies] * NUM_ATTACKERS, guessed_ids, expensive_prompts, foreign_pages,
    ]  # fmt: skip
    with contextlib.ExitStack() as held, ThreadPoolExecutor(len(attacks) + 1) as pool:
        for _ in range(NUM_CONNECTIONS):  # half-sent requests, held open
            connection = held.enter_context(socket.create_connection(("127.0.0.1", demo.port), 10))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: demo.example.org\r\nX-A: ")
        honest = pool.submit(keep_visiting)
        clients = [Client(demo.port, f"203.0.113.{n}") for n in range(len(attacks))]
        answers = [
            attack.result(timeout=240)
            for attack in [pool.submit(a, c) for a, c in zip(attacks, clients, strict=True)]
        ]
        is_over.set()
        honest.result(timeout=60)
    cookies = sum(answers[:NUM_ATTACKERS], Counter())
    assert set(cookies) <= {202, 429, 503}
    assert cookies[202] <= NUM_ATTACKERS * 60  # an address may submit sixty times a minute
    assert cookies[429] > NUM_COOKIES // 3
    guessed, expensive, foreign = answers[NUM_ATTACKERS:]
    assert set(guessed) <= {404, 429}
    assert set(expensive) <= {200, 202, 422, 429, 413}
    assert expensive[422] >= 10
    assert set(foreign) == {421, 403}
    assert len(times) >= 2
    assert visitor.send("GET", "/readyz")[0] == 200
