"""The state folder: which files are made private, repaired or left unchanged."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from textmill.cli.private_state import exposed, keep_private


@pytest.fixture(autouse=True)
def _old_umask() -> Iterator[None]:
    """Set the umask of most systems, and restore that of the test session."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder of an earlier release, readable by all users."""
    home = tmp_path / "home"
    for folder in ("logs", "redis", "models"):
        (home / folder).mkdir(parents=True)
    files = ["textmill.db", "textmill.db-wal", "textmill.db-shm", "up.lock"]
    for name in [*files, "logs/web.log", "logs/web.log.1", "redis/redis.conf"]:
        (home / name).write_text("private")
    return home


def database_of(home: Path) -> Path:
    return home / "textmill.db"


def test_what_others_could_read_is_mended(home: Path) -> None:
    assert exposed(home, database_of(home))
    assert keep_private(home, database_of(home)) == []
    assert exposed(home, database_of(home)) == []
    for path in [home, *home.rglob("*")]:
        assert not mode_of(path) & 0o077, path
        assert mode_of(path) & 0o600 == 0o600


def test_what_is_made_from_then_on_is_private(home: Path) -> None:
    keep_private(home, None)
    (home / "new").mkdir()
    (home / "new" / "file").write_text("private")
    assert (mode_of(home / "new"), mode_of(home / "new" / "file")) == (0o700, 0o600)


def test_what_is_not_the_product_s_is_left_as_it_is(home: Path, tmp_path: Path) -> None:
    foreign = home / "notes.txt"
    foreign.write_text("somebody else's")
    outside = tmp_path / "elsewhere" / "textmill.db"
    outside.parent.mkdir()
    outside.write_text("a database that others may read")
    (home / "logs" / "link").symlink_to(outside)
    before = [mode_of(path) for path in (home, foreign, outside, outside.parent)]
    assert keep_private(home, outside) == []
    assert [mode_of(path) for path in (home, foreign, outside, outside.parent)] == before
    assert not mode_of(home / "logs") & 0o077


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "logs").symlink_to(tmp_path / "target")
    before = mode_of(tmp_path / "target")
    keep_private(tmp_path / "home", None)
    assert mode_of(tmp_path / "target") == before


def test_what_belongs_to_another_user_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill.cli.private_state.os.geteuid", lambda: os.getuid() + 1)
    problems = keep_private(home, database_of(home))
    assert any(str(database_of(home)) in problem for problem in problems)
    assert all("chmod" in problem for problem in problems)
    assert mode_of(database_of(home)) & 0o077


def test_a_folder_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    assert keep_private(tmp_path / "none", tmp_path / "none" / "textmill.db") == []
