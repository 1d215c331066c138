"""How an application hands its connection over: it orders what is to be held, and returns.

Knows neither HTTP nor jobs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from textmill.backend.server.limits import Allowance

HOLD_KEY = "textmill.hold"  # in the WSGI environment: a Hold


class Held(Protocol):
    """What an application asked for instead of its answer; lives on the loop."""

    def leave(self) -> None:
        """The client has gone, or the server stops: end soon."""

    def texts(self) -> AsyncIterator[str] | None:
        """The rest of the answer as it comes; ``None`` where the application is asked again."""

    async def over(self) -> None:
        """Wait until the application is to be asked again."""


class HoldOpener(Protocol):
    """Makes what is held from what the application ordered."""

    def open(self, order: object) -> Held:
        """Begin to hold; called on the loop."""


class TooManyHeld(Exception):
    """No more answers may be held open, for this visitor or at all."""


class Hold:
    """An application's means to hand its connection over, for as long as it likes, off the threads.

    It reserves a place, orders something, and returns: the headers of a stream, or an answer that
    is thrown away, since it is asked again when what it ordered is over (``is_over``).
    """

    def __init__(self, allowance: Allowance, visitor: str, *, is_over: bool = False) -> None:
        """Order nothing yet."""
        self.is_over = is_over
        self.order: object | None = None
        self._allowance = allowance
        self._visitor = visitor
        self._has_place = False

    def reserve(self) -> None:
        """Take a place.

        Raises:
            TooManyHeld: there is none.
        """
        if not self._allowance.take(self._visitor):
            raise TooManyHeld
        self._has_place = True

    def release(self) -> None:
        """Give the place back, if one was taken."""
        if self._has_place:
            self._has_place = False
            self._allowance.give_back(self._visitor)
