"""How a view holds its connection open: it orders an event stream or a wait, and returns at once.

Under ``backend.server`` the order goes to the server, and the thread is free. Under any other WSGI
server, and under Flask's test client, the same happens on the request's thread.
"""

from __future__ import annotations

from flask import Request, Response, g

from textmill.backend.server.hold import HOLD_KEY, Hold, TooManyHeld
from textmill.backend.services.services import Services
from textmill.backend.streams.sse import WaitOrder, WatchOrder, stream_here, wait_here
from textmill.core.errors import TooManyStreams

RETRY_SECONDS = 5


def reserve(request: Request) -> Hold | None:
    """A place for what is to be held; ``None`` where the server holds nothing.

    Raises:
        TooManyStreams: there is none.
    """
    hold: Hold | None = request.environ.get(HOLD_KEY)
    if hold is None or hold.is_over:
        return hold
    try:
        hold.reserve()
    except TooManyHeld:
        raise TooManyStreams(
            "Too many event streams and waits are open; close some, or try again in a moment.",
            retry_after_seconds=RETRY_SECONDS,
        ) from None
    return hold


def stream(services: Services, hold: Hold | None, order: WatchOrder) -> Response:
    """The answer that is an event stream."""
    if hold is None:
        body = stream_here(order, services, services.reader)
    else:
        hold.order, body = order, iter(())  # the server sends it after these headers
    response = Response(body, content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def wait(services: Services, hold: Hold | None, order: WaitOrder) -> Response | None:
    """Wait until the view is to answer; a response is to be returned, the view is asked again."""
    if hold is None:
        wait_here(order, services, services.reader)
        return None
    if hold.is_over:
        return None
    hold.order = order
    g.is_placeholder = True
    return Response(status=204)


def is_placeholder() -> bool:
    """Whether the answer that is being made is thrown away."""
    return bool(g.get("is_placeholder"))
