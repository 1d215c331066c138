"""Calls that may be left undone: what an answer would like to have, and does not wait for long.

After the commit of a submission nothing may fail or delay its answer. A call that goes through
here runs on a thread of its own; the caller waits for it for a bounded time, whatever the database
or Redis does meanwhile. Knows nothing of either.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import structlog

from textmill.core.circuit_breaker import CircuitBreaker

WAIT_SECONDS = 1.0  # a hundred times what a healthy database or Redis takes for these calls
NUM_THREADS = 4  # each may be held by a frozen server until that server's own time-out
MAX_WAITING_CALLS = 100  # beyond this no call would begin in time anyway
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class BestEffort:
    """Runs calls on a few daemon threads. Any thread may ask.

    After a call failed or was late, further calls are left out for two seconds, so that a server
    that does not answer delays one request and not all of them.
    """

    def __init__(
        self,
        name: str,
        *,
        wait_seconds: float = WAIT_SECONDS,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """``name`` is what the log calls these calls; the threads start with the first call."""
        self._name = name
        self._wait_seconds = wait_seconds
        self._breaker = breaker or CircuitBreaker()
        self._calls: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(
            MAX_WAITING_CALLS
        )
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []  # guarded by _lock
        self._is_closed = False  # guarded by _lock

    def ask(self, call: Callable[[], Result]) -> Result | None:
        """What a call returns; ``None`` when it failed, was late, or was left out."""
        if not self._breaker.may_call():
            return None
        future: Future[Result] = Future()
        try:
            self._put(future, call)
            result = future.result(self._wait_seconds)
        except FutureTimeoutError:
            future.cancel()
            self._note("late")
        except Exception as error:  # an edge: the answer that this belongs to is already decided
            self._note(type(error).__name__)
        else:
            self._breaker.note_success()
            return result
        return None

    def _note(self, reason: str) -> None:
        self._breaker.note_failure()
        log.warning("left_undone", what=self._name, reason=reason)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Begin no further call, and wait for those that run, up to the time-out in all."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            self._is_closed = True
            threads = self._threads
        for _ in threads:
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Queue a call.

        Raises:
            queue.Full: it would not begin in time, or this is closed.
        """
        with self._lock:
            if self._is_closed:
                raise queue.Full
            while len(self._threads) < NUM_THREADS:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._calls.put_nowait((future, call))

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # or the last answer would be kept until the next call
