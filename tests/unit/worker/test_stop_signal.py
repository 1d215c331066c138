"""SIGTERM while a worker starts and while it holds jobs, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

STORM = """
import os, signal, threading
from textmill.worker.stop_signal import StopSignal

stop = StopSignal()
stop.hold_jobs()
def send():
    for _ in range(50_000):
        os.kill(os.getpid(), signal.SIGTERM)
    done.append(True)
    os.kill(os.getpid(), signal.SIGTERM)
done = []
storm = threading.Thread(target=send)
storm.start()
while not done:
    stop.wait()
print("ended")
"""
LOADING = """
import os, signal
from textmill.worker.stop_signal import StopSignal

StopSignal()
os.kill(os.getpid(), signal.SIGTERM)
print("went on")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_signals_that_interrupt_the_handler_of_the_one_before_stop_nothing_but_the_wait() -> None:
    """A service manager and a supervisor both send SIGTERM, at the same time."""
    done = run(STORM)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_a_worker_that_holds_no_jobs_exits_at_once() -> None:
    done = run(LOADING)
    assert (done.returncode, done.stdout) == (0, "")
