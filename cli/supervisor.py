"""The supervisor behind ``up``: starts the children, restarts those that die, ends all in order.

Knows what depends on what, never what a child does: ``cli.up`` draws the plan. Groundwork (Redis)
comes first and ends last; preparations (the migration) run beside it to their end; then all
services start together.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.child import Child, ChildSpec
from cli.console import Console
from cli.exits import EXIT_AGAIN, EXIT_CONFIGURATION, EXIT_FAILED, CommandFailed

Probe = Callable[[], Awaitable[str | None]]
"""Answers ``None`` when what it looks at is ready, else a few words on what is missing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        groundwork: what the others need, each with the probe that tells when it is up.
        preparations: commands that must succeed before the services start.
        services: what runs until the end.
        readiness: tells whether the whole is ready.
        ready_line: what to print then, once.
    """

    groundwork: tuple[tuple[ChildSpec, Probe], ...]
    preparations: tuple[ChildSpec, ...]
    services: tuple[ChildSpec, ...]
    readiness: Probe
    ready_line: str


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds; the tests are in more of a hurry.

    Attributes:
        first_pause: before the first restart of a child; doubles with each further one.
        longest_pause: where the doubling ends.
        steady: after so long a life a child's failures are forgotten.
        groundwork: in which groundwork must be up.
        services_stop: from asking the services to end until they are killed. With
            ``groundwork_stop`` it stays below the 30 s that ``up`` promises.
        groundwork_stop: the same for the groundwork.
        poll: between two looks at a probe.
        still_waiting: between two words on what readiness waits for.
    """

    first_pause: float = 1.0
    longest_pause: float = 30.0
    steady: float = 60.0
    groundwork: float = 15.0
    services_stop: float = 23.0
    groundwork_stop: float = 4.0
    poll: float = 0.1
    still_waiting: float = 30.0


class Supervisor:
    """Runs one plan from start to end."""

    def __init__(self, plan: Plan, console: Console, logs: Path, pace: Pace | None = None) -> None:
        self._plan = plan
        self._console = console
        self._logs = logs
        self._pace = pace or Pace()
        self._groundwork: list[Child] = []
        self._services: list[Child] = []

    async def run(self) -> None:
        """Run until a signal or a fatal failure; on return nothing it started is left.

        Raises:
            CommandFailed: something failed that a restart cannot mend.
        """
        stop = asyncio.Event()
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
        if isinstance(failure, BaseException) and not isinstance(failure, asyncio.CancelledError):
            raise _first(failure)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as start:
            for spec, probe in self._plan.groundwork:
                start.create_task(self._lay(self._new(spec, self._groundwork), probe))
            for spec in self._plan.preparations:
                start.create_task(self._prepare(self._new(spec, self._services)))
        async with asyncio.TaskGroup() as service:
            for child in self._groundwork:
                service.create_task(self._keep(child))
            for spec in self._plan.services:
                service.create_task(self._keep(self._new(spec, self._services)))
            service.create_task(self._announce())

    async def _lay(self, child: Child, probe: Probe) -> None:
        """Start groundwork and wait until its probe is content."""
        child.start()
        ended = asyncio.create_task(child.wait())
        missing: str | None = "nothing"
        try:
            async with asyncio.timeout(self._pace.groundwork):
                while (missing := await probe()) is not None:
                    if ended.done():
                        break
                    await asyncio.sleep(self._pace.poll)
        except TimeoutError:
            pass
        finally:
            ended.cancel()
        if missing is not None:
            detail = child.last_line or missing
            raise CommandFailed(f"{child.spec.name} did not start: {detail}", EXIT_FAILED)

    async def _prepare(self, child: Child) -> None:
        """Run a preparation to its end."""
        child.start()
        status = await child.wait()
        if status:
            raise _fatal(child, status)

    async def _keep(self, child: Child) -> None:
        """Keep a child alive for good."""
        failures = 0
        while True:
            if not child.is_running:
                child.start()
            born = time.monotonic()
            status = await child.wait()
            if status == EXIT_CONFIGURATION:
                raise _fatal(child, status)
            lived = time.monotonic() - born
            # One that asks as soon as it is born would keep the machine busy with nothing else.
            if status == EXIT_AGAIN and lived >= self._pace.first_pause:
                self._console.note(f"{child.spec.name} starts again, with what has changed.")
                continue
            failures = 1 if lived >= self._pace.steady else failures + 1
            pause = min(self._pace.first_pause * 2 ** (failures - 1), self._pace.longest_pause)
            self._console.note(
                f"{child.spec.name} {_ending(status)}; starting it again in {pause:g} s "
                f"(failure {failures} in a row)."
            )
            await asyncio.sleep(pause)

    async def _announce(self) -> None:
        """Wait for readiness and say so, once."""
        spoken = time.monotonic()
        while (missing := await self._plan.readiness()) is not None:
            if time.monotonic() - spoken >= self._pace.still_waiting:
                self._console.note(f"Not ready yet: {missing}")
                spoken = time.monotonic()
            await asyncio.sleep(self._pace.poll)
        self._console.show(self._plan.ready_line)

    async def _end_all(self) -> None:
        """End the services first, then what they stand on."""
        await self._end(self._services, self._pace.services_stop)
        await self._end(self._groundwork, self._pace.groundwork_stop)
        for child in (*self._services, *self._groundwork):
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
        child = Child(spec, self._console, self._logs)
        where.append(child)
        return child

    @contextlib.contextmanager
    def _signals(self, stop: asyncio.Event) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            # A terminal and make may both pass on the same Ctrl-C: a second signal is no order
            # to be rude to the children.
            budget = self._pace.services_stop + self._pace.groundwork_stop
            state = "Still stopping" if stop.is_set() else "Stopping"
            self._console.note(f"{state}; this takes at most {budget:g} s.")
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:  # deaf from here on: everything is down, and the exit status is to be ours
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)


def _fatal(child: Child, status: int) -> CommandFailed:
    sentence = child.last_line or f"it {_ending(status)} without a word"
    code = EXIT_CONFIGURATION if status == EXIT_CONFIGURATION else EXIT_FAILED
    return CommandFailed(f"{child.spec.name}: {sentence.removeprefix('textmill: ')}", code)


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
