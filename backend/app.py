"""The Flask application: parts put together, headers on every answer. No work at import."""

from __future__ import annotations

import importlib.util
import time

import structlog
from flask import Flask, Response, g, request

from textmill.backend.api import events, jobs, meta, runs
from textmill.backend.bodies import MAX_BODY_BYTES, refuse_body
from textmill.backend.errors import PageRenderer, register_errors
from textmill.backend.health import health
from textmill.backend.metrics import WebMetrics
from textmill.backend.server.wsgi import ARRIVED_KEY
from textmill.backend.services.services import Services
from textmill.backend.streams.holding import is_placeholder
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
DATABASE_CONNECTIONS = 20  # as many again under load; PostgreSQL has 100 for all processes
log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Flask:
    """Make the application.

    Raises:
        SettingsError: the models file or the database's folder cannot be used.
    """
    app = Flask(
        "textmill.backend", static_folder="../web/static", template_folder="../web/templates"
    )
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    services = make_services(settings)
    metrics = WebMetrics(services)
    app.extensions["textmill"] = services
    app.extensions["textmill_metrics"] = metrics
    for blueprint in (jobs.blueprint, runs.blueprint, events.blueprint, meta.blueprint):
        app.register_blueprint(blueprint, url_prefix="/api/v1")
    app.register_blueprint(health)
    register_errors(app, _register_pages(app))
    app.before_request(_note_time)
    app.before_request(_refuse_body)
    app.after_request(_end_deadline)
    app.teardown_request(_forget_deadline)
    app.after_request(_add_headers)
    app.after_request(metrics.observe)
    return app


def make_services(settings: Settings) -> Services:
    """The services as the settings have them."""
    limits = Limits.from_settings(settings)
    engine = make_engine(
        settings.database_url, pool_size=DATABASE_CONNECTIONS, patience_seconds=REQUEST_SECONDS
    )
    return Services(
        store=JobStore(engine, limits),
        bus=EventBus(settings.redis_url),
        tickets=TicketPublisher(make_celery(settings)) if settings.redis_url else None,
        catalog=LiveCatalog(settings),
    )


def _register_pages(app: Flask) -> PageRenderer | None:
    if importlib.util.find_spec("textmill.backend.pages.views") is None:
        return None
    from textmill.backend.pages.views import pages, render_error  # noqa: PLC0415

    app.register_blueprint(pages)
    return render_error


def _note_time() -> None:
    g.started = request.environ.get(ARRIVED_KEY) or time.perf_counter()
    deadlines.begin(REQUEST_SECONDS)  # for all its statements together


def _end_deadline(response: Response) -> Response:
    deadlines.end()  # a stream goes on, with the engine's patience for each look
    return response


def _forget_deadline(_error: BaseException | None) -> None:
    deadlines.end()  # whatever happened: the thread serves others


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
