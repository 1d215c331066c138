from __future__ import annotations

import pytest

from textmill.cli.client import Client, Event, Refused, Unreachable, read_events


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
        "data:7\n",
        "\n",
    ]
    assert list(read_events(iter(lines))) == [
        Event("1-1", "token", {"text": "a", "tokens": 1}),
        Event("", "message", 7),
    ]


def test_an_event_that_was_cut_off_is_dropped() -> None:
    assert list(read_events(iter(["event: token\n", 'data: {"text": "a"}\n']))) == []


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://here", "http://"])
def test_an_address_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(Unreachable, match="is no address"):
        Client(url)


def test_a_refusal_names_every_bad_field() -> None:
    problem = {
        "detail": "Two fields are bad.",
        "errors": [{"field": "top_k", "message": "too small"}, {"field": "", "message": "odd"}],
    }
    assert str(Refused(422, problem)) == "Two fields are bad.\n  top_k: too small\n  body: odd"


def test_a_refusal_without_details_gives_its_status() -> None:
    assert str(Refused(503, {"title": "The queue is full."})) == "The queue is full. (HTTP 503)"
