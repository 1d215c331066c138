"""Follows one job for a reader: merges stream entries and database rows into events.

A position means the same in the Redis stream and in the row (``backend.streams.positions``), so the
two can be mixed freely. Of an entry that overlaps the reader's text, only the new part is sent. An
entry that leaves a gap is kept until a row has filled the gap, and the final row supplies whatever
is missing. Pure logic: no Redis, no database, no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from textmill.backend.response_models import QueuePlace
from textmill.backend.streams.positions import StreamPosition, end_position, has_everything
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

MAX_KEPT_ENTRIES = 1_000  # entries kept beyond a gap; a row fills it long before that


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event for the reader.

    Attributes:
        name: ``status``, ``token``, ``reset`` or ``done``.
        position: the reader's position after the event.
        data: its data; for ``status`` and ``done``, the record under ``job``.
    """

    name: str
    position: StreamPosition
    data: dict[str, Any] = field(default_factory=dict)


class JobFollower:
    """Turns rows and stream entries of one job into events, none lost and none duplicated."""

    def __init__(self, job_id: str, position: StreamPosition) -> None:
        """Start at the reader's position."""
        self.job_id = job_id
        self.position = position
        self.is_ended = False
        self._beyond_gap: list[StreamEntry] = []
        self._last_status: tuple[Any, ...] | None = None

    def on_row(self, job: JobRecord, queue_position: QueuePlace | None = None) -> list[JobEvent]:
        """Return the events of a row; none after ``done``."""
        if self.is_ended:
            return []
        if has_everything(job, self.position):
            self.is_ended = True
            return []
        events: list[JobEvent] = []
        is_ahead = job.is_final and self.position.num_characters > len(job.text)
        if job.attempt != self.position.attempt or is_ahead or self.position.is_done:
            events += self._restart(job.attempt)
        status = (job.status, job.attempt, job.cancel_requested_at is not None, str(queue_position))
        if status != self._last_status and not (job.is_final and self._last_status):
            self._last_status = status
            events.append(JobEvent("status", self.position, {"job": job}))
        if len(job.text) > self.position.num_characters:
            rest = job.text[self.position.num_characters :]
            events.append(self._advance(rest, job.num_completion_tokens))
        if not job.is_final:
            events += self._replay()
        else:  # its text is complete; kept entries may be of a worker that lost the job
            self.is_ended = True
            self.position = end_position(job)
            events.append(JobEvent("done", self.position, {"job": job}))
        return events

    def on_entry(self, entry: StreamEntry) -> tuple[list[JobEvent], bool]:
        """Return the events of a stream entry, and whether the row should be read now."""
        if self.is_ended or entry.attempt < self.position.attempt:
            return [], False
        events: list[JobEvent] = []
        if entry.attempt > self.position.attempt:
            events += self._restart(entry.attempt)
        if entry.kind != "token":
            return events, True
        if entry.end - len(entry.text) > self.position.num_characters:
            self._beyond_gap.append(entry)
            del self._beyond_gap[:-MAX_KEPT_ENTRIES]
        else:
            events += self._append(entry)
        return events, False

    def _append(self, entry: StreamEntry) -> list[JobEvent]:
        """Return the part of an entry that the reader does not have."""
        if entry.end <= self.position.num_characters:
            return []
        start = entry.end - len(entry.text)
        new = entry.text[self.position.num_characters - start :]
        return [self._advance(new, entry.num_tokens)]

    def _replay(self) -> list[JobEvent]:
        """Return the events of kept entries whose gap a row has filled."""
        events: list[JobEvent] = []
        while self._beyond_gap:
            entry = self._beyond_gap[0]
            if entry.end - len(entry.text) > self.position.num_characters:
                break
            events += self._append(self._beyond_gap.pop(0))
        return events

    def _advance(self, text: str, num_tokens: int) -> JobEvent:
        num_characters = self.position.num_characters + len(text)
        self.position = StreamPosition(self.position.attempt, num_characters)
        return JobEvent("token", self.position, {"text": text, "tokens": num_tokens})

    def _restart(self, attempt: int) -> list[JobEvent]:
        """Begin an attempt; ``reset`` tells a reader to drop the text of an earlier one."""
        had_text = self.position.num_characters > 0
        self.position = StreamPosition(attempt, 0)
        self._beyond_gap = []
        return [JobEvent("reset", self.position, {"attempt": attempt})] if had_text else []
