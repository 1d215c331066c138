"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, current_app, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import update

from textmill.backend.current import services
from textmill.backend.services.container import Services
from textmill.core.database.connections import now_ms, writing
from textmill.core.database.deadlines import within
from textmill.core.database.tables import Worker
from textmill.core.errors import ClientError
from textmill.core.problems import in_words

READY_SECONDS = 2.5  # for the database; probes rarely wait longer, and Redis may time out too
RETRY_SECONDS = 2  # the shortest restart of a worker or a database
health = Blueprint("health", __name__)


@health.get("/healthz")
def alive() -> Response:
    """Answer 200: the process is alive."""
    return jsonify(status="ok")


@health.get("/readyz")
def ready() -> Response:
    """Answer 200 if the database accepts writes and a worker was seen, else 503.

    Without Redis the product is slower but works, so that is reported as degraded.
    """
    found = services()
    with within(READY_SECONDS):
        database = _problem_of(lambda: _check_writing(found)) or "ok"
        workers = _problem_of(lambda: _check_workers(found)) or "ok"
    redis = "ok" if found.bus.ping() else "degraded"
    is_ready = database == workers == "ok"
    left_out = _left_out(found) if database == "ok" else []
    response = jsonify(
        status="ok" if is_ready else "unavailable",
        database=database,
        workers=workers,
        redis=redis,
        **({"problems": left_out} if left_out else {}),
    )
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def _problem_of(check: Callable[[], str | None]) -> str | None:
    """Return the problem that a check found, or the error that it raised."""
    try:
        return check()
    except ClientError as error:  # the database is unavailable, and the log says why
        return str(error)


def _check_writing(services: Services) -> None:
    # This changes no row, but needs the write lock and a writable file.
    with writing(services.store.engine) as connection:
        no_row = update(Worker).where(Worker.id == "nobody")
        connection.execute(no_row.values(last_seen=now_ms()))


def _check_workers(services: Services) -> str | None:
    return None if services.queue.workers() else "none seen within 30 s"


def _left_out(services: Services) -> list[str]:
    """Return a sentence for each model, file or process that is left out."""
    try:
        return [in_words(item.kind, item.name, item.reason) for item in services.queue.problems()]
    except ClientError:
        return []


@health.get("/metrics")
def metrics() -> Response:
    """Return the metrics in Prometheus's text format."""
    registry = current_app.extensions["textmill_metrics"].registry
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
