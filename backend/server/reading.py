"""Reads the requests of one connection, head and body, within limits of size and time.

``h11`` parses the bytes. This module also rejects what h11 accepts: contradicting framings, other
versions of HTTP, targets without a path, and sizes beyond the limits.
"""

from __future__ import annotations

import asyncio

import h11

from textmill.backend.server.limits import ServerLimits
from textmill.backend.server.wire import Wire
from textmill.backend.server.wsgi import Target, parse_target


class Refused(Exception):
    """The server rejects this request itself."""

    def __init__(self, status: int, code: str, detail: str, *, is_last: bool = True) -> None:
        """``is_last`` closes the connection, because the start of the next request is unknown."""
        self.status = status
        self.code = code
        self.detail = detail
        self.is_last = is_last
        super().__init__(detail)


class RequestReader:
    """The reading half of a connection."""

    def __init__(self, wire: Wire, protocol: h11.Connection, limits: ServerLimits) -> None:
        self._wire = wire
        self._h11 = protocol
        self._limits = limits

    async def read_head(self) -> h11.Request | None:
        """Read request line and headers; returns ``None`` if no request arrives."""
        clock = asyncio.get_running_loop().time
        has_begun = bool(self._h11.trailing_data[0])
        patience = self._limits.head_seconds if has_begun else self._limits.idle_seconds
        try:
            async with asyncio.timeout(patience) as timer:
                while (event := self._next_event()) is h11.NEED_DATA:
                    if has_begun:
                        self._check_line()
                    data = await self._wire.receive()
                    if data and not has_begun:
                        has_begun = True
                        timer.reschedule(clock() + self._limits.head_seconds)
                    self._h11.receive_data(data)
        except TimeoutError:
            if not has_begun:
                return None
            seconds = f"{self._limits.head_seconds:g}"
            raise Refused(
                408, "request_timeout", f"The headers were not complete within {seconds} s."
            ) from None
        return event if isinstance(event, h11.Request) else None

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise self._broken(error) from None

    def _broken(self, error: h11.RemoteProtocolError) -> Refused:
        """Return the rejection of bytes that are not HTTP/1.1."""
        if self._h11.our_state is h11.SEND_RESPONSE:  # the head was valid, the body is not
            detail = "The body's framing is broken; send the request again."
            return Refused(400, "bad_request", detail)
        if error.error_status_hint == 431:
            self._check_line()
            return self._fields_too_large()
        if error.error_status_hint == 501:
            detail = "Send the body with Content-Length, or with Transfer-Encoding: chunked alone."
            return Refused(501, "not_implemented", detail)
        return Refused(
            400, "bad_request", "This is not an HTTP/1.1 request as defined by RFC 9112."
        )

    def _fields_too_large(self) -> Refused:
        limits = self._limits
        detail = (
            f"Send at most {limits.max_fields} headers of {limits.max_field_bytes:,} bytes each, "
            f"{limits.max_head_bytes // 1024} KiB in all."
        )
        return Refused(431, "headers_too_large", detail)

    def _check_line(self) -> None:
        """Reject a request line that has exceeded its limit without ending."""
        longest = self._limits.max_line_bytes + 2
        begun = self._h11.trailing_data[0]
        if len(begun) > longest and b"\n" not in begun[:longest].lstrip(b"\r\n"):
            raise self._line_too_long()

    def _line_too_long(self) -> Refused:
        detail = f"The request line is over {self._limits.max_line_bytes:,} bytes; shorten it."
        return Refused(414, "address_too_long", detail)

    def check(self, request: h11.Request) -> Target:
        """Check the head of a request and return its target.

        Raises:
            Refused: the head violates a rule or a limit.
        """
        limits = self._limits
        line = len(request.method) + len(request.target) + len(" HTTP/1.1 ")
        if line > limits.max_line_bytes:
            raise self._line_too_long()
        if not self._is_head_within(request, line):
            raise self._fields_too_large()
        if request.http_version not in (b"1.0", b"1.1"):
            raise Refused(400, "bad_request", "This server supports HTTP/1.1 and HTTP/1.0.")
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" in names and (
            b"content-length" in names or request.http_version == b"1.0"
        ):
            detail = "Content-Length and Transfer-Encoding contradict each other; send one of them."
            raise Refused(400, "bad_request", detail)
        target = parse_target(request.method, request.target)
        if target is None:
            detail = "The request target must be a path, such as /api/v1/jobs."
            raise Refused(400, "bad_request", detail)
        return target

    def _is_head_within(self, request: h11.Request, line: int) -> bool:
        """Return whether the headers are within their limits; the request line has ``line`` bytes.

        h11 bounds a head only while it is incomplete, which one that arrives in a single piece
        never is.
        """
        limits = self._limits
        sizes = [len(name) + len(value) + len(": ") for name, value in request.headers]
        in_all = line + sum(sizes) + len("\r\n") * (len(sizes) + 2)
        return (
            len(sizes) <= limits.max_fields
            and max(sizes, default=0) <= limits.max_field_bytes
            and in_all <= limits.max_head_bytes
        )

    async def read_body(self, request: h11.Request) -> bytes | None:
        """Read the body; returns ``None`` if it is too long, and leaves the rest unread."""
        limits = self._limits
        length = header_of(request, b"content-length")
        if length is not None and int(length) > limits.max_body_bytes:
            return None
        if self._h11.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self._wire.send(self._h11.send(go_on) or b"")
        pieces, num_bytes = [], 0
        clock = asyncio.get_running_loop().time
        until = clock() + limits.body_seconds
        try:
            async with asyncio.timeout_at(until) as timer:
                while not isinstance(event := self._next_event(), h11.EndOfMessage):
                    if isinstance(event, h11.Data):
                        pieces.append(event.data)
                        num_bytes += len(event.data)
                        if num_bytes > limits.max_body_bytes:
                            return None
                        continue
                    timer.reschedule(min(until, clock() + limits.body_pause_seconds))
                    self._h11.receive_data(await self._wire.receive())
        except TimeoutError:
            detail = "The body did not arrive in time; send it without pauses."
            raise Refused(408, "request_timeout", detail) from None
        return b"".join(pieces)

    async def skip_body(self) -> bool:
        """Discard the rest of a rejected body; returns whether its end was reached."""
        num_bytes = 0
        try:
            async with asyncio.timeout(self._limits.linger_seconds):
                while num_bytes <= self._limits.linger_bytes:
                    event = self._h11.next_event()
                    if isinstance(event, h11.EndOfMessage):
                        return self._h11.their_state is h11.DONE
                    if isinstance(event, h11.Data):
                        num_bytes += len(event.data)
                    else:
                        self._h11.receive_data(await self._wire.receive())
        except (TimeoutError, h11.RemoteProtocolError):
            pass
        return False


def header_of(request: h11.Request, name: bytes) -> bytes | None:
    """Return a header's first value; ``name`` is in lower case."""
    return next((value for key, value in request.headers if key == name), None)
