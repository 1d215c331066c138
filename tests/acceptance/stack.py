"""The product as real processes, for tests from outside: web, workers, Redis, a database."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kernels import KERNEL_DIR
from tests.servers import RedisServer, free_port

READY_SECONDS = 90
EX_SOFTWARE = 70  # the exit status of a worker that cannot start for a reason that may pass
STOP_SECONDS = 40


@dataclass
class Answer:
    """An HTTP answer, whatever its status."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stack:
    """Web and workers on one database and one Redis, each in its own process."""

    folder: Path
    database_url: str
    redis: RedisServer | None
    models_file: Path
    settings: dict[str, str] = field(default_factory=dict)
    log: Path | None = None  # where everything is logged; absent, a file a process
    programs: dict[str, list[str]] = field(default_factory=dict)  # in place of ``textmill COMMAND``

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.web: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.baits: list[str] = []  # long jobs that a test submitted to be caught in the middle
        self._num_logs = 0

    # ---- processes ---------------------------------------------------------------------------

    def start(self, num_workers: int = 1) -> Stack:
        self.start_web()
        for _ in range(num_workers):
            self.add_worker()
        self.wait_ready()
        return self

    def start_web(self) -> None:
        self.web = self._run("web")

    def add_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        worker = self._run("worker", **settings)
        self.workers.append(worker)
        return worker

    def restart_failed(self) -> None:
        """Restart workers that could not start, for example because the storage was busy."""
        for worker in [w for w in self.workers if w.poll() == EX_SOFTWARE]:
            self.workers.remove(worker)
            self.add_worker()

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL: it has no chance to say anything."""
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def kill_web(self) -> None:
        """Kill web with SIGKILL, possibly while it answers."""
        if self.web is not None:
            self.web.kill()
            self.web.wait()
            self.web = None

    def drain_worker(self, worker: subprocess.Popen[bytes]) -> int:
        """SIGTERM; returns the exit status."""
        worker.send_signal(signal.SIGTERM)
        status = worker.wait(STOP_SECONDS)
        self.workers.remove(worker)
        return status

    def stop(self) -> None:
        processes = [*self.workers, *([self.web] if self.web else [])]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.workers, self.web = [], None

    def wait_ready(self) -> None:
        """Wait until the database takes writes and a worker was seen."""
        self._await_200("/readyz")

    def wait_alive(self) -> None:
        """Wait until the web process answers, worker or no worker."""
        self._await_200("/healthz")

    def _await_200(self, path: str) -> None:
        """Poll, because another process's readiness cannot be awaited as an event."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if self.request("GET", path).status == 200:
                    return
            dead = [p for p in [*self.workers, self.web] if p is not None and p.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise AssertionError("the stack is not ready:\n" + self.logs())
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in self.folder.glob("*.log"))

    def _run(self, command: str, **settings: str) -> subprocess.Popen[bytes]:
        self._num_logs += 1
        log = self.log or self.folder / f"{self._num_logs:02}-{command}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TEXTMILL_")}
        environment |= {
            "TEXTMILL_HOME": str(self.folder),
            "TEXTMILL_KERNELS": str(KERNEL_DIR),
            "TEXTMILL_PORT": str(self.port),
            "TEXTMILL_DATABASE_URL": self.database_url,
            "TEXTMILL_MODELS": str(self.models_file),
            "OMP_NUM_THREADS": "1",  # two workers on two cores; threads that spin would fight
        }
        if self.redis is not None:
            environment["TEXTMILL_REDIS_URL"] = self.redis.url
        environment |= self.settings | settings
        with log.open("ab") as output:
            return subprocess.Popen(
                self.programs.get(command, [sys.executable, "-P", "-m", "textmill", command]),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    # ---- HTTP --------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 40,
    ) -> Answer:
        """``body``: bytes go as they are, anything else as JSON."""
        sent = dict(headers or {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def submit(self, **body: Any) -> Any:
        answer = self.request("POST", "/api/v1/jobs", {"prompt": "The quick brown", **body})
        assert answer.status == 202, answer.body
        return answer.json

    def wait(self, job_id: str, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.request("GET", f"/api/v1/jobs/{job_id}?wait=10").json
            if job["finished_at"] is not None:
                return job
        raise AssertionError(f"job {job_id} did not end: {job}\n{self.logs()}")

    def generate(self, **body: Any) -> Any:
        return self.wait(self.submit(**body)["id"])

    def events(self, path: str, last_id: str | None = None) -> list[tuple[str, str, Any]]:
        """All events of a stream until it closes: (id, name, data)."""
        headers = {"Last-Event-ID": last_id} if last_id is not None else {}
        answer = self.request("GET", path, headers=headers, timeout=60)
        assert answer.status in {200, 204}, answer.body
        return parse_events(answer.body.decode())


def parse_events(text: str) -> list[tuple[str, str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if ": " in line and line[0] != ":"
        )
        if "event" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found
