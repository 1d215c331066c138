"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, current_app, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import update

from textmill.backend.services.services import Services
from textmill.core.database.connections import now_ms, writing
from textmill.core.database.deadlines import within
from textmill.core.database.tables import Worker
from textmill.core.errors import ClientError
from textmill.core.problems import in_words
from textmill.core.workers import seen_workers

READY_SECONDS = 2.5  # a probe usually waits no longer; Redis may take its time-out as well
RETRY_SECONDS = 2  # as long as a worker or a database takes to come back at the soonest
health = Blueprint("health", __name__)


@health.get("/healthz")
def alive() -> Response:
    """The process answers."""
    return jsonify(status="ok")


@health.get("/readyz")
def ready() -> Response:
    """The database takes writes, and a worker was seen; Redis down is only slower."""
    services: Services = current_app.extensions["textmill"]
    with within(READY_SECONDS):
        database = _problem_of(lambda: _try_writing(services)) or "ok"
        workers = _problem_of(lambda: _look_for_workers(services)) or "ok"
    redis = "ok" if services.bus.ping() else "degraded"
    is_ready = database == workers == "ok"
    left_out = _left_out(services) if database == "ok" else []
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
    """What a check says, or what kept it from saying anything."""
    try:
        return check()
    except ClientError as error:  # the database is away or refuses; the log says why
        return str(error)


def _try_writing(services: Services) -> None:
    # Touches no row, and yet needs the write lock and a writable file.
    with writing(services.store.engine) as connection:
        nobody = update(Worker).where(Worker.id == "nobody")
        connection.execute(nobody.values(last_seen=now_ms()))


def _look_for_workers(services: Services) -> str | None:
    return None if seen_workers(services.store.engine) else "none seen within 30 s"


def _left_out(services: Services) -> list[str]:
    """A sentence on each model, file or process that is left out."""
    try:
        return [in_words(item.kind, item.name, item.reason) for item in services.problems()]
    except ClientError:
        return []


@health.get("/metrics")
def metrics() -> Response:
    """Prometheus's text."""
    registry = current_app.extensions["textmill_metrics"].registry
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
