"""A stream of completions: unnamed events with pieces of text, then the usage, then ``[DONE]``.

A job that begins again on another worker writes the same text again, since its seed is stored: what
was sent already is left out. OpenAI's protocol could not take it back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from textmill.backend.openai.errors import error_object
from textmill.backend.streams.hub import Hub
from textmill.backend.streams.job_follower import JobFollower
from textmill.backend.streams.positions import StreamPosition
from textmill.backend.streams.subscribers import Item, JobSnapshot, Subscriber
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

COMMENT_SECONDS = 15.0  # keeps proxies from closing a quiet stream


class ChunkWriter(Protocol):
    """Writes the documents of one kind of stream."""

    def begin(self, job: JobRecord) -> list[dict[str, Any]]:
        """The chunks before the text of a job."""

    def text(self, job: JobRecord, text: str, end: int) -> dict[str, Any]:
        """The chunk of a piece of text, which ends at this character of the job's text."""

    def end(self, job: JobRecord, rest: str) -> list[dict[str, Any]]:
        """The last chunks of a job; called on a thread. ``rest`` is the text not sent yet."""

    def close(self, jobs: list[JobRecord]) -> list[dict[str, Any]]:
        """The chunks after all jobs."""

    def fail(self, job: JobRecord, error: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a failure, after which the stream ends."""

    def event(self, chunk: Mapping[str, Any]) -> str:
        """A chunk as a server-sent event."""

    @property
    def last_line(self) -> str:
        """What the stream ends with."""

    @property
    def holds_text_back(self) -> bool:
        """Whether the text is sent at the end of a job, and not in pieces."""


@dataclass(frozen=True, slots=True)
class CompletionSpec:
    """A stream to open.

    Attributes:
        jobs: their records.
        writer: of the chunks.
        read_at: a time of ``time.monotonic`` before the records were read.
        on_abandon: called if the client disconnects before the end.
    """

    jobs: tuple[JobRecord, ...]
    writer: ChunkWriter
    read_at: float
    on_abandon: Callable[[], None]
    num_known: int = 0  # characters of each text that the client has

    def open(self, hub: Hub) -> CompletionStream:
        """Open the stream."""
        return CompletionStream(hub, self)


class CompletionStream:
    """One open stream of completions."""

    def __init__(self, hub: Hub, spec: CompletionSpec) -> None:
        """Subscribe to the jobs from their beginning."""
        self._writer = spec.writer
        self._on_abandon = spec.on_abandon
        self._jobs = {job.id: job for job in spec.jobs}
        self._followers = {job.id: JobFollower(job.id, StreamPosition()) for job in spec.jobs}
        self._num_sent = dict.fromkeys(self._jobs, spec.num_known)  # characters
        self._ended: list[JobRecord] = []  # whose last chunks are not written yet
        self._finished: list[JobRecord] = []
        self._lines: list[str] = []
        self._failure: list[dict[str, Any]] | None = None
        self._subscriber = Subscriber(hub.unsubscribe, wants_entries=True)
        for job in spec.jobs:
            self._lines += map(self._writer.event, self._writer.begin(job))
            snapshot = JobSnapshot(job, None, spec.read_at)
            self._add(job.id, snapshot)
            if not job.is_final:
                hub.subscribe(self._subscriber, snapshot, (0, 0))

    def close(self) -> None:
        """End the stream."""
        self._subscriber.close()

    async def finished(self) -> None:
        """Return at once: a stream is a response of its own."""

    def abandon(self) -> None:
        """Tell the caller that its client has gone."""
        self._on_abandon()

    async def chunks(self) -> AsyncIterator[str]:
        """Yield the text of the stream until all jobs have ended."""
        sent_at = time.monotonic()
        while not self._subscriber.is_closed:
            while self._ended and self._failure is None:
                job = self._ended.pop(0)
                rest = job.text[self._num_sent[job.id] :]
                ended = await asyncio.to_thread(self._writer.end, job, rest)
                self._lines += map(self._writer.event, ended)
                self._finished.append(job)
            is_over = len(self._finished) == len(self._jobs) or self._failure is not None
            if is_over:
                self._close()
            if self._lines:
                sent_at = time.monotonic()
                text, self._lines = "".join(self._lines), []
                yield text
            if is_over:
                break
            items = await self._subscriber.receive(sent_at + COMMENT_SECONDS - time.monotonic())
            for job_id, item in items:
                self._add(job_id, item)
            if not self._lines and time.monotonic() - sent_at >= COMMENT_SECONDS:
                self._lines.append(": still here\n\n")
        self._subscriber.close()

    def _close(self) -> None:
        chunks = self._writer.close(self._finished) if self._failure is None else self._failure
        self._lines += [*map(self._writer.event, chunks), self._writer.last_line]

    def _add(self, job_id: str, item: Item) -> None:
        follower = self._followers[job_id]
        if item is None:
            error = error_object(500, "deleted", "The job of this text was deleted.")
            self._failure = self._writer.fail(self._jobs[job_id], error)
            return
        if isinstance(item, StreamEntry):
            events, _ = follower.on_entry(item)
        else:
            self._jobs[job_id] = item.job
            events = follower.on_row(item.job)
        for one in events:
            if one.name == "token":
                self._add_text(job_id, one.data["text"], one.position.num_characters)
            elif one.name == "done":
                self._end(one.data["job"])

    def _add_text(self, job_id: str, text: str, end: int) -> None:
        if self._writer.holds_text_back:
            return
        new = text[max(0, self._num_sent[job_id] - (end - len(text))) :]
        if new:
            self._num_sent[job_id] = end
            chunk = self._writer.text(self._jobs[job_id], new, end)
            self._lines.append(self._writer.event(chunk))

    def _end(self, job: JobRecord) -> None:
        if job.status == "failed":
            code, message = job.error_code or "failed", job.error_message or "The job failed."
            self._failure = self._writer.fail(job, error_object(500, code, message))
        else:
            self._ended.append(job)
