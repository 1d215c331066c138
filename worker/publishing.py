"""Collects the engine's text and sends it to the jobs' streams every few tens of milliseconds.

The engine's thread only appends to a list. Knows nothing of the database: while Redis is
unavailable entries are dropped, and readers get the text from the row.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from textmill.core.events import EventsUnavailable, StreamEntry

GATHER_SECONDS = 0.04  # looks continuous; one round trip per batch
# With many jobs at once each has few tokens in 40 ms, and round trips would slow the engine.
GATHER_SECONDS_AT_MOST, FEW_JOBS = 0.1, 16
BACK_OFF_SECONDS = 1.0  # after a failure: a frozen Redis costs its time-out at every try
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
log = structlog.get_logger(__name__)


def storable(text: str) -> str:
    """The text in a form that both databases can store.

    NUL, which PostgreSQL refuses, and lone surrogates, which are not valid UTF-8, become the
    replacement character.
    """
    return _UNSTORABLE.sub("\ufffd", text)


class JobStream:
    """Turns the deltas of one attempt into stream entries with positions."""

    def __init__(self, job_id: str, attempt: int, add: Callable[[StreamEntry], None]) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._add = add
        self._end = 0

    def started(self) -> None:
        """Add the entry that the attempt has started."""
        self._add(StreamEntry(self._job_id, self._attempt, 0, "", 0, "started"))

    def append(self, text: str, num_tokens: int) -> None:
        """Add appended text; ``num_tokens`` counts from the start of the text."""
        if not text:
            return
        self._end += len(text)
        entry = StreamEntry(
            self._job_id, self._attempt, self._end, storable(text), num_tokens, "token"
        )
        self._add(entry)

    def done(self, num_characters: int, num_tokens: int) -> None:
        """Add the entry that the job has ended; call it once the row is final."""
        end = max(num_characters, self._end) + 1
        self._add(StreamEntry(self._job_id, self._attempt, end, "", num_tokens, "done"))


class Publisher:
    """A thread that sends collected entries; successive ones of a job are joined.

    Args:
        send: ``EventBus.publish`` or a substitute.
    """

    def __init__(self, send: Callable[[Sequence[StreamEntry]], None]) -> None:
        self._send = send
        self._waiting: list[StreamEntry] = []
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, entry: StreamEntry) -> None:
        """Queue an entry; returns at once."""
        with self._lock:
            self._waiting.append(entry)
        self._woken.set()

    def close(self, timeout_seconds: float = 3.0) -> None:
        """Send the remaining entries, and stop."""
        self._closing.set()
        self._woken.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        sent_at, gather_seconds = 0.0, GATHER_SECONDS
        while True:
            self._woken.wait()
            # An entry after a pause, above all a first token, is sent at once.
            pause = sent_at + gather_seconds - time.monotonic()
            closing = self._closing.wait(max(0.0, pause))
            sent_at = max(time.monotonic(), sent_at)
            self._woken.clear()
            with self._lock:
                batch, self._waiting = self._waiting, []
            if batch:
                batch = joined(batch)
                share = len(batch) / FEW_JOBS
                gather_seconds = min(GATHER_SECONDS_AT_MOST, GATHER_SECONDS * max(1.0, share))
                self._try(batch)
            if closing:
                return

    def _try(self, batch: list[StreamEntry]) -> None:
        try:
            self._send(batch)
        except EventsUnavailable as error:
            log.warning("events_dropped", entries=len(batch), reason=str(error)[:200])
            self._closing.wait(BACK_OFF_SECONDS)


def joined(entries: Sequence[StreamEntry]) -> list[StreamEntry]:
    """The entries with successive tokens of a job joined; the order of each job is kept."""
    result: list[StreamEntry] = []
    open_at: dict[str, int] = {}
    for entry in entries:
        at = open_at.get(entry.job_id)
        before = result[at] if at is not None else None
        if (
            at is not None
            and before is not None
            and entry.kind == before.kind == "token"
            and entry.attempt == before.attempt
        ):
            result[at] = StreamEntry(
                entry.job_id,
                entry.attempt,
                entry.end,
                before.text + entry.text,
                entry.num_tokens,
                "token",
            )
            continue
        open_at[entry.job_id] = len(result)
        result.append(entry)
    return result
