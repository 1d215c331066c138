"""Which jobs run in parallel after losses, and simulated histories of killed workers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from textmill.core.jobs.sweeping import MAX_LOSSES, RETRY_DELAY_SECONDS
from textmill.worker.isolation import ANY_LOSSES, Admission, RunningJob, admission, group_size

SETTLED = 5.0
NUM_SLOTS = 16
GROUP = 4
TICK = 0.25


def admitted(*running: tuple[int, float]) -> Admission:
    jobs = [RunningJob(lost_count, seconds) for lost_count, seconds in running]
    return admission(jobs, NUM_SLOTS, SETTLED)


def test_an_idle_worker_and_one_whose_jobs_have_settled_take_anything() -> None:
    assert admitted() == Admission(ANY_LOSSES)
    assert admitted((0, 5.0), (0, 60.0)) == Admission(ANY_LOSSES)


def test_beside_fresh_jobs_a_twice_lost_one_waits_and_nothing_passes_it() -> None:
    assert admitted((0, 60.0), (0, 4.9)) == Admission(1, waits_for_first=True)


def test_nothing_starts_beside_a_twice_lost_job_until_it_has_settled() -> None:
    assert admitted((2, 0.0)) == Admission(-1)
    assert admitted((0, 60.0), (2, 4.9)) == Admission(-1)
    assert admitted((2, 5.0)) == Admission(0)  # and then no other suspect
    assert admitted((2, 60.0), (0, 0.0)) == Admission(0)


def test_those_lost_once_start_in_groups() -> None:
    for num_starting in range(GROUP):
        assert admitted(*[(1, 0.0)] * max(1, num_starting)).most_losses == 1
    assert admitted(*[(1, 0.0)] * GROUP) == Admission(0)
    assert admitted(*[(1, 5.0)] * GROUP) == Admission(1)


@pytest.mark.parametrize(("slots", "size"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (17, 5)])
def test_a_group_is_the_square_root_of_the_slots(slots: int, size: int) -> None:
    assert group_size(slots) == size == math.ceil(math.sqrt(slots))


# ---- histories ------------------------------------------------------------------------------


@dataclass
class Job:
    """A job of the history; ``kills_after`` seconds of running it takes its worker along."""

    seconds: float = 8.0
    kills_after: float | None = None
    lost_count: int = 0
    not_before: float = 0.0
    started_at: float = 0.0
    ended: str = ""


@dataclass
class World:
    """One worker and its queue, with a clock that advances in small steps."""

    line: list[Job]
    now: float = 0.0
    running: list[Job] = field(default_factory=list)
    num_deaths: int = 0

    def run(self, seconds: float = 10_000.0) -> None:
        until = self.now + seconds
        while (self.line or self.running) and self.now < until:
            self._end_some()
            self._claim()
            self.now += TICK

    def lose_all(self) -> None:
        """The worker dies; the sweeper returns its jobs to the queue."""
        self.num_deaths += 1
        for job in self.running:
            job.not_before = self.now + RETRY_DELAY_SECONDS * job.lost_count
            job.lost_count += 1
            if job.lost_count >= MAX_LOSSES:
                job.ended = "failed"
        self.line = [job for job in self.running if not job.ended] + self.line
        self.running = []

    def _end_some(self) -> None:
        for job in self.running:
            ran = self.now - job.started_at
            if job.kills_after is not None and ran >= job.kills_after:
                self.lose_all()
                return
            if ran >= job.seconds:
                job.ended = "succeeded"
        self.running = [job for job in self.running if not job.ended]

    def _claim(self) -> None:
        while len(self.running) < NUM_SLOTS and (job := self._next()) is not None:
            self.line.remove(job)
            job.started_at = self.now
            self.running.append(job)

    def _next(self) -> Job | None:
        """As ``JobStore.claim``."""
        beside = [RunningJob(job.lost_count, self.now - job.started_at) for job in self.running]
        leave = admission(beside, NUM_SLOTS, SETTLED)
        eligible = [job for job in self.line if job.not_before <= self.now]
        if leave.most_losses < 0 or not eligible:
            return None
        if leave.waits_for_first and eligible[0].lost_count > leave.most_losses:
            return None
        return next((job for job in eligible if job.lost_count <= leave.most_losses), None)


@pytest.mark.parametrize("num_poisonous", [1, 2, 3])
@pytest.mark.parametrize("kills_after", [0.25, 3.0, 7.0, 20.0])
@pytest.mark.parametrize("seconds", [1.0, 8.0, 60.0])
@pytest.mark.parametrize("num_jobs", [12, 40])
def test_poison_among_others_fails_at_its_third_loss_and_the_innocent_succeed(
    num_poisonous: int, kills_after: float, seconds: float, num_jobs: int
) -> None:
    jobs = [Job(seconds) for _ in range(num_jobs)]
    poison = [Job(1_000.0, kills_after) for _ in range(num_poisonous)]
    for number, job in enumerate(poison):
        jobs.insert(3 + 4 * number, job)
    world = World(list(jobs))
    world.run()
    assert [job.ended for job in poison] == ["failed"] * num_poisonous
    assert [job.lost_count for job in poison] == [MAX_LOSSES] * num_poisonous
    assert {job.ended for job in jobs if job not in poison} == {"succeeded"}
    assert world.num_deaths <= MAX_LOSSES * num_poisonous


@pytest.mark.parametrize("seconds", [2.0, 60.0])
def test_after_a_mass_loss_without_poison_all_slots_are_used_within_a_bounded_time(
    seconds: float,
) -> None:
    world = World([Job(1_000.0) for _ in range(NUM_SLOTS)])
    world.run(10)
    world.lose_all()
    for job in world.line:
        job.seconds = seconds
    lost_at = world.now
    if seconds > SETTLED * GROUP:  # else they end before all slots are full
        world.run(SETTLED * (GROUP - 1) + 2 * TICK)
        assert len(world.running) == NUM_SLOTS
    world.run()
    # One at a time it would be NUM_SLOTS times the seconds.
    assert world.now - lost_at <= SETTLED * GROUP + seconds


def test_jobs_that_were_never_lost_take_the_other_slots_at_once() -> None:
    world = World([Job(60.0) for _ in range(NUM_SLOTS)])
    world.run(1)
    world.lose_all()
    world.line += [Job(60.0) for _ in range(100)]
    world.run(TICK)
    assert len(world.running) == NUM_SLOTS
    world.run(61)
    assert len(world.running) == NUM_SLOTS


def test_twice_lost_jobs_hold_up_the_others_for_a_bounded_time() -> None:
    twice = [Job(60.0, lost_count=2) for _ in range(GROUP)]
    world = World([*twice, *[Job(60.0) for _ in range(100)]])
    world.run(GROUP * 2 * SETTLED)
    # The first of them has settled; the others wait for its end, and no job waits for them.
    assert len(world.running) == NUM_SLOTS
    world.run()
    assert {job.ended for job in twice} == {"succeeded"}
