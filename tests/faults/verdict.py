"""The verdict: compares the promises with the database, the clients' records and the logs.

Pure functions of the evidence. Knows nothing of processes, HTTP or the faults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tests.faults.journal import Entry

FINAL = {"succeeded", "failed", "canceled"}
LEGAL = {
    (None, "queued"),
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "canceled"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "canceled"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A job's row after the fault."""

    id: str
    status: str
    text: str
    attempt: int
    error_code: str | None = None
    revision: str | None = None
    created_at: int = 0  # milliseconds since 1970
    finished_at: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of ``job_events``."""

    job_id: str
    from_status: str | None
    to_status: str
    at: int = 0  # milliseconds since 1970
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer; ``status`` is ``None`` without a complete answer."""

    what: str
    at: float  # seconds since 1970
    seconds: float
    status: int | None
    has_retry_after: bool = False


@dataclass(frozen=True, slots=True)
class StreamReport:
    """The events that a follower of one job received over all its connections."""

    job_id: str
    num_gaps: int = 0
    num_repeats: int = 0
    is_text_whole: bool = True  # the token events together are the text of ``done``
    is_ended: bool = True
    num_connections: int = 1


@dataclass(slots=True)
class Evidence:
    """The evidence of one moment.

    Attributes:
        entries: the journal.
        rows: the jobs.
        events: ``job_events``, in order.
        exchanges: all requests except streams and long polls.
        streams: one report for each job that was followed.
        texts: revision → body → the undisturbed completion.
        may_fail: body → error codes that the fault allows.
        log_hits: log lines that contain a prompt or a visitor's cookie.
        fault_at: seconds since 1970.
        lost_pids: the processes that the fault ended; their jobs must recover.
    """

    entries: Sequence[Entry] = ()
    rows: Sequence[Row] = ()
    events: Sequence[Event] = ()
    exchanges: Sequence[Exchange] = ()
    streams: Sequence[StreamReport] = ()
    texts: Mapping[str | None, Mapping[str, str]] = field(default_factory=dict)
    may_fail: Mapping[str, frozenset[str]] = field(default_factory=dict)
    log_hits: int = 0
    fault_at: float | None = None
    lost_pids: Sequence[int] = ()


