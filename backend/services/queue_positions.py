"""Where queued jobs stand, and when they may be done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine

from textmill.backend.serializers import Document
from textmill.core.jobs.history import History
from textmill.core.jobs.records import JobRecord
from textmill.core.workers import seen_workers

UNKNOWN_POSITION: Document = {"position": None, "eta_seconds": None}
SPEED_SECONDS = 1.0  # an estimate may be as old as this; every submission asks for one


@dataclass(frozen=True, slots=True)
class QueueSpeed:
    """How fast a model's line moves.

    Attributes:
        mean_seconds: of a job from its start to its end; ``None`` where none has ended lately.
        num_slots: jobs that run at once, on all workers together.
        read_at: when this was so, by ``time.monotonic``.
    """

    mean_seconds: float | None
    num_slots: int
    read_at: float

    @property
    def is_known(self) -> bool:
        """Whether an estimate can be given."""
        return self.mean_seconds is not None and self.num_slots > 0


class QueuePositions:
    """Reads positions afresh, and the speed of each model once a second. Any thread may ask."""

    def __init__(self, engine: Engine, history: History) -> None:
        """Nothing is read yet."""
        self._engine = engine
        self._history = history
        self._lock = threading.Lock()
        self._speeds: dict[str, QueueSpeed] = {}  # guarded by _lock

    def places(self, jobs: Iterable[JobRecord]) -> dict[str, Document]:
        """By id, the position of each queued job, and when it may be done.

        Asks one query for the positions, however many jobs there are.
        """
        queued = [job for job in jobs if job.status == "queued"]
        if not queued:
            return {}
        positions = self._history.positions(queued)
        speeds = self._speeds_of({job.model for job in queued})
        # One that is no longer in the line has just been claimed: it was the first.
        return {job.id: _place(positions.get(job.id, 1), speeds[job.model]) for job in queued}

    def _speeds_of(self, models: set[str]) -> dict[str, QueueSpeed]:
        now = time.monotonic()
        with self._lock:
            known = {m: p for m, p in self._speeds.items() if now - p.read_at < SPEED_SECONDS}
        if missing := models - known.keys():
            workers = seen_workers(self._engine)
            for model in missing:
                num_slots = sum(worker.num_slots for worker in workers if model in worker.models)
                known[model] = QueueSpeed(self._history.mean_seconds(model), num_slots, now)
            with self._lock:  # what allows no estimate yet is looked for each time
                self._speeds = {m: p for m, p in known.items() if p.is_known}
        return known


def _place(position: int, speed: QueueSpeed) -> Document:
    eta = None
    if speed.mean_seconds is not None and speed.num_slots:
        eta = round(speed.mean_seconds * (1 + (position - 1) // speed.num_slots), 1)
    return {"position": position, "eta_seconds": eta}
