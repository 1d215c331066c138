"""What a client may order and keep: tokens per minute and day, waiting jobs, stored bytes.

A price counts the tokens that a request may make the model process: its prompt, and the new tokens
of every beam and sample. It is charged when the job is stored, in the same transaction, whatever is
written in the end. A window of a minute or a day begins with the first request in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from textmill.core.access.blocks import check_blocks
from textmill.core.access.principals import ADMIN, Principal
from textmill.core.database.access_tables import Usage
from textmill.core.database.connections import now_ms
from textmill.core.database.tables import IS_ACTIVE, IS_QUEUED, Job
from textmill.core.errors import Quota, RateLimited
from textmill.core.settings import Settings

WINDOW_SECONDS = {"minute": 60, "day": 86_400}
ADDRESS_FACTOR = 4  # visitors of one address together: a household, an office behind one address
TRACE_PERCENT = 110  # a trace takes a tenth of a step's time
WAIT_SECONDS = 5  # until one of the waiting jobs has probably started


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one client; 0 is no limit.

    Attributes:
        tokens_per_minute, tokens_per_day: of all its requests together.
        max_queued: jobs that wait.
        max_active: jobs that wait or run.
        max_stored_bytes: prompts and texts in the database.
    """

    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    max_queued: int = 0
    max_active: int = 0
    max_stored_bytes: int = 0

    def times(self, factor: int) -> Budget:
        """The limits of several clients together."""
        return Budget(
            self.tokens_per_minute * factor,
            self.tokens_per_day * factor,
            self.max_queued * factor,
            self.max_active * factor,
            self.max_stored_bytes * factor,
        )


UNLIMITED = Budget()


@dataclass(frozen=True, slots=True)
class Account:
    """Who is charged for a request.

    Attributes:
        owner_id: the client.
        budget: its limits.
        address_id: a keyed hash of a visitor's address; empty if the address has no limits.
        is_limited: whether it may be blocked, and a part of the queue is kept for others.
    """

    owner_id: str
    budget: Budget = UNLIMITED
    address_id: str = ""
    is_limited: bool = False

    @classmethod
    def of(cls, principal: Principal, settings: Settings) -> Account:
        """The account of a principal; those of the mode ``local`` and of admins have no limits."""
        if not settings.is_open or principal.may(ADMIN):
            return cls(principal.owner_id)
        is_visitor = principal.kind == "visitor"
        budget = Budget(
            settings.visitor_tokens_per_minute if is_visitor else settings.key_tokens_per_minute,
            settings.visitor_tokens_per_day if is_visitor else settings.key_tokens_per_day,
            settings.visitor_max_queued if is_visitor else settings.key_max_queued,
            settings.visitor_max_active if is_visitor else 0,
            settings.visitor_max_stored_bytes if is_visitor else 0,
        )
        if principal.tokens_per_day is not None:
            budget = Budget(budget.tokens_per_minute, principal.tokens_per_day, budget.max_queued)
        address_id = principal.address_id if is_visitor else ""
        return cls(principal.owner_id, budget, address_id, is_limited=True)

    def subjects(self) -> list[tuple[str, Budget]]:
        """The names under which tokens are counted, each with its limits."""
        own = [(self.owner_id, self.budget)]
        if self.address_id:
            own.append((f"address:{self.address_id}", self.budget.times(ADDRESS_FACTOR)))
        return own


def price(num_prompt: int, num_new: int, *, num_beams: int = 1, has_trace: bool = False) -> int:
    """The tokens that one job orders.

    Args:
        num_prompt: tokens of the prompt.
        num_new: the most that it may write.
        num_beams: sequences that a beam search computes at once.
        has_trace: whether every step's probabilities are kept.
    """
    tokens = num_prompt + num_new * num_beams
    return tokens * TRACE_PERCENT // 100 if has_trace else tokens


def check_active(connection: Connection, account: Account, num_new: int) -> None:
    """Refuse more waiting, active or stored jobs than the account may have, and blocked clients.

    Raises:
        Forbidden: the client or its address is blocked.
        RateLimited: the message says which limit.
    """
    if account.is_limited:
        check_blocks(connection, [name for name, _ in account.subjects()])
    own = (Job.owner_id == account.owner_id, "You have")
    _check_counts(connection, account.budget, num_new, *own)
    if account.address_id:
        network = (Job.address_id == account.address_id, "Visitors from your network have")
        _check_counts(connection, account.budget.times(ADDRESS_FACTOR), num_new, *network)
    limit = account.budget.max_stored_bytes
    if limit and stored_bytes(connection, account.owner_id) >= limit:
        raise RateLimited(
            f"Your history has reached {limit // 1024:,} KiB, the most that is kept for one"
            " visitor; export it, and delete texts that you do not need.",
            retry_after_seconds=WINDOW_SECONDS["minute"],
        )


