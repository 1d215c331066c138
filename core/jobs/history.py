"""Reads of the history and of the queue: pages, searches, exports, places, figures. Writes nothing.

The search compares terms that ``core.jobs.search`` cut, in FTS5 on SQLite and in a ``tsvector`` on
PostgreSQL. Places follow the order in which a model's jobs are claimed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    column,
    false,
    func,
    select,
    table,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import Join
from sqlalchemy.sql.functions import FunctionElement

from textmill.core.database.connections import now_ms, reading
from textmill.core.database.tables import CLAIM_ORDER, IS_QUEUED, Job, JobTrace, Run
from textmill.core.errors import FieldError, NotFound, ValidationFailed
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.search import Query, fts5_query, parse_search, tsquery
from textmill.core.jobs.transitions import job_record


class _OnBoth(FunctionElement[int]):
    """A function that both databases have, under names of their own."""

    type = Integer()
    inherit_cache = True
    sqlite: str
    postgresql: str


class _num_bytes(_OnBoth):  # noqa: N801 - reads as the SQL function that it is
    """The bytes of a text in UTF-8; PostgreSQL knows them without reading the text."""

    inherit_cache = True
    sqlite = "length(CAST({} AS BLOB))"
    postgresql = "octet_length({})"


class _position(_OnBoth):  # noqa: N801 - reads as the SQL function that it is
    """Where a text has another, character by character; 0: nowhere."""

    inherit_cache = True
    sqlite = "instr({})"
    postgresql = "strpos({})"


@compiles(_OnBoth, "sqlite")
@compiles(_OnBoth, "postgresql")
def _function(element: _OnBoth, compiler: Any, **kw: Any) -> str:
    form = element.sqlite if compiler.dialect.name == "sqlite" else element.postgresql
    return form.format(compiler.process(element.clauses, **kw))


DEFAULT_LIMIT = 50
MAX_LIMIT = 200
EXPORT_BATCH = 200  # rows that one transaction of an export reads
# Prompts and texts of one page, or of one batch of an export, in UTF-8: 200 of the longest would be
# a hundred MiB, in the database's answer, in this process and in the browser.
MAX_PAGE_BYTES = 4 * 1024 * 1024
RECENT_SECONDS = 300  # throughput, waiting times and failures are of this time
DURATION_WINDOW_SECONDS = 3_600  # older jobs say nothing of today's speed
NUM_DURATIONS = 50  # latest jobs of a model whose durations an estimate averages
MAX_WAITS = 1_000
_MAX_NUMBER = 2**63 - 1  # what a row's number, and so a cursor, can be
_COLUMNS = [getattr(Job, item.name) for item in fields(JobRecord)]
_RANKED = (
    select(
        Job.id,
        func.row_number().over(partition_by=Job.model, order_by=CLAIM_ORDER).label("position"),
    )
    .where(IS_QUEUED, Job.model.in_(bindparam("models", expanding=True)))
    .subquery()
)
# Every submission asks it, and building it took longer than executing it.
_POSITIONS = select(_RANKED).where(_RANKED.c.id.in_(bindparam("ids", expanding=True)))
_NUM_BYTES = (_num_bytes(Job.prompt) + _num_bytes(Job.text)).label("num_bytes")
_SIZES: list[Any] = [Job.number, _NUM_BYTES]
_PAGE = (
    select(*_COLUMNS)
    .where(Job.number.in_(bindparam("numbers", expanding=True)))
    .order_by(Job.number.desc())
)
_JOBS_SEARCH = table("jobs_search", column("rowid", BigInteger()))


class _CrossJoin(Join):
    """SQLite never turns a CROSS JOIN around: the left table is the outer loop."""

    inherit_cache = True


@compiles(_CrossJoin, "sqlite")
def _cross_join(join: _CrossJoin, compiler: Any, **kw: Any) -> str:
    return str(compiler.visit_join(join, **kw)).replace(" JOIN ", " CROSS JOIN ", 1)


# A job's status, attempt, whether it is to be canceled, and the length of its text: cheap to read
# for thousands of jobs, and different whenever a watcher is to be told something.
Brief = tuple[str, int, bool, int]


def brief_of(job: JobRecord) -> Brief:
    """The same of a row that was read as a whole."""
    return (job.status, job.attempt, job.cancel_requested_at is not None, len(job.text))


@dataclass(frozen=True, slots=True)
class Filters:
    """What to show of the history; ``None`` filters nothing.

    ``since`` and ``until`` are instants of creation in milliseconds, both inclusive;
    ``before_number`` is the number below which a page begins.
    """

    query: str | None = None
    status: str | None = None
    strategy: str | None = None
    model: str | None = None
    run_id: str | None = None
    since: int | None = None
    until: int | None = None
    before_number: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the history, newest first; ``next_cursor`` is ``None`` on the last one."""

    items: tuple[JobRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class QueueNumbers:
    """The queue in figures; ``waiting_seconds`` are those of recent jobs, shortest first."""

    depth: int
    running: int
    jobs_per_minute: float
    tokens_per_second: float
    waiting_seconds: list[float]


def encode_cursor(number: int) -> str:
    """The opaque cursor of the page that follows the job of this number."""
    return base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """The number in a cursor.

    Raises:
        ValidationFailed: it is none of ours.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        digits = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (UnicodeError, binascii.Error):
        digits = ""
    if not re.fullmatch(r"[0-9]{1,19}", digits) or int(digits) > _MAX_NUMBER:
        message = "this is no cursor; take one from next_cursor, or leave it out"
        raise ValidationFailed([FieldError("cursor", message)])
    return int(digits)


class History:
    """Answers what is stored. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        """Keep the engine; a connection is held for the length of one call only."""
        self._engine = engine

    def job(self, job_id: str) -> JobRecord:
        """A job as it stands.

        Raises:
            NotFound: there is no such job.
        """
        with reading(self._engine) as connection:
            return job_record(connection, job_id)

    def jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Those of some jobs that are there, oldest first."""
        query = select(*_COLUMNS).where(Job.id.in_(job_ids)).order_by(Job.number)
        with reading(self._engine) as connection:
            return [JobRecord.from_row(row) for row in connection.execute(query)]

    def briefs(self, job_ids: Sequence[str]) -> dict[str, Brief]:
        """By id, of those of some jobs that are there, what tells whether they have changed."""
        query = select(
            Job.id,
            Job.status,
            Job.attempt,
            Job.cancel_requested_at.is_not(None).label("is_cancelling"),
            func.length(Job.text).label("num_characters"),
        ).where(Job.id.in_(job_ids))
        with reading(self._engine) as connection:
            rows = connection.execute(query)
            return {
                row.id: (row.status, row.attempt, bool(row.is_cancelling), row.num_characters)
                for row in rows
            }

    def run(self, run_id: str) -> RunRecord:
        """A run with its jobs in the order of variants and samples.

        Raises:
            NotFound: there is no such run, or all its jobs were deleted.
        """
        with reading(self._engine) as connection:
            run = connection.execute(select(Run.__table__).where(Run.id == run_id)).first()
            if run is None:
                raise NotFound("There is no run with that id; it may have been deleted.")
            query = select(*_COLUMNS).where(Job.run_id == run_id).order_by(Job.number)
            return RunRecord.from_rows(run, connection.execute(query))

    def page(self, filters: Filters) -> Page:
        """One page of what the filters pick: as many jobs as asked for, of bounded size.

        A page whose prompts and texts would be too large has fewer jobs, at least one, and a
        cursor to the rest.
        """
        with reading(self._engine) as connection:
            rows, has_more = _read_page(connection, filters, filters.limit or DEFAULT_LIMIT)
        jobs = tuple(JobRecord.from_row(row) for row in rows)
        return Page(jobs, encode_cursor(jobs[-1].number) if has_more else None)

    def export(self, filters: Filters) -> Iterator[JobRecord]:
        """All that the filters pick; holds no transaction while it is read."""
        has_more = True
        while has_more:
            with reading(self._engine) as connection:
                rows, has_more = _read_page(connection, filters, EXPORT_BATCH)
            for row in rows:
                yield JobRecord.from_row(row)
            if rows:
                filters = replace(filters, before_number=rows[-1].number)

    def trace(self, job_id: str) -> list[dict[str, Any]]:
        """Why each token of a job was chosen; empty for a job that wrote none.

        Raises:
            NotFound: there is no such job, no trace was asked for, or it is not written yet.
        """
        with reading(self._engine) as connection:
            job = job_record(connection, job_id)
            query = select(JobTrace.tokens).where(JobTrace.job_id == job_id)
            tokens = connection.execute(query).scalar_one_or_none()
        if not job.has_trace:
            raise NotFound('No trace was kept for this job; ask for one with "trace": true.')
        if tokens is None and not job.is_final:
            raise NotFound("The trace is written when the job ends; come back then.")
        return list(tokens or ())

    # ---- the queue --------------------------------------------------------------------------

    def queue(self) -> QueueNumbers:
        """Look at the queue once."""
        lately = and_(_ended_within(RECENT_SECONDS), Job.started_at.is_not(None))
        by_status = select(Job.status, func.count()).where(Job.status.in_(("queued", "running")))
        with reading(self._engine) as connection:
            depths = {row[0]: row[1] for row in connection.execute(by_status.group_by(Job.status))}
            num_ended, num_tokens = connection.execute(
                select(func.count(), func.sum(Job.num_completion_tokens)).where(lately)
            ).one()
            waits = connection.execute(
                select(Job.created_at, Job.started_at)
                .where(lately)
                .order_by(Job.finished_at.desc())
                .limit(MAX_WAITS)
            ).all()
        return QueueNumbers(
            depth=depths.get("queued", 0),
            running=depths.get("running", 0),
            jobs_per_minute=num_ended * 60 / RECENT_SECONDS,
            tokens_per_second=int(num_tokens or 0) / RECENT_SECONDS,
            waiting_seconds=sorted(_seconds(row.created_at, row.started_at) for row in waits),
        )

    def positions(self, jobs: Iterable[JobRecord]) -> dict[str, int]:
        """How many of its model's queued jobs are claimed up to and with each, in one query.

        Jobs that are not queued, or were claimed since they were read, are left out.
        """
        queued = [job for job in jobs if job.status == "queued"]
        if not queued:
            return {}
        asked = {"models": {job.model for job in queued}, "ids": [job.id for job in queued]}
        with reading(self._engine) as connection:
            return {row.id: row.position for row in connection.execute(_POSITIONS, asked)}

    def mean_seconds(self, model: str) -> float | None:
        """Mean time from start to end of a model's latest jobs; ``None`` when there are none."""
        query = (
            select(Job.started_at, Job.finished_at)
            .where(
                _ended_within(DURATION_WINDOW_SECONDS),
                Job.model == model,
                Job.status == "succeeded",
            )
            .order_by(Job.finished_at.desc())
            .limit(NUM_DURATIONS)
        )
        with reading(self._engine) as connection:
            found = [_seconds(row.started_at, row.finished_at) for row in connection.execute(query)]
        return fmean(found) if found else None

    def failures(self) -> dict[str, int]:
        """How many jobs failed lately, by error code."""
        query = (
            select(Job.error_code, func.count())
            .where(_ended_within(RECENT_SECONDS), Job.status == "failed")
            .group_by(Job.error_code)
        )
        with reading(self._engine) as connection:
            return {row[0] or "unknown": row[1] for row in connection.execute(query)}


def _ended_within(seconds: int) -> Any:
    return Job.finished_at >= now_ms() - seconds * 1000


def _seconds(start: int | None, end: int | None) -> float:
    return max(0, (end or 0) - (start or 0)) / 1000  # a clock set back must not give less than 0


def _read_page(connection: Connection, filters: Filters, limit: int) -> tuple[list[Row[Any]], bool]:
    """The rows of a page, newest first, and whether more follow.

    The sizes are read first, and the texts only of the jobs that fit.
    """
    sizes = connection.execute(_query(connection, filters).limit(limit + 1)).all()
    numbers: list[int] = []
    left = MAX_PAGE_BYTES
    for row in sizes[:limit]:
        left -= row.num_bytes
        if left < 0 and numbers:
            break
        numbers.append(row.number)
    if not numbers:
        return [], False
    rows = connection.execute(_PAGE, {"numbers": numbers}).all()
    if not rows:  # deleted since, on PostgreSQL: go on behind them
        return _read_page(connection, replace(filters, before_number=numbers[-1]), limit)
    return list(rows), len(numbers) < len(sizes)


def _query(connection: Connection, filters: Filters) -> Select[Any]:
    query = select(*_SIZES)
    equal = {
        Job.status: filters.status,
        Job.strategy: filters.strategy,
        Job.model: filters.model,
        Job.run_id: filters.run_id,
    }
    for attribute, value in equal.items():
        if value is not None:
            query = query.where(attribute == value)
    if filters.since is not None:
        query = query.where(Job.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(Job.created_at <= filters.until)
    if filters.query is not None and filters.query.strip():
        asked = parse_search(filters.query)
        if not asked.terms:
            return query.where(false())
        return _search(connection, query, asked, filters.before_number)
    if filters.before_number is not None:
        query = query.where(Job.number < filters.before_number)
    return query.order_by(Job.number.desc())


def _search(
    connection: Connection, query: Select[Any], asked: Query, before: int | None
) -> Select[Any]:
    for run in asked.runs:  # the terms alone would also find its pairs of characters apart
        query = query.where(_position(Job.search_runs, run) > 0)
    if connection.dialect.name != "sqlite":
        matches = text("jobs.search_vector @@ CAST(:q AS tsquery)").bindparams(
            q=tsquery(asked.terms)
        )
        query = query.where(matches).order_by(Job.number.desc())
        return query if before is None else query.where(Job.number < before)
    # FTS5 walks its own index backwards by rowid and stops at the limit, so that a word of every
    # text costs no more than a rare one. CROSS JOIN keeps SQLite from turning the join around.
    matches = text("jobs_search MATCH :q").bindparams(q=fts5_query(asked.terms))
    rowid = _JOBS_SEARCH.c.rowid
    query = query.select_from(_CrossJoin(_JOBS_SEARCH, Job.__table__, rowid == Job.number))
    query = query.where(matches)
    if before is not None:
        query = query.where(rowid < before)
    return query.order_by(rowid.desc())
