"""Handles the requests of one connection, one after another.

``h11`` parses and formats HTTP; ``Exchange`` calls the application.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from http import HTTPStatus

import h11
import structlog

from textmill.backend.problem_documents import CONTENT_TYPE, problem_text
from textmill.backend.server.hold import HOLD_KEY, Held, Hold, HoldOpener
from textmill.backend.server.limits import Allowance, ServerLimits
from textmill.backend.server.reading import Refused, RequestReader, header_of
from textmill.backend.server.threads import Busy, Crashed, Threads
from textmill.backend.server.wire import Wire, WireLost
from textmill.backend.server.wsgi import (
    ARRIVED_KEY,
    PIECE_BYTES,
    TOO_LARGE_KEY,
    Answer,
    Environ,
    Exchange,
    Target,
    WsgiApp,
    environ_of,
)

RETRY_SECONDS = 2
STOP_LINGER_SECONDS = 0.5  # for the client to close the connection when the server stops
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What all connections of a server have in common.

    Attributes:
        app: the application.
        limits: the limits.
        threads: where the application runs.
        held: counts open responses.
        opener: opens them; ``None`` if the application has none.
        again: bounds the requests that call the application again at once after a wait; thousands
            of waits may end in the same moment.
        ready_answers: responses that need no thread, by path.
        name: host and port for the application.
    """

    app: WsgiApp
    limits: ServerLimits
    threads: Threads
    held: Allowance
    opener: HoldOpener | None
    again: asyncio.Semaphore
    ready_answers: dict[str, Answer]
    name: tuple[str, int]


