"""A bounded pool of threads that a loop hands calls to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Busy(Exception):
    """All threads have work, and as much again waits as may."""


class Threads:
    """Daemon threads: a call that never returns does not keep the process from ending.

    ``run`` is called on one event loop; the threads are started with the first call.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: int | None = None) -> None:
        """Start nothing yet; ``max_waiting`` is how many calls may wait, ``None`` for any."""
        self._name = name
        self._num_threads = num_threads
        self._max_open = None if max_waiting is None else num_threads + max_waiting
        self._calls: SimpleQueue[tuple[Callable[[], Any], Any, asyncio.Future[Any]] | None] = (
            SimpleQueue()
        )
        self._num_open = 0  # the loop's thread alone touches it
        self._started = False

    @property
    def num_open(self) -> int:
        """Calls that run or wait."""
        return self._num_open

    async def run(self, call: Callable[[], T], *, is_new: bool = True) -> T:
        """What ``call`` returns or raises, on a thread.

        Args:
            call: what to run.
            is_new: whether it may be refused; what goes on with earlier work never is.

        Raises:
            Busy: too many calls wait.
        """
        if is_new and self._max_open is not None and self._num_open >= self._max_open:
            raise Busy
        if not self._started:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._num_open += 1
        self._calls.put((call, loop, future))
        return await future

    def close(self) -> None:
        """Let the threads end once they have nothing more to do."""
        for _ in range(self._num_threads if self._started else 0):
            self._calls.put(None)

    def _start(self) -> None:
        self._started = True
        for number in range(self._num_threads):
            name = f"{self._name}-{number + 1}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, loop, future = item
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:  # a panic of native code too; it is handed on
                error = raised
            try:
                loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:  # the loop was closed meanwhile
                return
            del call, future, item, result, error

    def _finish(
        self, future: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        self._num_open -= 1
        if future.done():  # who asked has gone
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # a future refuses the one, and the loop would end with the others
            future.set_exception(Crashed(f"{type(error).__name__}: {error}"))


class Crashed(Exception):
    """A call ended with what is no ``Exception``: native code panicked, say."""
