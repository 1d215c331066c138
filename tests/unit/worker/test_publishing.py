"""From the engine's deltas to a job's stream: order, positions, and patience with Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.core.events import EventsUnavailable, StreamEntry, done, started
from textmill.worker.publishing import JobStream, Publisher, joined, storable

# ---- joined -----------------------------------------------------------------------------------

JOBS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.tuples(JOBS, st.sampled_from(["token", "token", "token", "started", "done"]), st.text()),
    max_size=40,
)


def entries_of(steps: list[tuple[str, str, str]]) -> list[StreamEntry]:
    """What several jobs' streams would add: positions follow the text, attempts the starts."""
    ends: dict[str, int] = {}
    attempts: dict[str, int] = {}
    found = []
    for job_id, kind, text in steps:
        if kind == "started":
            attempts[job_id] = attempts.get(job_id, 0) + 1
            ends[job_id] = 0
            found.append(started(job_id, attempts[job_id]))
        elif kind == "done":
            found.append(done(job_id, attempts.get(job_id, 0), ends.get(job_id, 0), 1))
        elif text:
            ends[job_id] = ends.get(job_id, 0) + len(text)
            attempt = attempts.get(job_id, 0)
            found.append(StreamEntry(job_id, attempt, ends[job_id], text, len(found), "token"))
    return found


@settings(deadline=None, derandomize=True, database=None)
@given(STEPS)
def test_joining_keeps_every_jobs_text_order_and_positions(
    steps: list[tuple[str, str, str]],
) -> None:
    entries = entries_of(steps)
    result = joined(entries)
    assert len(result) <= len(entries)
    for job_id in "abc":
        before = [entry for entry in entries if entry.job_id == job_id]
        after = [entry for entry in result if entry.job_id == job_id]
        assert _unrolled(after) == _unrolled(before)
        # No adjacent entries are left that could be joined.
        for first, second in pairwise(after):
            assert not (first.kind == second.kind == "token" and first.attempt == second.attempt)
        for entry in after:
            assert entry in before or entry.kind == "token"


def _unrolled(entries: Sequence[StreamEntry]) -> list[tuple[object, ...]]:
    """Each character with its position, and the entries between characters."""
    found: list[tuple[object, ...]] = []
    for entry in entries:
        if entry.kind != "token":
            found.append((entry.kind, entry.attempt, entry.end))
        start = entry.end - len(entry.text)
        found += [(entry.attempt, start + n, c) for n, c in enumerate(entry.text)]
    return found


def test_joining_takes_the_last_count_of_tokens() -> None:
    first = StreamEntry("a", 1, 2, "ab", 1, "token")
    second = StreamEntry("a", 1, 3, "c", 2, "token")
    assert joined([first, second]) == [StreamEntry("a", 1, 3, "abc", 2, "token")]
    assert joined([]) == []


# ---- JobStream --------------------------------------------------------------------------------


def test_a_stream_counts_characters_and_closes_one_beyond_the_text() -> None:
    entries: list[StreamEntry] = []
    stream = JobStream("a", 3, entries.append)
    stream.started()
    stream.append("ab", 1)
    stream.append("", 2)
    stream.append("😀\0", 3)
    stream.done(4, 3)
    assert [(e.kind, e.attempt, e.end, e.text, e.num_tokens) for e in entries] == [
        ("started", 3, 0, "", 0),
        ("token", 3, 2, "ab", 1),
        ("token", 3, 4, "😀\ufffd", 3),
        ("done", 3, 5, "", 3),
    ]


def test_the_end_comes_after_all_that_was_streamed_even_if_the_row_has_less() -> None:
    entries: list[StreamEntry] = []
    stream = JobStream("a", 1, entries.append)
    stream.append("abcdef", 1)
    stream.done(2, 1)
    assert entries[-1].end == 7


@given(st.text())
def test_storable_text_keeps_its_length_and_has_no_nul(text: str) -> None:
    assert len(storable(text)) == len(text)
    assert "\0" not in storable(text)


# ---- Publisher --------------------------------------------------------------------------------


class Receiver:
    """A fake Redis that can be blocked or fail."""

    def __init__(self) -> None:
        self.batches: list[list[StreamEntry]] = []
        self.fails = 0
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Condition()

    def __call__(self, entries: Sequence[StreamEntry]) -> None:
        assert self.gate.wait(10)
        with self.arrived:
            if self.fails:
                self.fails -= 1
                self.arrived.notify_all()
                raise EventsUnavailable("away")
            self.batches.append(list(entries))
            self.arrived.notify_all()

    def await_texts(self, text: str) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.text == text, 10), self.text

    @property
    def text(self) -> str:
        return "".join(entry.text for batch in self.batches for entry in batch)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def publisher(receiver: Receiver) -> Iterator[Publisher]:
    publisher = Publisher(receiver)
    publisher.start()
    yield publisher
    receiver.gate.set()
    publisher.close()


def token(end: int, text: str) -> StreamEntry:
    return StreamEntry("a", 1, end, text, end, "token")


def test_what_comes_while_a_batch_is_on_its_way_goes_out_as_one(
    publisher: Publisher, receiver: Receiver
) -> None:
    receiver.gate.clear()
    for number in range(1, 101):
        publisher.add(token(number, "x"))
    receiver.gate.set()
    receiver.await_texts("x" * 100)
    assert len(receiver.batches) <= 3


def test_closing_sends_the_rest(publisher: Publisher, receiver: Receiver) -> None:
    for number in range(1, 11):
        publisher.add(token(number, "x"))
    publisher.close()
    assert receiver.text == "x" * 10


def test_what_redis_did_not_take_is_dropped_and_what_follows_is_sent(
    publisher: Publisher, receiver: Receiver
) -> None:
    receiver.fails = 1
    publisher.add(token(1, "lost"))
    with receiver.arrived:
        assert receiver.arrived.wait_for(lambda: receiver.fails == 0, 10)
    publisher.add(token(2, "kept"))
    receiver.await_texts("kept")


def test_adding_never_waits_for_redis(publisher: Publisher, receiver: Receiver) -> None:
    receiver.gate.clear()
    done_adding = threading.Event()

    def add() -> None:
        for number in range(1, 5001):
            publisher.add(token(number, "x"))
        done_adding.set()

    threading.Thread(target=add, daemon=True).start()
    assert done_adding.wait(10)
