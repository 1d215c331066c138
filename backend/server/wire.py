"""One client's socket: bytes in, bytes out, and the news that the client has gone.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

READ_AHEAD_BYTES = 64 * 1024  # of what a client sends before it is asked for
WRITE_AHEAD_BYTES = 64 * 1024  # of what a client has not read yet
_DEAD_PEER_MS = 60_000  # a client whose machine fell silent is gone after this


class WireLost(Exception):
    """The client has gone, or reads nothing."""


class Wire(asyncio.Protocol):
    """Collects what comes, and waits while the client does not read."""

    def __init__(self, on_open: Callable[[Wire], None]) -> None:
        """``on_open`` is called with the first news of the client."""
        self.on_end: Callable[[], None] | None = None  # called when the client sends no more
        self.has_ended = False  # the client sends no more
        self.is_lost = False  # nothing can be sent either
        self.address = ""
        self._on_open = on_open
        self._received = bytearray()
        self._is_reading_paused = False
        self._is_full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    # ---- called by the loop -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        made = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and made is not None:
            with contextlib.suppress(OSError):  # no TCP
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._received += data
        if len(self._received) > READ_AHEAD_BYTES and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()
            if self.on_end is not None:  # an end could not be seen any more
                self.on_end()
        _wake(self._reader)

    def eof_received(self) -> bool:
        """The client sends no more; it may still read."""
        self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self.is_lost = True
        self._end()
        _wake(self._writer)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_full = False
        _wake(self._writer)

    def _end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            if self.on_end is not None:
                self.on_end()
        _wake(self._reader)

    # ---- called by the connection -----------------------------------------------------------

    async def receive(self) -> bytes:
        """What came since the last call, waiting for it; empty when nothing comes any more."""
        while not self._received and not self.has_ended:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        data = bytes(self._received)
        self._received.clear()
        if self._is_reading_paused and not self.is_lost:
            self._is_reading_paused = False
            self._transport.resume_reading()
        return data

    def send(self, data: bytes) -> None:
        """Send, without waiting."""
        if self.is_lost:
            raise WireLost
        self._transport.write(data)

    async def drain(self, seconds: float) -> None:
        """Wait until most of what was sent has been read.

        Raises:
            WireLost: the client has gone, or did not read in time.
        """
        if self._is_full and not self.is_lost:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._writer
            except TimeoutError:
                self.abort()
        if self.is_lost:
            raise WireLost

    def stop_waiting(self) -> None:
        """Let ``drain`` end at once; the connection cannot be used after that."""
        if self._is_full:
            self.abort()

    async def close_gently(self, seconds: float, max_bytes: int) -> None:
        """Say that nothing more comes, throw away what the client still sends, and close."""
        num_bytes = 0
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                if not self.is_lost:
                    self._transport.write_eof()
                while num_bytes <= max_bytes and (data := await self.receive()):
                    num_bytes += len(data)
                if self.has_ended and not self.is_lost:
                    self._transport.close()  # what was written is sent first
                    while not self.is_lost:
                        self._reader = asyncio.get_running_loop().create_future()
                        await self._reader
        self.abort()

    def abort(self) -> None:
        """Close now; what was not sent is lost."""
        if not self.is_lost:
            self._transport.abort()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
