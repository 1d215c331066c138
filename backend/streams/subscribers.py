"""Subscribers of the hub, and the items that each one has still to receive.

Knows nothing of the database and of Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator

from textmill.backend.response_models import QueuePlace
from textmill.backend.serializers import job_view
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

MAX_PENDING = 1_000  # items kept for a subscriber that does not read


class JobSnapshot:
    """A job as it was read; its document is rendered once for all subscribers."""

    __slots__ = ("_text", "job", "position", "read_at")

    def __init__(self, job: JobRecord, position: QueuePlace | None, read_at: float) -> None:
        """Keep the record.

        Args:
            job: the record.
            position: the job's position in the queue.
            read_at: a time of ``time.monotonic`` before the record was read.
        """
        self.job = job
        self.position = position
        self.read_at = read_at
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The job's document as JSON in ASCII."""
        if self._text is None:
            self._text = json.dumps(job_view(self.job, self.position))
        return self._text


Item = JobSnapshot | StreamEntry | None
"""``None`` means that the job was deleted."""


class Subscriber:
    """A queue of items about some jobs, in order."""

    def __init__(self, unsubscribe: Callable[[Subscriber], None], *, wants_entries: bool) -> None:
        """Start with an empty queue.

        Args:
            unsubscribe: called once, by ``close``.
            wants_entries: whether this subscriber gets stream entries, or snapshots alone.
        """
        self.wants_entries = wants_entries
        self.is_closed = False
        self.job_ids: set[str] = set()
        self._unsubscribe = unsubscribe
        self._pending: list[tuple[str, Item]] = []
        self._wakeup: asyncio.Future[None] | None = None

    def put(self, job_id: str, item: Item) -> None:
        """Append an item; drops the stream entries if too many items are pending."""
        self._pending.append((job_id, item))
        if len(self._pending) > MAX_PENDING:
            self._pending = list(_without_entries(self._pending))
        self._wake()

    async def receive(self, seconds: float) -> list[tuple[str, Item]]:
        """Return all pending items; waits for one, and returns none after a time-out or close."""
        if not self._pending and not self.is_closed and seconds > 0:
            self._wakeup = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wakeup
        items, self._pending = self._pending, []
        return items

    def close(self) -> None:
        """Unsubscribe, and let ``receive`` return."""
        if not self.is_closed:
            self.is_closed = True
            self._unsubscribe(self)
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def _without_entries(items: Iterable[tuple[str, Item]]) -> Iterator[tuple[str, Item]]:
    """Keep the latest snapshot of each job; it contains the text of the dropped entries."""
    latest = {job_id: item for job_id, item in items if not isinstance(item, StreamEntry)}
    return iter(latest.items())
