"""The clients: submit with keys, retry, cancel, delete, follow streams, request pages.

Every request and its response is recorded for the verdict. Promises go into the journal first.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.faults.bodies import Body
from tests.faults.journal import Journal
from tests.faults.streams import StreamJudge
from tests.faults.verdict import Exchange, StreamReport

COOKIE = "5eedfeed" * 4  # the owner's cookie; no log may contain it
PATIENCE_SECONDS = 90.0  # how long a client retries until it gets 202
ANSWER_SECONDS = 60.0  # time-out of one request
LONGEST_SECONDS = 3_600.0  # limit of a stream, until the end of the jobs is known
QUIET_SECONDS = 25.0  # time-out of a read from a stream, which sends a line every 15 s
PAUSE_SECONDS = 0.2  # between two attempts
PROBES = {
    "alive": "/healthz",
    "ready": "/readyz",
    "page": "/history",
    "queue page": "/queue",
    "list": "/api/v1/jobs?limit=5",
    "queue": "/api/v1/queue",
}
PROBE_SECONDS = 0.8


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response; ``status`` is ``None`` if there was none."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends requests to one product; usable from any thread."""

    def __init__(self, port: int, journal: Journal) -> None:
        self.port = port
        self.journal = journal
        self.exchanges: list[Exchange] = []

    def request(
        self, what: str, method: str, path: str, body: Any = None, key: str | None = None
    ) -> Answer:
        """Send one request on its own connection, and record its duration and status."""
        at, started = time.time(), time.monotonic()
        answer = self._ask(method, path, body, key)
        seconds = time.monotonic() - started
        has_retry_after = "retry-after" in answer.headers
        self.exchanges.append(Exchange(what, at, seconds, answer.status, has_retry_after))
        return answer

    def submit(
        self, body: Body, *, patience: float = PATIENCE_SECONDS, is_given_up: bool = False
    ) -> str | None:
        """Submit until the answer is 202; return the job's id.

        Args:
            body: the request.
            patience: seconds after which no further attempt is made.
            is_given_up: whether to stop at 429 and 503 as well.
        """
        key = uuid.uuid4().hex
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            answer = self.request("submit", "POST", "/api/v1/jobs", body.as_json(), key)
            if answer.status == 202:
                job_id = str(answer.json["id"])
                self.journal.write("accepted", job_id, body.name, key)
                return job_id
            is_refused = answer.status in {429, 503}
            if answer.status is not None and not is_refused:
                return None  # recorded above; a client would not retry it
            if is_refused and is_given_up:
                return None
            time.sleep(PAUSE_SECONDS)
        return None

    def cancel(self, job_id: str) -> int | None:
        """Send one request to cancel."""
        answer = self.request("cancel", "POST", f"/api/v1/jobs/{job_id}/cancel", {})
        kinds = {202: "canceled", 409: "refused", None: "cancel-unknown"}
        if answer.status in kinds:
            self.journal.write(kinds[answer.status], job_id)
        return answer.status

    def delete(self, job_id: str) -> int | None:
        """Send one request to delete."""
        answer = self.request("delete", "DELETE", f"/api/v1/jobs/{job_id}")
        kinds = {204: "deleted", None: "delete-unknown"}
        if answer.status in kinds:
            self.journal.write(kinds[answer.status], job_id)
        return answer.status

    def status_of(self, job_id: str) -> str:
        """A job's status, or "" if the request fails."""
        answer = self.request("look", "GET", f"/api/v1/jobs/{job_id}")
        return str(answer.json["status"]) if answer.status == 200 else ""

    def follow(self, job_id: str, is_over: Callable[[], bool]) -> StreamReport:
        """Read a job's events to the end, resuming after every broken connection.

        Args:
            job_id: the job.
            is_over: whether to give up; the stream is then reported as not ended.
        """
        judge = StreamJudge(job_id)
        while not judge.is_ended and not is_over():
            judge.num_connections += 1
            for event_id, name, data in self._events(job_id, judge.last_id, is_over):
                judge.take(event_id, name, data)
            if not judge.is_ended:
                time.sleep(PAUSE_SECONDS)
        return judge.report()

    # ---- parts -------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Any, key: str | None) -> Answer:
        headers = {"Cookie": f"textmill_owner={COOKIE}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        data = None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        except (OSError, http.client.HTTPException):
            return Answer(None)
        finally:
            connection.close()

    def _events(
        self, job_id: str, last_id: str | None, is_over: Callable[[], bool]
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The complete events of one connection, until it ends or breaks."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=QUIET_SECONDS)
        try:
            connection.request("GET", f"/api/v1/jobs/{job_id}/events", headers=headers)
            response = connection.getresponse()
            if response.status >= 500 and response.status != 503:
                self.exchanges.append(Exchange("stream", time.time(), 0.0, response.status))
            if response.status == 200:
                yield from _parsed(response, is_over)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


def _parsed(
    response: http.client.HTTPResponse, is_over: Callable[[], bool]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    for raw in response:
        if is_over():
            return
        line = raw.decode()
        if not line.endswith("\n"):  # cut off: not an event
            return
        line = line.rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "event" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
        fields = {}


class Load:
    """Submits at random moments, follows some jobs and requests pages, until it is stopped."""

    def __init__(
        self,
        client: Client,
        bodies: Sequence[Body],
        *,
        seed: int,
        jobs_per_second: float,
        follow_every: int = 3,
    ) -> None:
        self.client = client
        self.streams: list[StreamReport] = []
        self.ids: list[str] = []
        self._bodies = bodies
        self._random = random.Random(seed)
        self._mean_pause = 1 / jobs_per_second
        self._follow_every = follow_every
        self._streams_until = time.monotonic() + LONGEST_SECONDS
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="load")
        self._quiet = threading.Event()  # no new submissions
        self._ended = threading.Event()  # no new probes either
        self._threads: list[threading.Thread] = []

    def start(self, *, submits: bool = True) -> None:
        """Start the probes, and the submissions."""
        for what, path in PROBES.items():
            self._thread(partial(self._probe, what, path))
        if submits:
            self.go_on()

    def go_on(self) -> None:
        """Start the submissions."""
        self._thread(self._submit_on)

    def stop_submitting(self) -> None:
        """Submit nothing new; submissions in progress continue until they are answered."""
        self._quiet.set()

    def finish(self, seconds: float) -> None:
        """Wait for the clients' responses and the ends of the streams.

        All jobs have ended by now, so a stream that does not end within ``seconds`` is broken.
        """
        self._quiet.set()
        self._ended.set()
        deadline = self._streams_until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        self._pool.shutdown(wait=True)

    def submit(self, body: Body, *, follows: bool = False, **options: Any) -> str | None:
        """Submit one more body; returns its id once it is accepted."""
        job_id = self.client.submit(body, **options)
        if job_id is not None:
            self.ids.append(job_id)
            if follows:
                self._pool.submit(self._follow, job_id)
        return job_id

    def next_body(self) -> Body:
        """One more body, chosen at random."""
        return self._random.choice(self._bodies)

    def run(self, call: Callable[[], object]) -> None:
        """Run a call on a thread of the load."""
        self._pool.submit(call)

    # ---- threads -----------------------------------------------------------------------------

    def _thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _submit_on(self) -> None:
        while not self._quiet.wait(self._random.expovariate(1 / self._mean_pause)):
            number = next(self._numbers)
            body = self.next_body()
            follows = number % self._follow_every == 0
            self._pool.submit(self.submit, body, follows=follows)

    def _follow(self, job_id: str) -> None:
        is_over = lambda: time.monotonic() > self._streams_until  # noqa: E731
        self.streams.append(self.client.follow(job_id, is_over))

    def _probe(self, what: str, path: str) -> None:
        while not self._ended.wait(PROBE_SECONDS):
            self.client.request(what, "GET", path)
