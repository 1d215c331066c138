"""Tries a model in a separate process before this one loads it, once for each set of files.

Models that work are recorded beside the compiled kernels, under a name made from the weights'
revision and everything else that loading depends on, so that a second start tries nothing. Knows
nothing of the models file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, cast

from textmill.core.catalog.models_file import ModelSpec
from textmill.core.workers import is_alive
from textmill.engine.kernels.instruction_sets import AUTO
from textmill.engine.models.errors import ModelUnusable, in_one_line
from textmill.engine.models.placement import place
from textmill.engine.models.sources import find_prepared

TRIAL_SECONDS = 900.0  # including a download and a conversion
FOLDER = "tried"  # inside the kernels' folder
_LAST_OUTPUT_BYTES = 2000
_PROCESS = "textmill.worker.trial_process"
Report = Callable[[str], None]


class TrialUnfinished(ModelUnusable):
    """A trial exceeded its time limit; with a longer one it may succeed."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials under one worker's settings.

    Attributes:
        cache_dir: where converted models are kept.
        kernel_dir: where compiled kernels are kept; ``None`` for PyTorch alone.
        memory_dir: the folder of the records; may be missing.
        num_slots: number of sequences that must fit at once.
        report: gets a sentence about each slow step.
        instruction_set: of the kernels; ``auto``, or the name of a set.
    """

    cache_dir: Path
    kernel_dir: Path | None
    memory_dir: Path
    num_slots: int
    report: Report
    instruction_set: str = AUTO
    _marks: dict[ModelSpec, Path | None] = field(default_factory=dict, repr=False, compare=False)

    def try_out(self, spec: ModelSpec, patience_seconds: float = TRIAL_SECONDS) -> None:
        """Check in another process that a model loads and generates, unless that is recorded.

        Raises:
            ModelLoadError: it does not; the message is one sentence.
        """
        mark = self._mark(spec)
        if mark is None or not self._is_good(mark):
            _run(self._asked(spec), patience_seconds, self.report)
            mark = self._mark(spec)
            self._remember(mark)
        self._marks[spec] = mark

    def _remember(self, mark: Path | None) -> None:
        if mark is not None:
            with contextlib.suppress(OSError):
                mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                mark.touch()

    @contextmanager
    def loading(self, spec: ModelSpec) -> Iterator[None]:
        """Wraps the loading: if this process dies in it, the next one tries the model again."""
        mark = self._marks.pop(spec, None) or self._mark(spec)  # hashing is as slow as reading
        started = None if mark is None else mark.with_suffix(f".{os.getpid()}.loading")
        try:
            if started is not None:
                with contextlib.suppress(OSError):
                    started.touch()
            yield
        finally:
            if started is not None:
                with contextlib.suppress(OSError):
                    started.unlink()

    def _is_good(self, mark: Path) -> bool:
        """Whether exactly these files were tried, and no process has died loading them since."""
        return mark.is_file() and not self._has_killed(mark)

    def _has_killed(self, mark: Path) -> bool:
        """Whether a process died while it loaded the model; removes its trace, to count once."""
        found = False
        for path in mark.parent.glob(f"{mark.stem}.*.loading"):
            pid = path.suffixes[0].removeprefix(".")
            if pid.isdigit() and not is_alive(int(pid)):
                found = True
                with contextlib.suppress(OSError):
                    path.unlink()
        return found

    def _mark(self, spec: ModelSpec) -> Path | None:
        """The record of a working model; ``None`` if the model must be converted first."""
        prepared = find_prepared(spec.source, spec.adapter, self.cache_dir, lambda _: None)
        if prepared is None:
            return None
        placement = place(spec.dtype, self.kernel_dir, lambda _: None, self.instruction_set)
        library = "" if placement.kernels is None else placement.kernels.path.name
        facts = (
            prepared.revision, str(prepared.folder.name), spec.dtype, placement.dtype,
            placement.device, library, self.num_slots, version("textmill"), version("torch"),
        )  # fmt: skip
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
        return self.memory_dir / f"{name}.ok"

    def _asked(self, spec: ModelSpec) -> str:
        kernel_dir = None if self.kernel_dir is None else str(self.kernel_dir)
        document = {
            "spec": asdict(spec),
            "cache_dir": str(self.cache_dir),
            "kernel_dir": kernel_dir,
            "instruction_set": self.instruction_set,
            "num_slots": self.num_slots,
        }
        return json.dumps(document)


def _run(asked: str, patience_seconds: float, report: Report) -> None:
    """Run a trial until it ends.

    Raises:
        ModelUnusable: it failed.
    """
    with tempfile.TemporaryFile() as output:
        trial = subprocess.Popen(  # noqa: S603 - this program
            [sys.executable, "-P", "-m", _PROCESS, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            trial.kill()

        timer = threading.Timer(patience_seconds, end_late)
        timer.daemon = True
        try:
            timer.start()
            error = _follow(trial, asked, report)
            status = trial.wait()
        finally:  # also if this process is stopped meanwhile
            timer.cancel()
            trial.kill()
            trial.wait()
            for pipe in (trial.stdin, trial.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if is_late.is_set():
            raise TrialUnfinished(f"It did not load within {patience_seconds:g} s, on trial.")
        if error is not None:
            raise ModelUnusable(error)
        if status != 0:
            raise ModelUnusable(_ending(status, output))


def _follow(trial: subprocess.Popen[str], asked: str, report: Report) -> str | None:
    """Pass on a trial's reports until it ends; returns its error, if any."""
    into, out = cast("IO[str]", trial.stdin), cast("IO[str]", trial.stdout)
    with contextlib.suppress(BrokenPipeError):
        into.write(asked)
        into.close()
    error = None
    for line in out:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if "report" in message:
                report(str(message["report"]))
            error = str(message["error"]) if "error" in message else error
    return error


def _ending(status: int, output: IO[bytes]) -> str:
    """Why a trial ended without naming an error."""
    if status == -signal.SIGKILL:
        return (
            "Loading it was ended by SIGKILL, on trial, as the system does when memory is short;"
            " free some memory, or lower TEXTMILL_SLOTS."
        )
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            return (
                f"Loading it crashed with {name}, on trial; its files are damaged, or do not belong"
                " together: copy them again."
            )
    output.seek(max(0, output.seek(0, os.SEEK_END) - _LAST_OUTPUT_BYTES))
    lines = output.read().decode(errors="replace").strip().splitlines()
    last = in_one_line(Exception(lines[-1])) if lines else "without output"
    return f"Loading it ended with status {status}, on trial ({last})."
