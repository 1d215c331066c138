"""``textmill up`` as a process, for tests that start it themselves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernels import KERNEL_DIR
from tests.servers import free_port

FIRST_START_SECONDS = 60  # on two cores that other tests use too
COMMAND = (sys.executable, "-P", "-m", "textmill")


def up_environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment with a state folder and a free port, without other settings of Textmill."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TEXTMILL_")}
    return {
        **inherited,
        "TEXTMILL_HOME": str(home),
        "TEXTMILL_KERNELS": str(KERNEL_DIR),
        "TEXTMILL_PORT": str(free_port()),
        "TEXTMILL_SLOTS": "2",
        **settings,
    }


class Up:
    """One ``textmill up`` and the lines that it has printed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.port = int(environment["TEXTMILL_PORT"])
        self.lines: list[str] = []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "up"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def await_ready(self, limit_seconds: float) -> None:
        """Read to the line that says so, which must come in time."""
        assert self.process.stdout is not None
        wanted = f"Textmill is ready: http://127.0.0.1:{self.port}\n"
        for line in self.process.stdout:
            self.lines.append(line)
            if line == wanted:
                assert time.monotonic() - self.started < limit_seconds, self.lines
                return
        raise AssertionError("never ready:\n" + "".join(self.lines))

    def finish(self) -> int:
        """Read to the end and give the exit status."""
        assert self.process.stdout is not None
        self.lines += list(self.process.stdout)
        return self.process.wait()

    def read(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())

    @contextlib.contextmanager
    def killed_at_the_end(self) -> Iterator[Up]:
        """Kill it at the end of the block, if it is still running."""
        assert self.process.stdout is not None
        with self.process.stdout:
            try:
                yield self
            finally:
                self.process.kill()
                self.process.wait()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
