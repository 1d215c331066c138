"""The supervisor with small child programs: restarts, regular ends, fatal statuses.

Each test runs this file as a program that supervises a plan in JSON. It is a separate process,
because signals and exit statuses are tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import command_of, descendants, is_alive
from textmill.cli.child import ChildSpec
from textmill.cli.console import Console
from textmill.cli.exits import CommandFailed
from textmill.cli.supervisor import End, Plan, Supervisor, Timeouts

ROOT = Path(__file__).resolve().parents[2]
READY = "Textmill is ready: http://127.0.0.1:1"
# Writes its pid atomically to a file that the test reads, then waits for the signal.
OBEDIENT = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("goodbye", flush=True), sys.exit(0)))
pathlib.Path(sys.argv[1] + ".new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
print("hello", flush=True)
while True: signal.pause()
"""
STUBBORN = OBEDIENT.replace(
    'lambda *_: (print("goodbye", flush=True), sys.exit(0))', "signal.SIG_IGN"
)
AWAIT_FILE = """
import os, time
while not os.path.exists({path!r}): time.sleep(0.01)
"""


class Running:
    """A supervisor in a separate process, whose lines are read as they arrive."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        path = folder / "plan.json"
        path.write_text(json.dumps(plan))
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        )
        self.lines: list[str] = []

    def read_until(self, wanted: str) -> str:
        """Read lines to the first that holds ``wanted``; the suite's time-out is the limit."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if wanted in line:
                return line.rstrip()
        raise AssertionError(f"{wanted!r} never came: {self.lines}")

    def finish(self) -> int:
        """Read to the end and give the exit status."""
        assert self.process.stdout is not None
        self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(timeout=60)

    def pid_of(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with contextlib.ExitStack() as stack:

        def start(**plan: Any) -> Running:
            running = Running(tmp_path, plan)
            stack.callback(running.process.wait)
            stack.callback(running.process.kill)
            assert running.process.stdout is not None
            stack.callback(running.process.stdout.close)
            return running

        yield start


def child(folder: Path, name: str, code: str = OBEDIENT) -> dict[str, Any]:
    return {"name": name, "command": [sys.executable, "-c", code, str(folder / f"{name}.pid")]}


def reaper_of(running: Running) -> int:
    """The process that ends what is left when the supervisor is killed."""
    below = descendants(running.process.pid)
    (pid,) = (pid for pid in below if any("reaper.py" in part for part in command_of(pid)))
    return pid


def await_end(pid: int) -> None:
    """Wait until a process has ended; its parent is dead, so it cannot be awaited."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


def test_all_children_run_and_end_in_order_on_sigterm(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(
        prerequisites=[child(tmp_path, "redis")],
        services=[child(tmp_path, "web"), child(tmp_path, "worker-1")],
    )
    running.read_until(READY)
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    ends = [line for line in running.lines if line.endswith("goodbye")]
    assert ends[-1] == "[redis] goodbye"
    assert sorted(ends[:2]) == ["[web] goodbye", "[worker-1] goodbye"]
    assert sum(READY in line for line in running.lines) == 1
    for name in ("redis", "web", "worker-1"):
        await_end(running.pid_of(name))
        assert "hello" in (tmp_path / "logs" / f"{name}.log").read_text()


def test_a_second_signal_does_not_break_the_orderly_end(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    slow = OBEDIENT.replace("sys.exit(0)", "time.sleep(0.5), sys.exit(0)")
    running = supervise(services=[child(tmp_path, "web", slow)])
    running.read_until(READY)
    running.process.send_signal(signal.SIGINT)
    running.read_until("goodbye")
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    await_end(running.pid_of("web"))


def test_a_signal_during_the_start_leaves_nothing_running(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(
        prerequisites=[child(tmp_path, "redis")],
        preparations=[child(tmp_path, "migrate")],
        services=[child(tmp_path, "web")],
    )
    running.read_until("[migrate] hello")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    assert not any(READY in line for line in running.lines)
    assert not (tmp_path / "web.pid").exists()
    await_end(running.pid_of("migrate"))


def test_a_child_that_does_not_listen_is_killed_in_time(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(
        services=[child(tmp_path, "web", STUBBORN)], timeouts={"services_stop": 0.5}
    )
    running.read_until(READY)
    started = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    assert time.monotonic() - started < 10
    assert any("web did not end in time" in line for line in running.lines)
    await_end(running.pid_of("web"))


def test_a_child_that_dies_is_started_again_with_growing_pauses(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    dying = child(tmp_path, "worker-1", "import sys; print('alas'); sys.exit(3)")
    running = supervise(services=[dying], timeouts={"first_pause": 0.05, "longest_pause": 0.2})
    notes = [running.read_until("restarting it") for _ in range(4)]
    pauses = [note.split("restarting it in ")[1].split(" s")[0] for note in notes]
    assert pauses == ["0.05", "0.1", "0.2", "0.2"]
    assert "worker-1 ended with status 3" in notes[0]
    assert running.lines.count("[worker-1] alas") == 4
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_child_that_lived_long_is_forgiven(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    dying = child(tmp_path, "worker-1", "import sys; sys.exit(3)")
    running = supervise(services=[dying], timeouts={"first_pause": 0.05, "steady": 0.0})
    for _ in range(3):
        assert "in 0.05 s (failure 1 in a row)" in running.read_until("restarting it")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_child_that_asks_for_it_is_started_again_at_once(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    changing = child(tmp_path, "worker-1", "import sys; sys.exit(75)")
    running = supervise(services=[changing], timeouts={"first_pause": 0.0, "longest_pause": 600.0})
    for _ in range(3):
        note = running.read_until("worker-1 ")
        assert note.endswith("worker-1 starts again, with the changed models.")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    assert not any("failure" in line for line in running.lines)


def test_a_child_that_asks_as_soon_as_it_is_born_has_to_wait(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    hasty = child(tmp_path, "worker-1", "import sys; sys.exit(75)")
    running = supervise(services=[hasty], timeouts={"first_pause": 600.0, "longest_pause": 600.0})
    note = running.read_until("restarting it")
    assert "worker-1 ended with status 75; restarting it in 600 s (failure 1" in note
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_killed_child_comes_back_and_ready_is_said_once(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(services=[child(tmp_path, "web")], timeouts={"first_pause": 0.05})
    running.read_until(READY)
    first = running.pid_of("web")
    os.kill(first, signal.SIGKILL)
    assert "web was ended by SIGKILL" in running.read_until("restarting it")
    running.read_until("[web] hello")
    assert running.pid_of("web") != first
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    assert sum(READY in line for line in running.lines) == 1


@pytest.mark.parametrize("place", ["services", "preparations"])
def test_a_configuration_error_stops_everything_and_is_shown(
    supervise: Callable[..., Running], tmp_path: Path, place: str
) -> None:
    # Preparations run in parallel with the prerequisites, so that there is something to stop.
    code = AWAIT_FILE.format(path=str(tmp_path / "redis.pid"))
    code += "print('textmill: TEXTMILL_X is wrong.'); raise SystemExit(78)"
    plan: dict[str, Any] = {"prerequisites": [child(tmp_path, "redis")], "services": []}
    plan.setdefault(place, []).append(child(tmp_path, "bad", code))
    running = supervise(**plan)
    assert running.finish() == 78
    assert running.lines[-1] == "FAILED bad: TEXTMILL_X is wrong."
    await_end(running.pid_of("redis"))


REFUSING = """
import os, pathlib, signal, sys
mended = pathlib.Path({mended!r})
if pathlib.Path(sys.argv[1]).exists() and not mended.exists():
    print("textmill: The models file is wrong.", flush=True)
    raise SystemExit(78)
"""


def test_a_configuration_error_after_a_good_start_leaves_one_out_and_stops_nothing(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    worker = child(tmp_path, "worker-1", REFUSING.format(mended=str(mended)) + OBEDIENT)
    running = supervise(
        services=[child(tmp_path, "web"), worker],
        timeouts={"first_pause": 0.05, "longest_pause": 0.1, "longest_refusal": 0.4},
    )
    running.read_until(READY)
    web = running.pid_of("web")
    os.kill(running.pid_of("worker-1"), signal.SIGKILL)
    notes = [running.read_until("restarting it") for _ in range(5)]
    assert "was ended by SIGKILL" in notes[0]
    for note in notes[1:]:
        assert "ended with status 78 (The models file is wrong.)" in note
    pauses = [note.split("restarting it in ")[1].split(" s")[0] for note in notes]
    assert pauses == ["0.05", "0.1", "0.2", "0.4", "0.4"]
    assert running.pid_of("web") == web
    os.kill(web, 0)
    mended.touch()
    running.read_until("[worker-1] hello")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_one_that_is_left_out_is_started_again_when_what_it_reads_changes(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    worker = child(tmp_path, "worker-1", REFUSING.format(mended=str(mended)) + OBEDIENT)
    running = supervise(
        services=[worker],
        inputs=str(mended),
        timeouts={"first_pause": 0.05, "longest_refusal": 600.0, "inputs": 0.05},
    )
    running.read_until(READY)
    os.kill(running.pid_of("worker-1"), signal.SIGKILL)
    while " in 3.2 s" not in running.read_until("restarting it"):
        pass
    mended.touch()
    running.read_until("The models of worker-1 have changed: restarting it.")
    running.read_until("[worker-1] hello")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_what_a_child_left_is_cleared_up_before_it_starts_again(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(
        services=[child(tmp_path, "worker-1")],
        after_end="print('cleared up after', sys.argv[1:], flush=True)",
        timeouts={"first_pause": 0.05},
    )
    running.read_until(READY)
    pid = running.pid_of("worker-1")
    os.kill(pid, signal.SIGKILL)
    line = running.read_until("[recovery] cleared up after")
    assert f"['worker-1', '{pid}', 'was ended by SIGKILL; restarting it in 0.05 s" in line
    assert "[worker-1] hello" in running.read_until("[worker-1]")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


@pytest.mark.parametrize("code", ["time.sleep(600)", "sys.exit(1)", "os.abort()"])
def test_a_clearing_up_that_hangs_or_fails_holds_nothing_up(
    supervise: Callable[..., Running], tmp_path: Path, code: str
) -> None:
    running = supervise(
        services=[child(tmp_path, "worker-1")],
        after_end=code,
        timeouts={"first_pause": 0.05, "after_end": 0.5},
    )
    running.read_until(READY)
    for _ in range(2):
        os.kill(running.pid_of("worker-1"), signal.SIGKILL)
        running.read_until("was ended by SIGKILL")
        running.read_until("[worker-1] hello")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_signal_ends_a_clearing_up_too(supervise: Callable[..., Running], tmp_path: Path) -> None:
    running = supervise(
        services=[child(tmp_path, "worker-1"), child(tmp_path, "web")],
        after_end="print('busy', flush=True); time.sleep(600)",
        timeouts={"first_pause": 0.05, "after_end": 600.0},
    )
    running.read_until(READY)
    os.kill(running.pid_of("worker-1"), signal.SIGKILL)
    running.read_until("[recovery] busy")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_child_that_cannot_even_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, no process can be started; the others continue."""
    real = subprocess.Popen
    refusals: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        if len(refusals) < 2:
            refusals.append(arguments)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr("textmill.cli.child.subprocess.Popen", refuse)
    (tmp_path / "logs").mkdir()
    spec = ChildSpec("web", (sys.executable, "-c", OBEDIENT, str(tmp_path / "web.pid")))

    async def is_up() -> str | None:
        return None if (tmp_path / "web.pid").exists() else "not yet"

    async def run_until_up(supervisor: Supervisor) -> None:
        work = asyncio.create_task(supervisor.run())
        async with asyncio.timeout(30):
            while await is_up() is not None:
                await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        await work

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with contextlib.closing(Console()) as console:
        plan = Plan((), (), (spec,), is_up, READY)
        timeouts = Timeouts(poll=0.02, first_pause=0.05)
        asyncio.run(run_until_up(Supervisor(plan, console, tmp_path / "logs", timeouts)))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert len(refusals) == 2


def test_groundwork_that_does_not_come_up_stops_the_start(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    broken = child(tmp_path, "redis", "print('cannot bind'); raise SystemExit(1)")
    running = supervise(prerequisites=[broken], services=[child(tmp_path, "web")])
    assert running.finish() == 1
    assert running.lines[-1] == "FAILED redis did not start: cannot bind"
    assert not (tmp_path / "web.pid").exists()


def test_a_grandchild_is_not_left_behind(supervise: Callable[..., Running], tmp_path: Path) -> None:
    parent = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}, sys.argv[1]])
{AWAIT_FILE.format(path=str(tmp_path / "web.pid"))}
"""
    running = supervise(services=[child(tmp_path, "web", parent)])
    running.read_until("restarting it")
    await_end(running.pid_of("web"))
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals exist on Linux alone")
def test_children_die_with_a_supervisor_that_is_killed(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(
        prerequisites=[child(tmp_path, "redis")],
        services=[
            child(tmp_path, "web", STUBBORN),
            {**child(tmp_path, "worker-1"), "death": "TERM"},
        ],
    )
    running.read_until(READY)
    running.process.kill()
    for name in ("redis", "web", "worker-1"):
        await_end(running.pid_of(name))


WITH_STUBBORN_CHILD = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {stubborn!r}, sys.argv[1] + ".child"])
while not os.path.exists(sys.argv[1] + ".child"): pass
"""


