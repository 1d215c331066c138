"""How long the present request or transaction may still wait for the database.

A deadline belongs to the context (thread or task) that set it, so that every wait below it can be
cut to what is left: one request with five statements has one deadline, not five. Knows nothing of
databases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEADLINE: ContextVar[float] = ContextVar("textmill_deadline", default=math.inf)


def remaining_seconds() -> float:
    """The time left; infinite where no deadline is set, never negative."""
    return max(0.0, _DEADLINE.get() - time.monotonic())


@contextmanager
def within(seconds: float, *, anew: bool = False) -> Iterator[None]:
    """Set a deadline for what runs inside; an earlier one that is set already holds.

    Args:
        seconds: from now on.
        anew: whether an earlier deadline is set aside, as for one look of many while a client
            waits for minutes.
    """
    deadline = time.monotonic() + seconds
    token = _DEADLINE.set(deadline if anew else min(deadline, _DEADLINE.get()))
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def begin(seconds: float) -> None:
    """Set a deadline that holds until ``end``, for callers that cannot use a ``with`` block."""
    _DEADLINE.set(time.monotonic() + seconds)


def end() -> None:
    """Take the deadline of this context away."""
    _DEADLINE.set(math.inf)
