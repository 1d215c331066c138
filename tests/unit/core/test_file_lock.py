"""The lock between processes; within one process, two open files exclude each other as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from textmill.core.file_lock import file_lock


def test_a_held_lock_is_refused_where_nothing_waits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path), pytest.raises(BlockingIOError), file_lock(path, is_blocking=False):
        pass


def test_a_released_lock_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        pass
    with file_lock(path, is_blocking=False):
        pass
    assert path.exists()


def test_the_content_of_the_lock_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("1234")
    with file_lock(path):
        assert path.read_text() == "1234"
