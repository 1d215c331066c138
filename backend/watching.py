"""Server-sent events: drives the followers from Redis and the database, and writes the lines.

Asks the row once a second at most, or at once when the stream says that it changed; without Redis
twice a second. Holds no database connection between two looks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from backend.event_stream import JobFollower, Place, WatchEvent, run_id_of
from backend.presenting import job_document
from backend.services import Services
from core.events import EventsUnavailable, StreamEntry
from core.records import JobRecord

ROW_SECONDS = 1.0
WITHOUT_REDIS_SECONDS = 0.5
COMMENT_SECONDS = 15.0  # keeps proxies from closing a quiet stream, and finds out who has gone
RETRY_MS = 1_000


class Watch:
    """One open event stream over one job, or over all jobs of a run."""

    def __init__(
        self, services: Services, jobs: list[JobRecord], places: list[Place], *, is_run: bool
    ):
        """Start at the watcher's places, one a job."""
        self._services = services
        self._is_run = is_run
        self._followers = {
            job.id: JobFollower(job.id, place) for job, place in zip(jobs, places, strict=True)
        }
        self._numbers = {job.id: job.number for job in jobs}
        # What the watcher has been told, which the ids say; a follower may be ahead of it.
        self._told = {job.number: place for job, place in zip(jobs, places, strict=True)}
        self._last_ids = {job_id: _stream_id(f.place) for job_id, f in self._followers.items()}
        self._spoke_at = time.monotonic()

    def lines(self) -> Iterator[str]:
        """The stream's text, until all jobs have ended."""
        yield f": open\nretry: {RETRY_MS}\n\n"
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                yield from self._look()
                look_at = time.monotonic() + ROW_SECONDS
            if all(follower.is_ended for follower in self._followers.values()):
                if self._is_run:
                    yield self._line("end", {})
                return
            entries, is_redis_up = self._read(look_at - time.monotonic())
            for entry in entries:
                events, wants_row = self._followers[entry.job_id].on_entry(entry)
                yield from self._say(entry.job_id, events)
                look_at = 0.0 if wants_row else look_at
            if not is_redis_up:
                look_at = 0.0
            if time.monotonic() - self._spoke_at > COMMENT_SECONDS:
                self._spoke_at = time.monotonic()
                yield ": still here\n\n"

    def _look(self) -> Iterator[str]:
        open_ids = [job_id for job_id, f in self._followers.items() if not f.is_ended]
        jobs = {job.id: job for job in self._services.history.jobs(open_ids)}
        queue_places = self._services.places(jobs.values())
        for job_id in open_ids:
            follower = self._followers[job_id]
            job = jobs.get(job_id)
            if job is None:
                follower.is_ended = True
                yield self._line("deleted", {"job_id": job_id})
                continue
            events = follower.on_row(job, queue_places.get(job_id))
            if any(event.name == "reset" for event in events):
                self._last_ids[job_id] = _stream_id(follower.place)
            yield from self._say(job_id, events)

    def _read(self, seconds: float) -> tuple[list[StreamEntry], bool]:
        positions = {
            job_id: self._last_ids[job_id]
            for job_id, follower in self._followers.items()
            if not follower.is_ended
        }
        try:
            entries = self._services.bus.read(positions, int(max(0.01, seconds) * 1000))
        except EventsUnavailable:
            time.sleep(WITHOUT_REDIS_SECONDS)
            return [], False
        for entry in entries:
            self._last_ids[entry.job_id] = f"{entry.attempt}-{entry.end}"
        return entries, True

    def _say(self, job_id: str, events: list[WatchEvent]) -> Iterator[str]:
        for event in events:
            # One event at a time: the watcher may go after any of them.
            self._told[self._numbers[job_id]] = event.place
            yield self._line(event.name, self._data(job_id, event))

    def _data(self, job_id: str, event: WatchEvent) -> dict[str, Any]:
        if event.name in {"status", "done"}:
            document = job_document(event.data["job"], event.data.get("queue"))
            return {"job_id": job_id, "job": document} if self._is_run else document
        return {"job_id": job_id, **event.data} if self._is_run else event.data

    def _line(self, name: str, data: dict[str, Any]) -> str:
        self._spoke_at = time.monotonic()
        # ASCII only: no line break of Unicode's can end up in a data line.
        return f"id: {self._id()}\nevent: {name}\ndata: {json.dumps(data)}\n\n"

    def _id(self) -> str:
        """The id of what was just told: a job's place, or those of all jobs of a run."""
        if self._is_run:
            return run_id_of(self._told)
        (place,) = self._told.values()
        return str(place)


def _stream_id(place: Place) -> str:
    """Where to read on; before the first attempt everything is new."""
    return f"{place.attempt}-{place.num_characters}" if place.attempt > 0 else "0-0"
