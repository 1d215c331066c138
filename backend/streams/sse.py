"""Responses that stay open: the event stream of a job or a run, and the wait for a job's end.

The server runs them on its loop, on one hub for the process. Under a server that cannot hold
connections (Flask's test client, for example), the same code runs on the thread of the request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from textmill.backend.response_models import QueuePlace
from textmill.backend.server.hold import Held
from textmill.backend.services.container import Services
from textmill.backend.streams.hub import Hub
from textmill.backend.streams.job_follower import JobEvent, JobFollower
from textmill.backend.streams.positions import StreamPosition, run_event_id
from textmill.backend.streams.subscribers import Item, JobSnapshot, Subscriber
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

COMMENT_SECONDS = 15.0  # keeps proxies from closing a quiet stream
RETRY_MS = 1_000
CHUNK_CHARACTERS = 64 * 1024  # sent at once; the documents of a large run are longer
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """An event stream to open, over one job or over all jobs of a run.

    Attributes:
        jobs: their records.
        positions: the reader's position in the text of each.
        queue_positions: the positions of those that are queued, by id.
        is_run: whether the events are those of a run.
        read_at: a time of ``time.monotonic`` before the records were read.
    """

    jobs: tuple[JobRecord, ...]
    positions: tuple[StreamPosition, ...]
    queue_positions: dict[str, QueuePlace]
    is_run: bool
    read_at: float

    def open(self, hub: Hub) -> EventStream:
        """Open the stream."""
        return EventStream(hub, self)


class Spec(Protocol):
    """Describes a response that stays open."""

    def open(self, hub: Hub) -> Held:
        """Open it; called on the loop."""


class TextSpec(Spec, Protocol):
    """Describes a response whose text comes in pieces."""

    def open(self, hub: Hub) -> TextStream:
        """Open it; called on the loop."""


class TextStream(Held, Protocol):
    """An open response whose text comes in pieces."""

    def chunks(self) -> AsyncIterator[str]:
        """Yield the text."""


@dataclass(frozen=True, slots=True)
class WaitSpec:
    """A wait to open: until some jobs have ended, or for so many seconds.

    Attributes:
        jobs: their records.
        seconds: the maximum duration.
        read_at: as in ``StreamSpec``.
        on_abandon: called if the client disconnects before the end.
    """

    jobs: tuple[JobRecord, ...]
    seconds: float
    read_at: float = field(default_factory=time.monotonic)
    on_abandon: Callable[[], None] | None = None

    def open(self, hub: Hub) -> JobWait:
        """Begin to wait."""
        return JobWait(hub, self)


class JobResponseOpener:
    """Opens streams and waits on one hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def open(self, spec: object) -> Held:
        """Open the response that a ``Spec`` describes."""
        return cast(Spec, spec).open(self._hub)


class JobWait:
    """Waits until all of some jobs have ended or were deleted, or the time is up."""

    def __init__(self, hub: Hub, spec: WaitSpec) -> None:
        """Subscribe."""
        self._until = time.monotonic() + spec.seconds
        self._on_abandon = spec.on_abandon
        self._left = {job.id for job in spec.jobs if not job.is_final}
        self._subscriber = Subscriber(hub.unsubscribe, wants_entries=False)
        for job in spec.jobs:
            if not job.is_final:
                hub.subscribe(self._subscriber, JobSnapshot(job, None, spec.read_at), (0, 0))

    def chunks(self) -> None:
        """Return ``None``: the view is called again after the wait."""

    async def finished(self) -> None:
        """Return when the view is to be called again."""
        while self._left and not self._subscriber.is_closed:
            remaining = self._until - time.monotonic()
            items = await self._subscriber.receive(remaining)
            self._left -= {job_id for job_id, item in items if _is_end(item)}
            if remaining <= 0:
                break
        self._subscriber.close()

    def close(self) -> None:
        """End the wait."""
        self._subscriber.close()

    def abandon(self) -> None:
        """Tell the caller that its client has gone."""
        if self._on_abandon is not None:
            self._on_abandon()


def _is_end(item: Item) -> bool:
    return item is None or (isinstance(item, JobSnapshot) and item.job.is_final)


