from __future__ import annotations

from pathlib import Path

import pytest

from textmill.cli.exits import CommandFailed
from textmill.cli.preflight import lock_home, prepare_home


def test_the_state_folder_is_made_with_its_logs(tmp_path: Path) -> None:
    prepare_home(tmp_path / "new" / "home")
    assert [path.name for path in (tmp_path / "new" / "home").iterdir()] == ["logs"]


def test_a_state_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandFailed, match=r"file cannot be written .*TEXTMILL_HOME"):
        prepare_home(tmp_path / "file")


def test_a_state_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        lock_home(tmp_path),
        pytest.raises(CommandFailed, match=r"is already running in .*\(process \d+\)"),
        lock_home(tmp_path),
    ):
        pass
    with lock_home(tmp_path):
        pass
