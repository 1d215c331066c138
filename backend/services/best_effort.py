"""Calls whose result is useful but not needed, with a bound on the wait.

After a submission is committed, nothing may fail or delay its answer. A call made here runs on a
thread of its own, and the caller waits for it for a bounded time, whatever the database or Redis
does. Knows nothing of either.
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

WAIT_SECONDS = 1.0  # a hundred times what a healthy database or Redis needs for these calls
NUM_THREADS = 4  # a frozen server may hold each of them until that server's own time-out
MAX_WAITING_CALLS = 100  # a call behind these would not start in time
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class BestEffort:
    """Runs calls on a few daemon threads. Any thread may use it.

    After a call that failed or was late, further calls are skipped for two seconds. So a server
    that does not answer delays one request instead of all.
    """

    def __init__(
        self,
        name: str,
        *,
        wait_seconds: float = WAIT_SECONDS,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Start no thread; they start with the first call.

        Args:
            name: name of these calls in the log.
            wait_seconds: maximum time that a caller waits.
            breaker: decides when calls are skipped.
        """
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
        """Return the result of a call, or ``None`` if it failed, was late, or was skipped."""
        if not self._breaker.may_call():
            return None
        future: Future[Result] = Future()
        try:
            self._put(future, call)
            result = future.result(self._wait_seconds)
        except FutureTimeoutError:
            future.cancel()
            self._note_failure("late")
        except Exception as error:  # an edge: the answer does not depend on this call
            self._note_failure(type(error).__name__)
        else:
            self._breaker.note_success()
            return result
        return None

    def _note_failure(self, reason: str) -> None:
        self._breaker.note_failure()
        log.warning("left_undone", what=self._name, reason=reason)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Start no further call, and wait for the running ones up to the time-out in total."""
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
            queue.Full: the call would not start in time, or this object is closed.
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
            del item, future, call  # otherwise the last result lives until the next call
