"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import update

from backend.services import Services
from core.db import now_ms, writing
from core.errors import StorageUnavailable
from core.models import Worker
from core.workers import seen_workers

health = Blueprint("health", __name__)


@health.get("/healthz")
def alive() -> Response:
    """The process answers."""
    return jsonify(status="ok")


@health.get("/readyz")
def ready() -> tuple[Response, int]:
    """The database takes writes, and a worker was seen; Redis down is only slower."""
    services: Services = current_app.extensions["textmill"]
    database, workers = "ok", "ok"
    try:
        # Touches no row, and yet needs the write lock and a writable file.
        with writing(services.store.engine) as connection:
            nobody = update(Worker).where(Worker.id == "nobody")
            connection.execute(nobody.values(last_seen=now_ms()))
        if not seen_workers(services.store.engine):
            workers = "none seen within 30 s"
    except StorageUnavailable as error:
        database, workers = str(error), "unknown"
    redis = "ok" if services.bus.ping() else "degraded"
    is_ready = database == workers == "ok"
    body = jsonify(
        status="ok" if is_ready else "unavailable",
        database=database,
        workers=workers,
        redis=redis,
    )
    return body, 200 if is_ready else 503


@health.get("/metrics")
def metrics() -> Response:
    """Prometheus's text."""
    registry = current_app.extensions["textmill_metrics"].registry
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
