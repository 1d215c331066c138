"""The worker process: models, engine, loops, and Celery around them.

The database is at work before Celery connects, so a worker that starts with Redis gone still finds
its jobs. The order of the start: settings → schema → models → engine → warm → seen → tickets.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
import warnings
from typing import Any

import structlog
from celery import signals
from celery.exceptions import CPendingDeprecationWarning
from prometheus_client import start_http_server

from core.db import make_engine
from core.errors import SettingsError, StorageUnavailable
from core.events import EventBus
from core.jobs import JobStore, Limits
from core.logs import configure_logs
from core.model_cards import ModelCard, register_card
from core.model_catalog import load_catalog
from core.settings import Settings
from core.tickets import TASK_NAME, TicketPublisher, make_celery
from core.workers import forget, worker_host
from worker.cancels import CancelListener
from worker.engine import Engine, EngineError
from worker.lease import HEARTBEAT_SECONDS, PROGRESS_SECONDS, Heartbeat, Loop, Watchdog
from worker.metrics import WorkerMetrics
from worker.models.errors import ModelLoadError
from worker.models.loading import LoadedModel, default_num_slots, load
from worker.models.memory import cache_bytes
from worker.poller import POLL_SECONDS, Poller
from worker.publishing import Publisher
from worker.sweeper import SWEEP_SECONDS, Sweeper
from worker.tasks import JobRunner
from worker.termination import Termination

EX_CONFIG = 78  # sysexits.h: a restart cannot help; the supervisor stops everything
EX_SOFTWARE = 70  # a hang: a restart does help
WATCH_SECONDS = 10.0
DATABASE_CONNECTIONS = 6  # as many again under load; claims come one by one, results seldom
log = structlog.get_logger(__name__)


class WorkerProcess:
    """Everything that one worker process holds, and the order of its start and end."""

    def __init__(
        self, settings: Settings, models: dict[str, LoadedModel], termination: Termination
    ) -> None:
        """Put the parts together; nothing runs yet."""
        self.settings = settings
        self._termination = termination
        self.worker_id = f"{worker_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        num_slots = settings.num_slots or default_num_slots(settings.kernel_dir)
        self.engine = Engine(
            models, num_slots=num_slots, cache_bytes=cache_bytes(settings.cache_mib << 20)
        )
        self.store = make_store(settings)
        self.metrics = WorkerMetrics()
        self.bus = EventBus(settings.redis_url)
        self.publisher = Publisher(self.bus.publish)
        self.runner = JobRunner(
            store=self.store,
            engine=self.engine,
            publisher=self.publisher,
            metrics=self.metrics,
            worker_id=self.worker_id,
            revisions={name: model.info.revision for name, model in models.items()},
            on_dead_engine=lambda: _end_process("the engine's thread has died"),
        )
        self.celery = make_celery(settings, self.runner.models)
        self._models = models
        self._tickets = TicketPublisher(self.celery)
        self._loops = self._make_loops(num_slots)
        self._listener = (
            CancelListener(settings.redis_url, self._progress_loop.stir)
            if settings.redis_url
            else None
        )

    def _make_loops(self, num_slots: int) -> list[Loop]:
        heartbeat = Heartbeat(
            store=self.store, engine=self.engine, runner=self.runner, worker_id=self.worker_id
        )
        sweeper = Sweeper(self.store, self._publish, f"sweeper:{self.worker_id}")
        self._poller = Poller(self.runner, self._has_eligible, num_slots)
        watchdog = Watchdog(
            heartbeat=heartbeat,
            runner=self.runner,
            has_eligible=self._has_eligible,
            end_process=_end_process,
        )
        self._progress_loop = Loop("progress", PROGRESS_SECONDS, heartbeat.save_progress)
        self._poll_loop = Loop("poller", POLL_SECONDS, self._poller.look)
        return [
            Loop("heartbeat", HEARTBEAT_SECONDS, heartbeat.beat),
            self._progress_loop,
            self._poll_loop,
            Loop("sweeper", SWEEP_SECONDS, sweeper.sweep),
            Loop("watchdog", WATCH_SECONDS, watchdog.look),
        ]

    def start(self) -> None:
        """Warm the engine, then say that this worker is there."""
        self.engine.start()
        self.engine.warm_up()
        for name, model in self._models.items():
            register_card(self.store.engine, card_of(name, model))
        self._termination.hold_jobs()
        self.publisher.start()
        for loop in self._loops:
            loop.start()
        if self._listener is not None:
            self._listener.start()
        log.info("worker_ready", worker_id=self.worker_id, models=list(self.runner.models))

    def run(self) -> None:
        """Consume tickets until SIGTERM; without a Redis address wait for it."""
        if self.settings.redis_url is None:
            log.warning("no_redis", consequence="jobs are found by polling, texts are not streamed")
            self._termination.asked.wait()
            return
        self._termination.hand_over()
        self.celery.task(name=TASK_NAME, ignore_result=True)(self._on_ticket)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        self.celery.Worker(
            pool="threads",
            concurrency=self.engine.num_slots,
            hostname=f"celery@{self.worker_id}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel="WARNING",
        ).start()

    def stop(self) -> None:
        """Drain, then close everything; jobs that do not end in time go back to the queue."""
        self.runner.close()
        self._poll_loop.close()
        self._poller.close()
        self.runner.drain(self.settings.drain_seconds)
        for loop in self._loops:
            loop.close(0.5)  # one that hangs in a database that is away ends with the process
        if self._listener is not None:
            self._listener.close()
        self.publisher.close()
        self._tickets.close()
        self.engine.stop(2.0)
        try:
            forget(self.store.engine, self.worker_id)
        finally:
            self.bus.close()
            self.store.engine.dispose()
        log.info("worker_stopped", worker_id=self.worker_id)

    def _publish(self, model: str) -> None:
        """Repeat a ticket; where nothing is free it would only wait in Redis with the others."""
        if self.settings.redis_url is not None and self.runner.num_free:
            self._tickets.publish(model)

    def _has_eligible(self) -> bool:
        return self.store.has_eligible(self.runner.models)

    def _on_ticket(self, model: str) -> None:
        self.runner.work()

    def _on_shutting_down(self, **_: Any) -> None:
        """Celery waits for its threads from here on; the drain makes them end in time."""
        threading.Thread(
            target=self.runner.drain, args=(self.settings.drain_seconds,), daemon=True
        ).start()


def make_store(settings: Settings) -> JobStore:
    """The store as the settings have it."""
    limits = Limits.from_settings(settings)
    return JobStore(make_engine(settings.database_url, pool_size=DATABASE_CONNECTIONS), limits)


def card_of(name: str, model: LoadedModel) -> ModelCard:
    """What the web side may know of a loaded model."""
    info = model.info
    return ModelCard(
        name=name,
        revision=info.revision,
        family=info.family,
        path=info.path,
        num_parameters=info.num_parameters,
        context_length=info.context_length,
        vocabulary_size=info.vocabulary_size,
        dtype=info.dtype,
        tokenizer_json=info.tokenizer_json,
    )


def main(settings: Settings) -> int:
    """Run a worker until SIGTERM.

    Returns:
        The exit code: 0 after a clean stop, ``EX_CONFIG`` where a restart cannot help.
    """
    configure_logs(settings)
    # Celery warns of pickle when run as root, and of a default we have set: neither is ours.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser")
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    termination = Termination()
    try:
        process = WorkerProcess(settings, load_models(settings), termination)
        process.start()
    except (SettingsError, ModelLoadError) as error:
        # The supervisor shows this line as the reason why it stops.
        sys.stderr.write(f"textmill: {error}\n")
        return EX_CONFIG
    except (StorageUnavailable, EngineError) as error:
        log.error("worker_cannot_start", reason=str(error), cause=str(error.__cause__)[:300])
        return EX_SOFTWARE
    if settings.worker_metrics_port:
        start_http_server(
            settings.worker_metrics_port, addr=settings.host, registry=process.metrics.registry
        )
    try:
        process.run()
    finally:
        process.stop()
    return 0


def load_models(settings: Settings) -> dict[str, LoadedModel]:
    """Load what this worker serves, telling what takes time."""
    catalog = load_catalog(settings).served(settings.serve)
    num_slots = settings.num_slots or default_num_slots(settings.kernel_dir)
    models = {}
    for spec in catalog:
        log.info("model_loading", model=spec.name, source=spec.source)
        models[spec.name] = load(
            spec,
            cache_dir=settings.home / "models",
            dtype=spec.dtype,
            num_slots=num_slots,
            kernel_dir=settings.kernel_dir,
            report=lambda sentence: log.info("model_progress", step=sentence),
        )
    return models


def _end_process(reason: str) -> None:
    """Leave without cleaning up: what hangs would hang the cleaning too. The leases run out."""
    log.error("worker_hangs", reason=reason)
    os._exit(EX_SOFTWARE)
