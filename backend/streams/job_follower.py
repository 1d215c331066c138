"""Follows jobs for a watcher: what the stream says, checked and completed by the row.

A place in a text is an attempt and a number of characters, and it means the same in the Redis
stream and in the row. So both may be mixed freely: a stream entry that overlaps what was sent is
cut, one that leaves a gap is passed over until the row has filled it, and the final row completes
whatever is missing. Pure logic: no Redis, no database, no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord

MAX_KEPT_ENTRIES = 1_000  # beyond a gap; the row has caught up long before
_PLACE = re.compile(r"(\d{1,9})-(\d{1,9})(-done)?", re.ASCII)
_PART = re.compile(r"(\d{1,19}):(\d{1,9}-\d{1,9}(?:-done)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """How much of which attempt a watcher has, and whether it was told that the job is done.

    Told or not must be said apart: a lost worker may have streamed more than its row was left
    with, and a number beyond the text's end would mean both.
    """

    attempt: int = 0
    num_characters: int = 0
    is_done: bool = False

    def __str__(self) -> str:
        return f"{self.attempt}-{self.num_characters}" + ("-done" if self.is_done else "")


# An id that nobody can place: the watcher may have any text, and is told to drop it.
UNKNOWN_POSITION = Place(attempt=-1, num_characters=1)


def end_place(job: JobRecord) -> Place:
    """Where a watcher is who was told all of a job that has ended."""
    return Place(job.attempt, len(job.text), is_done=True)


def parse_place(text: str) -> Place:
    """The place in the id of an event of one job.

    Raises:
        ValidationFailed: it is not such an id.
    """
    match = _PLACE.fullmatch(text.strip())
    if match is None:
        raise ValidationFailed([FieldError("after", "must be the id of an event of this stream")])
    return Place(int(match[1]), int(match[2]), match[3] is not None)


def parse_run_places(text: str) -> dict[int, Place]:
    """The places in the id of an event of a run, by the numbers of its jobs.

    A job may be missing (the watcher has nothing of it) and one may be there that was deleted.

    Raises:
        ValidationFailed: it is not such an id.
    """
    found = [_PART.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValidationFailed([FieldError("after", "must be the id of an event of this stream")])
    return {int(match[1]): parse_place(match[2]) for match in found if match}


def run_id_of(places: Mapping[int, Place]) -> str:
    """The id that stands for places in a run's jobs, by their numbers."""
    return ",".join(f"{number}:{place}" for number, place in places.items())


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event for the watcher; ``status``, ``token``, ``reset`` or ``done``."""

    name: str
    place: Place
    data: dict[str, Any] = field(default_factory=dict)


class JobFollower:
    """Turns rows and stream entries of one job into events, nothing lost or doubled."""

    def __init__(self, job_id: str, place: Place) -> None:
        """Start where the watcher is."""
        self.job_id = job_id
        self.place = place
        self.is_ended = False
        self._beyond_gap: list[StreamEntry] = []
        self._shown: tuple[Any, ...] | None = None

    def on_row(self, job: JobRecord, queue_place: dict[str, Any] | None = None) -> list[WatchEvent]:
        """The row as it stands now; an ended follower says nothing more."""
        if self.is_ended:
            return []
        if has_everything(job, self.place):
            self.is_ended = True
            return []
        events: list[WatchEvent] = []
        is_ahead = job.is_final and self.place.num_characters > len(job.text)
        if job.attempt != self.place.attempt or is_ahead or self.place.is_done:
            events += self._restart(job.attempt)
        shown = (job.status, job.attempt, job.cancel_requested_at is not None, str(queue_place))
        if shown != self._shown and not (job.is_final and self._shown):
            self._shown = shown
            events.append(WatchEvent("status", self.place, {"job": job, "queue": queue_place}))
        if len(job.text) > self.place.num_characters:
            rest = job.text[self.place.num_characters :]
            events.append(self._advance(rest, job.num_completion_tokens))
        events += self._replay()
        if job.is_final:
            self.is_ended = True
            self.place = end_place(job)
            events.append(WatchEvent("done", self.place, {"job": job}))
        return events

    def on_entry(self, entry: StreamEntry) -> tuple[list[WatchEvent], bool]:
        """A stream entry; also tells whether the row should be looked at now."""
        if self.is_ended or entry.attempt < self.place.attempt:
            return [], False
        events: list[WatchEvent] = []
        if entry.attempt > self.place.attempt:
            events += self._restart(entry.attempt)
        if entry.kind != "token":
            return events, True
        if entry.end - len(entry.text) > self.place.num_characters:
            self._beyond_gap.append(entry)
            del self._beyond_gap[:-MAX_KEPT_ENTRIES]
        else:
            events += self._append(entry)
        return events, False

    def _append(self, entry: StreamEntry) -> list[WatchEvent]:
        """What of an entry is new to the watcher."""
        if entry.end <= self.place.num_characters:
            return []
        start = entry.end - len(entry.text)
        return [self._advance(entry.text[self.place.num_characters - start :], entry.num_tokens)]

    def _replay(self) -> list[WatchEvent]:
        """Entries beyond a gap that the row has now filled."""
        events: list[WatchEvent] = []
        while self._beyond_gap:
            entry = self._beyond_gap[0]
            if entry.end - len(entry.text) > self.place.num_characters:
                break
            events += self._append(self._beyond_gap.pop(0))
        return events

    def _advance(self, text: str, num_tokens: int) -> WatchEvent:
        self.place = Place(self.place.attempt, self.place.num_characters + len(text))
        return WatchEvent("token", self.place, {"text": text, "tokens": num_tokens})

    def _restart(self, attempt: int) -> list[WatchEvent]:
        """Begin an attempt; a watcher who has text of another one is told to drop it."""
        had_text = self.place.num_characters > 0
        self.place = Place(attempt, 0)
        self._beyond_gap = []
        return [WatchEvent("reset", self.place, {"attempt": attempt})] if had_text else []


def has_everything(job: JobRecord, place: Place) -> bool:
    """Whether a watcher at this place was already told that the job is done."""
    return job.is_final and place == end_place(job)
