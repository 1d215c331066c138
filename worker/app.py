"""The worker process: models, engine, loops, and Celery around them.

The database is at work before Celery connects, so a worker that starts with Redis gone still finds
its jobs. The order of the start: settings → schema → models → engine → warm → seen → tickets.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
import warnings
from functools import partial
from typing import Any

import structlog
import torch
from celery import signals
from celery.exceptions import CPendingDeprecationWarning
from prometheus_client import start_http_server

from textmill.core.catalog.live import LiveCatalog
from textmill.core.catalog.models_file import Catalog, ModelSpec
from textmill.core.catalog.served_models import ServedModel, store_served_model
from textmill.core.database.connections import make_engine
from textmill.core.database.maintenance import UPKEEP_SECONDS, Upkeep
from textmill.core.dead_workers import note_birth, note_end
from textmill.core.errors import SettingsError, StorageUnavailable
from textmill.core.events import EventBus
from textmill.core.failpoints import reach
from textmill.core.jobs.store import JobStore, Limits
from textmill.core.logs import configure_logs
from textmill.core.problems import MODELS_FILE
from textmill.core.redaction import reason_of
from textmill.core.settings import Settings
from textmill.core.tickets import TASK_NAME, TicketPublisher, make_celery, queue_name
from textmill.core.workers import forget, worker_host
from textmill.engine import EngineError, InferenceEngine
from textmill.engine.models.errors import ModelLoadError
from textmill.engine.models.loading import LoadedModel, default_num_slots, load
from textmill.engine.models.memory import cache_bytes
from textmill.engine.models.sources import prepare
from textmill.worker.cancels import CancelListener
from textmill.worker.intervals import Intervals
from textmill.worker.job_worker import JobWorker
from textmill.worker.lease import WATCH_SECONDS, Heartbeat, Loop, Watchdog
from textmill.worker.metrics import WorkerMetrics
from textmill.worker.model_watch import WATCH_MODELS_SECONDS, Actions, ModelWatch
from textmill.worker.poller import Poller
from textmill.worker.problems import ProblemBoard
from textmill.worker.publishing import Publisher
from textmill.worker.siblings import SiblingWatch
from textmill.worker.sweeper import Sweeper
from textmill.worker.termination import Termination
from textmill.worker.trials import FOLDER, Trials

EX_CONFIG = 78  # sysexits.h: a restart alone cannot help; the models or the settings must change
EX_SOFTWARE = 70  # a hang: a restart does help
EX_TEMPFAIL = 75  # in good order, and to be started again at once: the models are others now
DATABASE_CONNECTIONS = 6  # as many again under load; claims come one by one, results seldom
log = structlog.get_logger(__name__)


class WorkerProcess:
    """Everything that one worker process holds, and the order of its start and end."""

    def __init__(
        self,
        settings: Settings,
        watch: ModelWatch,
        termination: Termination,
        intervals: Intervals | None = None,
    ) -> None:
        """Put the parts together; nothing runs yet. ``intervals`` is for tests."""
        intervals = intervals or Intervals()
        self.settings = settings
        self.model_watch = watch
        self.is_outdated = False  # whether it ends since the models file asks for another
        self._termination = termination
        self.worker_id = f"{worker_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        num_slots = settings.num_slots or default_num_slots(settings.kernel_dir)
        self.engine = InferenceEngine(
            watch.models,
            num_slots=num_slots,
            cache_bytes=cache_bytes(settings.cache_mib << 20),
            on_prefill=partial(reach, "prefill"),
        )
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
            on_dead_engine=lambda: _end_process("the engine's thread has died"),
            settled_seconds=intervals.settled,
        )
        self._first_models = self.runner.models
        self.celery = make_celery(settings, self._first_models)
        self._tickets = TicketPublisher(self.celery)
        self._consumer: Any = None  # Celery's, once it is made
        self._loops = self._make_loops(num_slots, intervals)
        self._listener = (
            CancelListener(settings.redis_url, self._progress_loop.wake)
            if settings.redis_url
            else None
        )

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
            end_process=_end_process,
        )
        self._progress_loop = Loop("progress", intervals.progress, heartbeat.save_progress)
        self._poll_loop = Loop("poller", intervals.poll, self._poller.look)
        self._heartbeat_loop = Loop("heartbeat", intervals.heartbeat, heartbeat.beat)
        self._siblings = SiblingWatch(
            self.store, self.settings.home, self.worker_id, self._poll_loop.wake
        )
        watch = partial(self.model_watch.look, Actions(self._add_model, self._renew, self._ask_end))
        return [
            self._heartbeat_loop,
            self._progress_loop,
            self._poll_loop,
            Loop("models", WATCH_MODELS_SECONDS, watch),
            Loop("sweeper", intervals.sweep, sweeper.sweep),
            Loop("siblings", 0.0, self._siblings.look),
            Loop("watchdog", WATCH_SECONDS, watchdog.look),
            Loop("upkeep", UPKEEP_SECONDS, Upkeep(self.store.engine).step),
        ]

    def start(self) -> None:
        """Warm the engine, then say that this worker is there."""
        note_birth(self.settings.home, self.worker_id)
        self.engine.start()
        self.engine.warm_up()
        for model in self.model_watch.models.values():
            self._renew(model)
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
            if name not in self._first_models:  # it came while Celery was made
                self._consume(name)
        celery_worker.start()

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
            note_end(self.settings.home)
        except StorageUnavailable as error:  # its row is forgotten when it was not seen for a while
            log.warning("goodbye_not_written", reason=str(error))
        self.bus.close()
        self.store.engine.dispose()
        log.info("worker_stopped", worker_id=self.worker_id)

    def _add_model(self, model: LoadedModel) -> None:
        """Serve one more model; called on the thread that loaded it."""
        self.engine.add_model(model)
        self._renew(model)
        self.runner.add_model(model.name, model.info.revision)
        self._consume(model.name)
        self._heartbeat_loop.wake()
        self._poll_loop.wake()
        log.info("model_added", model=model.name, revision=model.info.revision)

    def _renew(self, model: LoadedModel) -> None:
        store_served_model(self.store.engine, served_model_of(model.name, model))

    def _consume(self, model: str) -> None:
        """Take a model's tickets; its jobs are found by polling too, but tickets would pile up."""
        if self._consumer is not None:
            self._consumer.call_soon(_take_tickets, self._consumer, queue_name(model))

    def _ask_end(self, reason: str) -> None:
        """End as after SIGTERM, with a status that says why."""
        log.info("worker_outdated", reason=reason)
        self.is_outdated = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _publish(self, model: str) -> None:
        """Repeat a ticket; where nothing is free it would only wait in Redis with the others."""
        if self.settings.redis_url is not None and self.runner.num_free:
            self._tickets.publish(model)

    def _has_eligible(self) -> bool:
        return self.store.has_eligible(self.runner.models)

    def _on_ticket(self, model: str) -> None:
        try:
            self.runner.work()
        except Exception:  # the task edge: Celery would write the error's message into the log
            log.exception("ticket_failed", model=model)

    def _on_shutting_down(self, **_: Any) -> None:
        """Celery waits for its threads from here on; the drain makes them end in time."""
        threading.Thread(
            target=self.runner.drain, args=(self.settings.drain_seconds,), daemon=True
        ).start()


