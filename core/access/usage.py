"""Counts the tokens that clients order, and the bytes that they keep, in the table ``usage``.

Two statements charge a request, whatever its number of windows. Runs inside the transaction of
``core.jobs.store.JobStore``, which holds the lock of submissions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from textmill.core.access.budgets import WINDOW_SECONDS, Account, refusal
from textmill.core.database.access_tables import Usage
from textmill.core.database.connections import now_ms
from textmill.core.database.tables import Job
from textmill.core.errors import Quota, RateLimited

_STORED = "stored"  # the window that contains bytes: the last sum over an owner's jobs
_STORED_SECONDS = 60  # how old that sum may be; the tokens of a minute bound the rest
_IN_DATABASE = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# Built once: building a statement costs as much as executing it.
_ROWS = select(
    Usage.subject,
    Usage.window,
    Usage.tokens,
    Usage.began_at,
    (now_ms() - Usage.began_at).label("age_ms"),
).where(or_(Usage.subject == bindparam("owner"), Usage.subject == bindparam("address")))
_SIZE = select(func.coalesce(func.sum(func.length(Job.prompt) + func.length(Job.text)), 0)).where(
    Job.owner_id == bindparam("owner")
)


def _upsert(database: str) -> Any:
    """Set rows; a window without ``began`` begins now."""
    insert: Any = _IN_DATABASE[database]
    new = insert(Usage).values(
        subject=bindparam("name"),
        window=bindparam("span"),
        tokens=bindparam("count"),
        began_at=func.coalesce(bindparam("began", type_=BigInteger), now_ms()),
    )
    fresh = {"tokens": new.excluded.tokens, "began_at": new.excluded.began_at}
    return new.on_conflict_do_update(index_elements=["subject", "window"], set_=fresh)


_UPSERT = {database: _upsert(database) for database in _IN_DATABASE}


def charge(
    connection: Connection, account: Account, tokens: int, prompt_bytes: int
) -> tuple[Quota, ...]:
    """Charge a request, or refuse it.

    Args:
        connection: of a transaction that holds the lock of submissions.
        account: who pays.
        tokens: the price of the request.
        prompt_bytes: what its prompts add to the client's history.

    Returns:
        What is left to the client itself, for each limited window.

    Raises:
        RateLimited: the budget of a window is spent, or the client's history has reached its
            limit; nothing is charged.
    """
    limited = [
        (name, window, limit)
        for name, budget in account.subjects()
        for window, limit in budget.windows().items()
        if limit
    ]
    if not limited and not account.budget.max_stored_bytes:
        return ()
    names = [name for name, _ in account.subjects()]
    found = connection.execute(_ROWS, {"owner": names[0], "address": names[-1]})
    rows = {(row.subject, row.window): row for row in found}
    changes = _check_stored(connection, account, rows, prompt_bytes)
    quotas = []
    for name, window, limit in limited:
        quota, change = _charge_window(rows.get((name, window)), name, window, limit, tokens)
        changes.append(change)
        quotas.append(quota)
    if changes:
        connection.execute(_UPSERT[connection.dialect.name], changes)
    return tuple(quota for quota in quotas if not quota.is_shared)


def _charge_window(
    row: Any, name: str, window: str, limit: int, tokens: int
) -> tuple[Quota, dict[str, Any]]:
    """What is left of a window after a charge, and the row to store."""
    seconds = WINDOW_SECONDS[window]
    is_current = row is not None and 0 <= row.age_ms < seconds * 1000
    used = row.tokens if is_current else 0
    left_seconds = seconds - row.age_ms // 1000 if is_current else seconds
    is_shared = name.startswith("address:")
    if used + tokens > limit:
        quota = Quota(window, limit, max(limit - used, 0), left_seconds, is_shared)
        raise RateLimited(refusal(quota, tokens), retry_after_seconds=left_seconds, quotas=(quota,))
    change = {
        "name": name,
        "span": window,
        "count": used + tokens,
        "began": row.began_at if is_current else None,
    }
    return Quota(window, limit, limit - used - tokens, left_seconds, is_shared), change


def _check_stored(
    connection: Connection,
    account: Account,
    rows: Mapping[tuple[str, str], Any],
    prompt_bytes: int,
) -> list[dict[str, Any]]:
    """Refuse a client whose history has reached its limit.

    The sum over its jobs is kept for a minute, in which new prompts are added. A sum that has
    reached the limit is computed again, so that a client which has deleted texts need not wait.
    """
    limit, owner_id = account.budget.max_stored_bytes, account.owner_id
    if not limit:
        return []
    row = rows.get((owner_id, _STORED))
    change: dict[str, Any] = {"name": owner_id, "span": _STORED, "began": None}
    if row is not None and 0 <= row.age_ms < _STORED_SECONDS * 1000 and row.tokens < limit:
        return [change | {"count": row.tokens + prompt_bytes, "began": row.began_at}]
    stored = stored_bytes(connection, owner_id)
    if stored >= limit:
        raise RateLimited(
            f"Your history has reached {limit // 1024:,} KiB, the most that is kept for one"
            " visitor; export it, and delete texts that you do not need.",
            retry_after_seconds=WINDOW_SECONDS["minute"],
        )
    return [change | {"count": stored + prompt_bytes}]


def stored_bytes(connection: Connection, owner_id: str) -> int:
    """The characters of an owner's prompts and texts, which are at least as many bytes."""
    return int(connection.execute(_SIZE, {"owner": owner_id}).scalar_one())


def forget_usage(connection: Connection) -> int:
    """Delete the counters of windows that are over; returns their number."""
    longest = max(WINDOW_SECONDS.values()) * 1000
    done = connection.execute(delete(Usage).where(Usage.began_at < now_ms() - longest))
    return done.rowcount
