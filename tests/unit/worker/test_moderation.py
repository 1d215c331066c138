"""A text is shown when the moderator has allowed it, and no part of it before."""

from __future__ import annotations

import pytest

from tests.unit.worker.fake_parts import RunnerBench, make_job, result
from textmill.core.moderation import ModerationUnavailable, Verdict
from textmill.core.moderation.moderators import Kind
from textmill.worker import moderation


class Judge:
    """Allows what does not contain a word, after some failures."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_failures = num_failures
        self.asked: list[tuple[str, str, str]] = []

    def check(self, text: str, kind: Kind, model: str) -> Verdict:
        self.asked.append((text, kind, model))
        if self.num_failures:
            self.num_failures -= 1
            raise ModerationUnavailable("away", retry_after_seconds=1)
        return Verdict("wombat" not in text, "an animal")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> RunnerBench:
    monkeypatch.setattr(moderation, "PAUSE_SECONDS", 0.0)
    return RunnerBench()


def run(bench: RunnerBench, judge: Judge, text: str) -> None:
    bench.runner._moderator = judge
    bench.start(make_job(1))
    bench.engine.write("job-1", text)
    assert bench.runner.progress() == []  # nothing is saved before the end
    bench.engine.end("job-1", result("length", text=text))
    bench.join()


def test_an_allowed_text_is_stored(bench: RunnerBench) -> None:
    judge = Judge()
    run(bench, judge, "a quick fox")
    assert judge.asked == [("a quick fox", "text", "m")]
    assert bench.store.finished[0][1].text == "a quick fox"
    assert bench.publisher.text("job-1") == ""  # the row has it


@pytest.mark.parametrize(
    ("num_failures", "text", "code"),
    [
        (0, "a wombat", "text_refused"),
        (2, "a wombat", "text_refused"),
        (3, "a quick fox", "moderation_unavailable"),
    ],
)
def test_no_part_of_a_refused_text_is_stored(
    bench: RunnerBench, num_failures: int, text: str, code: str
) -> None:
    run(bench, Judge(num_failures), text)
    ((_, outcome),) = bench.store.finished
    assert (outcome.status, outcome.error_code, outcome.text) == ("failed", code, "")
    assert not outcome.trace
    assert "wombat" not in str(outcome)
    assert bench.publisher.text("job-1") == ""
