"""The whole stack: jobs through HTTP, queue, engine and database, compared with the engine."""

from __future__ import annotations

import functools
import sys
import time

from sqlalchemy import Engine, Select, func, select

from benchmarks.client import Connection
from benchmarks.engine import DEFAULT_SOURCE
from benchmarks.engine_runs import PROMPT
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.peers import in_turn, json_lines
from benchmarks.processes import (
    BASE_MODEL,
    BenchmarkError,
    Product,
    Workspace,
    has_default_model,
)
from textmill.core.database.connections import make_engine, reading
from textmill.core.database.tables import Job

NUM_JOBS = 64
NUM_NEW = 128
ROUNDS = 3
PATIENCE_SECONDS = 600.0


def measure(space: Workspace) -> Section:
    """Submit 64 jobs by HTTP at once, alternating with 64 sequences on the engine alone.

    Raises:
        BenchmarkError: there is no default model, or a job ended early.
    """
    if not has_default_model():
        raise BenchmarkError("The package with the default model is not installed.")
    section = Section(
        "stack",
        f"{NUM_JOBS} jobs of {NUM_NEW} tokens through the whole product, and through the engine",
        [
            "SmolLM2-135M, sampling at 0.7, 64 slots; one client submits all, one after another",
            "from the first submission to the last end by the database's clock",
            "the same prompts and seeds in both, so the same completions; some end early",
            f"{ROUNDS} rounds, alternately stack and engine; all on the same cores",
        ],
    )
    whole: list[float] = []
    alone: list[float] = []
    in_turn(
        [functools.partial(_whole, space, whole), functools.partial(_alone, space, alone)], ROUNDS
    )
    section.add("through the stack, sqlite", "tokens/s", whole)
    section.add("engine alone", "tokens/s", alone)
    share = ratio_of_medians(whole, alone) * 100
    section.add("share kept", "%", [share], "≥ 90 %")
    return section


def _whole(space: Workspace, rates: list[float]) -> None:
    product = Product(space, space.new_database("sqlite"), serve=BASE_MODEL)
    with product.running("web", "worker"):
        connection = Connection(product.url)
        connection.finished(connection.submit(_body(-1, 8))["id"])  # warms up
        for number in range(NUM_JOBS):
            connection.submit(_body(number, NUM_NEW))
        rates.append(_rate(product))
        connection.close()


def _body(number: int, num_new: int) -> dict[str, object]:
    return {
        "model": BASE_MODEL,
        "prompt": f"{PROMPT} {number}",
        "strategy": "sampling",
        "temperature": 0.7,
        "max_new_tokens": num_new,
        "seed": number + 1,
    }


def _rate(product: Product) -> float:
    """Poll the table twice a second until all jobs have ended; compute the rate from its times."""
    engine = make_engine(product.database_url)
    open_jobs = select(func.count()).select_from(Job).where(Job.status.in_(("queued", "running")))
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while _read(engine, open_jobs):
            if time.monotonic() > deadline:
                raise BenchmarkError("The jobs did not end in time.")
            time.sleep(0.5)
        query = select(
            func.count(),
            func.sum(Job.num_completion_tokens),
            func.min(Job.created_at),
            func.max(Job.finished_at),
        ).where(Job.status == "succeeded", Job.number > 1)
        with reading(engine) as connection:
            count, tokens, first, last = connection.execute(query).one()
    finally:
        engine.dispose()
    if count != NUM_JOBS or tokens is None or first is None or last is None:
        raise BenchmarkError(f"{count} of {NUM_JOBS} jobs succeeded.")
    return tokens * 1000 / (last - first)


def _read(engine: Engine, query: Select[int]) -> int:
    """Read in a new transaction, which sees the jobs that have ended since."""
    with reading(engine) as connection:
        return connection.execute(query).scalar_one()


def _alone(space: Workspace, rates: list[float]) -> None:
    command = [sys.executable, "-m", "benchmarks.engine_program", DEFAULT_SOURCE]
    command += ["--cache", str(space.models), "--batches", str(NUM_JOBS), "--tokens", str(NUM_NEW)]
    command += ["--natural-ends"]
    for line in json_lines(command, "the engine"):
        if line["figure"] == "decode":
            rates.append(line["tokens_per_second"])
