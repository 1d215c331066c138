from __future__ import annotations

from pathlib import Path

from textmill.cli.doctor import Verdict, examine
from textmill.core.settings import Settings


def verdicts(environment: dict[str, str]) -> dict[str, Verdict]:
    return {item.subject: item.verdict for item in examine(Settings.from_environment(environment))}


def environment(tmp_path: Path) -> dict[str, str]:
    return {"TEXTMILL_HOME": str(tmp_path), "TEXTMILL_PORT": "59321"}


def test_a_redis_that_answers_is_fine(tmp_path: Path, redis_url: str) -> None:
    assert (
        verdicts(environment(tmp_path) | {"TEXTMILL_REDIS_URL": redis_url})["redis"] is Verdict.OK
    )


def test_both_databases_are_fine_when_migrated(tmp_path: Path, database_url: str) -> None:
    there = {"TEXTMILL_DATABASE_URL": database_url}
    assert verdicts(environment(tmp_path) | there)["database"] is Verdict.OK


def test_a_redis_that_is_away_is_a_warning_because_jobs_go_on(tmp_path: Path) -> None:
    away = {"TEXTMILL_REDIS_URL": "redis://127.0.0.1:1/0"}
    assert verdicts(environment(tmp_path) | away)["redis"] is Verdict.WARN


def test_a_database_that_is_away_fails(tmp_path: Path) -> None:
    away = {"TEXTMILL_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    assert verdicts(environment(tmp_path) | away)["database"] is Verdict.FAIL
