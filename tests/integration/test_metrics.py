"""Every metric that the documentation promises is there and moves, in a real worker and web."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import RedisServer
from tests.tiny_models import build_tiny_llama
from textmill.backend.app import create_app
from textmill.core.jobs.store import JobStore, NewJob, Origin
from textmill.core.problems import Subject, report
from textmill.core.settings import Settings
from textmill.core.strategies import DecodingParameters
from textmill.engine.requests import GenerationRequest
from textmill.worker.model_loading import load_models
from textmill.worker.process import WorkerProcess
from textmill.worker.stop_signal import StopSignal

DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"
WAIT_SECONDS = 60.0
OF_THE_SERVER = {"textmill_open_streams", "textmill_open_connections", "textmill_watched_jobs"}
"""Exposed only by a web process; ``tests.acceptance.test_held_connections`` tests their values."""
Samples = dict[str, float]


def promised() -> dict[str, dict[str, str]]:
    """The metrics of each table of the documentation, with their types."""
    section = DOCS.read_text(encoding="utf-8").split("### Metrics")[1].split("\n## ")[0]
    web, worker = section.split("A worker, if")
    rows = re.compile(r"^\| `(textmill_\w+)` \| (\w+) \|", re.M)
    of_web = dict(rows.findall(web))
    of_app = {name: kind for name, kind in of_web.items() if name not in OF_THE_SERVER}
    assert len(of_web) == len(of_app) + len(OF_THE_SERVER)
    return {"web": of_app, "worker": dict(rows.findall(worker))}


def read(page: str) -> tuple[dict[str, str], Samples]:
    """The families with their types, and the sum of each sample over its labels."""
    types: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        types[name] = family.type
        for sample in family.samples:
            samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    ours = {n: t for n, t in types.items() if not n.endswith("_created")}  # when a counter began
    return ours, samples


def shows(samples: Samples, name: str, kind: str) -> float:
    return samples.get(f"{name}_count" if kind == "histogram" else name, 0.0)


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    folder = build_tiny_llama(tmp_path / "llama", context_length=2048)
    path = tmp_path / "models.toml"
    path.write_text(f'[[models]]\nname = "tiny"\nsource = "{folder}"\n')
    return Settings.from_environment(
        {
            "TEXTMILL_HOME": str(tmp_path),
            "TEXTMILL_KERNELS": "off",
            "TEXTMILL_DATABASE_URL": database_url,
            "TEXTMILL_REDIS_URL": redis_server.url,
            "TEXTMILL_MODELS": str(path),
            "TEXTMILL_SLOTS": "2",
            "TEXTMILL_DRAIN_SECONDS": "0.1",
        }
    )


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerProcess]:
    process = WorkerProcess(settings, load_models(settings), StopSignal())
    process.start()
    yield process
    process.stop()


def submit(store: JobStore, length: int, **parameters: object) -> None:
    chosen = {"max_new_tokens": length, "seed": 1, "stop": [], "repetition_penalty": 1.0}
    store.submit(NewJob("tiny", "Once", "greedy", chosen | parameters), Origin("anna"))


def await_samples(scrape: Callable[[], Samples], condition: Callable[[Samples], bool]) -> Samples:
    """Poll, as Prometheus does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(found := scrape()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_promised_metric_of_a_worker_moves(worker: WorkerProcess) -> None:
    server, thread = start_http_server(0, addr="127.0.0.1", registry=worker.metrics.registry)
    url = f"http://127.0.0.1:{server.server_port}/metrics"

    def page() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def scrape() -> Samples:
        return read(page())[1]

    wanted = promised()["worker"]
    types, before = read(page())
    assert types == wanted
    assert before["textmill_engine_slots"] == 2
    for _ in range(2):
        submit(worker.store, 1500)
    worker.store.submit(
        NewJob("tiny", "Once " * 3000, "greedy", {"max_new_tokens": 9, "seed": 1, "stop": [],
               "repetition_penalty": 1.0}), Origin("anna"),
    )  # fmt: skip
    busy = await_samples(scrape, lambda s: s["textmill_engine_active_sequences"] == 2)
    parameters = DecodingParameters(strategy="greedy", max_new_tokens=4, seed=1)
    # Both slots are taken; jobs wait in the database, and this sequence in the engine itself.
    generation = worker.engine.submit(GenerationRequest("own", "tiny", "Once", parameters))
    waiting = await_samples(scrape, lambda s: s["textmill_engine_waiting_sequences"] == 1)
    generation.cancel("canceled")
    during = await_samples(
        scrape,
        lambda s: (
            s["textmill_engine_steps_total"] > before["textmill_engine_steps_total"]
            and s["textmill_engine_batch_occupancy"] != before["textmill_engine_batch_occupancy"]
            and s["textmill_engine_tokens_per_second"] > 0
        ),
    )
    after = await_samples(
        scrape,
        lambda s: s.get("textmill_jobs_ended_total", 0) == 3,
    )
    moved = {
        name
        for name, kind in wanted.items()
        if len({shows(seen, name, kind) for seen in (before, busy, waiting, during, after)}) > 1
    }
    assert set(wanted) - moved == {"textmill_engine_slots"}
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_promised_metric_of_web_moves(
    settings: Settings, worker: WorkerProcess, tmp_path: Path
) -> None:
    app = create_app(settings)
    client = app.test_client()

    def scrape() -> tuple[dict[str, str], Samples]:
        return read(client.get("/metrics").text)

    engine = worker.store.engine
    seen = [scrape()[1]]
    wanted = promised()["web"]
    for body in ({"prompt": "Once", "max_new_tokens": 1500}, {"prompt": "Once " * 3000}):
        client.post("/api/v1/jobs", json=body)
    submit(worker.store, 8)
    worker.store.submit(
        NewJob("tiny", "Once " * 3000, "greedy", {"max_new_tokens": 9, "seed": 1, "stop": [],
               "repetition_penalty": 1.0}), Origin("anna"),
    )  # fmt: skip
    report(engine, Subject("here", "model", "other"), "It has no weights.", 60.0)
    deadline = time.monotonic() + WAIT_SECONDS
    while seen[-1].get("textmill_recent_failures", 0) == 0:
        assert time.monotonic() < deadline, seen[-1]
        seen.append(scrape()[1])
    types, _ = scrape()
    assert types == wanted
    worker.stop()
    seen.append(scrape()[1])
    away = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    seen.append(read(away.test_client().get("/metrics").text)[1])
    empty = create_app(
        settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/empty.db"})
    )
    seen.append(read(empty.test_client().get("/metrics").text)[1])
    for used in (app, away, empty):
        used.extensions["textmill"].store.engine.dispose()
    moved = {
        name
        for name, kind in wanted.items()
        if len({shows(samples, name, kind) for samples in seen}) > 1
    }
    assert set(wanted) == moved
