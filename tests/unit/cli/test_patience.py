"""How long a command continues without an answer, with a simulated clock."""

from __future__ import annotations

import pytest

from textmill.cli.patience import Patience
from textmill.cli.server_errors import Refused, Unreachable


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def patience(time: Time, notices: list[str] | None = None) -> Patience:
    notify = (notices if notices is not None else []).append
    return Patience(30.0, notify=notify, clock=lambda: time.now, sleep=time.sleep)


def test_it_goes_on_for_its_time_and_raises_the_last_failure(time: Time) -> None:
    notices: list[str] = []
    failures: list[Unreachable] = []

    def fail() -> None:
        failures.append(Unreachable(f"failure {len(failures)}"))
        raise failures[-1]

    with pytest.raises(Unreachable) as caught:
        patience(time, notices).call(fail)
    assert caught.value is failures[-1]
    assert time.now == pytest.approx(130.0)
    assert 15 < len(failures) < 30
    assert time.slept[0] < 0.5
    assert max(time.slept) <= 2.0
    assert notices == ["failure 1 Trying again for 30 s."]


def test_every_answer_renews_it(time: Time) -> None:
    kept = patience(time)
    for _ in range(5):
        answers = iter([Unreachable("x")] * 12)

        def attempt(answers: object = answers) -> int:
            error = next(answers, None)  # type: ignore[call-overload]
            if error is not None:
                raise error
            return 7

        assert kept.call(attempt) == 7
    assert time.now > 160


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500])
def test_what_will_not_pass_is_raised_at_once(time: Time, status: int) -> None:
    with pytest.raises(Refused):
        patience(time).pause(Refused(status, {}))
    assert time.slept == []


def test_the_pause_that_the_server_asks_for_is_kept_within_the_time(time: Time) -> None:
    kept = patience(time)
    kept.pause(Refused(503, {}, retry_after_seconds=5))
    kept.pause(Refused(429, {}, retry_after_seconds=60))
    assert time.slept == [5.0, 25.0]
    with pytest.raises(Refused):
        kept.pause(Refused(503, {}))
