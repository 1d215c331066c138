"""Deadlines: how long the current request or transaction may still wait for the database.

A deadline belongs to the context (thread or task) that set it, and limits every wait inside it: one
request with five statements has one deadline, not five. Knows nothing of databases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEADLINE: ContextVar[float] = ContextVar("textmill_deadline", default=math.inf)


def remaining_seconds() -> float:
    """The time left; infinite without a deadline, never negative."""
    return max(0.0, _DEADLINE.get() - time.monotonic())


@contextmanager
def within(seconds: float, *, anew: bool = False) -> Iterator[None]:
    """Set a deadline for the ``with`` block; an earlier deadline stays in force.

    Args:
        seconds: from now on.
        anew: whether to ignore an earlier deadline, as for one of many queries while a client waits
            for minutes.
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
    """Remove the deadline of this context."""
    _DEADLINE.set(math.inf)
