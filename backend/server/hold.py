"""How an application returns its thread while its response stays open.

Knows neither HTTP nor jobs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from textmill.backend.server.limits import Allowance

HOLD_KEY = "textmill.hold"  # in the WSGI environment: a Hold


class Held(Protocol):
    """A response that stays open. Its methods are called on the loop."""

    def close(self) -> None:
        """End soon: the client has disconnected, or the server is stopping."""

    def chunks(self) -> AsyncIterator[str] | None:
        """Return the rest of the response, or ``None`` if the application is called again."""

    async def finished(self) -> None:
        """Return when the application is to be called again."""

    def abandon(self) -> None:
        """Take note that the client disconnected before the end; called on a thread."""


class HoldOpener(Protocol):
    """Opens responses for the application."""

    def open(self, spec: object) -> Held:
        """Open the response that ``spec`` describes; called on the loop."""


class TooManyHeld(Exception):
    """The limit of open responses is reached, for this visitor or in total."""


class Hold:
    """One request's way to keep its response open without a thread.

    The application calls ``reserve``, sets ``spec``, and returns either the headers of a stream or
    a placeholder. After a placeholder, the server waits and calls the application again, with
    ``is_over`` set, and with the ``memo`` that the application left.
    """

    def __init__(
        self, allowance: Allowance, visitor: str, *, is_over: bool = False, memo: object = None
    ) -> None:
        """Reserve nothing.

        Args:
            allowance: counts open responses.
            visitor: the client that they are counted for.
            is_over: whether the wait is over and the application must answer now.
            memo: what the application left when it began to wait.
        """
        self.memo = memo
        self.is_over = is_over
        self.spec: object | None = None
        self._allowance = allowance
        self._visitor = visitor
        self._owner = ""
        self._is_reserved = False

    def reserve(self, visitor: str | None = None, *, owner: str = "", per_owner: int = 0) -> None:
        """Count an open response.

        Args:
            visitor: the client that it is counted for, if the application knows better than the
                server, which sees the address of a proxy.
            owner: a client with a limit of its own; empty: none.
            per_owner: that limit.

        Raises:
            TooManyHeld: the limit is reached.
        """
        self._visitor = visitor or self._visitor
        self._owner = owner
        if not self._allowance.acquire(self._visitor, owner, per_owner):
            raise TooManyHeld
        self._is_reserved = True

    def release(self) -> None:
        """Undo ``reserve``, if it was called."""
        if self._is_reserved:
            self._is_reserved = False
            self._allowance.release(self._visitor, self._owner)
