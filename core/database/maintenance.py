"""Maintenance of the database: search terms by the current rules, retention, folding, statistics.

A loop in each worker does it in small steps. Any number of processes may do so at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, bindparam, select, text, update

from textmill.core.database.connections import reading, writing
from textmill.core.database.tables import JOBS, Job
from textmill.core.jobs.folding import fold
from textmill.core.jobs.retention import BATCH_JOBS, expire
from textmill.core.jobs.search import RULES, search_columns

BATCH_ROWS = 50  # of one transaction: 25 MiB of the longest texts, milliseconds for usual ones
UPKEEP_SECONDS = 5.0  # between two steps
STEP_SECONDS = 0.25  # time of one step: a twentieth of a core, until all jobs are done
ANALYZE_SECONDS = 600.0
FOLD_SECONDS = 3_600.0  # from the end of the old events to the next look
ANALYSIS_LIMIT = 1_000  # rows of each index that SQLite reads: milliseconds at any size
STALE = select(Job.number, Job.prompt, Job.text, Job.search_text, Job.search_runs).where(
    Job.search_rules.is_(None), Job.finished_at.is_not(None)
)
_RENEW = update(JOBS).where(Job.number == bindparam("of_number"), Job.search_rules.is_(None))


def renew_search(engine: Engine) -> int:
    """Renew the terms of some jobs that ended under another release; returns how many."""
    with reading(engine) as connection:
        rows = connection.execute(STALE.order_by(Job.number.desc()).limit(BATCH_ROWS)).all()
    if not rows:
        return 0
    changes = []
    for row in rows:
        columns = search_columns(row.prompt, row.text)
        # An unchanged column must not be set: SQLite would index the row again.
        changed = {name: value for name, value in columns.items() if value != row._mapping[name]}
        changes.append({"of_number": row.number, "search_rules": RULES} | changed)
    with writing(engine) as connection:
        for change in changes:
            connection.execute(_RENEW, change)
    return len(rows)


def analyze(engine: Engine) -> None:
    """Renew SQLite's statistics; PostgreSQL has autovacuum."""
    if engine.dialect.name != "sqlite":
        return
    with writing(engine) as connection:
        connection.execute(text(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}"))
        connection.execute(text("ANALYZE"))


class Upkeep:
    """Does maintenance one step at a time; a loop calls it."""

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        *,
        keep_days: float = 0.0,
    ) -> None:
        """Do nothing yet.

        Args:
            engine: of the database.
            clock: seconds.
            keep_days: how long jobs are kept after their end; 0: for ever.
        """
        self._keep_days = keep_days
        self._engine = engine
        self._clock = clock
        self._analyze_at = clock()
        self._fold_at = clock()
        self._folded_number = 0

    def step(self) -> None:
        """Renew search terms, delete expired jobs, fold old events, renew due statistics."""
        until = self._clock() + STEP_SECONDS
        while renew_search(self._engine) and self._clock() < until:
            pass
        while self._keep_days and expire(self._engine, self._keep_days) == BATCH_JOBS:
            if self._clock() >= until:
                break
        self._fold(until)
        if self._clock() >= self._analyze_at:
            analyze(self._engine)
            self._analyze_at = self._clock() + ANALYZE_SECONDS

    def _fold(self, until: float) -> None:
        while self._fold_at <= self._clock() < until:
            last = fold(self._engine, self._folded_number)
            if last == self._folded_number:
                self._fold_at = self._clock() + FOLD_SECONDS
            self._folded_number = last
