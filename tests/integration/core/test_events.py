"""The streams on a real Redis: entries are read as written, and errors are reported in time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.servers import RedisServer, free_port
from textmill.core.event_reader import MAX_SILENCE_SECONDS, READ_ENTRIES, EventReader
from textmill.core.events import (
    CANCEL_CHANNEL,
    ENDED_TTL_SECONDS,
    STREAM_TTL_SECONDS,
    EventBus,
    EventsUnavailable,
    StreamEntry,
    done,
    make_redis,
    parse_written,
    started,
)

WITHIN_SECONDS = 4.0  # the socket's 2 s, and as much again for a busy machine


@pytest.fixture
def bus(redis_url: str) -> Iterator[EventBus]:
    bus = EventBus(redis_url)
    yield bus
    bus.close()


def job_id() -> str:
    return str(uuid4())


def token(job: str, end: int, text: str, attempt: int = 1) -> StreamEntry:
    return StreamEntry(job, attempt, end, text, end, "token")


def read(bus: EventBus, job: str, after: str = "0-0") -> list[StreamEntry]:
    return read_many(bus, {job: after})


def read_many(bus: EventBus, positions: dict[str, str]) -> list[StreamEntry]:
    async def ask() -> list[StreamEntry]:
        reader = EventReader(bus.redis_url)
        try:
            return await reader.read(positions)
        finally:
            await reader.close()

    return asyncio.run(ask())


def test_what_is_published_is_read_in_order(bus: EventBus) -> None:
    job = job_id()
    entries = [started(job, 1), token(job, 2, "ab"), token(job, 3, "c"), done(job, 1, 3, 3)]
    bus.publish(entries)
    assert read(bus, job) == entries
    assert entries[-1].end == 4


def test_one_entry_many_entries_and_many_streams_look_alike(bus: EventBus) -> None:
    one, many, none = job_id(), job_id(), job_id()
    bus.publish([token(one, 1, "x")])
    bus.publish([token(many, 1, "a"), token(many, 2, "b")])
    found = read_many(bus, {one: "0-0", many: "0-0", none: "0-0"})
    assert sorted(found, key=lambda e: (e.job_id != one, e.end)) == [
        token(one, 1, "x"),
        token(many, 1, "a"),
        token(many, 2, "b"),
    ]
    assert read(bus, one) == [token(one, 1, "x")]
    assert read_many(bus, {}) == []


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis_are_understood(redis_url: str, protocol: int) -> None:
    bus = EventBus(f"{redis_url}?protocol={protocol}")
    one, two = job_id(), job_id()
    bus.publish([token(one, 1, "x"), token(two, 1, "y"), token(two, 2, "z")])
    assert read(bus, one) == [token(one, 1, "x")]
    assert read(bus, two) == [token(two, 1, "y"), token(two, 2, "z")]
    assert len(read_many(bus, {one: "0-0", two: "1-1"})) == 2
    assert read(bus, one, "1-1") == []
    bus.close()


def test_reading_resumes_after_any_id(bus: EventBus) -> None:
    job = job_id()
    entries = [started(job, 1), *[token(job, n, "x") for n in range(1, 30)], done(job, 1, 29, 29)]
    bus.publish(entries)
    for number, entry in enumerate(entries):
        assert read(bus, job, f"1-{entry.end}") == entries[number + 1 :]


def test_a_repeated_write_is_refused_without_a_word(bus: EventBus) -> None:
    job = job_id()
    entries = [token(job, 1, "a"), token(job, 2, "b")]
    bus.publish(entries)
    bus.publish(entries)  # as after a time-out that was none
    bus.publish([token(job, 2, "?"), token(job, 3, "c")])
    assert "".join(entry.text for entry in read(bus, job)) == "abc"


def test_a_zombies_entries_are_refused(bus: EventBus) -> None:
    job = job_id()
    bus.publish([started(job, 1), token(job, 5, "dying", attempt=1)])
    bus.publish([started(job, 2), token(job, 3, "new", attempt=2)])
    bus.publish([token(job, 99, "zombie", attempt=1), done(job, 1, 99, 9)])
    found = read(bus, job)
    assert [(entry.attempt, entry.end) for entry in found] == [(1, 0), (1, 5), (2, 0), (2, 3)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives(bus: EventBus, text: str) -> None:
    job = job_id()
    bus.publish([token(job, len(text), text)])
    assert read(bus, job) == [token(job, len(text), text)]


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\r\n\u2028\u2029", "👩‍👩‍👧 e\u0301 \u202e", "\x1b[0m"]
)
def test_troublesome_text_survives(bus: EventBus, text: str) -> None:
    job = job_id()
    bus.publish([token(job, len(text), text)])
    assert read(bus, job)[0].text == text


def test_a_long_stream_is_read_in_parts(bus: EventBus) -> None:
    job = job_id()
    entries = [token(job, end, "x") for end in range(1, READ_ENTRIES + 51)]
    bus.publish(entries)
    assert read(bus, job) == entries[:READ_ENTRIES]
    assert read(bus, job, f"1-{READ_ENTRIES}") == entries[READ_ENTRIES:]


@pytest.mark.parametrize("protocol", [2, 3])
def test_who_listens_hears_which_jobs_were_written_to(redis_url: str, protocol: int) -> None:
    one, two = job_id(), job_id()
    bus = EventBus(f"{redis_url}?protocol={protocol}")

    async def listen() -> list[dict[str, str]]:
        reader = EventReader(bus.redis_url)
        heard: list[dict[str, str]] = []
        async for written in reader.written():
            heard.append(dict(written))
            if len(heard) == 1:  # subscribed; the following entries are received
                bus.publish([started(one, 1), token(one, 1, "x"), token(two, 1, "y")])
                bus.publish([done(one, 1, 1, 1)])
            if {one: "done"} in heard:
                break
        await reader.close()
        return [words for words in heard if not words or {one, two} & words.keys()]

    assert asyncio.run(listen()) == [{}, {one: "token", two: "token"}, {one: "done"}]
    bus.close()


@pytest.mark.parametrize("message", ["", " ", "x", ":", "a:b", "a:token:", "\0", "a:token x"])
def test_what_is_said_wrongly_is_passed_over(message: str) -> None:
    assert parse_written(message) in ({}, {"a": "token"})


def test_listening_notices_a_redis_that_freezes(own_redis: RedisServer) -> None:
    assert own_redis.process is not None
    pid = own_redis.process.pid

    async def listen() -> float:
        reader, began = EventReader(own_redis.url), 0.0
        try:
            async for _ in reader.written():
                os.kill(pid, signal.SIGSTOP)
                began = time.monotonic()
        except EventsUnavailable:
            return time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
            await reader.close()
        return 0.0

    assert 0 < asyncio.run(listen()) < MAX_SILENCE_SECONDS + WITHIN_SECONDS


def test_a_stream_lives_for_a_while_and_can_be_dropped(bus: EventBus, redis_url: str) -> None:
    job = job_id()
    bus.publish([token(job, 1, "x")])
    with make_redis(redis_url) as client:
        assert STREAM_TTL_SECONDS - 5 <= client.ttl(f"textmill:job:{job}") <= STREAM_TTL_SECONDS
        bus.forget(job)
        assert not client.exists(f"textmill:job:{job}")
    assert read(bus, job) == []


def test_the_stream_of_a_job_that_has_ended_expires_soon(bus: EventBus, redis_url: str) -> None:
    job = job_id()
    bus.publish([started(job, 1), token(job, 1, "x")])
    bus.publish([done(job, 1, 1, 1)])
    with make_redis(redis_url) as client:
        assert ENDED_TTL_SECONDS - 5 <= client.ttl(f"textmill:job:{job}") <= ENDED_TTL_SECONDS


def test_no_stream_is_without_an_expiry(bus: EventBus, redis_url: str) -> None:
    """A job is deleted, or Redis emptied, while a worker writes."""
    job = job_id()
    with make_redis(redis_url) as client:
        bus.publish([started(job, 1), token(job, 1, "x")])
        bus.forget(job)
        bus.publish([token(job, 2, "y")])
        assert not client.exists(f"textmill:job:{job}")
        bus.publish([token(job, 3, "z")])  # after an emptied Redis readers need a stream again
        assert [entry.text for entry in read(bus, job)] == ["z"]
        assert 0 < client.ttl(f"textmill:job:{job}") <= STREAM_TTL_SECONDS


def test_a_time_to_live_that_may_not_have_arrived_is_set_again(
    bus: EventBus, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the entry and its expiry."""
    job = job_id()
    with make_redis(redis_url) as client:

        def send_half(_: object, entries: Sequence[StreamEntry], __: object) -> list[object]:
            for entry in entries:
                client.xadd(f"textmill:job:{entry.job_id}", {"kind": "token"}, id="1-1")
            raise RedisConnectionError("Connection reset by peer")

        with monkeypatch.context() as patched:
            patched.setattr("textmill.core.events._send", send_half)
            with pytest.raises(EventsUnavailable):
                bus.publish([token(job, 1, "x")])
        assert client.ttl(f"textmill:job:{job}") == -1
        bus._breaker.note_success()
        bus.publish([token(job, 2, "y")])
        assert 0 < client.ttl(f"textmill:job:{job}") <= STREAM_TTL_SECONDS


