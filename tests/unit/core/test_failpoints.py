"""Failpoints: what arms one, what disarms it, and that it kills a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from textmill.core import failpoints
from textmill.core.failpoints import VARIABLE, is_armed, reach

_PROGRAM = "from textmill.core.failpoints import reach; reach('here', 'a prompt'); print('alive')"


def run(folder: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if folder is not None:
        environment[VARIABLE] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_armed_point_kills_the_process_once(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    assert run(tmp_path).returncode == -signal.SIGKILL
    assert run(tmp_path).stdout == "alive\n"
    assert list(tmp_path.iterdir()) == []


def test_without_the_variable_nothing_dies(tmp_path: Path) -> None:
    assert run(None).stdout == "alive\n"


def test_a_point_that_always_kills_stays_armed(tmp_path: Path) -> None:
    (tmp_path / "here.always").write_text("")
    assert is_armed(tmp_path, "here", "")
    assert is_armed(tmp_path, "here", "")


def test_a_text_in_the_file_chooses_the_subject(tmp_path: Path) -> None:
    for name in ("here", "there.always"):
        (tmp_path / name).write_text("poison")
    assert not is_armed(tmp_path, "here", "an innocent prompt")
    assert not is_armed(tmp_path, "there", "an innocent prompt")
    assert is_armed(tmp_path, "there", "a poisonous prompt")
    assert is_armed(tmp_path, "here", "a poisonous prompt")
    assert not is_armed(tmp_path, "here", "a poisonous prompt")


def test_other_points_and_a_missing_folder_arm_nothing(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    assert not is_armed(tmp_path, "elsewhere", "")
    assert not is_armed(tmp_path / "missing", "here", "")


def test_a_process_that_was_started_without_failpoints_has_none() -> None:
    assert failpoints._FOLDER is None  # the test suite's own environment does not name a folder
    reach("here")