def make_store(settings: Settings, lease_seconds: float) -> JobStore:
    """The store as the settings have it."""
    engine = make_engine(settings.database_url, pool_size=DATABASE_CONNECTIONS)
    return JobStore(engine, Limits.from_settings(settings), lease_seconds=lease_seconds)


def served_model_of(name: str, model: LoadedModel) -> ServedModel:
    """What the web side may know of a loaded model."""
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
        tokenizer_json=info.tokenizer_json,
        finetuning=model.provenance.finetuning,
        curve_svg=model.provenance.curve_svg,
        card_markdown=model.provenance.card_markdown,
    )


def main(settings: Settings, intervals: Intervals | None = None) -> int:
    """Run a worker until SIGTERM.

    Args:
        settings: of the process.
        intervals: for tests, which cannot wait for a lease of 30 s to run out.

    Returns:
        The exit code: 0 after a clean stop, ``EX_CONFIG`` where a restart cannot help,
        ``EX_TEMPFAIL`` where the models file asks for one.
    """
    configure_logs(settings)
    # Celery warns of pickle when run as root, and of a default we have set: neither is ours.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser")
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    termination = Termination()
    try:
        process = WorkerProcess(settings, load_models(settings), termination, intervals)
        process.start()
    except (SettingsError, ModelLoadError) as error:
        # The supervisor shows this line as the reason why this worker is left out.
        sys.stderr.write(f"textmill: {error}\n")
        return EX_CONFIG
    except (StorageUnavailable, EngineError) as error:
        log.error(
            "worker_cannot_start", reason=str(error), cause=reason_of(error.__cause__ or error)
        )
        return EX_SOFTWARE
    if settings.worker_metrics_port:
        start_http_server(
            settings.worker_metrics_port, addr=settings.host, registry=process.metrics.registry
        )
    try:
        process.run()
    finally:
        process.stop()
    status = EX_TEMPFAIL if process.is_outdated else 0
    if process.model_watch.is_loading:  # a thread deep in torch would spoil the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def load_models(settings: Settings) -> ModelWatch:
    """Load what this worker serves, telling what takes time.

    Raises:
        SettingsError, ModelLoadError: one sentence on why nothing can be served.
    """
    board = ProblemBoard(settings.database_url, worker_host())
    try:
        catalog = LiveCatalog(settings, settings.serve)
    except SettingsError as error:
        board.tell("models_file", MODELS_FILE, str(error))
        board.send()
        raise
    watch = _watch(settings, catalog, board)
    watch.load_all()
    return watch


