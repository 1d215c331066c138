"""Pages of the history: filters, cursors, and the queries that pick and read one page.

The search compares the terms of ``core.jobs.search``, in FTS5 on SQLite and in a ``tsvector`` on
PostgreSQL.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Row,
    Select,
    bindparam,
    column,
    false,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from textmill.core.access.principals import EVERYTHING, Sight
from textmill.core.database.tables import Job
from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.search import Query, fts5_query, parse_search, tsquery

# Bound on the prompts and texts of one page, or of one batch of an export, in UTF-8: 200 of the
# longest would be a hundred MiB in the database's answer, in this process and in the browser.
MAX_PAGE_BYTES = 4 * 1024 * 1024
FEW_JOBS = 2_000  # whose terms are read in some milliseconds
_MAX_NUMBER = 2**63 - 1  # the largest number of a row, and so of a cursor


class _FunctionOfBoth(FunctionElement[int]):
    """A function that both databases have, each under its own name."""

    type = Integer()
    inherit_cache = True
    sqlite: str
    postgresql: str


class _num_bytes(_FunctionOfBoth):  # noqa: N801 - reads as the SQL function that it is
    """The bytes of a text in UTF-8; PostgreSQL knows them without reading the text."""

    inherit_cache = True
    sqlite = "length(CAST({} AS BLOB))"
    postgresql = "octet_length({})"


class _position(_FunctionOfBoth):  # noqa: N801 - reads as the SQL function that it is
    """The 1-based position of one text in another, in characters; 0 if it is not contained."""

    inherit_cache = True
    sqlite = "instr({})"
    postgresql = "strpos({})"


@compiles(_FunctionOfBoth, "sqlite")
@compiles(_FunctionOfBoth, "postgresql")
def _function(element: _FunctionOfBoth, compiler: Any, **kw: Any) -> str:
    form = element.sqlite if compiler.dialect.name == "sqlite" else element.postgresql
    return form.format(compiler.process(element.clauses, **kw))


JOB_COLUMNS = [getattr(Job, item.name) for item in fields(JobRecord)]
_NUM_BYTES = (_num_bytes(Job.prompt) + _num_bytes(Job.text)).label("num_bytes")
_SIZES: list[Any] = [Job.number, _NUM_BYTES]
_PAGE = (
    select(*JOB_COLUMNS)
    .where(Job.number.in_(bindparam("numbers", expanding=True)))
    .order_by(Job.number.desc())
)
_JOBS_SEARCH = table("jobs_search", column("rowid", BigInteger()))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs of the history to read; ``None`` filters nothing.

    Attributes:
        since, until: instants of creation in milliseconds, both inclusive.
        before_number: only jobs with a smaller number.
    """

    query: str | None = None
    status: str | None = None
    strategy: str | None = None
    model: str | None = None
    run_id: str | None = None
    starred: bool | None = None
    since: int | None = None
    until: int | None = None
    before_number: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the history, newest first; ``next_cursor`` is ``None`` on the last one."""

    items: tuple[JobRecord, ...]
    next_cursor: str | None


def encode_cursor(number: int) -> str:
    """The opaque cursor of the page that follows the job with this number."""
    return base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """The number in a cursor.

    Raises:
        ValidationFailed: the cursor was not issued by this server.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        digits = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (UnicodeError, binascii.Error):
        digits = ""
    if not re.fullmatch(r"[0-9]{1,19}", digits) or int(digits) > _MAX_NUMBER:
        message = "this is not a valid cursor; use a value of next_cursor, or omit it"
        raise ValidationFailed([FieldError("cursor", message)])
    return int(digits)


def read_page(
    connection: Connection, filters: Filters, limit: int, sight: Sight = EVERYTHING
) -> tuple[list[Row[Any]], bool]:
    """The rows of a page within a sight, newest first, and whether more follow.

    The sizes are read first, then the texts of only those jobs that fit into ``MAX_PAGE_BYTES``;
    a page has at least one job.
    """
    sizes = connection.execute(_query(connection, filters, sight).limit(limit + 1)).all()
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
    if not rows:  # all were deleted meanwhile, on PostgreSQL: continue after them
        return read_page(connection, replace(filters, before_number=numbers[-1]), limit, sight)
    return list(rows), len(numbers) < len(sizes)


def _query(connection: Connection, filters: Filters, sight: Sight) -> Select[Any]:
    """The numbers and sizes of the jobs that the filters pick, newest first."""
    query = select(*_SIZES).where(sight.condition(Job.owner_id))
    equal = {
        Job.status: filters.status,
        Job.strategy: filters.strategy,
        Job.model: filters.model,
        Job.run_id: filters.run_id,
    }
    for attribute, value in equal.items():
        if value is not None:
            query = query.where(attribute == value)
    if filters.starred is not None:
        query = query.where(Job.is_starred if filters.starred else ~Job.is_starred)
    if filters.since is not None:
        query = query.where(Job.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(Job.created_at <= filters.until)
    if filters.query is not None and filters.query.strip():
        asked = parse_search(filters.query)
        if not asked.terms:
            return query.where(false())
        if sight.owner_id is not None and _has_few_jobs(connection, sight.owner_id):
            query = _search_own(query, asked)
        else:
            return _search(connection, query, asked, filters.before_number)
    if filters.before_number is not None:
        query = query.where(Job.number < filters.before_number)
    return query.order_by(Job.number.desc())


def _has_few_jobs(connection: Connection, owner_id: str) -> bool:
    """Whether it is faster to look into each of an owner's jobs than to walk the index of terms."""
    some = select(Job.number).where(Job.owner_id == owner_id).limit(FEW_JOBS + 1).subquery()
    count = connection.execute(select(func.count()).select_from(some)).scalar_one()
    return int(count) <= FEW_JOBS


def _search_own(query: Select[Any], asked: Query) -> Select[Any]:
    """Compare the terms and runs of the rows themselves, which the index would find too."""
    padded = literal(" ") + Job.search_text + literal(" ")
    for term in asked.terms:
        query = query.where(_position(padded, f" {term} ") > 0)
    for run in asked.runs:
        query = query.where(_position(Job.search_runs, run) > 0)
    return query


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
    # text costs no more than a rare one. That needs jobs_search as the outer loop: with the unary
    # plus its rowid cannot be looked up, which rules out the inner one.
    is_same_job = literal_column("+jobs_search.rowid", BigInteger()) == Job.number
    matches = text("jobs_search MATCH :q").bindparams(q=fts5_query(asked.terms))
    rowid = _JOBS_SEARCH.c.rowid
    query = query.join_from(_JOBS_SEARCH, Job, is_same_job).where(matches)
    if before is not None:
        query = query.where(rowid < before)
    return query.order_by(rowid.desc())
