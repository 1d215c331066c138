"""A bounded pool of threads that runs calls for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Busy(Exception):
    """All threads are busy, and the maximum number of calls is waiting."""


class Threads:
    """Daemon threads, so a call that never returns does not keep the process alive.

    ``run`` is called on one event loop; the threads start with the first call.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: int | None = None) -> None:
        """Start no thread; ``max_waiting`` bounds the calls that wait, ``None`` means no bound."""
        self._name = name
        self._num_threads = num_threads
        self._max_open = None if max_waiting is None else num_threads + max_waiting
        self._calls: SimpleQueue[tuple[Callable[[], Any], Any, asyncio.Future[Any]] | None] = (
            SimpleQueue()
        )
        self._num_open = 0  # used on the loop's thread alone
        self._started = False

    @property
    def num_open(self) -> int:
        """The number of calls that run or wait."""
        return self._num_open

    async def run(self, call: Callable[[], T], *, is_new: bool = True) -> T:
        """Return or raise the result of a call that runs on a thread.

        Args:
            call: what to run.
            is_new: whether the call may be refused; a call that continues earlier work never is.

        Raises:
            Busy: too many calls are waiting.
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
        """Let the threads end after the calls that are queued."""
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
            except BaseException as raised:  # including a panic of native code; it is passed on
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
        if future.done():  # the caller was cancelled
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # a future rejects StopIteration, and the others would end the loop
            future.set_exception(Crashed(f"{type(error).__name__}: {error}"))


class Crashed(Exception):
    """A call raised something other than an ``Exception``, for example a panic of native code."""
