"""The web process: the application, the hub of its event streams, and the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
import signal
import sys

import structlog
from flask import Flask

from textmill.backend.app import create_app
from textmill.backend.bodies import MAX_BODY_BYTES
from textmill.backend.current import EXTENSION
from textmill.backend.metrics import WebMetrics
from textmill.backend.server.limits import ServerLimits
from textmill.backend.server.listener import Server
from textmill.backend.server.threads import Threads
from textmill.backend.services.container import Services
from textmill.backend.streams.hub import Hub
from textmill.backend.streams.sse import JobResponseOpener
from textmill.core.errors import TextmillError
from textmill.core.logs import configure_logs
from textmill.core.settings import Settings

SPARE_CONNECTIONS = 1_024  # for requests, beside the maximum number of streams
SPARE_FILES = 256  # databases, Redis, logs, templates
_M_ARENA_MAX = -8  # glibc's malloc.h
MAX_ARENAS = 2  # most of what a thread does holds Python's lock
NUM_HUB_THREADS = 2  # for the hub's database queries; requests have their own threads
log = structlog.get_logger(__name__)


class CannotListen(TextmillError):
    """The server cannot listen on the address; ``__cause__`` is the system's error."""

    code = "cannot_listen"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SettingsError: the models file or the database's folder cannot be used.
        CannotListen: the server cannot listen on the address.
    """
    configure_logs(settings)
    limit_arenas()
    limits = limits_of(settings)
    raise_open_files(limits.max_connections + SPARE_FILES)
    asyncio.run(_serve(create_app(settings), settings, limits))


def limits_of(settings: Settings) -> ServerLimits:
    """Return the server's limits for these settings."""
    per_visitor = min(settings.max_streams_per_visitor, settings.max_streams)
    total = settings.max_streams + SPARE_CONNECTIONS
    # Behind a proxy, all connections come from its address.
    share = total if settings.trusted_proxies else per_visitor + SPARE_CONNECTIONS // 2
    return ServerLimits(
        max_body_bytes=MAX_BODY_BYTES,
        max_held=settings.max_streams,
        max_held_per_visitor=per_visitor,
        max_connections=total,
        max_connections_per_visitor=share,
    )


def limit_arenas() -> None:
    """Let threads share the heap, as far as glibc allocates it; to be called before they start.

    By default each of the 32 request threads keeps what its largest request needed, up to 8 arenas
    a processor.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MAX_ARENAS)


def raise_open_files(num_wanted: int) -> None:
    """Raise the limit of open files of this process, and warn if that is not possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    has_bound = hard != resource.RLIM_INFINITY
    num_possible = min(num_wanted, hard) if has_bound else num_wanted
    if soft != resource.RLIM_INFINITY and soft < num_possible:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_possible, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_wanted:
        log.warning(
            "open_files_limited",
            limit=soft,
            wanted=num_wanted,
            advice="raise the limit of open files (ulimit -Hn) or lower TEXTMILL_MAX_STREAMS",
        )


async def _serve(app: Flask, settings: Settings, limits: ServerLimits) -> None:
    services: Services = app.extensions[EXTENSION]
    threads = Threads("hub", NUM_HUB_THREADS)
    hub = Hub(services.history, services.positions, services.event_reader(), threads)
    server = Server(app.wsgi_app, limits, opener=JobResponseOpener(hub), ready_paths=("/healthz",))
    _add_gauges(app.extensions["textmill_metrics"], server, hub)
    try:
        await server.start(settings.host, settings.port)
    except OSError as error:
        raise CannotListen(f"{settings.host}:{settings.port}") from error
    log.info("web_listens", host=settings.host, port=settings.port)
    try:
        await _signalled()
    finally:
        await server.stop()
        await hub.close()
        threads.close()
        log.info("web_stopped")


def _add_gauges(metrics: WebMetrics, server: Server, hub: Hub) -> None:
    metrics.add_gauge(
        "textmill_open_streams", "Event streams and waits", lambda: server.held.num_open
    )
    metrics.add_gauge(
        "textmill_open_connections", "Connections", lambda: server.connections.num_open
    )
    metrics.add_gauge(
        "textmill_watched_jobs", "Jobs with at least one subscriber", lambda: hub.num_jobs
    )


async def _signalled() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