@dataclass(slots=True)
class Counts:
    """The counts. Those of several moments are added; of times, the maximum is kept."""

    moments: int = 1
    accepted: int = 0
    by_rule: int = 0  # succeeded, failed as the fault allows, canceled or deleted as requested
    otherwise: int = 0  # ended otherwise, or an impossible record in job_events
    lost: int = 0
    twice: int = 0
    again: int = 0  # decoded more than once
    wrong: int = 0
    other_5xx: int = 0
    unanswered: int = 0  # the connection was refused or broke, or the client's time-out passed
    impolite: int = 0  # 429 or 503 without Retry-After
    gaps: int = 0  # streams with a gap, a repetition, another text or no end
    log_hits: int = 0
    slowest: float = 0.0
    first_completion: float | None = None
    recovery: float | None = None
    worst_wait: float = 0.0

    def add(self, other: Counts) -> None:
        """Add the counts of another moment."""
        for item in fields(self):
            mine, its = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, int) and isinstance(its, int):
                setattr(self, item.name, mine + its)
            else:
                known = [value for value in (mine, its) if value is not None]
                setattr(self, item.name, max(known) if known else None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits in addition to the counts that must always be zero.

    Attributes:
        recovery_seconds: from the fault until every interrupted job is queued again and the first
            of them runs again (if none was interrupted, until a job completes).
        answer_seconds: the slowest answer.
        all_answered: whether every request must have received an answer.
        none_again: whether no job may be decoded more than once.
    """

    recovery_seconds: float | None = None
    answer_seconds: float | None = None
    all_answered: bool = False
    none_again: bool = False


ZEROS = {
    "otherwise": "ended otherwise",
    "lost": "lost",
    "twice": "ended twice",
    "wrong": "with a wrong text",
    "other_5xx": "5xx answers other than 503",
    "impolite": "429 or 503 without Retry-After",
    "gaps": "streams with gaps or repetitions",
    "log_hits": "prompts or cookies in a log",
}


def violations(counts: Counts, bounds: Bounds) -> list[str]:
    """A sentence for each exceeded bound."""
    found = [
        f"{getattr(counts, name)} {what}" for name, what in ZEROS.items() if getattr(counts, name)
    ]
    if counts.accepted == 0:
        found.append("no job was accepted, so the moment is not valid")
    if bounds.all_answered and counts.unanswered:
        found.append(f"{counts.unanswered} requests without an answer")
    if bounds.none_again and counts.again:
        found.append(f"{counts.again} decoded again")
    if bounds.answer_seconds is not None and counts.slowest > bounds.answer_seconds:
        found.append(f"slowest answer {counts.slowest:.1f} s > {bounds.answer_seconds:g} s")
    if bounds.recovery_seconds is not None:
        if counts.recovery is None:
            found.append("no recovery was seen")
        elif counts.recovery > bounds.recovery_seconds:
            found.append(f"recovery {counts.recovery:.1f} s > {bounds.recovery_seconds:g} s")
    return found


def judge(evidence: Evidence) -> Counts:
    """Count one moment."""
    counts = Counts()
    rows = {row.id: row for row in evidence.rows}
    paths = _paths(evidence.events)
    asked = _asked(evidence.entries)
    for entry in accepted(evidence.entries):
        counts.accepted += 1
        row, path = rows.get(entry.job_id), paths.get(entry.job_id, [])
        _judge_job(counts, evidence, entry, asked[entry.job_id], row, path)
    _judge_answers(counts, evidence.exchanges)
    counts.gaps = sum(map(is_broken, evidence.streams))
    counts.log_hits = evidence.log_hits
    counts.worst_wait = _worst_wait(evidence, rows)
    if evidence.fault_at is not None:
        counts.first_completion = first_completion(evidence.events, evidence.fault_at)
        counts.recovery = recovery(evidence.events, evidence.fault_at, evidence.lost_pids)
    return counts


def explain(evidence: Evidence) -> list[str]:
    """A line for each job and stream with an error, for finding the cause."""
    lines = []
    rows = {row.id: row for row in evidence.rows}
    paths = _paths(evidence.events)
    asked = _asked(evidence.entries)
    for entry in accepted(evidence.entries):
        counts = Counts()
        row, path = rows.get(entry.job_id), paths.get(entry.job_id, [])
        _judge_job(counts, evidence, entry, asked[entry.job_id], row, path)
        wrongs = [n for n in ("lost", "twice", "wrong", "otherwise") if getattr(counts, n)]
        if wrongs:
            steps = " ".join(event.to_status for event in path)
            asks = " ".join(sorted(asked[entry.job_id]))
            line = f"{', '.join(wrongs)}: {entry.job_id} {entry.body}: {asks}; {steps}"
            if row is not None:
                line += f"; {row.status} {row.error_code or ''} attempt {row.attempt}"
                line += f" revision {row.revision}, {len(row.text)} characters"
                line += f" that end in {row.text[-8:]!r}"
            lines.append(line)
    lines += [f"stream: {report}" for report in evidence.streams if is_broken(report)]
    odd = [e for e in evidence.exchanges if e.status and e.status >= 500 and e.status != 503]
    return lines + [f"answer: {exchange}" for exchange in odd[:5]]


def accepted(entries: Iterable[Entry]) -> list[Entry]:
    """The jobs that were answered with 202, each once, even if its key was repeated."""
    return list({e.job_id: e for e in entries if e.kind == "accepted"}.values())


def is_broken(report: StreamReport) -> bool:
    """Whether a watcher received anything other than the job's text from beginning to end."""
    return bool(
        report.num_gaps or report.num_repeats or not report.is_text_whole or not report.is_ended
    )


# ---- one job --------------------------------------------------------------------------------


def _judge_job(
    counts: Counts,
    evidence: Evidence,
    entry: Entry,
    asked: set[str],
    row: Row | None,
    path: list[Event],
) -> None:
    num_ends = sum(event.to_status in FINAL for event in path)
    counts.twice += num_ends > 1
    counts.again += sum(event.to_status == "running" for event in path) > 1
    if row is None:
        if not asked & {"deleted", "delete-unknown"} or num_ends == 0:
            counts.lost += 1
        else:
            counts.by_rule += 1
        return
    if row.status not in FINAL or num_ends == 0:
        counts.lost += 1
        return
    counts.wrong += not _is_text_right(row, entry.body, evidence.texts)
    is_by_rule = _is_by_rule(row, asked, evidence.may_fail.get(entry.body, frozenset()))
    if is_by_rule and _is_account_sound(row, path):
        counts.by_rule += 1
    else:
        counts.otherwise += 1


def _is_by_rule(row: Row, asked: set[str], may_fail: frozenset[str]) -> bool:
    if "deleted" in asked:  # the answer was 204, but the row exists
        return False
    if "canceled" in asked:
        return row.status == "canceled"
    if row.status == "canceled":
        return "cancel-unknown" in asked
    if row.status == "failed":
        return row.error_code in may_fail
    return True


def _is_text_right(row: Row, body: str, texts: Mapping[str | None, Mapping[str, str]]) -> bool:
    """Whether a completed text is the undisturbed one, or a canceled text a beginning of it.

    A text that was canceled in the middle of a character may end in U+FFFD.
    """
    if row.status == "succeeded":
        return texts.get(row.revision, {}).get(body) == row.text
    known = [of_body[body] for of_body in texts.values() if body in of_body]
    beginning = row.text.rstrip("\ufffd")
    return not beginning or not known or any(text.startswith(beginning) for text in known)


def _is_account_sound(row: Row, path: list[Event]) -> bool:
    steps = [(event.from_status, event.to_status) for event in path]
    is_chain = [step[1] for step in steps[:-1]] == [step[0] for step in steps[1:]]
    num_claims = sum(to == "running" for _, to in steps)
    return (
        set(steps) <= LEGAL
        and steps[0][0] is None
        and is_chain
        and steps[-1][1] == row.status
        and num_claims == row.attempt
    )


def _paths(events: Iterable[Event]) -> dict[str, list[Event]]:
    paths: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        paths[event.job_id].append(event)
    return paths


def _asked(entries: Iterable[Entry]) -> dict[str, set[str]]:
    asked: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        asked[entry.job_id].add(entry.kind)
    return asked


# ---- answers and times ----------------------------------------------------------------------


def _judge_answers(counts: Counts, exchanges: Iterable[Exchange]) -> None:
    for exchange in exchanges:
        if exchange.status is None:
            counts.unanswered += 1
        elif exchange.status >= 500 and exchange.status != 503:
            counts.other_5xx += 1
        elif exchange.status in {429, 503} and not exchange.has_retry_after:
            counts.impolite += 1
        counts.slowest = max(counts.slowest, exchange.seconds)


def first_completion(events: Iterable[Event], since: float) -> float | None:
    """Seconds from an instant until the next job succeeded."""
    ends = [e.at / 1000 - since for e in events if e.to_status == "succeeded"]
    return min((seconds for seconds in ends if seconds > 0), default=None)


def recovery(events: Sequence[Event], since: float, pids: Sequence[int]) -> float | None:
    """Seconds until the jobs of the dead processes are queued again and the first one runs again.

    If there were none: until a job completes. ``None``: that never happened.
    """
    back: list[float] = []
    anew: list[float] = []
    for path in _paths(events).values():
        held_at = _interrupted_at(path, since, pids)
        if held_at is None:
            continue
        after = path[held_at + 1 :]
        back.append(after[0].at / 1000 - since if after else float("inf"))
        anew += [e.at / 1000 - since for e in after if e.to_status == "running"][:1]
        if after and after[0].to_status in FINAL:  # for example canceled: it need not run again
            anew.append(back[-1])
    if not back:
        return first_completion(events, since)
    return max(max(back), min(anew)) if anew and max(back) != float("inf") else None


def _interrupted_at(path: Sequence[Event], since: float, pids: Sequence[int]) -> int | None:
    """The index of the event with which a dead process claimed the job; ``None`` if none did."""
    before = [index for index, event in enumerate(path) if event.at / 1000 <= since]
    if not before or path[before[-1]].to_status != "running":
        return None
    actor = path[before[-1]].actor
    return before[-1] if any(f"-{pid}-" in actor for pid in pids) else None


def _worst_wait(evidence: Evidence, rows: Mapping[str, Row]) -> float:
    """The longest time from acceptance to end in seconds, by the database's clock."""
    waits = [
        (row.finished_at - row.created_at) / 1000
        for entry in accepted(evidence.entries)
        if (row := rows.get(entry.job_id)) is not None and row.finished_at is not None
    ]
    return max(waits, default=0.0)
