"""The events of a watcher under failures of the worker, of Redis and of the connection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from textmill.backend.streams.job_follower import JobEvent, JobFollower
from textmill.backend.streams.positions import (
    UNKNOWN_POSITION,
    StreamPosition,
    end_position,
    has_everything,
    parse_event_id,
    parse_run_event_id,
    run_event_id,
)
from textmill.core.errors import ValidationFailed
from textmill.core.events import StreamEntry, done, started
from textmill.core.jobs.records import JobRecord

JOB = JobRecord(
    number=7, id="j", run_id=None, variant_index=None, sample_index=None, owner_id="me", model="m",
    model_revision=None, prompt="p", strategy="greedy", parameters={}, has_trace=False,
    status="queued", priority=0, virtual_start=1, attempt=0, lost_count=0, not_before=0,
    deadline_at=0, worker_id=None, lease_until=None, cancel_requested_at=None, text="",
    finish_reason=None, error_code=None, error_message=None, num_prompt_tokens=1,
    num_completion_tokens=0, created_at=0, started_at=None, first_token_at=None, finished_at=None,
    is_starred=False, prompt_ids=None,
)  # fmt: skip


def row(status: str = "running", attempt: int = 1, text: str = "") -> JobRecord:
    return dataclasses.replace(JOB, status=status, attempt=attempt, text=text)


def token(attempt: int, end: int, text: str) -> StreamEntry:
    return StreamEntry("j", attempt, end, text, 1, "token")


def seen(events: list[JobEvent]) -> list[tuple[str, str]]:
    return [(event.name, event.data.get("text", "")) for event in events]


# ---- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "position", [StreamPosition(), StreamPosition(3, 20), StreamPosition(3, 20, is_done=True)]
)
def test_a_position_is_parsed_back_from_its_id(position: StreamPosition) -> None:
    assert parse_event_id(str(position)) == position
    assert parse_run_event_id(f"12:{position},7:1-4") == {12: position, 7: StreamPosition(1, 4)}
    assert parse_run_event_id(run_event_id({12: position})) == {12: position}


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1-", "-1-1", "1-2-3", "1-2-DONE", "1-2,3-4", "1" * 20 + "-1", "١-٢"]
)
def test_an_invalid_event_id_is_rejected(text: str) -> None:
    with pytest.raises(ValidationFailed):
        parse_event_id(text)
    with pytest.raises(ValidationFailed):
        parse_run_event_id(text)


# ---- one job ------------------------------------------------------------------------------------


def test_an_ended_job_sends_its_events_in_order() -> None:
    events = JobFollower("j", StreamPosition()).on_row(row("succeeded", 1, "abc"))
    assert seen(events) == [("status", ""), ("token", "abc"), ("done", "")]
    assert [str(event.position) for event in events] == ["1-0", "1-3", "1-3-done"]


def test_a_reader_that_has_everything_gets_no_more_events() -> None:
    final = row("succeeded", 1, "abc")
    assert has_everything(final, end_position(final))
    assert JobFollower("j", end_position(final)).on_row(final) == []


def test_a_text_streamed_one_character_beyond_the_last_row_is_not_the_end() -> None:
    # The worker was lost after it had streamed "abcd"; the row kept "abc", and was then canceled.
    final = row("canceled", 1, "abc")
    assert not has_everything(final, StreamPosition(1, 4))
    events = JobFollower("j", StreamPosition(1, 4)).on_row(final)
    assert seen(events) == [("reset", ""), ("status", ""), ("token", "abc"), ("done", "")]


def test_an_overlapping_entry_is_trimmed_and_one_beyond_a_gap_waits_for_the_row() -> None:
    follower = JobFollower("j", StreamPosition())
    follower.on_row(row())
    assert seen(follower.on_entry(token(1, 2, "ab"))[0]) == [("token", "ab")]
    assert seen(follower.on_entry(token(1, 3, "bc"))[0]) == [("token", "c")]
    assert follower.on_entry(token(1, 3, "bc"))[0] == []
    assert follower.on_entry(token(1, 6, "f"))[0] == []
    assert seen(follower.on_row(row(text="abcde"))) == [("token", "de"), ("token", "f")]


def test_a_new_attempt_drops_the_text_of_the_old_one_once() -> None:
    follower = JobFollower("j", StreamPosition(1, 2))
    assert seen(follower.on_entry(started("j", 2))[0]) == [("reset", "")]
    assert seen(follower.on_row(row(attempt=2, text="xy"))) == [("status", ""), ("token", "xy")]
    assert follower.on_entry(token(1, 9, "zombie"))[0] == []


@pytest.mark.parametrize(
    "position", [UNKNOWN_POSITION, StreamPosition(9, 100), StreamPosition(1, 3, is_done=True)]
)
def test_a_reader_at_an_impossible_position_restarts(position: StreamPosition) -> None:
    events = JobFollower("j", position).on_row(row(text="abc"))
    assert seen(events) == [("reset", ""), ("status", ""), ("token", "abc")]


def test_a_reader_without_text_gets_no_reset() -> None:
    follower = JobFollower("j", StreamPosition(1, 0))
    assert seen(follower.on_row(row(attempt=2, text="x"))) == [("status", ""), ("token", "x")]


# ---- anything that can happen -------------------------------------------------------------------


@dataclass
class World:
    """A simulation of one job by worker, sweeper, Redis and database, step by step."""

    number: int
    job: JobRecord = JOB
    written: str = ""  # the text of the current attempt
    entries: list[StreamEntry] = field(default_factory=list)

    def claim(self) -> None:
        if self.job.status == "queued":
            self.written = ""
            attempt = self.job.attempt + 1
            self.job = row("running", attempt, "")
            self.add(started("j", attempt))

    def write(self, text: str, *, is_dropped: bool) -> None:
        if self.job.status != "running":
            return
        self.written += text
        if not is_dropped:
            self.add(token(self.job.attempt, len(self.written), text))

    def repeat(self, back: int) -> None:
        """Retry a write with other boundaries: it overlaps or repeats an entry in Redis."""
        if self.job.status == "running" and self.written:
            text = self.written[-1 - back % len(self.written) :]
            self.add(token(self.job.attempt, len(self.written), text))

    def haunt(self, text: str) -> None:
        """Let a worker that lost the job write; its entry may be the first of the attempt."""
        if self.job.status == "queued" and self.job.attempt:
            self.written += text
            self.add(token(self.job.attempt, len(self.written), text))
        elif self.job.attempt > 1:
            self.add(token(self.job.attempt - 1, 99, text))

    def save(self, missing: int) -> None:
        if self.job.status == "running":
            end = max(len(self.job.text), len(self.written) - missing)
            self.job = row("running", self.job.attempt, self.written[:end])

    def sweep(self) -> None:
        if self.job.status == "running":
            self.job = row("queued", self.job.attempt, self.job.text)

    def empty_redis(self) -> None:
        self.entries.clear()

    def finish(self) -> None:
        """End the job; a queued one is canceled with the text of its row."""
        if self.job.status == "running":
            self.job = row("succeeded", self.job.attempt, self.written)
            self.add(done("j", self.job.attempt, len(self.written), 1))
        elif self.job.status == "queued":
            self.job = row("canceled", self.job.attempt, self.job.text)

    def add(self, entry: StreamEntry) -> None:
        """Append like Redis: an id that is not above the last one is rejected."""
        last = self.entries[-1] if self.entries else None
        if last is None or (entry.attempt, entry.end) > (last.attempt, last.end):
            self.entries.append(entry)

    def read(self, after: tuple[int, int], at_most: int) -> list[StreamEntry]:
        return [e for e in self.entries if (e.attempt, e.end) > after][:at_most]


@dataclass
class Client:
    """A client by the docs: it appends, discards at reset, and resumes by the last id."""

    texts: dict[int, str] = field(default_factory=dict)
    num_done: dict[int, int] = field(default_factory=dict)
    last_id: str = ""

    def take(self, number: int, event: JobEvent, event_id: str) -> None:
        assert not self.num_done.get(number), "nothing comes after done"
        self.last_id = event_id
        if event.name == "reset":
            self.texts[number] = ""
        elif event.name == "token":
            self.texts[number] = self.texts.get(number, "") + event.data["text"]
        elif event.name == "done":
            self.num_done[number] = self.num_done.get(number, 0) + 1
            assert self.texts.get(number, "") == event.data["job"].text


class Connection:
    """One connection of a client to some jobs, as ``backend.streams.sse`` drives it."""

    def __init__(self, worlds: list[World], client: Client, *, is_run: bool) -> None:
        self.worlds = worlds
        self.client = client
        self.is_run = is_run
        known: dict[int, StreamPosition] = {}
        if client.last_id:
            known = (
                parse_run_event_id(client.last_id)
                if is_run
                else {worlds[0].number: parse_event_id(client.last_id)}
            )
        self.told = {world.number: known.get(world.number, StreamPosition()) for world in worlds}
        self.followers = {n: JobFollower("j", position) for n, position in self.told.items()}
        self.last = {
            n: (p.attempt, p.num_characters) if p.attempt > 0 else (0, 0)
            for n, p in self.told.items()
        }

    def look(self, at_most: int) -> bool:
        """Read the rows and deliver up to a number of events; false if the connection was cut."""
        for world in self.worlds:
            events = self.followers[world.number].on_row(world.job)
            if not self._deliver(world.number, events, at_most):
                return False
        return True

    def read(self, num_entries: int, at_most: int) -> bool:
        for world in self.worlds:
            for entry in world.read(self.last[world.number], num_entries):
                self.last[world.number] = (entry.attempt, entry.end)
                events, _ = self.followers[world.number].on_entry(entry)
                if not self._deliver(world.number, events, at_most):
                    return False
        return True

    def _deliver(self, number: int, events: list[JobEvent], at_most: int) -> bool:
        for count, event in enumerate(events):
            if count >= at_most:
                return False
            self.told[number] = event.position
            event_id = run_event_id(self.told) if self.is_run else str(event.position)
            self.client.take(number, event, event_id)
        return True


TEXT = st.text(alphabet="abcäß界😀\u2028\n", min_size=1, max_size=5)
WHOLE = 100  # more events than a step makes, so none is omitted
STEP = st.one_of(
    st.tuples(st.just("claim")),
    st.tuples(st.just("write"), TEXT, st.booleans()),
    st.tuples(st.just("repeat"), st.integers(0, 6)),
    st.tuples(st.just("haunt"), TEXT),
    st.tuples(st.just("save"), st.integers(0, 4)),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("empty_redis")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("look"), st.sampled_from([0, 1, 2, WHOLE])),
    st.tuples(st.just("read"), st.integers(1, 5), st.sampled_from([0, 1, WHOLE])),
    st.tuples(st.just("disconnect")),
)


# A worker that lost the job writes an entry beyond a gap; the job is canceled with the row's text.
ENTRY_BEYOND_THE_FINAL_TEXT: list[tuple[Any, ...]] = [
    ("claim",), ("look", 1), ("write", "a", True), ("save", 0), ("sweep",), ("haunt", "a"),
    ("finish",),
]  # fmt: skip


def act(world: World, step: tuple[Any, ...]) -> None:
    match step:
        case ("write", text, is_dropped):
            world.write(text, is_dropped=is_dropped)
        case (name, *arguments):
            getattr(world, name)(*arguments)


def play(
    client: Client, worlds: list[World], steps: list[tuple[int, tuple[Any, ...]]], *, is_run: bool
) -> Connection | None:
    """Do the steps; a cut response ends the connection, and the next one resumes."""
    connection: Connection | None = None
    for which, step in steps:
        if step[0] == "disconnect":
            connection = None
        elif step[0] not in {"look", "read"}:
            act(worlds[which % len(worlds)], step)
        elif connection is None:
            connection = Connection(worlds, client, is_run=is_run)
            connection = connection if connection.look(step[-1]) else None
        else:
            connection = connection if getattr(connection, step[0])(*step[1:]) else None
    return connection


def end(
    client: Client, worlds: list[World], connection: Connection | None, *, is_run: bool
) -> None:
    """Every job ends, and the client reconnects until it has all events."""
    for world in worlds:
        world.claim()
        world.finish()
    if connection is not None:
        connection.read(WHOLE, WHOLE)
        connection.look(WHOLE)
    for _ in range(2):
        Connection(worlds, client, is_run=is_run).look(WHOLE)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(st.just(0), STEP), max_size=40))
@example(steps=[(0, step) for step in ENTRY_BEYOND_THE_FINAL_TEXT])
def test_a_client_that_comes_and_goes_has_the_final_text_and_one_done(
    steps: list[tuple[int, tuple[Any, ...]]],
) -> None:
    world, client = World(7), Client()
    connection = play(client, [world], steps, is_run=False)
    end(client, [world], connection, is_run=False)
    assert client.texts.get(7, "") == world.job.text
    assert client.num_done == {7: 1}
    assert has_everything(world.job, parse_event_id(client.last_id))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.lists(st.tuples(st.integers(0, 2), STEP), max_size=30),
    after=st.lists(st.tuples(st.integers(0, 2), STEP), max_size=30),
    deleted=st.sets(st.integers(0, 2), max_size=2),
)
def test_a_client_of_a_run_has_every_final_text_though_jobs_are_deleted(
    before: list[tuple[int, tuple[Any, ...]]],
    after: list[tuple[int, tuple[Any, ...]]],
    deleted: set[int],
) -> None:
    worlds, client = [World(number) for number in (7, 9, 12)], Client()
    play(client, worlds, before, is_run=True)
    left = [world for index, world in enumerate(worlds) if index not in deleted]
    connection = play(client, left, after, is_run=True)
    end(client, left, connection, is_run=True)
    for world in left:
        assert client.texts.get(world.number, "") == world.job.text
        assert client.num_done[world.number] == 1
