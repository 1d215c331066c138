"""Counts the jobs that wait and run, of everybody, of a client and of an address, for a submission.

One statement reads it all. Runs inside the transaction of ``core.jobs.store.JobStore``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Subquery,
    bindparam,
    func,
    or_,
    select,
    true,
)

from textmill.core.access.budgets import ADDRESS_FACTOR, Account, Budget
from textmill.core.database.access_tables import Block
from textmill.core.database.tables import IS_ACTIVE, IS_QUEUED, Job
from textmill.core.errors import Forbidden, RateLimited

WAIT_SECONDS = 5  # until one of the waiting jobs has probably started


@dataclass(frozen=True, slots=True)
class Counts:
    """Jobs of a client or of an address: those that wait, and those that wait or run."""

    num_queued: int = 0
    num_active: int = 0


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the queue contains.

    Attributes:
        num_queued: jobs of everybody that wait.
        own: jobs of the client.
        network: jobs of its address, if the address has limits.
        is_blocked: whether an admin has blocked the client or its address.
    """

    num_queued: int
    own: Counts
    network: Counts
    is_blocked: bool


def _counts(name: str, is_theirs: ColumnElement[bool]) -> Subquery:
    num_queued = func.count().filter(IS_QUEUED).label("num_queued")
    query = select(num_queued, func.count().label("num_active"))
    return query.select_from(Job).where(IS_ACTIVE, is_theirs).subquery(name)


_OWN = _counts("own", Job.owner_id == bindparam("owner"))
_NETWORK = _counts("network", Job.address_id == bindparam("address"))
_IS_BLOCKED = (
    select(Block.subject)
    .where(or_(Block.subject == bindparam("owner"), Block.subject == bindparam("address_subject")))
    .exists()
)
_NUM_QUEUED = select(func.count()).select_from(Job).where(IS_QUEUED).scalar_subquery()
# Built once: building a statement costs as much as executing it.
_OF_CLIENT: Select[Any] = select(
    _NUM_QUEUED.label("num_queued"),
    _IS_BLOCKED.label("is_blocked"),
    _OWN.c.num_queued.label("own_queued"),
    _OWN.c.num_active.label("own_active"),
)
_OF_VISITOR = _OF_CLIENT.add_columns(
    _NETWORK.c.num_queued.label("network_queued"), _NETWORK.c.num_active.label("network_active")
).select_from(_OWN.join(_NETWORK, true()))


def holdings(connection: Connection, account: Account) -> Holdings:
    """Count the jobs that an account's limits are about."""
    address = account.address_id
    values = {"owner": account.owner_id, "address_subject": f"address:{address}"}
    if address:
        row: Any = connection.execute(_OF_VISITOR, values | {"address": address}).one()
        network = Counts(row.network_queued, row.network_active)
    else:
        row, network = connection.execute(_OF_CLIENT, values).one(), Counts()
    own = Counts(row.own_queued, row.own_active)
    return Holdings(row.num_queued, own, network, bool(row.is_blocked))


def check_holdings(held: Holdings, account: Account, num_new: int) -> None:
    """Refuse more waiting or active jobs than an account may have, and blocked clients.

    Raises:
        Forbidden: the client or its address is blocked.
        RateLimited: the message says which limit.
    """
    if held.is_blocked:
        raise Forbidden("You may not submit anything here; the operator has blocked you.")
    _check(held.own, account.budget, num_new, "You have")
    if account.address_id:
        budget = account.budget.times(ADDRESS_FACTOR)
        _check(held.network, budget, num_new, "Visitors from your network have")


def _check(counts: Counts, budget: Budget, num_new: int, you_have: str) -> None:
    for limit, found, state in (
        (budget.max_queued, counts.num_queued, "waiting"),
        (budget.max_active, counts.num_active, "waiting or running"),
    ):
        if limit and found + num_new > limit:
            raise RateLimited(
                f"{you_have} {found} jobs {state} and may have {limit};"
                " wait until some of them have ended.",
                retry_after_seconds=WAIT_SECONDS,
            )
