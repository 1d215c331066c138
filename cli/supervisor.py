"""The supervisor of ``up``: starts the children, restarts those that die, ends all in order.

Knows the order of the children, not what they do: ``cli.up`` makes the plan. Prerequisites (Redis)
start first and end last; preparations (the migration) run beside them until they end; then all
services start together. A service that cannot be started stops everything only at the first start.
Once everything was ready, such a service is left out and tried again after pauses, and when the
plan's inputs change.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from textmill.cli.child import Child, ChildSpec
from textmill.cli.console import Console
from textmill.cli.exits import EXIT_AGAIN, EXIT_CONFIGURATION, EXIT_FAILED, CommandFailed
from textmill.cli.reaper import Reaper

Probe = Callable[[], Awaitable[str | None]]
"""Returns ``None`` when something is ready, else a phrase that says why not."""


@dataclass(frozen=True, slots=True)
class End:
    """How a service ended.

    Attributes:
        pid: of the process, which was waited for.
        reason: how it ended and what follows, as the end of a sentence.
        pause_seconds: until it is started again.
    """

    spec: ChildSpec
    pid: int
    reason: str
    pause_seconds: float


def _no_command(end: End) -> ChildSpec | None:
    """For plans without a command after a service's end."""


def _no_inputs() -> object:
    """For plans whose services read no files that change."""


async def _no_lines() -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes to run.

    Attributes:
        prerequisites: processes that the others need, each with its probe.
        preparations: commands that must succeed before the services start.
        services: processes that run until the end.
        readiness: the probe of the whole.
        ready_line: the line to print, once, when it is ready.
        after_end: the command to run after a service has ended, before its restart.
        inputs: the state of the files that services read at their start; when it changes, a service
            that could not start is tried again.
        on_ready: makes further lines to print, once, when it is ready; no log file gets them.
    """

    prerequisites: tuple[tuple[ChildSpec, Probe], ...]
    preparations: tuple[ChildSpec, ...]
    services: tuple[ChildSpec, ...]
    readiness: Probe
    ready_line: str
    after_end: Callable[[End], ChildSpec | None] = _no_command
    inputs: Callable[[], object] = _no_inputs
    on_ready: Callable[[], Awaitable[Sequence[str]]] = _no_lines


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits and pauses in seconds; tests use shorter ones.

    Attributes:
        first_pause: before the first restart of a child; doubles with each further one.
        longest_pause: the limit of the doubling.
        longest_refusal: the limit for a child whose exit status says that a restart cannot help.
        after_end: limit of the command after a child's end.
        inputs: between two checks of the plan's inputs, during a pause.
        steady: a child that ran for this long starts again with the first pause.
        prerequisites: limit until the prerequisites are ready.
        services_stop: from the request to end, or the supervisor's death, until services are
            killed. With ``prerequisites_stop`` it is below the 30 s that ``up`` promises.
        prerequisites_stop: the same for the prerequisites.
        poll: between two calls of a probe.
        still_waiting: between two messages about what is not ready.
    """

    first_pause: float = 0.5
    longest_pause: float = 30.0
    longest_refusal: float = 300.0
    after_end: float = 10.0
    inputs: float = 1.0
    steady: float = 60.0
    prerequisites: float = 15.0
    services_stop: float = 23.0
    prerequisites_stop: float = 4.0
    poll: float = 0.1
    still_waiting: float = 30.0


