"""A harness that is killed leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import is_alive

_HARNESS = """
import os, subprocess, sys, time
from pathlib import Path
from tests.faults.reaper import REAPER
kept, gone = Path(sys.argv[1]), Path(sys.argv[2])
REAPER.watch(kept)
REAPER.watch(gone)
REAPER.forget(kept)
for folder in (kept, gone):
    environment = os.environ | {"TEXTMILL_HOME": str(folder)}
    child = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    print(child.pid, flush=True)
time.sleep(60)
"""


def test_what_a_killed_harness_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.mkdir()
    gone.mkdir()
    harness = subprocess.Popen(
        [sys.executable, "-c", _HARNESS, str(kept), str(gone)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )
    assert harness.stdout is not None
    other, left = (int(harness.stdout.readline()) for _ in range(2))
    harness.send_signal(signal.SIGKILL)
    harness.wait()
    harness.stdout.close()
    deadline = time.monotonic() + 30
    while (gone.exists() or is_alive(left)) and time.monotonic() < deadline:
        time.sleep(0.02)  # the reaper is no longer a child of this process
    try:
        assert not gone.exists()
        assert not is_alive(left)
        assert is_alive(other)
        assert kept.exists()
    finally:
        subprocess.run(["kill", "-9", str(other)], check=False)