def test_what_ignores_the_death_of_the_supervisor_is_killed_with_its_children(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    """A worker whose drain hangs, and two processes that get no signal from the kernel."""
    parent = WITH_STUBBORN_CHILD.format(stubborn=STUBBORN)
    running = supervise(
        services=[
            child(tmp_path, "web", parent + OBEDIENT),
            {**child(tmp_path, "worker-1", parent + STUBBORN), "death": "TERM"},
            {**child(tmp_path, "worker-2"), "death": "TERM"},
        ],
        timeouts={"services_stop": 2.0},
    )
    running.read_until(READY)
    names = ("web.pid", "web.pid.child", "worker-1.pid", "worker-1.pid.child", "worker-2.pid")
    pids = [int((tmp_path / name).read_text()) for name in names]
    reaper = reaper_of(running)
    running.process.kill()
    killed_at = time.monotonic()
    for pid in pids[:2]:
        await_end(pid)
    assert time.monotonic() - killed_at < 2.0
    assert is_alive(pids[2])  # it has its time to drain
    for pid in (*pids[2:], reaper):
        await_end(pid)
    assert 1.9 < time.monotonic() - killed_at < 10.0


def test_the_reaper_ends_with_the_supervisor(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(services=[child(tmp_path, "web")], timeouts={"services_stop": 600.0})
    running.read_until(READY)
    reaper = reaper_of(running)
    os.kill(reaper, signal.SIGTERM)  # as a service manager sends it to every process
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0
    await_end(reaper)


def test_a_supervisor_whose_reaper_was_killed_goes_on(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    running = supervise(services=[child(tmp_path, "web")], timeouts={"first_pause": 0.05})
    running.read_until(READY)
    reaper = reaper_of(running)
    os.kill(reaper, signal.SIGKILL)
    await_end(reaper)
    os.kill(running.pid_of("web"), signal.SIGKILL)
    running.read_until("restarting it")
    running.read_until("[web] hello")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish() == 0


def test_a_reader_that_stops_reading_does_not_stall_the_end(
    supervise: Callable[..., Running], tmp_path: Path
) -> None:
    talkative = OBEDIENT.replace(
        "while True: signal.pause()", "while True: print('x' * 1000, flush=True)"
    )
    running = supervise(services=[child(tmp_path, "web", talkative)])
    running.read_until(READY)  # from now on the output is not read
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=20) == 0
    await_end(running.pid_of("web"))


def _main(path: Path) -> int:
    """Supervise the plan in a JSON file; ready as soon as every service has written its pid."""
    plan = json.loads(path.read_text())
    folder = path.parent

    def specs(kind: str) -> tuple[ChildSpec, ...]:
        items = plan.get(kind, [])
        environment = dict(os.environ)
        return tuple(
            ChildSpec(item["name"], tuple(item["command"]), environment, item.get("death", "KILL"))
            for item in items
        )

    async def has_pids(*kinds: str) -> str | None:
        names = [item["name"] for kind in kinds for item in plan.get(kind, [])]
        missing = [name for name in names if not (folder / f"{name}.pid").exists()]
        return f"waiting for {missing}" if missing else None

    async def prerequisites_are_up() -> str | None:
        return await has_pids("prerequisites")

    async def all_is_up() -> str | None:
        return await has_pids("prerequisites", "services")

    def after_end(end: End) -> ChildSpec | None:
        if "after_end" not in plan:
            return None
        code = f"import os, sys, time; {plan['after_end']}"
        arguments = (end.spec.name, str(end.pid), end.reason)
        return ChildSpec("recovery", (sys.executable, "-c", code, *arguments))

    def inputs() -> object:
        return "inputs" in plan and Path(plan["inputs"]).exists()

    (folder / "logs").mkdir(exist_ok=True)
    console = Console()
    prerequisites = tuple((spec, prerequisites_are_up) for spec in specs("prerequisites"))
    supervisor = Supervisor(
        Plan(
            prerequisites,
            specs("preparations"),
            specs("services"),
            all_is_up,
            READY,
            after_end,
            inputs,
        ),
        console,
        folder / "logs",
        Timeouts(**{"poll": 0.02, **plan.get("timeouts", {})}),
    )
    try:
        asyncio.run(supervisor.run())
    except CommandFailed as error:
        console.show(f"FAILED {error}")
        return error.exit_status
    finally:
        console.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
