"""Those who watch, and what they have still to hear. Knows neither database nor Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator

from textmill.backend.serializers import Document, job_document
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

MAX_WAITING = 1_000  # items that wait for a watcher that does not read


class View:
    """A job as it was when it was read; its document is rendered once for all who watch it."""

    __slots__ = ("_text", "job", "place", "read_at")

    def __init__(self, job: JobRecord, place: Document | None, read_at: float) -> None:
        """``read_at`` is an instant of ``time.monotonic`` before the row was read."""
        self.job = job
        self.place = place
        self.read_at = read_at
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The job's document as JSON in ASCII."""
        if self._text is None:
            self._text = json.dumps(job_document(self.job, self.place))
        return self._text


Item = View | StreamEntry | None  # ``None``: the job is no longer there


class Watcher:
    """What one watcher has still to hear, in order."""

    def __init__(self, part: Callable[[Watcher], None], *, wants_entries: bool) -> None:
        """Hear nothing yet.

        Args:
            part: called when the watcher leaves.
            wants_entries: whether streams matter, or rows alone.
        """
        self.wants_entries = wants_entries
        self.has_left = False
        self.job_ids: set[str] = set()
        self._part = part
        self._waiting: list[tuple[str, Item]] = []
        self._stirred: asyncio.Future[None] | None = None

    def put(self, job_id: str, item: Item) -> None:
        """Add news of a job."""
        self._waiting.append((job_id, item))
        if len(self._waiting) > MAX_WAITING:
            self._waiting = list(_without_entries(self._waiting))
        self._stir()

    async def take(self, seconds: float) -> list[tuple[str, Item]]:
        """All that waits; empty where nothing comes in time, or the watcher has left."""
        if not self._waiting and not self.has_left and seconds > 0:
            self._stirred = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stirred
        taken, self._waiting = self._waiting, []
        return taken

    def leave(self) -> None:
        """Hear nothing more."""
        if not self.has_left:
            self.has_left = True
            self._part(self)
            self._stir()

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)


def _without_entries(items: Iterable[tuple[str, Item]]) -> Iterator[tuple[str, Item]]:
    """The latest row of each job: a follower takes from it what the entries would have said."""
    latest = {job_id: item for job_id, item in items if not isinstance(item, StreamEntry)}
    return iter(latest.items())
