"""One Redis stream per job: the text as the worker writes it, for clients that follow the job.

Ids are explicit, ``{attempt}-{end}``, where ``end`` is the number of characters of text so far,
including this entry. Redis itself thereby refuses a repeated write and one of a worker that lost
the job; a reader sees at once where an entry belongs, and can fill a gap from the row, whose text
has the same positions. The stream only saves time: if it is lost, no text is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from textmill.core.circuit_breaker import CircuitBreaker
from textmill.core.errors import TextmillError

SOCKET_TIMEOUT_SECONDS = 2.0  # a frozen Redis must not hold a request or the heartbeat
STREAM_MAX_ENTRIES = 20_000  # at 40 ms an entry, over ten minutes of one job
MAX_RENEWALS = 4096
STREAM_RENEWAL_SECONDS = 60.0  # between two extensions of a running job's time to live
STREAM_TTL_SECONDS = 900  # of a job that runs, or whose worker died; its row has the text so far
ENDED_TTL_SECONDS = 60  # of a job that has ended: later readers use the row, which is final
CANCEL_CHANNEL = "textmill:cancel"
WRITTEN_CHANNEL = "textmill:written"  # the ids of jobs whose streams have grown

Kind = Literal["started", "token", "done"]


class EventsUnavailable(TextmillError):
    """Redis did not answer; readers fall back to the row."""

    code = "events_unavailable"


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry of a job's stream.

    Attributes:
        job_id: the job.
        attempt: the attempt that wrote it.
        end: number of characters of text up to here; one more than that for ``done``.
        text: the appended text; empty unless ``kind`` is ``token``.
        num_tokens: completion tokens so far.
        kind: ``started``, ``token`` or ``done``.
    """

    job_id: str
    attempt: int
    end: int
    text: str
    num_tokens: int
    kind: Kind


def started(job_id: str, attempt: int) -> StreamEntry:
    """The entry that opens an attempt."""
    return StreamEntry(job_id, attempt, 0, "", 0, "started")


def done(job_id: str, attempt: int, num_characters: int, num_tokens: int) -> StreamEntry:
    """The entry that closes a job, whose row is already final."""
    return StreamEntry(job_id, attempt, num_characters + 1, "", num_tokens, "done")


def make_redis(url: str, *, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS) -> Redis:
    """A client with short time-outs and without retries: redis-py's own would take a minute."""
    client: Redis = Redis.from_url(
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        decode_responses=True,
    )
    return client


class EventBus:
    """Writes the streams; ``core.event_reader`` reads them. Safe to share between threads.

    After Redis once did not answer, every call fails at once for two seconds, so that a frozen
    Redis costs one thread its time-out rather than every caller. Connections are opened when
    needed.
    """

    def __init__(self, redis_url: str | None, breaker: CircuitBreaker | None = None) -> None:
        self._redis_url = redis_url
        self._redis = make_redis(redis_url) if redis_url else None
        self._breaker = breaker or CircuitBreaker()
        self._renewals: dict[str, float] = {}  # when to extend a stream's time to live, by job

    @property
    def redis_url(self) -> str | None:
        """The address of Redis."""
        return self._redis_url

    def close(self) -> None:
        """Close the idle connections."""
        if self._redis is not None:
            self._redis.close()

    def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except EventsUnavailable:
            return False

    def publish(self, entries: Sequence[StreamEntry]) -> None:
        """Append entries and announce their jobs, in one round trip.

        Raises:
            EventsUnavailable: Redis did not accept them; readers use the row.
        """
        if not entries:
            return
        try:
            with self._client() as client:
                results = _send(client, entries, self._due(entries))
            for result in results:
                if isinstance(result, RedisError) and not _is_refused_duplicate(result):
                    raise EventsUnavailable(f"Redis did not accept the events: {result}")
        except EventsUnavailable:
            self._forget_renewals(entry.job_id for entry in entries)  # it may be empty afterwards
            raise
        # Without its stream a job was deleted, or Redis was emptied: the next entry makes one.
        self._forget_renewals(e.job_id for e, r in zip(entries, results, strict=False) if r is None)

    def _due(self, entries: Sequence[StreamEntry]) -> dict[str, int]:
        """The jobs whose time to live is set now; to set it with each entry would double the work.

        Only these entries may make a stream: one without a time to live would stay for ever.
        """
        now = time.monotonic()
        due = {}
        if len(self._renewals) > MAX_RENEWALS:  # jobs that another worker finished
            self._renewals.clear()
        for job_id, kind in {entry.job_id: entry.kind for entry in entries}.items():
            if kind == "done":
                due[job_id] = ENDED_TTL_SECONDS
                self._renewals.pop(job_id, None)
            elif kind != "token" or now >= self._renewals.get(job_id, 0.0):
                due[job_id] = STREAM_TTL_SECONDS
                self._renewals[job_id] = now + STREAM_RENEWAL_SECONDS
        return due

    def _forget_renewals(self, job_ids: Iterable[str]) -> None:
        """Set these jobs' times to live again with their next entries."""
        for job_id in job_ids:
            self._renewals.pop(job_id, None)

    def request_cancel(self, job_id: str) -> None:
        """Announce a cancel that is already in the row; a failure only delays it."""
        with contextlib.suppress(EventsUnavailable), self._client() as client:
            client.publish(CANCEL_CHANNEL, job_id)

    def forget(self, job_id: str) -> None:
        """Delete the stream of a deleted job, if Redis is available."""
        with contextlib.suppress(EventsUnavailable), self._client() as client:
            client.delete(key_of(job_id))

    @contextmanager
    def _client(self) -> Iterator[Redis]:
        """The client for one call; its errors become ``EventsUnavailable``."""
        if self._redis is None:
            raise EventsUnavailable("No Redis is configured.")
        if not self._breaker.may_call():
            raise EventsUnavailable("Redis did not answer a moment ago; it is not asked again yet.")
        try:
            yield self._redis
        except (RedisConnectionError, RedisTimeoutError) as error:
            self._breaker.note_failure()
            raise EventsUnavailable(f"Redis did not answer: {error}") from error
        except RedisError as error:  # it answered, so the breaker stays closed
            self._breaker.note_success()
            raise EventsUnavailable(f"Redis refused: {error}") from error
        self._breaker.note_success()


