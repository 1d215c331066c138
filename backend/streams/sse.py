"""What holds a connection open: the event stream of a job or a run, and the wait for a job's end.

Written as the server drives it, on its loop and over its one hub. Under a server that cannot hold
connections (Flask's test client, say) the same code is driven from the request's own thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from textmill.backend.serializers import Document
from textmill.backend.streams.hub import Hub, Rows
from textmill.backend.streams.job_follower import JobFollower, Place, WatchEvent, run_id_of
from textmill.backend.streams.watchers import Item, View, Watcher
from textmill.core.event_reader import EventReader
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

COMMENT_SECONDS = 15.0  # keeps proxies from closing a quiet stream
RETRY_MS = 1_000
PIECE_CHARACTERS = 64 * 1024  # what is sent at once: the documents of a run may be many
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WatchOrder:
    """An event stream over one job, or over all jobs of a run.

    Attributes:
        jobs: their rows.
        places: how much the watcher has of each.
        queue_places: where those that are queued are in the line, by id.
        is_run: whether the events are a run's.
        read_at: an instant of ``time.monotonic`` before the rows were read.
    """

    jobs: tuple[JobRecord, ...]
    places: tuple[Place, ...]
    queue_places: dict[str, Document]
    is_run: bool
    read_at: float


@dataclass(frozen=True, slots=True)
class WaitOrder:
    """A wait until a job has ended or the time is up; ``read_at`` as in ``WatchOrder``."""

    job: JobRecord
    seconds: float
    read_at: float = field(default_factory=time.monotonic)


Order = WatchOrder | WaitOrder


class Watching:
    """Begins to hold what the application ordered; on one hub."""

    def __init__(self, hub: Hub) -> None:
        """Hold nothing yet."""
        self._hub = hub

    def open(self, order: object) -> Watch | Wait:
        """Begin to hold.

        Raises:
            TypeError: this is no order.
        """
        if isinstance(order, WatchOrder):
            return Watch(self._hub, order)
        if isinstance(order, WaitOrder):
            return Wait(self._hub, order)
        raise TypeError(f"{type(order).__name__} cannot be held")


class Wait:
    """Waits until a job has ended, was deleted, or the time is up."""

    def __init__(self, hub: Hub, order: WaitOrder) -> None:
        """Begin to watch."""
        self._until = time.monotonic() + order.seconds
        self._watcher = Watcher(hub.part, wants_entries=False)
        hub.join(self._watcher, View(order.job, None, order.read_at), (0, 0))

    def texts(self) -> None:
        """Nothing is sent meanwhile."""

    async def over(self) -> None:
        """Come back when the job's row is worth another look."""
        while not self._watcher.has_left:
            left = self._until - time.monotonic()
            items = await self._watcher.take(left)
            if left <= 0 or any(_is_the_end(item) for _, item in items):
                break
        self._watcher.leave()

    def leave(self) -> None:
        """Wait no longer."""
        self._watcher.leave()


def _is_the_end(item: Item) -> bool:
    return item is None or (isinstance(item, View) and item.job.is_final)


