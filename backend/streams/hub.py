"""One hub for all subscribers: it reads each followed job once, however many follow it.

Rows are read in batches that are spread over a second, and immediately when a stream says that a
job began or ended. A stream is read when Redis announces that its job was written to. Without
Redis, rows are read twice as often. The hub buffers nothing but references: a subscriber that does
not read loses stream entries, and gets their text from a row later.

Knows nothing of HTTP. Everything runs on one event loop; database queries run on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from textmill.backend.response_models import QueuePlace
from textmill.backend.services.queue_positions import QueuePositions
from textmill.backend.streams.subscribers import Item, JobSnapshot, Subscriber
from textmill.core.errors import Unavailable
from textmill.core.event_reader import READ_ENTRIES, EventReader
from textmill.core.events import EventsUnavailable, Kind, StreamEntry
from textmill.core.jobs.history import Brief, History, brief_of
from textmill.core.jobs.records import JobRecord

ROW_SECONDS = 1.0  # between two reads of a row
WITHOUT_REDIS_SECONDS = 0.5
RETRY_SECONDS = 2.0  # between two attempts to reach Redis
BATCH_JOBS = 100  # rows in one query, which costs some milliseconds of the interpreter's time
POSITION_JOBS = 5_000  # positions in one query; databases bound the parameters of a statement
CANCEL_SECONDS = 0.2
READ_JOBS = 50  # streams in one read
T = TypeVar("T")
log = structlog.get_logger(__name__)


class ThreadRunner(Protocol):
    """Runs blocking calls; ``backend.server.threads.Threads`` is one."""

    def run(self, call: Callable[[], T]) -> Awaitable[T]:
        """Return the result of a call that runs on a thread."""


class _FollowedJob:
    """A job with at least one subscriber."""

    __slots__ = ("entry_at", "entry_attempt", "last_id", "snapshot", "subscribers")

    def __init__(self, snapshot: JobSnapshot, last_id: tuple[int, int]) -> None:
        self.snapshot = snapshot
        self.last_id = last_id  # up to here its stream was read
        self.subscribers: set[Subscriber] = set()
        self.entry_attempt = 0  # the latest attempt in its stream, and when that was read
        self.entry_at = 0.0

    @property
    def wants_entries(self) -> bool:
        return any(subscriber.wants_entries for subscriber in self.subscribers)

    def is_stale(self, job: JobRecord, read_at: float) -> bool:
        """Return whether a row that was read at this time is older than what is known."""
        is_older = read_at < self.snapshot.read_at
        return is_older or (job.attempt < self.entry_attempt and read_at < self.entry_at)


class Hub:
    """Delivers news of jobs to subscribers. Its methods are called on one loop."""

    def __init__(
        self,
        history: History,
        positions: QueuePositions,
        reader: EventReader,
        threads: ThreadRunner,
    ) -> None:
        """Do nothing until the first subscription.

        Args:
            history: reads the rows.
            positions: reads queue positions.
            reader: reads the streams, on this loop.
            threads: where database queries run.
        """
        self._history = history
        self._positions = positions
        self._reader = reader
        self._threads = threads
        self._followed: dict[str, _FollowedJob] = {}
        self._written: dict[str, None] = {}  # jobs whose streams are due
        self._urgent: dict[str, None] = {}  # jobs whose rows are due immediately
        self._has_written = asyncio.Event()
        self._has_rows = asyncio.Event()
        self._queue_positions: dict[str, QueuePlace] = {}
        self._round: deque[list[str]] = deque()  # the batches of rows that are left this second
        self._num_batches = 1  # in the current round
        self._is_redis_up = True  # until the first attempt
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def num_jobs(self) -> int:
        """The number of followed jobs."""
        return len(self._followed)

    async def close(self) -> None:
        """Stop reading."""
        pending = set(self._tasks)
        while pending:  # a client library may swallow a cancellation while it connects
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
        await self._reader.close()

    # ---- subscriptions ----------------------------------------------------------------------

    def subscribe(
        self, subscriber: Subscriber, snapshot: JobSnapshot, last_id: tuple[int, int]
    ) -> None:
        """Deliver news of a job from now on.

        Args:
            subscriber: the receiver.
            snapshot: the job as the subscriber knows it.
            last_id: the stream id up to which the subscriber has the job's text.
        """
        if not self._tasks:
            self._start()
        job_id = snapshot.job.id
        followed = self._followed.get(job_id)
        if followed is None:
            followed = self._followed[job_id] = _FollowedJob(snapshot, last_id)
            self._has_rows.set()
        elif followed.is_stale(snapshot.job, snapshot.read_at):
            known = followed.snapshot
            if known.position is None and known.job.status == "queued":  # read for a wait
                followed.snapshot = JobSnapshot(known.job, snapshot.position, known.read_at)
            subscriber.put(job_id, followed.snapshot)
        else:
            self._update(job_id, followed, snapshot)
        followed.subscribers.add(subscriber)
        subscriber.job_ids.add(job_id)
        if subscriber.wants_entries:
            followed.last_id = min(followed.last_id, last_id)
            self._note_written({job_id: "token"})

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber, and the jobs that it alone followed."""
        for job_id in subscriber.job_ids:
            followed = self._followed.get(job_id)
            if followed is not None:
                followed.subscribers.discard(subscriber)
                if not followed.subscribers:
                    del self._followed[job_id]
        subscriber.job_ids.clear()

    def _start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run_forever(self._listen, "hub_listens")),
            asyncio.create_task(self._run_forever(self._read_streams, "hub_reads_streams")),
            asyncio.create_task(self._run_forever(self._read_rows, "hub_looks_at_rows")),
        ]

    async def _run_forever(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Restart a loop after any error: thousands of subscribers may depend on it."""
        while True:
            try:
                await work()
            except Exception as error:
                log.error("hub_failed", loop=name, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)

    def _deliver(self, job_id: str, followed: _FollowedJob, item: Item) -> None:
        for subscriber in followed.subscribers:
            if subscriber.wants_entries or not isinstance(item, StreamEntry):
                subscriber.put(job_id, item)

    # ---- streams ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            async for written in self._reader.written():
                if not self._is_redis_up:
                    log.warning("hub_redis_is_back")
                self._is_redis_up = True
                # The first item is empty: everything written before it is read now.
                self._note_written(written or dict.fromkeys(self._followed, "token"))
        except EventsUnavailable as error:
            if self._is_redis_up:
                log.warning("hub_redis_unavailable", reason=str(error)[:200])
            self._is_redis_up = False

    def _note_written(self, written: Mapping[str, Kind]) -> None:
        for job_id, kind in written.items():
            followed = self._followed.get(job_id)
            if followed is None:
                continue
            if followed.wants_entries:
                self._written[job_id] = None
                self._has_written.set()
            elif kind == "done":
                self._request_row(job_id)

    async def _read_streams(self) -> None:
        while True:
            await self._has_written.wait()
            batch = list(islice(self._written, READ_JOBS))
            if not batch or not self._is_redis_up:
                self._has_written.clear()
                self._written.clear()  # all streams are read when Redis is back
                continue
            positions = {
                job_id: "{}-{}".format(*self._followed[job_id].last_id)
                for job_id in batch
                if job_id in self._followed
            }
            for job_id in batch:
                del self._written[job_id]
            try:
                entries = await self._reader.read(positions)
            except EventsUnavailable:
                self._written |= dict.fromkeys(batch)
                await asyncio.sleep(WITHOUT_REDIS_SECONDS)
                continue
            self._deliver_entries(entries)

    def _deliver_entries(self, entries: list[StreamEntry]) -> None:
        counts: dict[str, int] = {}
        for entry in entries:
            followed = self._followed.get(entry.job_id)
            if followed is None:
                continue
            followed.last_id = max(followed.last_id, (entry.attempt, entry.end))
            if entry.attempt > followed.entry_attempt:
                followed.entry_attempt, followed.entry_at = entry.attempt, time.monotonic()
            self._deliver(entry.job_id, followed, entry)
            if entry.kind != "token":
                self._request_row(entry.job_id)
            counts[entry.job_id] = counts.get(entry.job_id, 0) + 1
        has_more: dict[str, Kind] = {
            job_id: "token" for job_id, count in counts.items() if count >= READ_ENTRIES
        }
        self._note_written(has_more)

    # ---- rows -------------------------------------------------------------------------------

    def _request_row(self, job_id: str) -> None:
        self._urgent[job_id] = None
        self._has_rows.set()

    async def _read_rows(self) -> None:
        """Read each row once a second, spread over the second, and urgent rows in between."""
        clock = asyncio.get_running_loop().time
        next_at = clock()
        while True:
            if self._urgent:
                batch = list(islice(self._urgent, BATCH_JOBS))
                for job_id in batch:
                    del self._urgent[job_id]
                await self._read_batch(batch)
                continue
            if clock() >= next_at:
                pause = await self._read_next_batch()
                next_at = clock() + pause
                continue
            self._has_rows.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._has_rows.wait()

    async def _read_next_batch(self) -> float:
        """Read the next batch of the round; return the pause before the one that follows."""
        seconds = ROW_SECONDS if self._is_redis_up else WITHOUT_REDIS_SECONDS
        if not self._round:
            job_ids = iter(list(self._followed))
            while batch := list(islice(job_ids, BATCH_JOBS)):
                self._round.append(batch)
            self._num_batches = max(1, len(self._round))
            await self._read_positions()
        if self._round:
            await self._read_batch(self._round.popleft())
        return seconds / self._num_batches

    async def _read_positions(self) -> None:
        queued = [
            followed.snapshot.job
            for followed in self._followed.values()
            if followed.snapshot.job.status == "queued" and followed.wants_entries
        ]
        positions: dict[str, QueuePlace] = {}
        for start in range(0, len(queued), POSITION_JOBS):
            part = queued[start : start + POSITION_JOBS]
            with contextlib.suppress(Unavailable):
                positions |= await self._threads.run(partial(self._positions.read, part))
        self._queue_positions = positions

    async def _read_batch(self, job_ids: list[str]) -> None:
        known = {
            job_id: brief_of(followed.snapshot.job)
            for job_id in job_ids
            if (followed := self._followed.get(job_id)) is not None
        }
        if not known:
            return
        read_at = time.monotonic()
        try:
            missing, changed, positions = await self._threads.run(lambda: self._changes(known))
        except Unavailable as error:
            log.warning("hub_rows_unavailable", reason=str(error)[:200])
            self._urgent |= dict.fromkeys(job_ids)
            await asyncio.sleep(WITHOUT_REDIS_SECONDS)
            return
        for job_id in missing:
            followed = self._followed.pop(job_id, None)
            if followed is not None:
                self._deliver(job_id, followed, None)
        for job in changed:
            followed = self._followed.get(job.id)
            if followed is None:
                continue
            if followed.is_stale(job, read_at):
                self._request_row(job.id)
                continue
            self._update(job.id, followed, JobSnapshot(job, positions.get(job.id), read_at))
        self._update_positions(known)

    def _changes(
        self, known: Mapping[str, Brief]
    ) -> tuple[list[str], list[JobRecord], dict[str, QueuePlace]]:
        """Return the deleted jobs, the changed jobs, and their positions. Runs on a thread."""
        found = self._history.briefs(list(known))
        missing = [job_id for job_id in known if job_id not in found]
        changed = [job_id for job_id, brief in found.items() if brief != known[job_id]]
        jobs = self._history.jobs(changed) if changed else []
        return missing, jobs, self._positions.read(jobs)

    def _update(self, job_id: str, followed: _FollowedJob, snapshot: JobSnapshot) -> None:
        old = followed.snapshot
        is_queued = snapshot.job.status == "queued"
        if is_queued and snapshot.position is None and old.position is not None:
            # The snapshot of a wait, which reads no position.
            snapshot = JobSnapshot(snapshot.job, old.position, snapshot.read_at)
        if brief_of(old.job) == brief_of(snapshot.job) and old.position == snapshot.position:
            return
        followed.snapshot = snapshot
        self._deliver(job_id, followed, snapshot)

    def _update_positions(self, job_ids: Iterable[str]) -> None:
        """Deliver the positions of a batch: they change without a change of the jobs' rows."""
        for job_id in job_ids:
            followed, position = self._followed.get(job_id), self._queue_positions.get(job_id)
            if followed is None or position is None or followed.snapshot.job.status != "queued":
                continue
            snapshot = JobSnapshot(followed.snapshot.job, position, followed.snapshot.read_at)
            self._update(job_id, followed, snapshot)
