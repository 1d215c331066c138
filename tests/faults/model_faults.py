"""Faults of the models file and the weights, and a worker with a wrong clock."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.models import OTHER_SEED, USUAL_SEED, model_of
from tests.faults.moment import STARTS_LOAD, Fault, Moment
from tests.faults.verdict import Bounds
from tests.processes import is_alive, send

BROKEN = "[[models]]\nname="
HOUR = 3_600
MEET_SECONDS = 45.0  # a new worker reads its models after some seconds
_CLOCK = '''"""Shifts the clock of this process by a number of seconds."""

import time

SHIFT = {shift}
_time, _time_ns, _gettime = time.time, time.time_ns, time.clock_gettime
time.time = lambda: _time() + SHIFT
time.time_ns = lambda: _time_ns() + SHIFT * 10**9
time.clock_gettime = lambda which: _gettime(which) + (SHIFT if which == time.CLOCK_REALTIME else 0)
'''


def break_models_file(moment: Moment) -> None:
    """Break the file and kill one of two workers, so that the new one reads the broken file."""
    moment.site.models_file.write_text(BROKEN)
    _kill_one(moment)


def mend_models_file(moment: Moment) -> None:
    moment.site.write_models()


def truncate_weights(moment: Moment) -> None:
    """Truncate the file to half, and kill a worker, so that the new one has to load it."""
    weights = moment.site.model / "model.safetensors"
    _keep(moment, weights)
    os.truncate(weights, weights.stat().st_size // 2)
    _kill_one(moment)


def remove_weights(moment: Moment) -> None:
    weights = moment.site.model / "model.safetensors"
    _keep(moment, weights)
    weights.unlink()
    _kill_one(moment)


def replace_weights(moment: Moment) -> None:
    """Rename other weights of the same shape over the current ones."""
    fresh = moment.site.model / "fresh.tmp"
    shutil.copyfile(_others_than(moment), fresh)
    moment.pids = moment.site.worker_pids()
    moment.strike()
    fresh.rename(moment.site.model / "model.safetensors")


def overwrite_weights(moment: Moment) -> None:
    """Write other weights into the same file, which the workers may have mapped."""
    others = _others_than(moment).read_bytes()
    moment.pids = moment.site.worker_pids()
    moment.strike()
    with (moment.site.model / "model.safetensors").open("r+b") as file:
        file.write(others)


def await_new_workers(moment: Moment) -> None:
    """Wait until every worker has restarted with the new weights."""
    gone = moment.pids
    moment.until(lambda: not any(map(is_alive, gone)), "a worker kept the old weights", 120.0)
    moment.site.await_healthy()


def _others_than(moment: Moment) -> Path:
    """The other of two sets of weights between which the site alternates."""
    present = (moment.site.model / "model.safetensors").read_bytes()
    usual, other = (model_of(seed) / "model.safetensors" for seed in (USUAL_SEED, OTHER_SEED))
    return other if usual.read_bytes() == present else usual


def restore_weights(moment: Moment) -> None:
    """Restore the weights and their modification time."""
    while moment.undo:
        moment.undo.pop()()


def _keep(moment: Moment, file: Path) -> None:
    """Restore the file and its modification time when the fault is healed."""
    kept = moment.site.folder / "kept.safetensors"
    shutil.copy2(file, kept)

    def put_back() -> None:
        fresh = file.with_name("back.tmp")
        shutil.copy2(kept, fresh)
        fresh.rename(file)

    moment.undo.append(put_back)


def _kill_one(moment: Moment) -> None:
    """Kill a worker, and wait until its replacement has read the broken files."""
    before = moment.site.worker_pids()
    pid = moment.random.choice(before)
    moment.strike(pid)
    send([pid], signal.SIGKILL)
    deadline = time.monotonic() + MEET_SECONDS
    fresh: set[int] = set()
    while time.monotonic() < deadline and moment.site.is_up:
        fresh |= set(moment.site.worker_pids()) - set(before)
        if any(not is_alive(pid) for pid in fresh):
            moment.notes.append("the replacement of the dead worker has ended")
            return
        time.sleep(0.25)
    moment.notes.append("`up` has ended" if not moment.site.is_up else "the new worker stays alive")


def shift_clock(seconds: int) -> Callable[[Moment], None]:
    """Replace one worker by one with a wrong clock."""

    def inject(moment: Moment) -> None:
        folder = moment.site.folder / f"clock{seconds}"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_CLOCK.format(shift=seconds))
        odd = moment.site.replace_worker(PYTHONPATH=str(folder))
        moment.site.await_healthy()
        moment.strike()
        if not is_alive(odd.pid):
            moment.failures.append("the worker with the wrong clock has ended")

    return inject


def right_clock(moment: Moment) -> None:
    moment.site.replace_worker()


def faults() -> list[Fault]:
    """The faults of this module."""
    stays = Bounds(recovery_seconds=5.0, all_answered=True)
    answered = Bounds(all_answered=True)
    return [
        Fault(
            "models-file-broken",
            "models file broken and a worker killed",
            break_models_file,
            mend_models_file,
            hold=(3.0, 8.0),
            site="up",
            bounds=stays,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "weights-truncated",
            "weights truncated to half and a worker killed",
            truncate_weights,
            restore_weights,
            hold=(3.0, 8.0),
            site="up",
            bounds=stays,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "weights-removed",
            "weights removed and a worker killed",
            remove_weights,
            restore_weights,
            hold=(3.0, 8.0),
            site="up",
            bounds=stays,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "weights-replaced",
            "weights replaced by renaming while jobs run",
            replace_weights,
            await_new_workers,
            hold=(1.0, 5.0),
            site="up",
            bounds=answered,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "weights-overwritten",
            "weights overwritten in place while jobs run",
            overwrite_weights,
            await_new_workers,
            hold=(1.0, 5.0),
            site="up-torch",
            bounds=answered,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "clock-ahead",
            "one worker's clock an hour ahead",
            shift_clock(HOUR),
            right_clock,
            hold=(4.0, 8.0),
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "clock-behind",
            "one worker's clock an hour behind",
            shift_clock(-HOUR),
            right_clock,
            hold=(4.0, 8.0),
            jobs_per_second=STARTS_LOAD,
        ),
    ]