class Watch:
    """One open event stream."""

    def __init__(self, hub: Hub, order: WatchOrder) -> None:
        """Begin to watch at the watcher's places."""
        self._is_run = order.is_run
        self._followers: dict[str, JobFollower] = {}
        self._numbers = {job.id: job.number for job in order.jobs}
        # What the watcher has been told, which the ids say; a follower may be ahead of it.
        self._told = dict(zip(self._numbers.values(), order.places, strict=True))
        self._watcher = Watcher(hub.part, wants_entries=True)
        self._pieces = [f": open\nretry: {RETRY_MS}\n\n"]
        for job, place in zip(order.jobs, order.places, strict=True):
            follower = self._followers[job.id] = JobFollower(job.id, place)
            view = View(job, order.queue_places.get(job.id), order.read_at)
            self._hear(job.id, view)
            if not follower.is_ended:
                hub.join(self._watcher, view, _stream_id(follower.place))

    def leave(self) -> None:
        """End the stream; the watcher comes back with its id."""
        self._watcher.leave()

    async def over(self) -> None:
        """A stream is its own answer."""

    async def texts(self) -> AsyncIterator[str]:
        """The stream's text, until all jobs have ended."""
        spoke_at = time.monotonic()
        while not self._watcher.has_left:
            is_over = all(follower.is_ended for follower in self._followers.values())
            if is_over and self._is_run:
                self._pieces.append(self._line("end", "{}"))
            while self._pieces:
                spoke_at = time.monotonic()
                yield self._next_piece()
            if is_over:
                break
            items = await self._watcher.take(spoke_at + COMMENT_SECONDS - time.monotonic())
            for job_id, item in items:
                self._hear(job_id, item)
            if not self._pieces and time.monotonic() - spoke_at >= COMMENT_SECONDS:
                self._pieces.append(": still here\n\n")
        self._watcher.leave()

    def _next_piece(self) -> str:
        """Text that is to be sent, about as much as fits into the socket."""
        num_characters, count = 0, 0
        for piece in self._pieces:
            num_characters += len(piece)
            count += 1
            if num_characters >= PIECE_CHARACTERS:
                break
        text = "".join(self._pieces[:count])
        del self._pieces[:count]
        return text

    def _hear(self, job_id: str, item: Item) -> None:
        follower = self._followers[job_id]
        if item is None:
            follower.is_ended = True
            self._pieces.append(self._line("deleted", json.dumps({"job_id": job_id})))
        elif isinstance(item, StreamEntry):
            events, _ = follower.on_entry(item)
            self._say(job_id, events, None)
        else:
            self._say(job_id, follower.on_row(item.job, item.place), item)

    def _say(self, job_id: str, events: list[WatchEvent], view: View | None) -> None:
        for event in events:
            # One event at a time: the watcher may go after any of them.
            self._told[self._numbers[job_id]] = event.place
            self._pieces.append(self._line(event.name, self._data(job_id, event, view)))

    def _data(self, job_id: str, event: WatchEvent, view: View | None) -> str:
        """An event's data as JSON in ASCII: no line break of Unicode's can end up in its line."""
        if view is not None and event.name in {"status", "done"}:
            return f'{{"job_id": "{job_id}", "job": {view.text}}}' if self._is_run else view.text
        return json.dumps({"job_id": job_id, **event.data} if self._is_run else event.data)

    def _line(self, name: str, data: str) -> str:
        return f"id: {self._id()}\nevent: {name}\ndata: {data}\n\n"

    def _id(self) -> str:
        """The id of what was just told: a job's place, or those of all jobs of a run."""
        if self._is_run:
            return run_id_of(self._told)
        (place,) = self._told.values()
        return str(place)


def _stream_id(place: Place) -> tuple[int, int]:
    """Where to read on; before the first attempt everything is new."""
    return (place.attempt, place.num_characters) if place.attempt > 0 else (0, 0)


# ---- without a server that holds connections --------------------------------------------------


class _Inline:
    """Runs a call where it is awaited: nobody else waits for this loop."""

    async def run(self, call: Callable[[], T]) -> T:
        return call()


@contextmanager
def _hub_here(
    rows: Rows, make_reader: Callable[[], EventReader]
) -> Iterator[tuple[Callable[[Coroutine[Any, Any, Any]], Any], Hub]]:
    """A loop and a hub of the caller's own."""

    async def make() -> Hub:
        return Hub(rows, make_reader(), _Inline())

    with asyncio.Runner() as runner:
        hub = runner.run(make())
        try:
            yield runner.run, hub
        finally:
            runner.run(hub.close())


def stream_here(
    order: WatchOrder, rows: Rows, make_reader: Callable[[], EventReader]
) -> Iterator[str]:
    """The text of an event stream, on the thread that reads it."""

    async def opened(hub: Hub) -> Watch:
        return Watch(hub, order)

    async def next_of(texts: AsyncIterator[str]) -> str | None:
        return await anext(texts, None)

    with _hub_here(rows, make_reader) as (run, hub):
        watch: Watch = run(opened(hub))
        texts = watch.texts()
        while (text := run(next_of(texts))) is not None:
            yield text


def wait_here(order: WaitOrder, rows: Rows, make_reader: Callable[[], EventReader]) -> None:
    """Wait on the thread that calls."""

    async def wait(hub: Hub) -> None:
        await Wait(hub, order).over()

    with _hub_here(rows, make_reader) as (run, hub):
        run(wait(hub))
