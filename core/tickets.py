"""Celery tickets: a message that says "a job waits for model M", and nothing more.

The row is authoritative. A lost ticket costs a few seconds, and one that arrives twice or too late
finds no job to claim. Publishing is therefore best effort, on a separate thread, and never delays
an answer.
"""

from __future__ import annotations

import queue
import threading

import structlog
from celery import Celery
from kombu.entity import Queue

from textmill.core.settings import Settings

TASK_NAME = "textmill.work"
MAX_WAITING_TICKETS = 1_000  # beyond it Redis is unavailable, and the workers poll
_QUEUE_PREFIX = "textmill.model."
log = structlog.get_logger(__name__)


def queue_name(model: str) -> str:
    """The Celery queue whose tickets go to the workers that serve a model."""
    return _QUEUE_PREFIX + model


def make_celery(settings: Settings, models: tuple[str, ...] = ()) -> Celery:
    """The Celery application of a process; ``models`` are those whose tickets a worker consumes.

    With early acknowledgement and without prefetch, every job ran exactly once across killed
    connections; with late acknowledgement jobs ran twice. There is no result backend: results are
    rows.
    """
    app = Celery("textmill", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,
        task_create_missing_queues=True,
        task_default_queue="textmill.default",
        task_queues=[Queue(queue_name(model)) for model in models],
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 2.0,
            "socket_connect_timeout": 1.0,
            "socket_keepalive": True,
            "retry_on_timeout": False,
        },
        timezone="UTC",
    )
    return app


class TicketPublisher:
    """Publishes tickets from a separate thread, which starts with the first ticket.

    ``publish`` returns at once and never raises. While Redis is unavailable, tickets beyond a bound
    are dropped: workers poll the table every two seconds.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING_TICKETS)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def publish(self, model: str) -> None:
        """Queue a ticket for a model."""
        self._ensure_thread()
        try:
            self._waiting.put_nowait(model)
        except queue.Full:
            log.warning("ticket_dropped", model=model)

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Publish the queued tickets, within the time limit, and stop."""
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=timeout_seconds)
        except queue.Full:
            return  # Redis is unavailable; the daemon thread ends with the process
        thread.join(timeout_seconds)

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="ticket-publisher", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while (model := self._waiting.get()) is not None:
            try:
                self._app.send_task(
                    TASK_NAME,
                    args=[model],
                    queue=queue_name(model),
                    retry=False,
                    ignore_result=True,
                )
            except Exception as error:
                log.warning("ticket_not_published", model=model, reason=type(error).__name__)
