"""Word lists in many scripts, and services and functions that fail in every way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from textmill.core.errors import SettingsError
from textmill.core.moderation import ModerationUnavailable, make_moderator, moderators
from textmill.core.moderation.words import WordList
from textmill.core.outbound import OutboundError, check_url, is_public, post_json
from textmill.core.settings import Settings

LIST = """\
# one a line
badger
  evil   plan
straße
प्यार
ไทย
獾
C++
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A Badger.", 2),
        ("badgers", None),
        ("ＢＡＤＧＥＲ", 2),
        ("bad\u200bger", 2),
        ("b\u00ada\u2060dger!", 2),
        ("an evil\n\tPLAN", 3),
        ("an evilplan", None),
        ("STRASSE", 4),
        ("मुझे प्यार है", 5),
        ("ภาษาไทยเป็น", 6),
        ("一只獾在这里", 7),
        ("learn c++ today", 8),
        ("# one a line", None),
        ("", None),
    ],
)
def test_a_word_is_found_in_every_writing(text: str, line: int | None) -> None:
    assert WordList(LIST).first_in(text) == line


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "::",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:db8::1", "localhost", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url", ["", "ftp://a.example", "http://", "http://a:b@c.example", "http://a:x", "//a.example"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(OutboundError):
        check_url(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_addresses_are_refused_in_every_spelling(service: Service, host: str) -> None:
    with pytest.raises(OutboundError, match=r"private|reached"):
        post_json(f"http://{host}:{service.port}/", {}, seconds=5)
    assert service.bodies == []


def test_a_name_that_leads_to_a_private_address_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, service.port))
        for address in ("93.184.215.14", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(OutboundError, match="private"):
        post_json("http://both.example/", {}, seconds=5)


class Service:
    """A moderation service on this machine, whose answer the test chooses."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.say({"allowed": True})
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                owner.bodies.append(json.loads(self.rfile.read(length)))
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # closing the server waits for them
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self.server.server_address[1]
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def say(self, document: object, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", f"http://127.0.0.1:{self.port}/other")
            handler.end_headers()
            handler.wfile.write(body)

        return answer

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not self.released.wait(0.2):
            handler.wfile.write(b" ")

    def flood(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * 65_536)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.released.set()
    made.server.shutdown()
    made.server.server_close()


def settings(**values: Any) -> Settings:
    return Settings(**values)


def of_service(service: Service, **values: Any) -> Any:
    url = f"http://127.0.0.1:{service.port}/judge"
    return make_moderator(settings(moderation=url, moderation_private="on", **values))


def test_a_service_is_asked_and_obeyed(service: Service) -> None:
    moderator = of_service(service)
    assert moderator.check("Grüße", "prompt", "m").is_allowed
    assert service.bodies == [{"text": "Grüße", "kind": "prompt", "model": "m"}]
    service.answer = service.say({"allowed": False, "reason": "rude"})
    verdict = moderator.check("x", "text", "m")
    assert (verdict.is_allowed, verdict.reason) == (False, "rude")


@pytest.mark.parametrize("fails", ["open", "closed"])
@pytest.mark.parametrize(
    "answer",
    [
        lambda s: s.say({"allowed": True}, 302),
        lambda s: s.say({"allowed": True}, 500),
        lambda s: s.say({"allowed": "yes"}),
        lambda s: s.say([]),
        lambda s: s.say(b"{"),
        lambda s: s.drip,
        lambda s: s.flood,
    ],
)
def test_a_service_that_fails_is_open_or_closed_as_set(
    service: Service, answer: Callable[[Service], Any], fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moderators, "SERVICE_SECONDS", 1.0)
    service.answer = answer(service)
    moderator = of_service(service, moderation_fails=fails)
    if fails == "open":
        assert moderator.check("x", "prompt", "m").is_allowed
    else:
        with pytest.raises(ModerationUnavailable):
            moderator.check("x", "prompt", "m")
    assert len(service.bodies) == 1  # a redirect is not followed


def refuse_all(text: str, kind: str, model: str) -> bool:
    return False


def break_always(text: str, kind: str, model: str) -> bool:
    raise RuntimeError(text)


def test_a_function_of_the_operators_own() -> None:
    moderator = make_moderator(settings(moderation=f"python:{__name__}:refuse_all"))
    assert moderator is not None
    assert not moderator.check("x", "prompt", "m").is_allowed
    broken = make_moderator(settings(moderation=f"python:{__name__}:break_always"))
    assert broken is not None
    with pytest.raises(ModerationUnavailable):
        broken.check("x", "prompt", "m")


@pytest.mark.parametrize(
    "given",
    [
        "words:/nothing/here", "nothing", "python:nothing:x", "python:json:nothing", "python:json",
        "python:json:__name__", "http://", "https://u:p@a.example/",
    ],
)  # fmt: skip
def test_a_moderator_that_cannot_be_used_stops_the_start(given: str) -> None:
    with pytest.raises(SettingsError, match="TEXTMILL_MODERATION"):
        make_moderator(settings(moderation=given))


@pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"\xff\xfe\x00"])
def test_a_list_without_words_stops_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="words"):
        make_moderator(settings(moderation=f"words:{path}"))


def test_nothing_is_asked_by_default() -> None:
    assert make_moderator(settings()) is None
