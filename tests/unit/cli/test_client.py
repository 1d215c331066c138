"""The client of Textmill's own API: events, refusals and unusable addresses."""

from __future__ import annotations

import json
import ssl

import httpx2
import pytest

from textmill.cli.client import Client, Event
from textmill.cli.server_errors import Refused, Unreachable


def client_of(handler: httpx2.MockTransport) -> Client:
    return Client("http://server/prefix/", handler)


def streaming(text: str) -> Client:
    headers = {"Content-Type": "text/event-stream"}
    return client_of(
        httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, text=text))
    )


def failing(error: Exception) -> Client:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise error

    return client_of(httpx2.MockTransport(fail))


def test_events_are_read_with_ids_kinds_and_joined_data() -> None:
    lines = [
        ": hello\n",
        "\n",
        "id: 1-1\r\n",
        "event: token\r\n",
        'data: {"text": "a",\r\n',
        'data: "tokens": 1}\r\n',
        "\r\n",
        "retry: 1000\n",
        "\n",
        "id: 1-2\n",
        "data:7\n",
        "\n",
    ]
    assert list(streaming("".join(lines)).follow("j1")) == [
        Event("1-1", "token", {"text": "a", "tokens": 1}),
        Event("1-2", "message", 7),
    ]


def test_an_event_that_was_cut_off_is_dropped() -> None:
    assert list(streaming('event: token\ndata: {"text": "a"}\n').follow("j1")) == []


def test_an_event_may_be_longer_than_the_library_allows() -> None:
    text = "a" * (1 << 21)
    (event,) = streaming(f"event: done\ndata: {json.dumps(text)}\n\n").follow("j1")
    assert event.data == text


def test_a_submission_may_contain_text_that_is_not_unicode() -> None:
    seen = []

    def accept(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(202, json={"id": "j1"})

    client = client_of(httpx2.MockTransport(accept))
    assert client.submit({"prompt": "a\udcff"}, "key") == {"id": "j1"}
    assert str(seen[0].url) == "http://server/prefix/api/v1/jobs"
    assert seen[0].headers["Idempotency-Key"] == "key"
    assert json.loads(seen[0].content) == {"prompt": "a\udcff"}


def test_a_pause_that_the_server_asks_for_is_kept() -> None:
    answer = httpx2.Response(503, headers={"Retry-After": "7"}, json={"detail": "Full."})
    with pytest.raises(Refused, match="Full") as refused:
        client_of(httpx2.MockTransport(lambda _: answer)).read("j1")
    assert (refused.value.status, refused.value.retry_after_seconds) == (503, 7.0)


def test_an_answer_of_another_server_is_named() -> None:
    answer = httpx2.Response(200, text="<html>")
    with pytest.raises(Unreachable, match="not the answer of a Textmill server"):
        client_of(httpx2.MockTransport(lambda _: answer)).read("j1")


def test_a_connection_that_fails_gives_its_reason() -> None:
    error = httpx2.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLError()
    with pytest.raises(Unreachable, match=r"http://server/prefix failed: certificate verify"):
        failing(error).read("j1")
    error.__cause__ = ConnectionRefusedError()
    with pytest.raises(Unreachable, match="Nothing answers at http://server/prefix"):
        failing(error).cancel("j1")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://here", "http://", "http://h:port"])
def test_an_address_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(Unreachable, match="is not a valid address"):
        Client(url)


def test_a_refusal_names_every_bad_field() -> None:
    problem = {
        "detail": "Two fields are bad.",
        "errors": [{"field": "top_k", "message": "too small"}, {"field": "", "message": "odd"}],
    }
    assert str(Refused(422, problem)) == "Two fields are bad.\n  top_k: too small\n  body: odd"


def test_a_refusal_without_details_gives_its_status() -> None:
    assert str(Refused(503, {"title": "The queue is full."})) == "The queue is full. (HTTP 503)"
