"""One hub for all who watch jobs: reads each watched job once, however many watch it.

Rows are looked at in batches that are spread over a second, and at once where a stream says that a
job began or ended. Streams are read when Redis tells that a watched job was written to. Without
Redis the rows are looked at twice as often. Nothing is held for a watcher but references: one that
does not read misses entries, and has their text from the row later.

Knows nothing of HTTP. Everything runs on one event loop, the database's answers come from threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Protocol

import structlog

from textmill.backend.serializers import Document
from textmill.backend.streams.watchers import Item, View, Watcher
from textmill.core.errors import Unavailable
from textmill.core.event_reader import READ_ENTRIES, EventReader
from textmill.core.events import EventsUnavailable, Kind, StreamEntry
from textmill.core.jobs.history import Brief, History, brief_of
from textmill.core.jobs.records import JobRecord

ROW_SECONDS = 1.0
WITHOUT_REDIS_SECONDS = 0.5
RETRY_SECONDS = 2.0  # between two tries to reach Redis
BATCH_JOBS = 100  # looked at in one query: some milliseconds of the interpreter's time
PLACES_JOBS = 5_000  # queue places in one query; databases bound the parameters of a statement
CANCEL_SECONDS = 0.2
READ_JOBS = 50  # streams in one read
log = structlog.get_logger(__name__)


class Rows(Protocol):
    """Where the hub reads; ``backend.services.services.Services``."""

    history: History

    def places(self, jobs: Iterable[JobRecord]) -> dict[str, Document]:
        """By id, where each queued job is in the line."""


class _Channel:
    """A job that is watched."""

    __slots__ = ("entry_at", "entry_attempt", "last_id", "view", "watchers")

    def __init__(self, view: View, last_id: tuple[int, int]) -> None:
        self.view = view
        self.last_id = last_id  # up to where its stream was read
        self.watchers: set[Watcher] = set()
        self.entry_attempt = 0  # the latest attempt that the stream told of, and when
        self.entry_at = 0.0

    @property
    def wants_entries(self) -> bool:
        return any(watcher.wants_entries for watcher in self.watchers)

    def is_stale(self, job: JobRecord, read_at: float) -> bool:
        """Whether more is known than what this row says, which was read at that time."""
        is_older = read_at < self.view.read_at
        return is_older or (job.attempt < self.entry_attempt and read_at < self.entry_at)


class Hub:
    """Tells watchers of their jobs. Its methods are called on one loop."""

    def __init__(self, rows: Rows, reader: EventReader, run: Any) -> None:
        """Do nothing until somebody watches.

        Args:
            rows: where to read.
            reader: where to hear.
            run: an object with ``run(call)``, which awaits a call on a thread.
        """
        self._rows = rows
        self._reader = reader
        self._threads = run
        self._channels: dict[str, _Channel] = {}
        self._written: dict[str, None] = {}  # jobs whose streams are to be read
        self._urgent: dict[str, None] = {}  # jobs whose rows are to be read at once
        self._has_written = asyncio.Event()
        self._has_rows = asyncio.Event()
        self._places: dict[str, Document] = {}
        self._round: deque[list[str]] = deque()
        self._num_batches = 1  # of the present round
        self._is_redis_up = True  # until it is tried
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def num_jobs(self) -> int:
        """How many jobs are watched."""
        return len(self._channels)

    async def close(self) -> None:
        """Stop reading."""
        left = set(self._tasks)
        while left:  # a client library may swallow a cancellation while it connects
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)
        await self._reader.close()

    # ---- who watches what -------------------------------------------------------------------

    def join(self, watcher: Watcher, view: View, last_id: tuple[int, int]) -> None:
        """Tell a watcher of a job from now on.

        Args:
            watcher: who.
            view: the job as the watcher knows it.
            last_id: the stream id up to which it has the job's text.
        """
        if not self._tasks:
            self._start()
        job_id = view.job.id
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = _Channel(view, last_id)
            self._has_rows.set()
        elif channel.is_stale(view.job, view.read_at):
            known = channel.view
            if known.place is None and known.job.status == "queued":  # of somebody who waits
                channel.view = View(known.job, view.place, known.read_at)
            watcher.put(job_id, channel.view)
        else:
            self._update(job_id, channel, view)
        channel.watchers.add(watcher)
        watcher.job_ids.add(job_id)
        if watcher.wants_entries:
            channel.last_id = min(channel.last_id, last_id)
            self._note_written({job_id: "token"})

    def part(self, watcher: Watcher) -> None:
        """Forget a watcher, and the jobs that nobody else watches."""
        for job_id in watcher.job_ids:
            channel = self._channels.get(job_id)
            if channel is not None:
                channel.watchers.discard(watcher)
                if not channel.watchers:
                    del self._channels[job_id]
        watcher.job_ids.clear()

    def _start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(self._listen, "hub_listens")),
            asyncio.create_task(self._keep(self._read_streams, "hub_reads_streams")),
            asyncio.create_task(self._keep(self._look_at_rows, "hub_looks_at_rows")),
        ]

    async def _keep(self, work: Any, name: str) -> None:
        """Go on with a loop whatever happens in it: thousands depend on it."""
        while True:
            try:
                await work()
            except Exception as error:
                log.error("hub_failed", loop=name, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)

    def _deliver(self, job_id: str, channel: _Channel, item: Item) -> None:
        for watcher in channel.watchers:
            if watcher.wants_entries or not isinstance(item, StreamEntry):
                watcher.put(job_id, item)

    # ---- streams ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            async for written in self._reader.written():
                if not self._is_redis_up:
                    log.warning("hub_redis_is_back")
                self._is_redis_up = True
                # The first is empty: whatever was written before is read now.
                self._note_written(written or dict.fromkeys(self._channels, "token"))
        except EventsUnavailable as error:
            if self._is_redis_up:
                log.warning("hub_redis_unavailable", reason=str(error)[:200])
            self._is_redis_up = False

    def _note_written(self, written: Mapping[str, Kind]) -> None:
        for job_id, kind in written.items():
            channel = self._channels.get(job_id)
            if channel is None:
                continue
            if channel.wants_entries:
                self._written[job_id] = None
                self._has_written.set()
            elif kind == "done":
                self._want_row(job_id)

    async def _read_streams(self) -> None:
        while True:
            await self._has_written.wait()
            batch = list(islice(self._written, READ_JOBS))
            if not batch or not self._is_redis_up:
                self._has_written.clear()
                self._written.clear()  # all are read when Redis is back
                continue
            positions = {
                job_id: "{}-{}".format(*self._channels[job_id].last_id)
                for job_id in batch
                if job_id in self._channels
            }
            for job_id in batch:
                del self._written[job_id]
            try:
                entries = await self._reader.read(positions)
            except EventsUnavailable:
                self._written |= dict.fromkeys(batch)
                await asyncio.sleep(WITHOUT_REDIS_SECONDS)
                continue
            self._take_entries(entries)

    def _take_entries(self, entries: list[StreamEntry]) -> None:
        counts: dict[str, int] = {}
        for entry in entries:
            channel = self._channels.get(entry.job_id)
            if channel is None:
                continue
            channel.last_id = max(channel.last_id, (entry.attempt, entry.end))
            if entry.attempt > channel.entry_attempt:
                channel.entry_attempt, channel.entry_at = entry.attempt, time.monotonic()
            self._deliver(entry.job_id, channel, entry)
            if entry.kind != "token":
                self._want_row(entry.job_id)
            counts[entry.job_id] = counts.get(entry.job_id, 0) + 1
        more: dict[str, Kind] = {
            job_id: "token" for job_id, count in counts.items() if count >= READ_ENTRIES
        }
        self._note_written(more)

    # ---- rows -------------------------------------------------------------------------------

    def _want_row(self, job_id: str) -> None:
        self._urgent[job_id] = None
        self._has_rows.set()

    async def _look_at_rows(self) -> None:
        """A look at each row in a second, spread over it; those that are wanted between."""
        clock = asyncio.get_running_loop().time
        next_at = clock()
        while True:
            if self._urgent:
                batch = list(islice(self._urgent, BATCH_JOBS))
                for job_id in batch:
                    del self._urgent[job_id]
                await self._look(batch)
                continue
            if clock() >= next_at:
                pause = await self._next_batch()
                next_at = clock() + pause
                continue
            self._has_rows.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._has_rows.wait()

    async def _next_batch(self) -> float:
        """Look at the next jobs of the round; how long to wait before those that follow."""
        seconds = ROW_SECONDS if self._is_redis_up else WITHOUT_REDIS_SECONDS
        if not self._round:
            job_ids = iter(list(self._channels))
            while batch := list(islice(job_ids, BATCH_JOBS)):
                self._round.append(batch)
            self._num_batches = max(1, len(self._round))
            await self._read_places()
        if self._round:
            await self._look(self._round.popleft())
        return seconds / self._num_batches

    async def _read_places(self) -> None:
        queued = [
            channel.view.job
            for channel in self._channels.values()
            if channel.view.job.status == "queued" and channel.wants_entries
        ]
        places: dict[str, Document] = {}
        for start in range(0, len(queued), PLACES_JOBS):
            part = queued[start : start + PLACES_JOBS]
            with contextlib.suppress(Unavailable):
                places |= await self._threads.run(lambda part=part: self._rows.places(part))
        self._places = places

    async def _look(self, job_ids: list[str]) -> None:
        known = {
            job_id: brief_of(channel.view.job)
            for job_id in job_ids
            if (channel := self._channels.get(job_id)) is not None
        }
        if not known:
            return
        read_at = time.monotonic()
        try:
            missing, changed, places = await self._threads.run(lambda: self._read_rows(known))
        except Unavailable as error:
            log.warning("hub_rows_unavailable", reason=str(error)[:200])
            self._urgent |= dict.fromkeys(job_ids)
            await asyncio.sleep(WITHOUT_REDIS_SECONDS)
            return
        for job_id in missing:
            channel = self._channels.pop(job_id, None)
            if channel is not None:
                self._deliver(job_id, channel, None)
        for job in changed:
            channel = self._channels.get(job.id)
            if channel is None:
                continue
            if channel.is_stale(job, read_at):
                self._want_row(job.id)
                continue
            self._update(job.id, channel, View(job, places.get(job.id), read_at))
        self._tell_places(known)

    def _read_rows(
        self, known: Mapping[str, Brief]
    ) -> tuple[list[str], list[JobRecord], dict[str, Document]]:
        """On a thread: jobs that are gone, the rows of those that changed, and their places."""
        found = self._rows.history.briefs(list(known))
        missing = [job_id for job_id in known if job_id not in found]
        changed = [job_id for job_id, brief in found.items() if brief != known[job_id]]
        jobs = self._rows.history.jobs(changed) if changed else []
        return missing, jobs, self._rows.places(jobs)

    def _update(self, job_id: str, channel: _Channel, view: View) -> None:
        was = channel.view
        if view.place is None and was.place is not None and view.job.status == "queued":
            view = View(view.job, was.place, view.read_at)  # who waits does not ask for places
        if brief_of(was.job) == brief_of(view.job) and was.place == view.place:
            return
        channel.view = view
        self._deliver(job_id, channel, view)

    def _tell_places(self, job_ids: Iterable[str]) -> None:
        """Where the jobs of a batch are in the line, which moves without their rows changing."""
        for job_id in job_ids:
            channel, place = self._channels.get(job_id), self._places.get(job_id)
            if channel is None or place is None or channel.view.job.status != "queued":
                continue
            self._update(job_id, channel, View(channel.view.job, place, channel.view.read_at))
