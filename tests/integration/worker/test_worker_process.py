"""A whole worker in this process, on a real database, with a tiny model and no Redis."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, select, text
from structlog.testing import capture_logs

from tests.kernels import KERNEL_DIR
from tests.servers import Proxy, proxied_postgres
from tests.tiny_models import build_tiny_gpt2, build_tiny_llama
from textmill.core.catalog.served_models import cards
from textmill.core.database.connections import PATIENCE_SECONDS, make_engine, reading
from textmill.core.database.tables import Job, JobEvent
from textmill.core.errors import SettingsError
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, NewJob, Origin
from textmill.core.settings import Settings
from textmill.core.workers import SeenWorker, seen_workers
from textmill.engine.kernels.instruction_sets import INSTRUCTION_SETS, available_sets
from textmill.worker.model_loading import load_models
from textmill.worker.process import WorkerProcess
from textmill.worker.stop_signal import StopSignal

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_tiny_llama(folder / "llama", context_length=2048)
    path = folder / "models.toml"
    path.write_text('[[models]]\nname = "tiny"\nsource = "./llama"\n')
    return path


@pytest.fixture
def start_worker(
    database_url: str, models_file: Path, tmp_path: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []
    # Shared by the tests, so that each model is tried only once.
    known = models_file.parent / "kernels"
    known.mkdir(exist_ok=True)
    (tmp_path / "kernels").symlink_to(known)

    def start(**settings: str) -> WorkerProcess:
        environment = {
            "TEXTMILL_HOME": str(tmp_path),
            "TEXTMILL_KERNELS": "off",  # else these texts are done before anything can happen
            "TEXTMILL_DATABASE_URL": database_url,
            "TEXTMILL_MODELS": str(models_file),
            "TEXTMILL_SLOTS": "2",
            "TEXTMILL_DRAIN_SECONDS": "0.1",
        }
        chosen = Settings.from_environment(environment | settings)
        process = WorkerProcess(chosen, load_models(chosen), StopSignal())
        process.start()
        started.append(process)
        return process

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for process in started:
        process.stop()


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    engine = make_engine(database_url)
    yield JobStore(engine)
    engine.dispose()


def submit(store: JobStore, length: int = 8, model: str = "tiny") -> JobRecord:
    """Greedy: this model's likeliest token is never the end, so the length is as requested."""
    parameters = {"max_new_tokens": length, "seed": 1, "stop": [], "repetition_penalty": 1.0}
    return store.submit(NewJob(model, "Once", "greedy", parameters), Origin("anna"))


def look(store: JobStore, job: JobRecord) -> JobRecord:
    with reading(store.engine) as connection:
        row = connection.execute(select(Job.__table__).where(Job.id == job.id)).one()
    return JobRecord.from_row(row)


