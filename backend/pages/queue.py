"""The queue page: what waits and runs, and the workers."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, make_response, render_template

from textmill.backend.current import services
from textmill.backend.pages.formats import ago, short_duration
from textmill.backend.pages.phrases import Phrase
from textmill.backend.response_models import WorkerView
from textmill.core.problems import in_words

MAX_SLOT_MARKS = 64  # slots that are drawn
SLOT_WIDTH = 14  # in pixels
blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
def queue_page() -> Response:
    """Show the queue and its workers."""
    queue = services().queue.state()
    workers = queue["workers"]
    slots = sum(worker["slots"] for worker in workers)
    active = sum(worker["active"] for worker in workers)
    problems = queue.get("problems", ())
    page = render_template(
        "queue.html",
        queue=queue,
        problems=[in_words(p["kind"], p["name"], p["reason"]) for p in problems],
        workers=[_worker(worker) for worker in workers],
        worker_template=_worker(_NO_WORKER),
        median=short_duration(queue["waiting"]["median_seconds"]),
        p90=short_duration(queue["waiting"]["p90_seconds"]),
        slots_label=slots_label(active, slots) if slots else "",
    )
    return make_response(page)


_NO_WORKER: WorkerView = {
    "id": "",
    "models": [],
    "last_seen": "",
    "slots": 0,
    "active": 0,
    "tokens_per_second": 0.0,
}


def _worker(worker: WorkerView) -> dict[str, Any]:
    marks = slot_marks(worker["slots"], worker["active"])
    return {
        **worker,
        "ago": ago(worker["last_seen"]) if worker["last_seen"] else "",
        "slots_label": slots_label(worker["active"], worker["slots"]),
        "marks": marks,
        "width": len(marks) * SLOT_WIDTH,
    }


def slots_label(active: int, slots: int) -> str:
    """Return how many slots are used."""
    return Phrase.SLOTS_USED.format(active=active, slots=slots)


def slot_marks(num_slots: int, num_active: int) -> list[dict[str, Any]]:
    """Return the squares that stand for a worker's slots: position, and whether it is used."""
    num_marks = min(num_slots, MAX_SLOT_MARKS)
    return [{"x": i * SLOT_WIDTH + 1, "used": i < num_active} for i in range(num_marks)]
