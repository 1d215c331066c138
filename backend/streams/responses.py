"""Lets a view return at once while its response stays open: an event stream or a wait.

Under ``backend.server``, the view passes a description of the response to the server, which frees
its thread. Under another WSGI server or Flask's test client, the response runs on the request's
thread.
"""

from __future__ import annotations

from flask import Request, Response, g

from textmill.backend.current import access, principal
from textmill.backend.server.hold import HOLD_KEY, Hold, TooManyHeld
from textmill.backend.server.limits import visitor_of
from textmill.backend.services.container import Services
from textmill.backend.streams.sse import TextSpec, WaitSpec, stream_inline, wait_inline
from textmill.core.access.principals import ADMIN
from textmill.core.errors import TooManyStreams

RETRY_SECONDS = 5


def reserve(request: Request) -> Hold | None:
    """Reserve an open response; returns ``None`` under a server that cannot hold connections.

    Raises:
        TooManyStreams: too many are open.
    """
    hold: Hold | None = request.environ.get(HOLD_KEY)
    if hold is None or hold.is_over:
        return hold
    per_owner = access().max_streams_per_owner
    owner = principal().owner_id if per_owner and not principal().may(ADMIN) else ""
    try:
        hold.reserve(visitor_of(request.remote_addr or ""), owner=owner, per_owner=per_owner)
    except TooManyHeld:
        raise TooManyStreams(
            "Too many event streams and waits are open; close some, or try again in a moment.",
            retry_after_seconds=RETRY_SECONDS,
        ) from None
    return hold


def stream(services: Services, hold: Hold | None, spec: TextSpec) -> Response:
    """Return the response of an event stream."""
    if hold is None:
        body = stream_inline(spec, services)
    else:
        hold.spec, body = spec, iter(())  # the server sends the events after these headers
    response = Response(body, content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def wait(
    services: Services, hold: Hold | None, spec: WaitSpec, memo: object = None
) -> Response | None:
    """Wait until the view can answer.

    Args:
        services: for a wait on this thread.
        hold: of the request.
        spec: what to wait for.
        memo: what the view finds in its ``hold.memo`` when it is called again.

    Returns:
        ``None`` after the wait. A response is a placeholder that the view returns: the server waits
        and then calls the view again.
    """
    if hold is None:
        wait_inline(spec, services)
        return None
    if hold.is_over:
        return None
    hold.spec, hold.memo = spec, memo
    g.is_placeholder = True
    return Response(status=204)


def is_placeholder() -> bool:
    """Return whether the current response is a placeholder, which is never sent."""
    return bool(g.get("is_placeholder"))
