"""One worker process: its engine, its loops, and Celery around them.

The database is in use before Celery connects, so a worker that starts without Redis still finds its
jobs.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from functools import partial
from typing import Any

import structlog
from celery import signals

from textmill.core.catalog.served_models import ServedModel, store_served_model
from textmill.core.database.connections import make_engine
from textmill.core.database.maintenance import UPKEEP_SECONDS, Upkeep
from textmill.core.dead_workers import note_birth, note_end
from textmill.core.errors import StorageUnavailable
from textmill.core.events import EventBus
from textmill.core.failpoints import reach
from textmill.core.jobs.store import JobStore, Limits
from textmill.core.moderation import make_moderator
from textmill.core.settings import Settings
from textmill.core.tickets import TASK_NAME, TicketPublisher, make_celery, queue_name
from textmill.core.workers import forget, worker_host
from textmill.engine import InferenceEngine
from textmill.engine.models.loading import LoadedModel, default_num_slots
from textmill.engine.models.memory import cache_bytes, return_unused
from textmill.worker.cancels import CancelListener
from textmill.worker.conversions import REMOVE_SECONDS, remove_stale
from textmill.worker.intervals import Intervals
from textmill.worker.job_worker import JobWorker
from textmill.worker.lease import Heartbeat
from textmill.worker.loop import Loop
from textmill.worker.metrics import WorkerMetrics
from textmill.worker.model_watch import WATCH_MODELS_SECONDS, Actions, ModelWatch
from textmill.worker.poller import Poller
from textmill.worker.publishing import Publisher
from textmill.worker.siblings import SiblingWatch
from textmill.worker.stop_signal import StopSignal
from textmill.worker.sweeper import Sweeper
from textmill.worker.watchdog import WATCH_SECONDS, Watchdog

EX_SOFTWARE = 70  # sysexits.h: a hang, which a restart ends
DATABASE_CONNECTIONS = 6  # twice as many under load; claims are serial, results rare
log = structlog.get_logger(__name__)


def _make_engine(settings: Settings, watch: ModelWatch, num_slots: int) -> InferenceEngine:
    return InferenceEngine(
        watch.models,
        num_slots=num_slots,
        cache_bytes=cache_bytes(settings.cache_mib << 20),
        on_prefill=partial(reach, "prefill"),
        speculates=settings.speculation == "auto",
    )


class WorkerProcess:
    """The parts of one worker process, and the order in which they start and stop.

    Nothing runs before ``start``.

    Args:
        settings: of the process.
        watch: the models, which are loaded.
        stop_signal: remembers SIGTERM until Celery handles it.
        intervals: for tests.

    Attributes:
        is_outdated: whether it stops because the models file requires a new process.
    """

    def __init__(
        self,
        settings: Settings,
        watch: ModelWatch,
        stop_signal: StopSignal,
        intervals: Intervals | None = None,
    ) -> None:
        intervals = intervals or Intervals()
        self.settings = settings
        self.model_watch = watch
        self.is_outdated = False
        self._stop_signal = stop_signal
        self.worker_id = f"{worker_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        num_slots = settings.num_slots or default_num_slots(
            settings.kernel_dir, settings.kernels_isa
        )
        self.engine = _make_engine(settings, watch, num_slots)
        self.store = make_store(settings, intervals.lease)
        self.metrics = WorkerMetrics()
        self.metrics.watch(self.engine)
        self.bus = EventBus(settings.redis_url)
        self.publisher = Publisher(self.bus.publish)
        self.runner = JobWorker(
            store=self.store,
            engine=self.engine,
            publisher=self.publisher,
            metrics=self.metrics,
            worker_id=self.worker_id,
            revisions={name: model.info.revision for name, model in watch.models.items()},
            on_dead_engine=lambda: _exit_now("the engine's thread has died"),
            settled_seconds=intervals.settled,
            moderator=make_moderator(settings),
        )
        self._first_models = self.runner.models
        self.celery = make_celery(settings, self._first_models)
        self._tickets = TicketPublisher(self.celery)
        self._consumer: Any = None  # Celery's, once it exists
        self._loops = self._make_loops(num_slots, intervals)
        self._listener = self._make_listener(settings.redis_url)

    def _make_listener(self, redis_url: str | None) -> CancelListener | None:
        return CancelListener(redis_url, self._progress_loop.wake) if redis_url else None

    def _make_loops(self, num_slots: int, intervals: Intervals) -> list[Loop]:
        heartbeat = Heartbeat(
            store=self.store, engine=self.engine, runner=self.runner, worker_id=self.worker_id
        )
        sweeper = Sweeper(
            self.store,
            self._publish,
            f"sweeper:{self.worker_id}",
            living=heartbeat.living,
            intervals=intervals,
        )
        self._poller = Poller(self.runner, self._has_eligible, num_slots)
        watchdog = Watchdog(
            heartbeat=heartbeat,
            runner=self.runner,
            has_eligible=self._has_eligible,
            end_process=_exit_now,
        )
        self._progress_loop = Loop("progress", intervals.progress, heartbeat.save_progress)
        self._poll_loop = Loop("poller", intervals.poll, self._poller.look)
        self._heartbeat_loop = Loop("heartbeat", intervals.heartbeat, heartbeat.beat)
        self._siblings = SiblingWatch(
            self.store, self.settings.home, self.worker_id, self._poll_loop.wake
        )
        watch = partial(
            self.model_watch.look, Actions(self._add_model, self._store_card, self._ask_end)
        )
        upkeep = Upkeep(self.store.engine, keep_days=self.settings.kept_days)
        return [
            self._heartbeat_loop,
            self._progress_loop,
            self._poll_loop,
            Loop("models", WATCH_MODELS_SECONDS, watch),
            Loop("sweeper", intervals.sweep, sweeper.sweep),
            Loop("siblings", 0.0, self._siblings.look),
            Loop("watchdog", WATCH_SECONDS, watchdog.look),
            Loop("upkeep", UPKEEP_SECONDS, upkeep.step),
            Loop("conversions", REMOVE_SECONDS, partial(remove_stale, self.settings)),
        ]

    def start(self) -> None:
        """Warm the engine up, then announce this worker."""
        note_birth(self.settings.home, self.worker_id)
        self.engine.start()
        self.engine.warm_up()
        for model in self.model_watch.models.values():
            self._store_card(model)
        return_unused()
        self._stop_signal.hold_jobs()
        self.publisher.start()
        for loop in self._loops:
            loop.start()
        if self._listener is not None:
            self._listener.start()
        log.info("worker_ready", worker_id=self.worker_id, models=list(self.runner.models))

    def run(self) -> None:
        """Consume tickets until SIGTERM; without a Redis address only wait for the signal."""
        if self.settings.redis_url is None:
            log.warning("no_redis", consequence="jobs are found by polling, texts are not streamed")
            self._stop_signal.wait()
            return
        self._stop_signal.hand_over()
        self.celery.task(name=TASK_NAME, ignore_result=True)(self._on_ticket)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        celery_worker = self.celery.Worker(
            pool="threads",
            concurrency=self.engine.num_slots,
            hostname=f"celery@{self.worker_id}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel="WARNING",
        )
        self._consumer = celery_worker.consumer
        for name in self.runner.models:
            if name not in self._first_models:  # it was added while Celery was created
                self._consume(name)
        celery_worker.start()

    def stop(self) -> None:
        """Drain, then close everything; jobs that do not end in time return to the queue."""
        self.runner.close()
        self._poll_loop.close()
        self._poller.close()
        self.runner.drain(self.settings.drain_seconds)
        for loop in self._loops:
            loop.close(0.5)  # one that waits for an unavailable database ends with the process
        if self._listener is not None:
            self._listener.close()
        self.publisher.close()
        self._tickets.close()
        self.engine.stop(2.0)
        try:
            forget(self.store.engine, self.worker_id)
            note_end(self.settings.home)
        except StorageUnavailable as error:  # the sweeper removes its row later
            log.warning("goodbye_not_written", reason=str(error))
        self.bus.close()
        self.store.engine.dispose()
        log.info("worker_stopped", worker_id=self.worker_id)

    def _add_model(self, model: LoadedModel) -> None:
        """Serve one more model; called on the thread that loaded it."""
        self.engine.add_model(model)
        self._store_card(model)
        self.runner.add_model(model.name, model.info.revision)
        self._consume(model.name)
        self._heartbeat_loop.wake()
        self._poll_loop.wake()
        log.info("model_added", model=model.name, revision=model.info.revision)

    def _store_card(self, model: LoadedModel) -> None:
        store_served_model(self.store.engine, served_model_of(model.name, model))

    def _consume(self, model: str) -> None:
        """Consume a model's tickets; polling finds its jobs too, but tickets would accumulate."""
        if self._consumer is not None:
            self._consumer.call_soon(_consume_tickets, self._consumer, queue_name(model))

    def _ask_end(self, reason: str) -> None:
        """Stop as after SIGTERM, with an exit status that asks for a restart."""
        log.info("worker_outdated", reason=reason)
        self.is_outdated = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _publish(self, model: str) -> None:
        """Publish a ticket again, unless all slots are in use: it would only wait in Redis."""
        if self.settings.redis_url is not None and self.runner.num_free:
            self._tickets.publish(model)

    def _has_eligible(self) -> bool:
        return self.store.has_eligible(self.runner.models)

    def _on_ticket(self, model: str) -> None:
        try:
            self.runner.work()
        except Exception:  # the task edge: Celery would log the error's message
            log.exception("ticket_failed", model=model)

    def _on_shutting_down(self, **_: Any) -> None:
        """Drain, so that the threads that Celery now waits for end in time."""
        threading.Thread(
            target=self.runner.drain, args=(self.settings.drain_seconds,), daemon=True
        ).start()