def _check_counts(
    connection: Connection,
    budget: Budget,
    num_new: int,
    is_theirs: ColumnElement[bool],
    you_have: str,
) -> None:
    for limit, condition, state in (
        (budget.max_queued, IS_QUEUED, "waiting"),
        (budget.max_active, IS_ACTIVE, "waiting or running"),
    ):
        if not limit:
            continue
        count = select(func.count()).select_from(Job).where(condition, is_theirs)
        found = connection.execute(count).scalar_one()
        if found + num_new > limit:
            raise RateLimited(
                f"{you_have} {found} jobs {state} and may have {limit};"
                " wait until some of them have ended.",
                retry_after_seconds=WAIT_SECONDS,
            )


def stored_bytes(connection: Connection, owner_id: str) -> int:
    """The characters of an owner's prompts and texts, which are at least as many bytes."""
    size = func.coalesce(func.sum(func.length(Job.prompt) + func.length(Job.text)), 0)
    return int(connection.execute(select(size).where(Job.owner_id == owner_id)).scalar_one())


def charge(connection: Connection, account: Account, tokens: int) -> tuple[Quota, ...]:
    """Charge a request, or refuse it; the caller's transaction holds the lock of submissions.

    Returns:
        What is left to the client itself, for each limited window.

    Raises:
        RateLimited: the budget of a window is spent; nothing is charged.
    """
    quotas: list[Quota] = []
    for name, budget in account.subjects():
        limits = {"minute": budget.tokens_per_minute, "day": budget.tokens_per_day}
        for window, limit in limits.items():
            if limit:
                quotas.append(_charge_window(connection, name, window, limit, tokens))
    return tuple(quota for quota in quotas if not quota.is_shared)


def _charge_window(
    connection: Connection, name: str, window: str, limit: int, tokens: int
) -> Quota:
    seconds = WINDOW_SECONDS[window]
    is_it = (Usage.subject == name, Usage.window == window)
    query = select(Usage.tokens, (now_ms() - Usage.began_at).label("age")).where(*is_it)
    row: Any = connection.execute(query).first()
    is_current = row is not None and 0 <= row.age < seconds * 1000
    used = row.tokens if row is not None and is_current else 0
    left_seconds = seconds - row.age // 1000 if row is not None and is_current else seconds
    is_shared = name.startswith("address:")
    if used + tokens > limit:
        quota = Quota(window, limit, max(limit - used, 0), left_seconds, is_shared)
        raise RateLimited(
            _refusal(quota, tokens), retry_after_seconds=left_seconds, quotas=(quota,)
        )
    if row is None:
        new = {"subject": name, "window": window, "tokens": tokens, "began_at": now_ms()}
        connection.execute(insert(Usage).values(**new))
    elif is_current:
        connection.execute(update(Usage).where(*is_it).values(tokens=used + tokens))
    else:
        connection.execute(update(Usage).where(*is_it).values(tokens=tokens, began_at=now_ms()))
    return Quota(window, limit, limit - used - tokens, left_seconds, is_shared)


def _refusal(quota: Quota, tokens: int) -> str:
    whose = "All visitors of your network together" if quota.is_shared else "You"
    if tokens > quota.limit:
        return (
            f"{whose} may order {quota.limit:,} tokens per {quota.window}, and this request alone"
            f" orders {tokens:,}; ask for fewer new tokens, samples or beams."
        )
    return (
        f"{whose} may order {quota.limit:,} tokens per {quota.window}; {quota.left:,} are left and"
        f" this request orders {tokens:,}. Come back {in_words(quota.seconds)}."
    )


def in_words(seconds: int) -> str:
    """A wait as people say it."""
    if seconds < 90:
        return f"in {seconds} seconds"
    if seconds < 90 * 60:
        return f"in {round(seconds / 60)} minutes"
    return f"in {round(seconds / 3600)} hours"


def forget_usage(connection: Connection) -> int:
    """Delete the counters of windows that are over; returns their number."""
    longest = max(WINDOW_SECONDS.values()) * 1000
    done = connection.execute(delete(Usage).where(Usage.began_at < now_ms() - longest))
    return done.rowcount


def rate_limit_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """The RateLimit fields of draft-ietf-httpapi-ratelimit-headers-10."""
    if not quotas:
        return {}
    policy = ", ".join(f'"{q.window}";q={q.limit};w={WINDOW_SECONDS[q.window]}' for q in quotas)
    state = ", ".join(f'"{q.window}";r={q.left};t={q.seconds}' for q in quotas)
    return {"RateLimit-Policy": policy, "RateLimit": state}
