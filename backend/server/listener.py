"""Listens on a port, counts connections, and stops within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import h11

from textmill.backend.server.connection import Connection, Serving
from textmill.backend.server.hold import HoldOpener
from textmill.backend.server.limits import Allowance, ServerLimits, visitor_of
from textmill.backend.server.reading import Refused
from textmill.backend.server.threads import Threads
from textmill.backend.server.wire import Wire
from textmill.backend.server.wsgi import Answer, Exchange, Target, WsgiApp, environ_of

BACKLOG = 2_048  # connections that the kernel queues until they are accepted
NUM_REFUSING = 64  # connections over the limit that get a response at once; more are closed


class Server:
    """A WSGI application on a port."""

    def __init__(
        self,
        app: WsgiApp,
        limits: ServerLimits,
        *,
        opener: HoldOpener | None = None,
        ready_paths: tuple[str, ...] = (),
    ) -> None:
        """Configure the server without listening.

        Args:
            app: the application.
            limits: the bounds.
            opener: opens the responses that the application keeps open.
            ready_paths: paths whose GET always has the same response. The application is called
                once for each, and no request for them waits for a thread.
        """
        self.held = Allowance(limits.max_held, limits.max_held_per_visitor)
        self.connections = Allowance(limits.max_connections, limits.max_connections_per_visitor)
        self._app = app
        self._limits = limits
        self._opener = opener
        self._ready_paths = ready_paths
        self._threads = Threads("request", limits.num_threads, limits.max_waiting)
        self._tasks: dict[asyncio.Task[None], Connection] = {}
        self._num_refusing = 0
        self._is_stopping = False
        self._server: asyncio.Server | None = None
        self._serving: Serving

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the server cannot listen on this address.
        """
        name = (host, port)
        self._serving = Serving(
            app=self._app,
            limits=self._limits,
            threads=self._threads,
            held=self.held,
            opener=self._opener,
            again=asyncio.Semaphore(max(1, self._limits.num_threads // 4)),
            ready_answers={path: await self._call_once(path, name) for path in self._ready_paths},
            name=name,
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._new_wire, host, port, backlog=BACKLOG)

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        if self._server is None:
            raise RuntimeError("the server was not started")
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop accepting, end open responses, finish other requests within ``stop_seconds``."""
        self._is_stopping = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._tasks.values()):
            connection.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._limits.stop_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._threads.close()

    async def _call_once(self, path: str, name: tuple[str, int]) -> Answer:
        request = h11.Request(method="GET", target=path, headers=[("Host", "localhost")])
        environ = environ_of(request, Target(path, "", None), b"", client="", server=name)
        return await self._threads.run(Exchange(self._app, environ).begin)

    # ---- connections ------------------------------------------------------------------------

    def _new_wire(self) -> Wire:
        return Wire(self._on_open)

    def _on_open(self, wire: Wire) -> None:
        if self._is_stopping:
            wire.abort()
            return
        visitor = visitor_of(wire.address)
        connection = Connection(wire, self._serving, visitor)
        if self.connections.acquire(visitor):
            self._spawn(connection, self._serve(connection, visitor))
        elif self._num_refusing < NUM_REFUSING:
            self._num_refusing += 1
            self._spawn(connection, self._refuse(connection))
        else:
            wire.abort()

    def _spawn(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = connection
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, connection: Connection, visitor: str) -> None:
        try:
            await connection.serve()
        finally:
            self.connections.release(visitor)

    async def _refuse(self, connection: Connection) -> None:
        detail = "Too many connections are open; close some, or try again in a moment."
        try:
            await connection.refuse_at_once(Refused(503, "too_many_connections", detail))
        finally:
            self._num_refusing -= 1