def _watch(settings: Settings, catalog: LiveCatalog, board: ProblemBoard) -> ModelWatch:
    num_slots = settings.num_slots or default_num_slots(settings.kernel_dir)
    cache_dir = settings.home / "models"

    def report(sentence: str) -> None:
        log.info("model_progress", step=sentence)

    memory_dir = (settings.kernel_dir or settings.home / "kernels") / FOLDER
    trials = Trials(cache_dir, settings.kernel_dir, memory_dir, num_slots, report)

    def current() -> Catalog:
        board.tell("models_file", MODELS_FILE, catalog.problem)
        return catalog.current

    def load_one(spec: ModelSpec) -> LoadedModel:
        log.info("model_loading", model=spec.name, source=spec.source)
        with trials.loading(spec):
            return load(
                spec,
                cache_dir=cache_dir,
                dtype=spec.dtype,
                num_slots=num_slots,
                kernel_dir=settings.kernel_dir,
                report=report,
            )

    def check(spec: ModelSpec) -> object:
        return prepare(spec.source, spec.adapter, cache_dir, report)

    # While a step is being recorded on a GPU, no other thread may use it: models come with a new
    # process there.
    is_shared = not torch.cuda.is_available()
    return ModelWatch(
        current, load_one, None if is_shared else check, try_out=trials.try_out, board=board
    )


def _take_tickets(consumer: Any, queue: str) -> None:
    """On Celery's own thread; a connection that was lost asks for all queues when it is back."""
    try:
        consumer.add_task_queue(queue)
    except Exception as error:  # it would end Celery's loop
        log.warning("queue_not_consumed", queue=queue, reason=type(error).__name__)


def _end_process(reason: str) -> None:
    """Leave without cleaning up: what hangs would hang the cleaning too. The leases run out."""
    log.error("worker_hangs", reason=reason)
    os._exit(EX_SOFTWARE)
