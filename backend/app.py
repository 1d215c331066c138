"""The Flask application: its blueprints, error handlers, and the headers of every response."""

from __future__ import annotations

import time

import structlog
from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from textmill.backend.access.control import EXTENSION as ACCESS
from textmill.backend.access.control import AccessControl
from textmill.backend.access.edge_limits import add_edge_limits
from textmill.backend.access.headers import BrowserHeaders
from textmill.backend.access.single_sign_on import single_sign_on
from textmill.backend.access.visitor_links import VisitorLinks
from textmill.backend.api import api
from textmill.backend.bodies import MAX_BODY_BYTES, refuse_body
from textmill.backend.current import EXTENSION
from textmill.backend.errors import register_errors
from textmill.backend.health import health
from textmill.backend.metrics import WebMetrics
from textmill.backend.openai.blueprints import helpers, openai
from textmill.backend.pages import pages
from textmill.backend.pages.responses import render_error
from textmill.backend.server.wsgi import ARRIVED_KEY
from textmill.backend.services.container import Services, make_services
from textmill.backend.streams.responses import is_placeholder
from textmill.core.access.keys import KeyStore
from textmill.core.access.secret import signing_secret
from textmill.core.access.users import UserStore
from textmill.core.catalog.live import LiveCatalog
from textmill.core.database import deadlines
from textmill.core.database.connections import REQUEST_SECONDS, make_engine
from textmill.core.events import EventBus
from textmill.core.jobs.store import JobStore, Limits
from textmill.core.settings import Settings
from textmill.core.tickets import TicketPublisher, make_celery

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
    for blueprint in (api, openai, helpers, pages, health):
        app.register_blueprint(blueprint)
    register_errors(app, render_error)
    app.before_request(_note_time)
    engine = services.store.engine
    add_access(app, settings, KeyStore(engine), UserStore(engine))
    add_edge_limits(app, settings)
    app.before_request(_refuse_body)
    app.after_request(_end_deadline)
    app.teardown_request(_forget_deadline)
    app.after_request(_log_request)
    app.after_request(metrics.observe)
    return app


def add_access(app: Flask, settings: Settings, keys: KeyStore, users: UserStore) -> None:
    """Add the rules of access, and the headers of every response.

    Raises:
        SettingsError: there is no secret, and none can be stored; or single sign-on is set, and
            its packages are not installed.
    """
    secret = signing_secret(settings) if settings.is_open else ""
    sign_on = single_sign_on(settings, secret, users)
    control, headers = AccessControl(settings, secret, keys, sign_on), BrowserHeaders(settings)

    def finish(response: Response) -> Response:
        headers.add(request, response)
        return control.after(response)

    app.extensions[ACCESS] = control
    if control.mode == "demo":
        app.wsgi_app = VisitorLinks(app.wsgi_app, control.visitors)  # type: ignore[method-assign]
    app.before_request(control.before)
    app.after_request(finish)
    if settings.trusted_proxies:
        count = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=count, x_proto=1)  # type: ignore[method-assign]


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
        settings=settings,
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


def _log_request(response: Response) -> Response:
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
