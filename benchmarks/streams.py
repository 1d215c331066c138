"""The cost of 2,000 open event streams and waits: memory, and the time of other requests."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from benchmarks.client import Connection, milliseconds
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.processes import ROOT, BenchmarkError, Product, Workspace
from textmill.core.database.connections import make_engine
from textmill.core.events import EventBus, StreamEntry, started
from textmill.core.jobs.store import JobStore, Limits

NUM_STREAMS = NUM_WAITS = 1_000
NUM_JOBS = 200  # queued; the streams and waits are of these
NUM_REQUESTS = 150  # of each kind and condition
NUM_ENTRIES = 100
NUM_GONE = 20
ENTRY_SECONDS = 0.04  # as often as a worker writes
ROUNDS = 2
MAX_NEW_TOKENS = 8
_WATCHED = re.compile(r"^textmill_watched_jobs (\S+)", re.MULTILINE)


def measure(space: Workspace) -> Section:
    """Time submissions, pages and /healthz alternately without and with the streams.

    Raises:
        BenchmarkError: a stream was refused, or this system has no /proc.
    """
    section = Section(
        "streams",
        f"{NUM_STREAMS + NUM_WAITS} held connections on one web process, and other requests",
        [
            f"SQLite, Redis, no worker; {NUM_STREAMS} event streams and {NUM_WAITS} waits on"
            f" {NUM_JOBS} queued jobs, held by a process on the same cores",
            f"{ROUNDS} rounds without and with them, in turn; {NUM_REQUESTS} requests a kind and"
            " round, one after another on a keep-alive connection",
            "an event's delay: from its publication to its arrival at one more stream",
        ],
    )
    redis_url = space.redis_url()
    database_url = space.new_database("sqlite")
    product = Product(
        space, database_url, redis_url=redis_url, models_path=space.tiny_models_file()
    )
    with product.running("web") as processes:
        _Measuring(section, product, processes["web"].pid, database_url, redis_url).run()
    return section


class _Measuring:
    def __init__(
        self, section: Section, product: Product, pid: int, database_url: str, redis_url: str
    ) -> None:
        self._section = section
        self._product = product
        self._pid = pid
        self._store = JobStore(make_engine(database_url), Limits(max_queued=10**9))
        self._bus = EventBus(redis_url)
        self._connection = Connection(product.url)
        self._kinds: dict[str, Callable[[], object]] = {
            "POST /jobs": lambda: self._connection.submit(_body()),
            "page /history": lambda: self._connection.get("/history"),
            "/healthz": lambda: self._connection.get("/healthz"),
        }

    def run(self) -> None:
        watched = self._connection.submit(_body())["id"]
        lonely = self._connection.submit(_body())["id"]
        jobs = [self._connection.submit(_body())["id"] for _ in range(NUM_JOBS)]
        self._time({})  # warms up
        alone: dict[str, list[float]] = {}
        beside: dict[str, list[float]] = {}
        kib: list[float] = []
        gone: list[float] = []
        delays: list[float] = []
        for _ in range(ROUNDS):
            self._connection = Connection(self._product.url)
            self._time(alone)
            before = _resident_kib(self._pid)
            with self._held(jobs):
                self._connection = Connection(self._product.url)  # the other idled for too long
                kib.append((_resident_kib(self._pid) - before) / (NUM_STREAMS + NUM_WAITS))
                self._time(beside)
                gone += [self._freeing_ms(lonely) for _ in range(NUM_GONE)]
                if not delays:
                    delays = self._delays_ms(watched)
        self._report(alone, beside)
        section = self._section
        section.add("memory a stream, web process", "KiB", kib)
        section.add("until a gone watcher's place is free", "ms", gone, "≤ 1,000 ms")
        section.add("an event's delay", "ms", delays)
        self._connection.close()
        self._store.engine.dispose()

    def _report(self, alone: dict[str, list[float]], beside: dict[str, list[float]]) -> None:
        for kind in self._kinds:
            goal = "≤ 50 ms median" if kind == "/healthz" else ""
            self._section.add(f"{kind}, alone", "ms", alone[kind])
            self._section.add(f"{kind}, beside the streams", "ms", beside[kind], goal)
            ratio = ratio_of_medians(beside[kind], alone[kind])
            goal = "" if kind == "/healthz" else "≤ 2"
            self._section.add(f"{kind}, beside / alone", "x", [ratio], goal)

    def _time(self, samples: dict[str, list[float]]) -> None:
        for _ in range(NUM_REQUESTS):
            for kind, call in self._kinds.items():
                began = time.perf_counter()
                call()
                samples.setdefault(kind, []).append(milliseconds(began))

    @contextlib.contextmanager
    def _held(self, job_ids: list[str]) -> Iterator[None]:
        """Hold the streams and waits open while the block runs."""
        address = urlsplit(self._product.url)
        numbers = [str(address.hostname), *map(str, (address.port, NUM_STREAMS, NUM_WAITS))]
        command = [sys.executable, "-m", "benchmarks.stream_holder", *numbers]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as holder:
            orders, words = cast("IO[str]", holder.stdin), cast("IO[str]", holder.stdout)
            orders.write(" ".join(job_ids) + "\n")
            orders.flush()
            said = [words.readline().split()]
            yield
            orders.close()
            said.append(words.readline().split())
            if said != [["held", "0"], ["refused", "0"]]:
                raise BenchmarkError(f"Not all streams and waits were held: {said}.")

    def _freeing_ms(self, job_id: str) -> float:
        """Time from closing a job's only stream until the job is no longer watched."""
        stream = http.client.HTTPConnection(*self._address(), timeout=30)
        stream.request("GET", f"/api/v1/jobs/{job_id}/events")
        stream.getresponse().readline()
        before = self._num_watched()
        stream.close()
        began = time.perf_counter()
        if stream.sock is not None:
            stream.sock.close()
        while self._num_watched() >= before:
            if milliseconds(began) > 5_000:
                raise BenchmarkError("A gone watcher's place was not freed within 5 s.")
        return milliseconds(began)

    def _num_watched(self) -> int:
        found = _WATCHED.search(self._connection.get("/metrics").decode())
        if found is None:
            raise BenchmarkError("/metrics does not contain the number of watched jobs.")
        return int(float(found[1]))

    def _delays_ms(self, job_id: str) -> list[float]:
        """Publish entries as a worker does, and record the arrival of each."""
        job = self._store.claim("bench", ["tiny"])
        if job is None or job.id != job_id:
            raise BenchmarkError("The first job was not the first to be claimed.")
        arrived: list[float] = []
        ready = threading.Event()

        def watch() -> None:
            stream = http.client.HTTPConnection(*self._address(), timeout=30)
            stream.request("GET", f"/api/v1/jobs/{job_id}/events")
            answer = stream.getresponse()
            ready.set()
            while len(arrived) < NUM_ENTRIES:
                line = answer.readline()
                if line.startswith(b"event: token"):
                    arrived.append(time.perf_counter())
            stream.close()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        ready.wait(30)
        time.sleep(1.5)  # the event about the running job has been sent by then
        self._bus.publish([started(job.id, job.attempt)])
        sent = []
        for end in range(1, NUM_ENTRIES + 1):
            time.sleep(ENTRY_SECONDS)
            sent.append(time.perf_counter())
            self._bus.publish([StreamEntry(job.id, job.attempt, end, "x", end, "token")])
        watcher.join(30)
        if len(arrived) < NUM_ENTRIES:
            raise BenchmarkError(f"Of {NUM_ENTRIES} events only {len(arrived)} arrived.")
        return [(came - went) * 1000 for went, came in zip(sent, arrived, strict=True)]

    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self._product.url)
        return str(parts.hostname), int(parts.port or 80)


def _body() -> dict[str, object]:
    return {"prompt": "What a stream is of", "max_new_tokens": MAX_NEW_TOKENS}


def _resident_kib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        raise BenchmarkError("This system has no /proc, which contains the memory of a process.")
    return float(status.read_text().partition("VmRSS:")[2].split()[0])