def test_a_cancellation_is_heard(bus: EventBus, redis_url: str) -> None:
    with make_redis(redis_url) as client, client.pubsub() as channel:
        channel.subscribe(CANCEL_CHANNEL)
        assert channel.get_message(timeout=2) is not None  # the subscription itself
        bus.request_cancel("some-job")
        message = channel.get_message(timeout=2)
        assert message is not None
        assert message["data"] == "some-job"


# ---- when Redis does not answer ---------------------------------------------------------------


def every_call_gives_up(bus: EventBus) -> None:
    """Each call, on its own bus, ends in time; the best-effort calls raise nothing."""
    job = job_id()
    began = time.monotonic()
    with pytest.raises(EventsUnavailable):
        bus.publish([token(job, 1, "x")])
    with pytest.raises(EventsUnavailable):
        read(bus, job)
    assert not bus.ping()
    bus.request_cancel(job)
    bus.forget(job)
    assert time.monotonic() - began < 3 * WITHIN_SECONDS


def test_no_redis_at_all() -> None:
    every_call_gives_up(EventBus(None))
    EventBus(None).close()


def test_a_redis_that_is_gone() -> None:
    bus = EventBus(f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    every_call_gives_up(bus)
    assert time.monotonic() - began < WITHIN_SECONDS
    bus.close()


@pytest.mark.parametrize("call", ["publish", "read", "ping", "request_cancel", "forget"])
def test_a_frozen_redis_costs_a_call_its_time_out_and_no_more(
    own_redis: RedisServer, call: str
) -> None:
    bus = EventBus(own_redis.url)
    job = job_id()
    bus.publish([token(job, 1, "x")])  # the connection is open when the server freezes
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        if call == "publish":
            with pytest.raises(EventsUnavailable):
                bus.publish([token(job, 2, "y")])
        elif call == "read":
            with pytest.raises(EventsUnavailable):
                read(bus, job, "1-1")
        elif call == "ping":
            assert not bus.ping()
        else:
            getattr(bus, call)(job)
        assert time.monotonic() - began < WITHIN_SECONDS
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)
        bus.close()