def _send(
    client: Redis, entries: Sequence[StreamEntry], times_to_live: Mapping[str, int]
) -> list[Any]:
    """Append and announce entries; their replies come first, ``None`` if there is no stream."""
    pipe = client.pipeline(transaction=False)
    for entry in entries:
        pipe.xadd(
            key_of(entry.job_id),
            {"kind": entry.kind, "text": entry.text, "tokens": str(entry.num_tokens)},
            id=f"{entry.attempt}-{entry.end}",
            maxlen=STREAM_MAX_ENTRIES,
            approximate=True,
            nomkstream=entry.job_id not in times_to_live,
        )
    for job_id, seconds in times_to_live.items():
        pipe.expire(key_of(job_id), seconds)
    pipe.publish(WRITTEN_CHANNEL, _written(entries))
    return list(pipe.execute(raise_on_error=False))


_PREFIX = "textmill:job:"
_KINDS = get_args(Kind)


def key_of(job_id: str) -> str:
    """The name of a job's stream in Redis."""
    return _PREFIX + job_id


def _written(entries: Sequence[StreamEntry]) -> str:
    """The message with the jobs of some entries, and the kind of each job's last one."""
    kinds = {entry.job_id: entry.kind for entry in entries}
    return " ".join(f"{job_id}:{kind}" for job_id, kind in kinds.items())


def parse_written(message: str) -> dict[str, Kind]:
    """The jobs in a message of ``WRITTEN_CHANNEL``, with the kinds of their last entries."""
    pairs = (word.rpartition(":") for word in message.split())
    return {job_id: cast("Kind", kind) for job_id, mark, kind in pairs if mark and kind in _KINDS}


def parse_streams(found: Any) -> list[StreamEntry]:
    """The entries in the answer to an ``XREAD``, under either protocol of Redis."""
    streams = found.items() if isinstance(found, dict) else found
    return [
        _entry(key.removeprefix(_PREFIX), entry_id, values)
        for key, items in streams or ()
        for entry_id, values in _flat(items)
    ]


def _flat(items: list[Any]) -> list[Any]:
    """A stream's entries, which are tuples; with RESP3 they are nested one list deeper."""
    return items[0] if isinstance(items[0], list) else items


def _entry(job_id: str, entry_id: str, values: Mapping[str, str]) -> StreamEntry:
    attempt, _, end = entry_id.partition("-")
    kind: Any = values["kind"]
    return StreamEntry(job_id, int(attempt), int(end), values["text"], int(values["tokens"]), kind)


def _is_refused_duplicate(error: RedisError) -> bool:
    return isinstance(error, ResponseError) and "equal or smaller" in str(error)
