"""Reports to the database which models this worker leaves out and why.

No error here ends a load or a loop: a report that cannot be stored now is stored at the next call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from textmill.core.database.connections import make_engine
from textmill.core.errors import TextmillError
from textmill.core.problems import REMEMBERED_SECONDS, Kind, Subject, solve
from textmill.core.problems import report as store_problem

log = structlog.get_logger(__name__)


class Board(Protocol):
    """Receives problems and their resolutions."""

    def report(self, kind: Kind, name: str, reason: str | None) -> None:
        """Report why something is left out; ``None`` withdraws the report."""

    def send(self) -> None:
        """Store new reports; called from one thread at a time."""


class NoBoard:
    """Discards all reports."""

    def report(self, kind: Kind, name: str, reason: str | None) -> None:
        """Do nothing."""

    def send(self) -> None:
        """Do nothing."""


class ProblemBoard:
    """The problems of one worker, which ``send`` writes to the database."""

    def __init__(
        self, database_url: str, host: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database_url = database_url
        self._host = host
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[Kind, str], str | None] = {}  # guarded by _lock
        self._sent: dict[tuple[Kind, str], tuple[str | None, float]] = {}

    def report(self, kind: Kind, name: str, reason: str | None) -> None:
        """Report why something is left out; ``None`` withdraws the report."""
        with self._lock:
            self._known[kind, name] = reason

    def send(self) -> None:
        """Store new reports, and repeat those that would soon expire."""
        with self._lock:
            due = {key: reason for key, reason in self._known.items() if self._is_due(key, reason)}
        if not due:
            return
        engine: Engine | None = None
        try:
            engine = make_engine(self._database_url, pool_size=1)
            for (kind, name), reason in due.items():
                subject = Subject(self._host, kind, name)
                if reason is None:
                    solve(engine, subject)
                else:
                    store_problem(engine, subject, reason, REMEMBERED_SECONDS)
                self._sent[kind, name] = reason, self._clock()
        except (TextmillError, SQLAlchemyError) as error:
            log.warning("problem_not_stored", reason=type(error).__name__)
        finally:
            if engine is not None:
                engine.dispose()

    def _is_due(self, key: tuple[Kind, str], reason: str | None) -> bool:
        sent, at = self._sent.get(key, ("", 0.0))
        is_old = reason is not None and self._clock() - at > REMEMBERED_SECONDS / 2
        return key not in self._sent or sent != reason or is_old