def test_a_new_connection_to_a_frozen_redis_gives_up_too(own_redis: RedisServer) -> None:
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        every_call_gives_up(EventBus(own_redis.url))
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)


def test_a_frozen_redis_that_thaws_takes_a_repeated_entry_once(own_redis: RedisServer) -> None:
    bus = EventBus(own_redis.url)
    job = job_id()
    bus.publish([started(job, 1)])
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    with pytest.raises(EventsUnavailable):
        bus.publish([token(job, 1, "x")])
    os.kill(own_redis.process.pid, signal.SIGCONT)
    _await_answer(bus)
    bus.publish([token(job, 1, "x"), token(job, 2, "y")])
    assert "".join(entry.text for entry in read(bus, job)) == "xy"
    bus.close()


def test_a_redis_that_comes_back_empty_is_used_again(own_redis: RedisServer) -> None:
    bus = EventBus(own_redis.url)
    job = job_id()
    bus.publish([token(job, 1, "x")])
    own_redis.stop()
    with pytest.raises(EventsUnavailable):
        bus.publish([token(job, 2, "y")])
    own_redis.start()
    _await_answer(bus)
    bus.publish([token(job, 3, "z")])
    assert read(bus, job, "1-1") == [token(job, 3, "z")]  # the hole is the reader's to fill
    bus.close()


def _await_answer(bus: EventBus) -> None:
    """A bus pauses for a moment before it tries an unresponsive Redis again."""
    deadline = time.monotonic() + 10
    while not bus.ping():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the bus has no event for this


def test_a_redis_that_is_full_is_as_good_as_away(own_redis: RedisServer) -> None:
    bus = EventBus(own_redis.url)
    with make_redis(own_redis.url) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(EventsUnavailable):
        bus.publish([token(job_id(), 1, "x")])
    assert bus.ping()
    bus.close()
