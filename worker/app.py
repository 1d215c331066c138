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

from core.db import make_engine
from core.dead_workers import note_birth, note_end
from core.errors import SettingsError, StorageUnavailable
from core.events import EventBus
from core.jobs import JobStore, Limits
from core.live_catalog import LiveCatalog
from core.logs import configure_logs
from core.model_cards import ModelCard, register_card
from core.model_catalog import Catalog, ModelSpec
from core.problems import MODELS_FILE
from core.redaction import reason_of
from core.settings import Settings
from core.tickets import TASK_NAME, TicketPublisher, make_celery, queue_name
from core.upkeep import UPKEEP_SECONDS, Upkeep
from core.workers import forget, worker_host
from worker.cancels import CancelListener
from worker.engine import Engine, EngineError
from worker.lease import WATCH_SECONDS, Heartbeat, Loop, Watchdog
from worker.metrics import WorkerMetrics
from worker.model_watch import WATCH_MODELS_SECONDS, Actions, ModelWatch
from worker.models.errors import ModelLoadError
from worker.models.loading import LoadedModel, default_num_slots, load
from worker.models.memory import cache_bytes
from worker.models.sources import prepare
from worker.models.trials import FOLDER, Trials
from worker.pace import Pace
from worker.poller import Poller
from worker.problems import ProblemBoard
from worker.publishing import Publisher
from worker.siblings import SiblingWatch
from worker.sweeper import Sweeper
from worker.tasks import JobRunner
from worker.termination import Termination

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
        pace: Pace | None = None,
    ) -> None:
        """Put the parts together; nothing runs yet. ``pace`` is for tests."""
        pace = pace or Pace()
        self.settings = settings
        self.model_watch = watch
        self.is_outdated = False  # whether it ends since the models file asks for another
        self._termination = termination
        self.worker_id = f"{worker_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        num_slots = settings.num_slots or default_num_slots(settings.kernel_dir)
        self.engine = Engine(
            watch.models, num_slots=num_slots, cache_bytes=cache_bytes(settings.cache_mib << 20)
        )
        self.store = make_store(settings, pace.lease)
        self.metrics = WorkerMetrics()
        self.metrics.watch(self.engine)
        self.bus = EventBus(settings.redis_url)
        self.publisher = Publisher(self.bus.publish)
        self.runner = JobRunner(
            store=self.store,
            engine=self.engine,
            publisher=self.publisher,
            metrics=self.metrics,
            worker_id=self.worker_id,
            revisions={name: model.info.revision for name, model in watch.models.items()},
            on_dead_engine=lambda: _end_process("the engine's thread has died"),
            settled_seconds=pace.settled,
        )
        self._first_models = self.runner.models
        self.celery = make_celery(settings, self._first_models)
        self._tickets = TicketPublisher(self.celery)
        self._consumer: Any = None  # Celery's, once it is made
        self._loops = self._make_loops(num_slots, pace)
        self._listener = (
            CancelListener(settings.redis_url, self._progress_loop.stir)
            if settings.redis_url
            else None
        )

    def _make_loops(self, num_slots: int, pace: Pace) -> list[Loop]:
        heartbeat = Heartbeat(
            store=self.store, engine=self.engine, runner=self.runner, worker_id=self.worker_id
        )
        sweeper = Sweeper(
            self.store,
            self._publish,
            f"sweeper:{self.worker_id}",
            living=heartbeat.living,
            pace=pace,
        )
        self._poller = Poller(self.runner, self._has_eligible, num_slots)
        watchdog = Watchdog(
            heartbeat=heartbeat,
            runner=self.runner,
            has_eligible=self._has_eligible,
            end_process=_end_process,
        )
        self._progress_loop = Loop("progress", pace.progress, heartbeat.save_progress)
        self._poll_loop = Loop("poller", pace.poll, self._poller.look)
        self._heartbeat_loop = Loop("heartbeat", pace.heartbeat, heartbeat.beat)
        self._siblings = SiblingWatch(
            self.store, self.settings.home, self.worker_id, self._poll_loop.stir
        )
        watch = partial(self.model_watch.look, Actions(self._add_model, self._renew, self._ask_end))
        return [
            self._heartbeat_loop,
            self._progress_loop,
            self._poll_loop,
            Loop("models", WATCH_MODELS_SECONDS, watch),
            Loop("sweeper", pace.sweep, sweeper.sweep),
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
        self._heartbeat_loop.stir()
        self._poll_loop.stir()
        log.info("model_added", model=model.name, revision=model.info.revision)

    def _renew(self, model: LoadedModel) -> None:
        register_card(self.store.engine, card_of(model.name, model))

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
        finetuning=model.provenance.finetuning,
        curve_svg=model.provenance.curve_svg,
        card_markdown=model.provenance.card_markdown,
    )


def main(settings: Settings, pace: Pace | None = None) -> int:
    """Run a worker until SIGTERM.

    Args:
        settings: of the process.
        pace: for tests, which cannot wait for a lease of 30 s to run out.

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
        process = WorkerProcess(settings, load_models(settings), termination, pace)
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