class Supervisor:
    """Runs one plan from start to end."""

    def __init__(
        self, plan: Plan, console: Console, logs: Path, timeouts: Timeouts | None = None
    ) -> None:
        self._plan = plan
        self._console = console
        self._logs = logs
        self._timeouts = timeouts or Timeouts()
        self._prerequisites: list[Child] = []
        self._services: list[Child] = []
        self._reaper = Reaper(self._timeouts.services_stop)
        self._was_ready = False

    async def run(self) -> None:
        """Run until a signal or a fatal failure; on return all children have ended.

        Raises:
            CommandFailed: a child failed and a restart cannot help.
        """
        stop = asyncio.Event()
        self._reaper.start()
        with self._signals(stop):
            work = asyncio.create_task(self._work())
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                work.cancel()
                failure = (await asyncio.gather(work, stopping, return_exceptions=True))[0]
                await self._end_all()
                self._reaper.close()
        if isinstance(failure, BaseException) and not isinstance(failure, asyncio.CancelledError):
            raise _first(failure)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as start:
            for spec, probe in self._plan.prerequisites:
                start.create_task(
                    self._start_prerequisite(self._new(spec, self._prerequisites), probe)
                )
            for spec in self._plan.preparations:
                start.create_task(self._prepare(self._new(spec, self._services)))
        async with asyncio.TaskGroup() as service:
            for child in self._prerequisites:
                service.create_task(self._keep(child))
            for spec in self._plan.services:
                service.create_task(self._keep(self._new(spec, self._services)))
            service.create_task(self._announce())

    async def _start_prerequisite(self, child: Child, probe: Probe) -> None:
        """Start a prerequisite and wait until its probe says that it is ready."""
        child.start()
        ended = asyncio.create_task(child.wait())
        missing: str | None = "nothing"
        try:
            async with asyncio.timeout(self._timeouts.prerequisites):
                while (missing := await probe()) is not None:
                    if ended.done():
                        break
                    await asyncio.sleep(self._timeouts.poll)
        except TimeoutError:
            pass
        finally:
            ended.cancel()
        if missing is not None:
            detail = child.last_line or missing
            raise CommandFailed(f"{child.spec.name} did not start: {detail}", EXIT_FAILED)

    async def _prepare(self, child: Child) -> None:
        """Run a preparation until it ends."""
        child.start()
        status = await child.wait()
        if status:
            raise _fatal(child, status)

    async def _keep(self, child: Child) -> None:
        """Start a child again whenever it ends."""
        failures = 0
        is_first = True
        while True:
            inputs = self._plan.inputs()  # before the child reads them
            born = time.monotonic()
            try:
                if not child.is_running:
                    child.start()
            except OSError as error:  # no memory or no process left: temporary
                self._console.note(f"{child.spec.name} cannot be started: {error}.")
                status = EXIT_FAILED
            else:
                status = await child.wait()
            if status == EXIT_CONFIGURATION and is_first and not self._was_ready:
                raise _fatal(child, status)
            is_first = False
            lived = time.monotonic() - born
            # A child that asks for it at once would otherwise restart in a tight loop.
            if status == EXIT_AGAIN and lived >= self._timeouts.first_pause:
                self._console.note(f"{child.spec.name} starts again, with the changed models.")
                continue
            failures = 1 if lived >= self._timeouts.steady else failures + 1
            await self._pause(child, status, failures, inputs)

    async def _pause(self, child: Child, status: int, failures: int, inputs: object) -> None:
        """Report how a child ended, run the command after its end, and wait before the restart."""
        timeouts = self._timeouts
        longest = (
            timeouts.longest_refusal if status == EXIT_CONFIGURATION else timeouts.longest_pause
        )
        pause = min(timeouts.first_pause * 2 ** min(failures - 1, 32), longest)
        why = f" ({_last_words(child)})" if status == EXIT_CONFIGURATION and child.last_line else ""
        next_try = f"restarting it in {pause:g} s (failure {failures} in a row)"
        reason = f"{_ending(status)}{why}; {next_try}."
        self._console.note(f"{child.spec.name} {reason}")
        until = time.monotonic() + pause
        await self._run_after_end(End(child.spec, child.pid or 0, reason, pause))
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, timeouts.inputs))
            if self._plan.inputs() != inputs:
                self._console.note(f"The models of {child.spec.name} have changed: restarting it.")
                return

    async def _run_after_end(self, end: End) -> None:
        """Run the plan's command for a child that has ended, within its time limit."""
        spec = self._plan.after_end(end)
        if spec is None:
            return
        helper = self._new(spec, self._services)
        try:
            helper.start()
            async with asyncio.timeout(self._timeouts.after_end):
                await helper.wait()
        except TimeoutError:
            self._console.note(f"{spec.name} took too long and is killed.")
            helper.kill()
            await helper.wait()
        except OSError as error:
            self._console.note(f"{spec.name} cannot be started: {error}.")
        finally:
            if not helper.is_running:
                self._services.remove(helper)
                helper.close()

    async def _announce(self) -> None:
        """Wait until the whole is ready, and print that once."""
        reported_at = time.monotonic()
        while (missing := await self._plan.readiness()) is not None:
            if time.monotonic() - reported_at >= self._timeouts.still_waiting:
                self._console.note(f"Not ready yet: {missing}")
                reported_at = time.monotonic()
            await asyncio.sleep(self._timeouts.poll)
        self._was_ready = True
        self._console.show(self._plan.ready_line)
        for line in await self._plan.on_ready():
            self._console.show(line)

    async def _end_all(self) -> None:
        """End the services first, then the prerequisites."""
        await self._end(self._services, self._timeouts.services_stop)
        await self._end(self._prerequisites, self._timeouts.prerequisites_stop)
        for child in (*self._services, *self._prerequisites):
            child.close()

    async def _end(self, children: list[Child], budget_seconds: float) -> None:
        running = [child for child in children if child.is_running]
        for child in running:
            child.terminate()
        ends = [asyncio.create_task(child.wait()) for child in running]
        if not ends:
            return
        _, late = await asyncio.wait(ends, timeout=budget_seconds)
        for child in running:
            if child.is_running:
                self._console.note(f"{child.spec.name} did not end in time and is killed.")
                child.kill()
        if late:
            await asyncio.wait(late)

    def _new(self, spec: ChildSpec, where: list[Child]) -> Child:
        child = Child(spec, self._console, self._logs, self._reaper)
        where.append(child)
        return child

    @contextlib.contextmanager
    def _signals(self, stop: asyncio.Event) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            # A terminal and make may both pass on the same Ctrl-C, so a second signal does not kill
            # the children.
            budget = self._timeouts.services_stop + self._timeouts.prerequisites_stop
            state = "Still stopping" if stop.is_set() else "Stopping"
            self._console.note(f"{state}; this takes at most {budget:g} s.")
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:  # everything has ended; a signal must not change the exit status
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)


def _fatal(child: Child, status: int) -> CommandFailed:
    sentence = _last_words(child) or f"it {_ending(status)} without output"
    code = EXIT_CONFIGURATION if status == EXIT_CONFIGURATION else EXIT_FAILED
    return CommandFailed(f"{child.spec.name}: {sentence}", code)


def _last_words(child: Child) -> str:
    return child.last_line.removeprefix("textmill: ")


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _first(failure: BaseException) -> BaseException:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
