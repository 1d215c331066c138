"""Positions of queued jobs, and estimates of when those jobs end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine

from textmill.backend.response_models import QueuePlace
from textmill.core.jobs.history import History
from textmill.core.jobs.records import JobRecord
from textmill.core.workers import seen_workers

UNKNOWN_POSITION: QueuePlace = {"position": None, "eta_seconds": None}
SPEED_SECONDS = 1.0  # maximum age of a speed; every submission asks for one


@dataclass(frozen=True, slots=True)
class QueueSpeed:
    """How fast the queue of one model moves.

    Attributes:
        mean_seconds: mean duration of recent jobs, from start to end; ``None`` without any.
        num_slots: number of jobs that all workers together run at once.
        read_at: time of the reading, by ``time.monotonic``.
    """

    mean_seconds: float | None
    num_slots: int
    read_at: float

    @property
    def is_known(self) -> bool:
        """Whether an estimate can be given."""
        return self.mean_seconds is not None and self.num_slots > 0


class QueuePositions:
    """Reads positions at every call, and the speed of each model at most once a second.

    Any thread may call it.
    """

    def __init__(self, engine: Engine, history: History) -> None:
        self._engine = engine
        self._history = history
        self._lock = threading.Lock()
        self._speeds: dict[str, QueueSpeed] = {}  # guarded by _lock

    def read(self, jobs: Iterable[JobRecord]) -> dict[str, QueuePlace]:
        """Return the position and the estimate of each queued job, by id.

        The positions take one query, however many jobs there are.
        """
        queued = [job for job in jobs if job.status == "queued"]
        if not queued:
            return {}
        positions = self._history.positions(queued)
        speeds = self._speeds_of({job.model for job in queued})
        # A job without a position was claimed between the two reads, so it was the first.
        return {job.id: _estimate(positions.get(job.id, 1), speeds[job.model]) for job in queued}

    def _speeds_of(self, models: set[str]) -> dict[str, QueueSpeed]:
        now = time.monotonic()
        with self._lock:
            known = {m: s for m, s in self._speeds.items() if now - s.read_at < SPEED_SECONDS}
        if missing := models - known.keys():
            workers = seen_workers(self._engine)
            for model in missing:
                num_slots = sum(worker.num_slots for worker in workers if model in worker.models)
                known[model] = QueueSpeed(self._history.mean_seconds(model), num_slots, now)
            with self._lock:  # an unknown speed is read again at the next call
                self._speeds = {m: s for m, s in known.items() if s.is_known}
        return known


def _estimate(position: int, speed: QueueSpeed) -> QueuePlace:
    eta = None
    if speed.mean_seconds is not None and speed.num_slots:
        eta = round(speed.mean_seconds * (1 + (position - 1) // speed.num_slots), 1)
    return {"position": position, "eta_seconds": eta}