def await_job(store: JobStore, job: JobRecord, condition: Callable[[JobRecord], bool]) -> JobRecord:
    """Poll the row: without Redis there is no event."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(found := look(store, job)):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def statuses(store: JobStore, job: JobRecord) -> list[str]:
    query = select(JobEvent.to_status).where(JobEvent.job_id == job.id).order_by(JobEvent.number)
    with reading(store.engine) as connection:
        return list(connection.execute(query).scalars())


def test_a_worker_says_what_it_holds_finds_its_jobs_and_leaves_no_trace_of_itself(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    process = start_worker()
    (seen,) = _await_workers(store, 1)
    assert (seen.id, seen.models, seen.num_slots) == (process.worker_id, ("tiny",), 2)
    assert cards(store.engine)["tiny"].context_length == 2048
    jobs = [submit(store) for _ in range(5)]
    for job in jobs:
        done = await_job(store, job, lambda j: j.is_final)
        assert (done.status, done.attempt) == ("succeeded", 1)
        assert done.text
    process.stop()
    assert seen_workers(store.engine) == []


def test_why_pytorch_computes_is_logged_once_and_shown(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    with capture_logs() as logs:
        start_worker(TEXTMILL_KERNELS="off")
    (entry,) = [entry for entry in logs if entry["event"] in {"no_kernels", "kernels_loaded"}]
    assert (entry["event"], entry["log_level"]) == ("no_kernels", "warning")
    card = cards(store.engine)["tiny"]
    assert card.instruction_set is None
    assert card.kernels_note == entry["reason"] == "they are switched off by TEXTMILL_KERNELS"


def test_the_instruction_set_and_the_compiler_are_logged_once_and_shown(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    with capture_logs() as logs:
        start_worker(TEXTMILL_KERNELS=str(KERNEL_DIR))
    (entry,) = [entry for entry in logs if entry["event"] in {"no_kernels", "kernels_loaded"}]
    assert entry["instruction_set"] == available_sets()[0].name
    card = cards(store.engine)["tiny"]
    assert card.instruction_set == entry["instruction_set"]
    assert card.kernels_note == entry["compiler"]


def test_an_instruction_set_that_the_processor_lacks_stops_the_start(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    absent = {item.name for item in INSTRUCTION_SETS} - {item.name for item in available_sets()}
    with pytest.raises(SettingsError, match=r"TEXTMILL_KERNELS_ISA .* does not have"):
        start_worker(TEXTMILL_KERNELS=str(KERNEL_DIR), TEXTMILL_KERNELS_ISA=absent.pop())


def _await_workers(store: JobStore, num: int) -> list[SeenWorker]:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found := seen_workers(store.engine)) != num:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the heartbeat is a thread with a database between
    return list(found)


def test_a_model_that_comes_later_is_announced_and_its_jobs_are_found_by_polling(
    start_worker: Callable[..., WorkerProcess], store: JobStore, models_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(f'[[models]]\nname = "tiny"\nsource = "{models_file.parent / "llama"}"\n')
    process = start_worker(TEXTMILL_MODELS=str(path))
    job = submit(store, model="late")  # no worker serves it yet
    with path.open("a") as file:
        file.write(f'[[models]]\nname = "late"\nsource = "{build_tiny_gpt2(tmp_path / "gpt2")}"\n')
    done = await_job(store, job, lambda j: j.is_final)
    assert done.status == "succeeded"
    assert done.model_revision == cards(store.engine)["late"].revision
    deadline = time.monotonic() + WAIT_SECONDS
    while [seen.models for seen in seen_workers(store.engine)] != [("tiny", "late")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the heartbeat is a thread with a database between
    assert not process.is_outdated


def test_a_cancellation_in_the_row_alone_stops_the_text(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    start_worker()
    job = submit(store, length=2000)
    await_job(store, job, lambda j: bool(j.text))
    asked_at = time.monotonic()
    store.request_cancel(job.id)
    done = await_job(store, job, lambda j: j.is_final)
    assert (done.status, done.finish_reason) == ("canceled", "canceled")
    assert done.text
    assert time.monotonic() - asked_at < 10  # the progress loop looks every second


def test_a_job_that_was_deleted_while_it_ran_frees_its_slot(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    process = start_worker(TEXTMILL_SLOTS="1")
    job = submit(store, length=2000)
    await_job(store, job, lambda j: bool(j.text))
    store.delete(job.id)
    assert await_job(store, submit(store), lambda j: j.is_final).status == "succeeded"
    assert process.runner.num_active == 0 or process.runner.wait_until_idle(WAIT_SECONDS)
    assert statuses(store, job) == ["queued", "running", "canceled"]


def test_a_stopping_worker_gives_back_what_it_cannot_end_and_another_begins_anew(
    start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    first = start_worker()
    job = submit(store, length=1200)
    await_job(store, job, lambda j: bool(j.text))
    first.stop()
    waiting = look(store, job)
    assert (waiting.status, waiting.attempt, waiting.lost_count) == ("queued", 1, 0)
    start_worker()
    done = await_job(store, job, lambda j: j.is_final)
    assert (done.status, done.attempt) == ("succeeded", 2)
    assert statuses(store, job) == ["queued", "running", "queued", "running", "succeeded"]
    assert done.num_completion_tokens == 1200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the one locked as a whole
def test_a_result_waits_for_a_database_that_is_locked(
    start_worker: Callable[..., WorkerProcess], store: JobStore, database_url: str
) -> None:
    process = start_worker()
    job = submit(store, length=40)
    await_job(store, job, lambda j: j.status == "running")
    lock = sqlite3.connect(str(make_url(database_url).database), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    if look(store, job).is_final:
        pytest.fail("the text was done before the database could be locked")
    _hold_until_a_write_was_refused(process)
    assert look(store, job).status == "running"
    lock.execute("COMMIT")
    lock.close()
    done = await_job(store, job, lambda j: j.is_final)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert statuses(store, job) == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_result_survives_a_database_that_becomes_read_only(
    start_worker: Callable[..., WorkerProcess], store: JobStore, database_url: str
) -> None:
    """As after a failover: sessions end, and new ones find a standby."""
    name = make_url(database_url).database
    process = start_worker()
    job = submit(store, length=400)
    await_job(store, job, lambda j: j.status == "running")
    server = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        connection.execute(text(_END_SESSIONS))
    _hold_until_a_write_was_refused(process)
    with server.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
        connection.execute(text(_END_SESSIONS))
    server.dispose()
    done = await_job(store, job, lambda j: j.is_final)
    assert (done.status, done.attempt, done.lost_count) == ("succeeded", 1, 0)
    assert statuses(store, job) == ["queued", "running", "succeeded"]


@pytest.fixture
def proxied(postgres_url: str) -> Iterator[tuple[str, Proxy]]:
    with proxied_postgres(postgres_url) as (url, proxy):
        yield url, proxy


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_result_survives_a_database_that_freezes(
    proxied: tuple[str, Proxy], start_worker: Callable[..., WorkerProcess], store: JobStore
) -> None:
    url, proxy = proxied
    process = start_worker(TEXTMILL_DATABASE_URL=url)
    job = submit(store, length=400)
    await_job(store, job, lambda j: j.status == "running")
    proxy.freeze()
    _hold_until_a_write_was_refused(process)
    proxy.thaw()
    done = await_job(store, job, lambda j: j.is_final)
    assert (done.status, done.attempt, done.lost_count) == ("succeeded", 1, 0)


_END_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def _hold_until_a_write_was_refused(process: WorkerProcess) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_SECONDS * 100) * 4):
        if process.runner._results.is_waiting:
            return
        pause.wait(0.01)
    raise AssertionError("the worker never noticed that it could not write")
