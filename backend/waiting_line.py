"""Where queued jobs stand, and when they may be done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine

from backend.presenting import Document
from core.history import History
from core.records import JobRecord
from core.workers import seen_workers

UNKNOWN_PLACE: Document = {"position": None, "eta_seconds": None}
PACE_SECONDS = 1.0  # an estimate may be as old as this; every submission asks for one


@dataclass(frozen=True, slots=True)
class Pace:
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


class WaitingLine:
    """Reads positions afresh, and the pace of each model once a second. Any thread may ask."""

    def __init__(self, engine: Engine, history: History) -> None:
        """Nothing is read yet."""
        self._engine = engine
        self._history = history
        self._lock = threading.Lock()
        self._paces: dict[str, Pace] = {}  # guarded by _lock

    def places(self, jobs: Iterable[JobRecord]) -> dict[str, Document]:
        """By id, the position of each queued job, and when it may be done.

        Asks one query for the positions, however many jobs there are.
        """
        queued = [job for job in jobs if job.status == "queued"]
        if not queued:
            return {}
        positions = self._history.positions(queued)
        paces = self._paces_of({job.model for job in queued})
        # One that is no longer in the line has just been claimed: it was the first.
        return {job.id: _place(positions.get(job.id, 1), paces[job.model]) for job in queued}

    def _paces_of(self, models: set[str]) -> dict[str, Pace]:
        now = time.monotonic()
        with self._lock:
            known = {m: p for m, p in self._paces.items() if now - p.read_at < PACE_SECONDS}
        if missing := models - known.keys():
            workers = seen_workers(self._engine)
            for model in missing:
                num_slots = sum(worker.num_slots for worker in workers if model in worker.models)
                known[model] = Pace(self._history.mean_seconds(model), num_slots, now)
            with self._lock:  # what allows no estimate yet is looked for each time
                self._paces = {m: p for m, p in known.items() if p.is_known}
        return known


def _place(position: int, pace: Pace) -> Document:
    eta = None
    if pace.mean_seconds is not None and pace.num_slots:
        eta = round(pace.mean_seconds * (1 + (position - 1) // pace.num_slots), 1)
    return {"position": position, "eta_seconds": eta}