class Connection:
    """Serves one wire until it is closed."""

    def __init__(self, wire: Wire, serving: Serving, visitor: str) -> None:
        self._wire = wire
        self._serving = serving
        self._limits = serving.limits
        self._visitor = visitor
        self._h11 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=serving.limits.max_head_bytes
        )
        self._reader = RequestReader(wire, self._h11, serving.limits)
        self._is_reading = True
        self._is_closing = False
        self._is_stopping = False
        self._held: Held | None = None

    # ---- from outside -----------------------------------------------------------------------

    def stop(self) -> None:
        """Finish the current request, end an open response, and close."""
        self._is_stopping = True
        if self._held is not None:
            self._held.close()
        elif self._is_closing:
            asyncio.get_running_loop().call_later(STOP_LINGER_SECONDS, self._wire.abort)
        elif self._is_reading:  # no request was accepted
            self._wire.abort()

    async def serve(self) -> None:
        """Handle requests until the client or the server closes the connection."""
        try:
            try:
                while await self._one_request():
                    self._h11.start_next_cycle()
            except Refused as refused:
                await self._refuse(refused)
            self._is_closing = True
            seconds = STOP_LINGER_SECONDS if self._is_stopping else self._limits.linger_seconds
            await self._wire.close_gently(seconds, self._limits.linger_bytes)
        except WireLost:
            pass
        except Exception as error:
            log.error("connection_failed", exc_info=error)
        finally:
            self._wire.abort()

    async def refuse_at_once(self, refused: Refused) -> None:
        """Send a rejection before anything is read, because there are too many connections."""
        try:
            await self._refuse(refused)
            await self._wire.close_gently(1.0, self._limits.max_head_bytes)
        except WireLost:
            pass
        finally:
            self._wire.abort()

    async def _one_request(self) -> bool:
        """Handle one request; returns whether another one may follow."""
        self._is_reading = True
        request = await self._reader.read_head()
        if request is None:
            return False
        target = self._reader.check(request)
        body = await self._reader.read_body(request)
        self._is_reading = False
        try:
            await self._answer(request, target, body)
        except Refused as refused:
            if refused.is_last or self._h11.our_state is not h11.SEND_RESPONSE:
                raise
            await self._refuse(refused)
        return await self._may_go_on()

    async def _may_go_on(self) -> bool:
        """Advance to the start of the next request; returns false if there cannot be one."""
        if self._h11.our_state is not h11.DONE or self._is_stopping:
            return False
        if self._h11.their_state is h11.SEND_BODY:
            return await self._reader.skip_body()
        return self._h11.their_state is h11.DONE

    # ---- responses --------------------------------------------------------------------------

    async def _answer(self, request: h11.Request, target: Target, body: bytes | None) -> None:
        ready = self._serving.ready_answers.get(target.path)
        if ready is not None and request.method in (b"GET", b"HEAD") and body is not None:
            self._send_head(request, ready, is_last=False)
            await self._finish(request, ready.piece)
            return
        arrived = time.perf_counter()
        hold = Hold(self._serving.held, self._visitor)
        try:
            exchange, answer = await self._call(request, target, body, hold, arrived)
            if hold.spec is None or self._serving.opener is None:
                await self._send_answer(request, exchange, answer, is_cut=body is None)
                return
            del exchange  # thousands of responses may be open at once
            await self._hold(request, hold.spec, answer)
        finally:
            hold.release()
        if self._h11.our_state is h11.SEND_RESPONSE:
            hold = Hold(self._serving.held, self._visitor, is_over=True, memo=hold.memo)
            async with self._serving.again:
                exchange, answer = await self._call(request, target, body, hold, arrived)
            await self._send_answer(request, exchange, answer, is_cut=False)

    def _environ(self, request: h11.Request, target: Target, body: bytes | None) -> Environ:
        environ = environ_of(
            request,
            target,
            body or b"",
            client=self._wire.address,
            server=self._serving.name,
        )
        if body is None:
            environ[TOO_LARGE_KEY] = True
        return environ

    async def _call(
        self,
        request: h11.Request,
        target: Target,
        body: bytes | None,
        hold: Hold,
        arrived: float,
    ) -> tuple[Exchange, Answer]:
        """Call the application on a thread."""
        environ = self._environ(request, target, body)
        environ[HOLD_KEY] = hold
        environ[ARRIVED_KEY] = arrived
        exchange = Exchange(self._serving.app, environ)
        too_late = time.monotonic() + self._limits.wait_seconds

        def begin() -> Answer:
            if self._wire.is_lost:  # the client gave up while the request waited for a thread
                raise WireLost
            if time.monotonic() > too_late:
                raise Busy
            return exchange.begin()

        try:
            return exchange, await self._serving.threads.run(begin, is_new=not hold.is_over)
        except Busy:
            detail = "The server is busy; try again in a moment."
            raise Refused(503, "busy", detail, is_last=False) from None
        except WireLost:
            raise
        except Exception as error:
            log.error("application_failed", path=target.path, exc_info=error)
            detail = "Internal error. It was logged; try again later."
            raise Refused(500, "internal", detail, is_last=False) from None

    async def _send_answer(
        self, request: h11.Request, exchange: Exchange, answer: Answer, *, is_cut: bool
    ) -> None:
        """Send the application's response, as fast as the client reads it."""
        self._send_head(request, answer, is_last=is_cut and self._cannot_skip(request))
        if answer.is_whole:
            await self._finish(request, answer.piece)
            return
        is_whole, piece = False, answer.piece
        try:
            while not is_whole:
                await self._send_body(request, piece)
                piece, is_whole = await self._serving.threads.run(exchange.go_on, is_new=False)
        except WireLost:
            raise
        except (
            Crashed,
            Exception,
        ) as error:  # the status was sent, so the only way to signal an error is to stop
            log.error("answer_cut", exc_info=error)
            raise WireLost from error
        finally:
            if not is_whole:
                await self._serving.threads.run(exchange.close, is_new=False)
        await self._finish(request, piece)

    async def _hold(self, request: h11.Request, spec: object, answer: Answer) -> None:
        """Keep the response open until it ends, the client disconnects, or the server stops."""
        if self._serving.opener is None or request.method == b"HEAD":
            if answer.status == 200:
                self._send_head(request, answer, is_last=False)
                await self._finish(request, b"")
            return
        held = self._held = self._serving.opener.open(spec)
        self._wire.on_end = self._on_end
        try:
            if self._wire.has_ended:
                raise WireLost
            if self._is_stopping:
                held.close()
            chunks = held.chunks()
            if chunks is None:
                await held.finished()
            else:
                await self._stream(request, answer, chunks)
            if self._wire.has_ended:
                raise WireLost
        except WireLost:
            await self._serving.threads.run(held.abandon, is_new=False)
            raise
        finally:
            self._held = self._wire.on_end = None
            held.close()

    def _on_end(self) -> None:
        if self._held is not None:
            self._held.close()
        self._wire.stop_waiting()

    async def _stream(
        self, request: h11.Request, answer: Answer, chunks: AsyncIterator[str]
    ) -> None:
        self._send_head(request, replace(answer, is_whole=False), is_last=False)
        async for chunk in chunks:
            self._send(h11.Data(data=chunk.encode()))
            await self._wire.drain(self._limits.send_seconds)
        self._send(h11.EndOfMessage())

    def _cannot_skip(self, request: h11.Request) -> bool:
        """Return whether the rest of a rejected body is too long to read, or may never arrive."""
        length = header_of(request, b"content-length")
        is_long = length is not None and int(length) > self._limits.linger_bytes
        return is_long or header_of(request, b"expect") is not None

    async def _refuse(self, refused: Refused) -> None:
        """Send a problem document, if a response can still be sent."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = problem_text(refused.status, refused.code, refused.detail).encode()
        headers = [
            (b"Content-Type", CONTENT_TYPE.encode()),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Cache-Control", b"no-store"),
        ]
        if refused.status in (429, 503):
            headers.append((b"Retry-After", str(RETRY_SECONDS).encode()))
        answer = Answer(refused.status, headers, body, is_whole=True)
        self._send_head(None, answer, is_last=refused.is_last)
        await self._finish(None, body)

    def _send_head(self, request: h11.Request | None, answer: Answer, *, is_last: bool) -> None:
        headers = [
            *answer.headers,
            (b"Date", email.utils.formatdate(usegmt=True).encode()),
            (b"Server", b"textmill"),
        ]
        has_body = answer.status not in (204, 304) and (
            request is None or request.method != b"HEAD"
        )
        has_length = any(name.lower() == b"content-length" for name, _ in answer.headers)
        if answer.is_whole and has_body and not has_length:
            headers.append((b"Content-Length", str(len(answer.piece)).encode()))
        if is_last or self._is_stopping:
            headers.append((b"Connection", b"close"))
        reason = _REASONS.get(answer.status, b"")
        self._send(h11.Response(status_code=answer.status, headers=headers, reason=reason))

    async def _send_body(self, request: h11.Request | None, body: bytes) -> None:
        if not body or (request is not None and request.method == b"HEAD"):
            return
        for start in range(0, len(body), PIECE_BYTES):
            self._send(h11.Data(data=body[start : start + PIECE_BYTES]))
            await self._wire.drain(self._limits.send_seconds)

    async def _finish(self, request: h11.Request | None, body: bytes) -> None:
        await self._send_body(request, body)
        self._send(h11.EndOfMessage())
        await self._wire.drain(self._limits.send_seconds)

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            self._wire.send(data)