class EventStream:
    """One open event stream."""

    def __init__(self, hub: Hub, spec: StreamSpec) -> None:
        """Subscribe at the reader's positions."""
        self._is_run = spec.is_run
        self._followers: dict[str, JobFollower] = {}
        self._numbers = {job.id: job.number for job in spec.jobs}
        # The reader's positions after the events sent so far; a follower may be ahead of them.
        self._sent = dict(zip(self._numbers.values(), spec.positions, strict=True))
        self._subscriber = Subscriber(hub.unsubscribe, wants_entries=True)
        self._lines = [f": open\nretry: {RETRY_MS}\n\n"]
        for job, position in zip(spec.jobs, spec.positions, strict=True):
            follower = self._followers[job.id] = JobFollower(job.id, position)
            snapshot = JobSnapshot(job, spec.queue_positions.get(job.id), spec.read_at)
            self._add_item(job.id, snapshot)
            if not follower.is_ended:
                hub.subscribe(self._subscriber, snapshot, _stream_id(follower.position))

    def close(self) -> None:
        """End the stream; the reader can resume from its last event id."""
        self._subscriber.close()

    async def finished(self) -> None:
        """Return at once: a stream is a response of its own."""

    def abandon(self) -> None:
        """Do nothing: the job goes on without its readers."""

    async def chunks(self) -> AsyncIterator[str]:
        """Yield the text of the stream until all jobs have ended."""
        sent_at = time.monotonic()
        while not self._subscriber.is_closed:
            is_over = all(follower.is_ended for follower in self._followers.values())
            if is_over and self._is_run:
                self._lines.append(self._format("end", "{}"))
            while self._lines:
                sent_at = time.monotonic()
                yield self._next_chunk()
            if is_over:
                break
            items = await self._subscriber.receive(sent_at + COMMENT_SECONDS - time.monotonic())
            for job_id, item in items:
                self._add_item(job_id, item)
            if not self._lines and time.monotonic() - sent_at >= COMMENT_SECONDS:
                self._lines.append(": still here\n\n")
        self._subscriber.close()

    def _next_chunk(self) -> str:
        """Remove and return about as many events as fit into the socket."""
        num_characters, count = 0, 0
        for line in self._lines:
            num_characters += len(line)
            count += 1
            if num_characters >= CHUNK_CHARACTERS:
                break
        text = "".join(self._lines[:count])
        del self._lines[:count]
        return text

    def _add_item(self, job_id: str, item: Item) -> None:
        follower = self._followers[job_id]
        if item is None:
            follower.is_ended = True
            self._lines.append(self._format("deleted", json.dumps({"job_id": job_id})))
        elif isinstance(item, StreamEntry):
            events, _ = follower.on_entry(item)
            self._add_events(job_id, events, None)
        else:
            self._add_events(job_id, follower.on_row(item.job, item.position), item)

    def _add_events(
        self, job_id: str, events: list[JobEvent], snapshot: JobSnapshot | None
    ) -> None:
        for event in events:
            # Each event has the id of its own position: the reader may leave after any of them.
            self._sent[self._numbers[job_id]] = event.position
            self._lines.append(self._format(event.name, self._data(job_id, event, snapshot)))

    def _data(self, job_id: str, event: JobEvent, snapshot: JobSnapshot | None) -> str:
        """Return an event's data as JSON in ASCII, which contains no Unicode line break."""
        if snapshot is not None and event.name in {"status", "done"}:
            text = snapshot.text
            return f'{{"job_id": "{job_id}", "job": {text}}}' if self._is_run else text
        return json.dumps({"job_id": job_id, **event.data} if self._is_run else event.data)

    def _format(self, name: str, data: str) -> str:
        return f"id: {self._event_id()}\nevent: {name}\ndata: {data}\n\n"

    def _event_id(self) -> str:
        """Return the id after the events sent so far: the position in one job or in all jobs."""
        if self._is_run:
            return run_event_id(self._sent)
        (position,) = self._sent.values()
        return str(position)


def _stream_id(position: StreamPosition) -> tuple[int, int]:
    """Return the Redis stream id to read from; before the first attempt, the start."""
    return (position.attempt, position.num_characters) if position.attempt > 0 else (0, 0)


# ---- without a server that holds connections --------------------------------------------------


class _InlineRunner:
    """Runs calls on the loop's own thread, which is free for them: it serves one request."""

    async def run(self, call: Callable[[], T]) -> T:
        return call()


@contextmanager
def _own_hub(
    services: Services,
) -> Iterator[tuple[Callable[[Coroutine[Any, Any, Any]], Any], Hub]]:
    """Make a loop and a hub for one request."""

    async def make() -> Hub:
        reader = services.event_reader()
        return Hub(services.history, services.positions, reader, _InlineRunner())

    with asyncio.Runner() as runner:
        hub = runner.run(make())
        try:
            yield runner.run, hub
        finally:
            runner.run(hub.close())


def stream_inline(spec: TextSpec, services: Services) -> Iterator[str]:
    """Yield the text of a stream on the calling thread."""

    async def opened(hub: Hub) -> TextStream:
        return spec.open(hub)

    async def next_of(chunks: AsyncIterator[str]) -> str | None:
        return await anext(chunks, None)

    with _own_hub(services) as (run, hub):
        stream: TextStream = run(opened(hub))
        chunks = stream.chunks()
        while (chunk := run(next_of(chunks))) is not None:
            yield chunk


def wait_inline(spec: WaitSpec, services: Services) -> None:
    """Wait on the calling thread."""

    async def wait(hub: Hub) -> None:
        await JobWait(hub, spec).finished()

    with _own_hub(services) as (run, hub):
        run(wait(hub))
