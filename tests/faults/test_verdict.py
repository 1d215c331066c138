"""The verdict on invented evidence: every error in it must be counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.journal import Entry, Journal, read
from tests.faults.streams import StreamJudge
from tests.faults.verdict import (
    ZEROS,
    Bounds,
    Counts,
    Event,
    Evidence,
    Exchange,
    Row,
    StreamReport,
    explain,
    judge,
    violations,
)

TEXTS = {"r1": {"body": "the whole text"}}
ROW = Row("a", "succeeded", "the whole text", 1, revision="r1", created_at=0, finished_at=900)
QUEUED = Event("a", None, "queued", 0, "client")
CLAIMED = Event("a", "queued", "running", 100, "host-7-abc")
SUCCEEDED = Event("a", "running", "succeeded", 900, "host-7-abc")
ENTRY = Entry("accepted", "a", "body", "key")


def sound(**changes: Any) -> Evidence:
    """Evidence of one job that ended correctly."""
    usual: dict[str, Any] = {
        "entries": [ENTRY],
        "rows": [ROW],
        "events": [QUEUED, CLAIMED, SUCCEEDED],
        "exchanges": [Exchange("submit", 0.0, 0.02, 202)],
        "streams": [StreamReport("a")],
        "texts": TEXTS,
    }
    return Evidence(**usual | changes)


def complaints(evidence: Evidence, bounds: Bounds | None = None) -> list[str]:
    return violations(judge(evidence), bounds or Bounds())


def test_sound_evidence_is_not_complained_about() -> None:
    counts = judge(sound())
    assert (counts.accepted, counts.by_rule, counts.again) == (1, 1, 0)
    assert counts.worst_wait == pytest.approx(0.9)
    assert complaints(sound()) == []
    assert explain(sound()) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lost", {"rows": [], "events": []}),
        ("lost", {"rows": []}),  # a row whose deletion was not requested
        ("lost", {"rows": [replace(ROW, status="running")], "events": [QUEUED, CLAIMED]}),
        ("lost", {"rows": [replace(ROW, status="queued")], "events": [QUEUED]}),
        ("twice", {"events": [QUEUED, CLAIMED, SUCCEEDED, SUCCEEDED]}),
        ("twice", {"events": [QUEUED, CLAIMED, SUCCEEDED, Event("a", "running", "failed", 950)]}),
        ("wrong", {"rows": [replace(ROW, text="another text")]}),
        ("wrong", {"rows": [replace(ROW, text="")]}),
        ("wrong", {"rows": [replace(ROW, revision="r2")]}),
        ("otherwise", {"rows": [replace(ROW, status="failed", error_code="worker_lost", text="")]}),
        ("otherwise", {"rows": [replace(ROW, status="canceled")]}),
        ("otherwise", {"rows": [replace(ROW, attempt=2)]}),
        ("otherwise", {"events": [CLAIMED, SUCCEEDED]}),
        ("otherwise", {"events": [QUEUED, SUCCEEDED]}),
        (
            "otherwise",
            {"entries": [ENTRY, Entry("canceled", "a")]},
        ),  # answered with 202
        (
            "otherwise",
            {"entries": [ENTRY, Entry("deleted", "a")]},
        ),  # answered with 204
        ("other_5xx", {"exchanges": [Exchange("page", 0, 0.1, 500)]}),
        ("other_5xx", {"exchanges": [Exchange("page", 0, 0.1, 502)]}),
        ("impolite", {"exchanges": [Exchange("submit", 0, 0.1, 503)]}),
        ("impolite", {"exchanges": [Exchange("submit", 0, 0.1, 429)]}),
        ("gaps", {"streams": [StreamReport("a", num_gaps=1)]}),
        ("gaps", {"streams": [StreamReport("a", num_repeats=1)]}),
        ("gaps", {"streams": [StreamReport("a", is_text_whole=False)]}),
        ("gaps", {"streams": [StreamReport("a", is_ended=False)]}),
        ("log_hits", {"log_hits": 3}),
    ],
)
def test_every_wrong_is_counted_and_complained_about(name: str, changes: dict[str, Any]) -> None:
    evidence = sound(**changes)
    assert getattr(judge(evidence), name) >= 1
    if name not in {"impolite", "log_hits"}:  # these two are listed elsewhere
        assert explain(evidence) != []
    assert any(ZEROS[name] in complaint for complaint in complaints(evidence))


def test_every_zero_can_be_violated() -> None:
    for name in ZEROS:
        assert violations(replace(Counts(accepted=1), **{name: 1}), Bounds()) != []


def test_nothing_accepted_shows_nothing() -> None:
    assert complaints(Evidence()) == ["no job was accepted, so the moment is not valid"]


def test_a_key_that_was_repeated_is_one_job() -> None:
    assert judge(sound(entries=[ENTRY, ENTRY])).accepted == 1


def test_what_was_asked_for_is_by_rule() -> None:
    canceled = replace(ROW, status="canceled", text="the whole")
    events = [QUEUED, CLAIMED, Event("a", "running", "canceled", 500)]
    asked = [ENTRY, Entry("canceled", "a")]
    assert complaints(sound(entries=asked, rows=[canceled], events=events)) == []
    inside = replace(canceled, text="the who\ufffd")  # in the middle of a character
    assert complaints(sound(entries=asked, rows=[inside], events=events)) == []
    other = replace(canceled, text="another beginning")
    assert judge(sound(entries=asked, rows=[other], events=events)).wrong == 1
    deleted = [ENTRY, Entry("deleted", "a")]
    assert complaints(sound(entries=deleted, rows=[], events=events)) == []
    assert judge(sound(entries=deleted, rows=[], events=[QUEUED, CLAIMED])).lost == 1


def test_a_refused_or_unanswered_cancel_leaves_both_ends_open() -> None:
    for kind in ("refused", "cancel-unknown"):
        assert complaints(sound(entries=[ENTRY, Entry(kind, "a")])) == []


def test_only_the_poisonous_may_fail() -> None:
    failed = replace(ROW, status="failed", error_code="worker_lost", text="")
    events = [QUEUED, CLAIMED, Event("a", "running", "failed", 900)]
    rule = {"body": frozenset({"worker_lost"})}
    assert complaints(sound(rows=[failed], events=events, may_fail=rule)) == []
    other = [replace(failed, error_code="engine_error")]
    assert judge(sound(rows=other, events=events, may_fail=rule)).otherwise == 1
    assert judge(sound(rows=[failed], events=events)).otherwise == 1


def test_a_second_decoding_is_counted_but_allowed() -> None:
    events = [QUEUED, CLAIMED, Event("a", "running", "queued", 300), CLAIMED, SUCCEEDED]
    evidence = sound(rows=[replace(ROW, attempt=2)], events=events)
    assert judge(evidence).again == 1
    assert complaints(evidence) == []
    assert complaints(evidence, Bounds(none_again=True)) == ["1 decoded again"]


def test_slow_and_missing_answers_violate_the_bounds_that_ask_for_them() -> None:
    slow = sound(exchanges=[Exchange("page", 0, 5.3, 200)])
    assert complaints(slow) == []
    assert complaints(slow, Bounds(answer_seconds=5)) == ["slowest answer 5.3 s > 5 s"]
    missing = sound(exchanges=[Exchange("page", 0, 0.1, None)])
    assert complaints(missing) == []
    assert complaints(missing, Bounds(all_answered=True)) == ["1 requests without an answer"]


# ---- recovery -------------------------------------------------------------------------------

BACK = Event("a", "running", "queued", 4_000, "sweeper")
ANEW = Event("a", "queued", "running", 6_000, "host-8-def")
ENDED = Event("a", "running", "succeeded", 7_000, "host-8-def")


def recovered(events: list[Event]) -> Counts:
    rows = [replace(ROW, attempt=2)]
    return judge(sound(events=events, rows=rows, fault_at=1.0, lost_pids=(7,)))


def test_recovery_lasts_until_what_was_interrupted_runs_again() -> None:
    counts = recovered([QUEUED, CLAIMED, BACK, ANEW, ENDED])
    assert counts.recovery == pytest.approx(5.0)
    assert counts.first_completion == pytest.approx(6.0)
    assert violations(counts, Bounds(recovery_seconds=5.0)) == []
    assert violations(counts, Bounds(recovery_seconds=4.9)) == ["recovery 5.0 s > 4.9 s"]


def test_recovery_waits_for_the_last_job_to_be_given_back() -> None:
    late = [
        Event("b", None, "queued", 0),
        Event("b", "queued", "running", 200, "host-7-abc"),
        Event("b", "running", "queued", 30_000, "sweeper"),
    ]
    counts = recovered([QUEUED, CLAIMED, BACK, ANEW, ENDED, *late])
    assert counts.recovery == pytest.approx(29.0)


def test_a_job_that_never_came_back_is_no_recovery() -> None:
    counts = recovered([QUEUED, CLAIMED])
    assert counts.recovery is None
    assert "no recovery was seen" in violations(counts, Bounds(recovery_seconds=40))


def test_jobs_of_other_workers_say_nothing_of_the_recovery() -> None:
    other = [replace(event, job_id="b") for event in (QUEUED, SUCCEEDED)]
    other.insert(1, Event("b", "queued", "running", 100, "host-17-abc"))  # not the pid 7
    late = [replace(other[2], at=3_000)]
    counts = judge(sound(events=[*other[:2], *late], fault_at=1.0, lost_pids=(7,)))
    assert counts.recovery == pytest.approx(2.0)  # without interrupted jobs: the first completion


def test_the_counts_of_moments_add_up_and_seconds_keep_the_largest() -> None:
    one = Counts(accepted=2, lost=1, slowest=0.5, recovery=None, worst_wait=3.0)
    one.add(Counts(accepted=3, lost=0, slowest=4.0, recovery=2.0, worst_wait=1.0))
    assert (one.moments, one.accepted, one.lost) == (2, 5, 1)
    assert (one.slowest, one.recovery, one.worst_wait) == (4.0, 2.0, 3.0)


# ---- streams --------------------------------------------------------------------------------


def followed(*events: tuple[str, str, str]) -> StreamReport:
    stream = StreamJudge("a")
    for event_id, name, text in events:
        stream.take(event_id, name, {"text": text})
    return stream.report()


def test_a_whole_stream_is_sound() -> None:
    assert followed(
        ("1-0", "status", ""),
        ("1-2", "token", "ab"),
        ("1-5", "token", "cde"),
        ("1-5-done", "done", "abcde"),
    ) == StreamReport("a", num_connections=0)


@pytest.mark.parametrize(
    "events",
    [
        [("1-2", "token", "ab"), ("1-6", "token", "de"), ("1-6-done", "done", "abxyde")],
        [("1-2", "token", "ab"), ("1-2", "token", "ab"), ("1-2-done", "done", "ab")],
        [("1-2", "token", "ab"), ("1-2-done", "done", "abc")],
        [("1-2", "token", "ab"), ("2-2", "token", "ab"), ("2-2-done", "done", "ab")],
        [("1-2", "token", "ab")],
        [("1-2", "token", "ab"), ("1-2-done", "done", "ab"), ("1-2-done", "done", "ab")],
    ],
    ids=["gap", "repeat", "other text", "no reset", "no end", "two ends"],
)
def test_a_broken_stream_is_counted(events: list[tuple[str, str, str]]) -> None:
    assert judge(sound(streams=[followed(*events)])).gaps == 1


def test_a_reset_drops_what_came_before() -> None:
    report = followed(
        ("1-2", "token", "ab"),
        ("2-0", "reset", ""),
        ("2-1", "token", "a"),
        ("2-3", "token", "bc"),
        ("2-3-done", "done", "abc"),
    )
    assert judge(sound(streams=[report])).gaps == 0


# ---- the journal ----------------------------------------------------------------------------


def test_the_journal_gives_back_what_was_written_but_not_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("accepted", "a", "body", "key")
    journal.write("canceled", "a")
    journal.close()
    with (tmp_path / "journal").open("a") as file:
        file.write('{"kind": "accep')
    entries = list(read(tmp_path / "journal"))
    assert [(entry.kind, entry.job_id) for entry in entries] == [
        ("accepted", "a"),
        ("canceled", "a"),
    ]
    assert entries[0].key == "key"
