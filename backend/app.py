"""The Flask application: its blueprints, error handlers, and the headers of every response."""

from __future__ import annotations

import time

import structlog
from flask import Flask, Response, g, request

from textmill.backend.api import api
from textmill.backend.bodies import MAX_BODY_BYTES, refuse_body
from textmill.backend.current import EXTENSION
from textmill.backend.errors import register_errors
from textmill.backend.health import health
from textmill.backend.metrics import WebMetrics
from textmill.backend.pages import pages
from textmill.backend.pages.responses import render_error
from textmill.backend.server.wsgi import ARRIVED_KEY
from textmill.backend.services.container import Services, make_services
from textmill.backend.streams.responses import is_placeholder
from textmill.core.catalog.live import LiveCatalog
from textmill.core.database import deadlines
from textmill.core.database.connections import REQUEST_SECONDS, make_engine
from textmill.core.events import EventBus
from textmill.core.jobs.store import JobStore, Limits
from textmill.core.settings import Settings
from textmill.core.tickets import TicketPublisher, make_celery

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DATABASE_CONNECTIONS = 20  # twice as many under load; PostgreSQL allows 100 for all processes
log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Flask:
    """Build the application.

    Raises:
        SettingsError: the models file or the database's folder cannot be used.
    """
    app = Flask(
        "textmill.backend", static_folder="../web/static", template_folder="../web/templates"
    )
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    services = services_of(settings)
    metrics = WebMetrics(services)
    app.extensions[EXTENSION] = services
    app.extensions["textmill_metrics"] = metrics
    for blueprint in (api, pages, health):
        app.register_blueprint(blueprint)
    register_errors(app, render_error)
    app.before_request(_note_time)
    app.before_request(_refuse_body)
    app.after_request(_end_deadline)
    app.teardown_request(_forget_deadline)
    app.after_request(_add_headers)
    app.after_request(metrics.observe)
    return app


def services_of(settings: Settings) -> Services:
    """Build the services that the settings describe."""
    limits = Limits.from_settings(settings)
    engine = make_engine(
        settings.database_url, pool_size=DATABASE_CONNECTIONS, patience_seconds=REQUEST_SECONDS
    )
    return make_services(
        store=JobStore(engine, limits),
        bus=EventBus(settings.redis_url),
        tickets=TicketPublisher(make_celery(settings)) if settings.redis_url else None,
        catalog=LiveCatalog(settings),
    )


def _note_time() -> None:
    g.started = request.environ.get(ARRIVED_KEY) or time.perf_counter()
    deadlines.begin(REQUEST_SECONDS)  # one deadline for all statements of the request


def _end_deadline(response: Response) -> Response:
    deadlines.end()  # a stream continues, with a time limit for each of its queries
    return response


def _forget_deadline(_error: BaseException | None) -> None:
    deadlines.end()  # after an error too: the thread serves other requests next


def _refuse_body() -> None:
    refuse_body(request)


def _add_headers(response: Response) -> Response:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    if request.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "no-store")
    if is_placeholder():
        return response
    log.debug(
        "request",
        method=request.method,
        route=str(request.url_rule),
        status=response.status_code,
        ms=round((time.perf_counter() - g.get("started", time.perf_counter())) * 1000, 1),
    )
    return response
