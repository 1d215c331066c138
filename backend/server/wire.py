"""One client's socket: bytes in, bytes out, and notice of a disconnect.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

READ_AHEAD_BYTES = 64 * 1024  # received before it is requested
WRITE_AHEAD_BYTES = 64 * 1024  # sent and not yet read by the client
_DEAD_PEER_MS = 60_000  # after this, a client that acknowledges nothing counts as lost


class WireLost(Exception):
    """The client has disconnected, or does not read."""


class Wire(asyncio.Protocol):
    """Buffers what the client sends, and waits while the client does not read."""

    def __init__(self, on_open: Callable[[Wire], None]) -> None:
        """``on_open`` is called when the client has connected."""
        self.on_end: Callable[[], None] | None = None  # called when the client has finished sending
        self.has_ended = False  # the client has finished sending
        self.is_lost = False  # nothing can be sent
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
        """Handle a new client."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        made = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and made is not None:
            with contextlib.suppress(OSError):  # the socket is not TCP
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes; stops reading when the buffer is full."""
        self._received += data
        if len(self._received) > READ_AHEAD_BYTES and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()
            if self.on_end is not None:  # while reading is paused, a disconnect would go unnoticed
                self.on_end()
        _wake(self._reader)

    def eof_received(self) -> bool:
        """Handle the end of the client's input; it may still read."""
        self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Handle the end of the connection."""
        self.is_lost = True
        self._end()
        _wake(self._writer)

    def pause_writing(self) -> None:
        """Handle a full send buffer."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Handle a send buffer that has room again."""
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
        """Return what was received since the last call; waits for it, and is empty at the end."""
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
        """Send without waiting.

        Raises:
            WireLost: the connection has ended.
        """
        if self.is_lost:
            raise WireLost
        self._transport.write(data)

    async def drain(self, seconds: float) -> None:
        """Wait until most of what was sent has been read.

        Raises:
            WireLost: the client has disconnected, or did not read in time.
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
        """Make ``drain`` end at once; the connection cannot be used after that."""
        if self._is_full:
            self.abort()

    async def close_gently(self, seconds: float, max_bytes: int) -> None:
        """End the output, discard what the client still sends, and close."""
        num_bytes = 0
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                if not self.is_lost:
                    self._transport.write_eof()
                while num_bytes <= max_bytes and (data := await self.receive()):
                    num_bytes += len(data)
                if self.has_ended and not self.is_lost:
                    self._transport.close()  # sends the buffer first
                    while not self.is_lost:
                        self._reader = asyncio.get_running_loop().create_future()
                        await self._reader
        self.abort()

    def abort(self) -> None:
        """Close now and discard the send buffer."""
        if not self.is_lost:
            self._transport.abort()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
