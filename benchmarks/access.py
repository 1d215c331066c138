"""What owners and budgets cost: submissions, an owner's history, and a flood by another visitor."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from typing import Any

from sqlalchemy import insert, select, text

from benchmarks.client import Connection, UnexpectedAnswer, milliseconds
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.history import COMMON, NUM_JOBS, OTHER, make_rows
from benchmarks.processes import Product, Workspace
from textmill.backend.access.visitors import HEADER, Visitors
from textmill.core.database.connections import make_engine, reading, writing
from textmill.core.database.tables import Job

NUM_OWNERS = 1_000
CHUNK_JOBS = 5_000
NUM_SUBMISSIONS, NUM_PAGES, NUM_WAITS = 150, 30, 15  # a round
ROUNDS = 4
FLOOD_JOBS, FLOOD_TOKENS = 200, 64
BODY = {"prompt": "A submission", "max_new_tokens": 8}
NUM_HOSTILE = 50
# The most that one request may order in the mode local, and what the mode demo lets pass of it.
GREEDY_RUN = {
    "prompt": "x",
    "max_new_tokens": 2_000,
    "variants": [{"strategy": "sampling", "samples": 16}] * 4,
}
MODEST_RUN = {**GREEDY_RUN, "variants": [{"strategy": "sampling", "samples": 2}]}
SECRET = secrets.token_hex(32)
DEMO = {
    "TEXTMILL_ACCESS": "demo",
    "TEXTMILL_ALLOWED_HOSTS": "demo.example.org",
    "TEXTMILL_SECRET": SECRET,
    "TEXTMILL_REQUESTS_PER_MINUTE": "0",  # sixty submissions a minute would end the measurement
    "TEXTMILL_VISITOR_TOKENS_PER_MINUTE": "900000000",
    "TEXTMILL_VISITOR_TOKENS_PER_DAY": "900000000",
    "TEXTMILL_VISITOR_MAX_QUEUED": "10000",
    "TEXTMILL_VISITOR_MAX_ACTIVE": "10000",
    "TEXTMILL_VISITOR_MAX_STORED_BYTES": "1000000000",
    "TEXTMILL_UNSERVED_SECONDS": "86400",
}
PAGES = {
    "/history": 50,
    f"/history?q={COMMON}+{OTHER}": 50,
    "/history?q=qqqqq": 50,
    "/history?status=failed&strategy=beam": 50,  # of no owner: matches nothing
}


def measure(space: Workspace) -> Section:
    """Compare the modes local and demo, with every budget on but never reached."""
    section = Section(
        "access",
        "the mode demo beside local; budgets are counted and not reached, requests are not counted",
        [
            f"submissions: web alone, one connection, {ROUNDS} alternating rounds of"
            f" {NUM_SUBMISSIONS}",
            f"history: {NUM_JOBS:,} jobs of {NUM_OWNERS:,} owners, pages of one of them",
            f"flood: {FLOOD_JOBS} jobs of {FLOOD_TOKENS} tokens of one visitor wait or run, and"
            " another submits jobs one by one; a worker with a tiny random model",
            f"amplification: the tokens that {NUM_HOSTILE} runs of one client make a model write,"
            " with the defaults of each mode",
        ],
    )
    for kind in ("sqlite", "postgresql"):
        _submissions(section, space, kind)
        _history(section, space, kind)
    _flood(section, space)
    _amplification(section, space)
    return section


def _token(number: int) -> dict[str, str]:
    return {HEADER: Visitors(SECRET, is_embedded=False).token(f"{number:032x}")}


def _submissions(section: Section, space: Workspace, kind: str) -> None:
    url = space.new_database(kind)
    products = {
        "local": Product(space, url, models_path=space.tiny_models_file()),
        "demo": Product(space, url, models_path=space.tiny_models_file(), settings=DEMO),
    }
    taken: dict[str, list[float]] = {mode: [] for mode in products}
    for number in range(ROUNDS):
        for mode, product in products.items():
            with product.running("web"):
                connection = Connection(product.url, _token(number))
                for place in range(NUM_SUBMISSIONS):
                    sent = time.perf_counter()
                    connection.submit({**BODY, "prompt": f"Submission {place}"})
                    if place >= NUM_SUBMISSIONS // 10:  # the first ones warm up
                        taken[mode].append(milliseconds(sent))
                connection.close()
    for mode, samples in taken.items():
        section.add(f"submit → 202, {kind}, {mode}", "ms", samples)
    ratio = ratio_of_medians(taken["demo"], taken["local"])
    section.add(f"demo / local, {kind}", "x", [ratio], "≤ 1.10 x")


def _history(section: Section, space: Workspace, kind: str) -> None:
    product = Product(space, space.new_database(kind), settings=DEMO)
    rows: list[dict[str, Any]] = [
        {**row, "owner_id": f"visitor:{number % NUM_OWNERS:032x}"}
        for number, row in enumerate(make_rows())
    ]
    engine = make_engine(product.database_url)
    for start in range(0, len(rows), CHUNK_JOBS):
        with writing(engine) as connection:
            connection.execute(insert(Job), rows[start : start + CHUNK_JOBS])
    with writing(engine) as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    with product.running("web"):
        client = Connection(product.url, _token(7))
        for path, goal in PAGES.items():
            client.get(path)  # once to warm
            samples = []
            for _ in range(NUM_PAGES):
                sent = time.perf_counter()
                client.get(path)
                samples.append(milliseconds(sent))
            section.add(f"{path}, {kind}", "ms", samples, f"≤ {goal} ms median")
        client.close()


def _flood(section: Section, space: Workspace) -> None:
    product = Product(
        space, space.new_database("sqlite"), models_path=space.tiny_models_file(), settings=DEMO
    )
    with product.running("web", "worker"):
        honest = Connection(product.url, _token(1))
        idle = [_wait(honest) for _ in range(NUM_WAITS)]
        attacker = Connection(product.url, _token(2))
        beside: list[float] = []
        for _ in range(NUM_WAITS):
            _fill(attacker)
            beside.append(_wait(honest))
        attacker.close()
        honest.close()
    section.add("submit → end, idle queue", "ms", idle)
    section.add("submit → end, beside a flood", "ms", beside)
    section.add("beside a flood / idle", "x", [ratio_of_medians(beside, idle)], "≤ 2 x")


def _wait(connection: Connection) -> float:
    sent = time.perf_counter()
    connection.finished(str(connection.submit(BODY)["id"]))
    return milliseconds(sent)


def _fill(connection: Connection) -> None:
    """Submit until the attacker is refused, or has submitted its share of the flood."""
    body = {"prompt": "flood", "max_new_tokens": FLOOD_TOKENS, "strategy": "sampling"}
    for _ in range(FLOOD_JOBS):
        try:
            connection.submit(body)
        except UnexpectedAnswer:  # refused, as it should be
            return


def _amplification(section: Section, space: Workspace) -> None:
    queue = {"TEXTMILL_MAX_QUEUED": "1000"}  # the default
    open_to_strangers = queue | {name: DEMO[name] for name in list(DEMO)[:3]}
    for name, settings, body in (
        ("local", queue, GREEDY_RUN),
        ("demo", open_to_strangers, GREEDY_RUN),
        ("demo, adapted to its limits", open_to_strangers, MODEST_RUN),
    ):
        database = space.new_database("sqlite")
        product = Product(space, database, models_path=space.tiny_models_file(), settings=settings)
        with product.running("web"):
            connection = Connection(product.url, _token(3))
            for _ in range(NUM_HOSTILE):
                with contextlib.suppress(UnexpectedAnswer):
                    connection.submit_run(body)
            connection.close()
        engine = make_engine(database)
        with reading(engine) as opened:
            jobs = [row.parameters for row in opened.execute(select(Job.parameters))]
        engine.dispose()
        tokens = sum(int(parameters["max_new_tokens"]) for parameters in jobs)
        section.add(f"ordered by {NUM_HOSTILE} hostile runs, {name}", "tokens", [tokens])
        sent = NUM_HOSTILE * len(json.dumps(body))
        section.add(f"per byte of these requests, {name}", "tokens", [tokens / sent])