def make_store(settings: Settings, lease_seconds: float) -> JobStore:
    """The store that the settings describe."""
    engine = make_engine(settings.database_url, pool_size=DATABASE_CONNECTIONS)
    return JobStore(engine, Limits.from_settings(settings), lease_seconds=lease_seconds)


def served_model_of(name: str, model: LoadedModel) -> ServedModel:
    """The record of a loaded model for the web side."""
    info = model.info
    return ServedModel(
        name=name,
        revision=info.revision,
        family=info.family,
        path=info.path,
        num_parameters=info.num_parameters,
        context_length=info.context_length,
        vocabulary_size=info.vocabulary_size,
        dtype=info.dtype,
        instruction_set=info.instruction_set,
        kernels_note=info.kernels_note,
        tokenizer_json=model.tokenizer.json,
        tokenizer_config=dict(model.info.tokenizer_config),
        finetuning=model.provenance.finetuning,
        curve_svg=model.provenance.curve_svg,
        card_markdown=model.provenance.card_markdown,
    )


def _consume_tickets(consumer: Any, queue: str) -> None:
    """Runs on Celery's thread; after a lost connection Celery consumes all queues anyway."""
    try:
        consumer.add_task_queue(queue)
    except Exception as error:  # an error here would end Celery's loop
        log.warning("queue_not_consumed", queue=queue, reason=type(error).__name__)


def _exit_now(reason: str) -> None:
    """Exit without cleaning up, which would hang too. The leases run out."""
    log.error("worker_hangs", reason=reason)
    os._exit(EX_SOFTWARE)
