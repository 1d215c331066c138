"""The scripts and the pages agree: the generated contract, and cases that both sides run."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from textmill.backend.pages.comparison import divergence
from textmill.backend.pages.formats import ago, fixed, rate, short_duration
from textmill.backend.pages.generate import queue_sentence
from textmill.backend.pages.job_status import status_sentence
from textmill.backend.pages.phrases import FINISH_SENTENCES, STATUS_LABELS
from textmill.backend.pages.script_contract import contract_js
from textmill.core.statuses import STATUSES

CASES = Path(__file__).parent / "cases"
CONTRACT = Path(__file__).parents[3] / "web" / "static" / "js" / "contract.js"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def cases(name: str) -> Any:
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


def test_the_contract_of_the_scripts_is_up_to_date() -> None:
    shown = CONTRACT.read_text(encoding="utf-8")
    assert shown == contract_js(), "run: python scripts/write_contract.py"


def test_every_status_and_finish_reason_has_a_phrase() -> None:
    assert tuple(STATUS_LABELS) == STATUSES
    assert set(FINISH_SENTENCES) == {"stop", "length", "canceled", "deadline", "error"}


@pytest.mark.parametrize("case", cases("divergence"), ids=lambda case: case["text"][:12])
def test_the_first_divergence(case: dict[str, Any]) -> None:
    job: Any = {"status": "succeeded", "text": case["text"]}
    reference: Any = {"status": case["status"], "text": case["other"]}
    found = divergence(job, reference, "Greedy")
    assert [found.same, found.mark, found.rest] == case["parts"]
    assert found.note == case["note"]
    assert found.same + found.mark + found.rest == case["text"]


def test_numbers_are_rounded_as_in_the_scripts() -> None:
    formats = cases("formats")
    for value, digits, text in formats["fixed"]:
        assert fixed(value, digits) == text
    for value, text in formats["shortDuration"]:
        assert short_duration(value) == text
    for value, text in formats["rate"]:
        assert rate(value) == text


def test_times_are_relative_to_now() -> None:
    for seconds, text in cases("formats")["ago"]:
        assert ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text


@pytest.mark.parametrize("case", cases("status"), ids=lambda case: case["sentence"][:20])
def test_a_job_has_one_status_sentence(case: dict[str, Any]) -> None:
    job: Any = {"cancel_requested": False, "finish_reason": None, "queue": None, **case["job"]}
    assert status_sentence(job) == case["sentence"]


@pytest.mark.parametrize("case", cases("estimates"))
def test_the_estimated_wait(case: dict[str, Any]) -> None:
    waiting = {"median_seconds": case["low"], "p90_seconds": case["high"]}
    queue: Any = {"depth": case["depth"], "workers": case["workers"], "waiting": waiting}
    assert queue_sentence(queue) == case["text"]
