"""The history with 100,000 saved jobs: the page, the API, the search."""

from __future__ import annotations

import json
import random
import time
import uuid
from itertools import accumulate
from typing import Any

from sqlalchemy import insert, text

from benchmarks.client import Connection, milliseconds
from benchmarks.figures import Section
from benchmarks.processes import Product, Workspace
from textmill.core.database.connections import make_engine, writing
from textmill.core.database.tables import Job
from textmill.core.jobs.search import RULES, search_columns
from textmill.core.statuses import FINAL_STATUSES

NUM_JOBS = 100_000
CHUNK_JOBS = 5_000
NUM_REQUESTS = 30  # a round, of each kind
ROUNDS = 2
COMMON, RARE, OTHER = "network", "zymurgy", "language"
RARE_EVERY = 10_000  # so that ten jobs contain the rare word
NUM_WORDS = 8_000  # of the invented vocabulary, drawn by Zipf's law
PATHS = {
    "page": ("/history", 50),
    "page, 2 words": (f"/history?q={COMMON}+{OTHER}", 150),
    "API, newest": ("/api/v1/jobs", 50),
    "API, deep page": ("/api/v1/jobs?cursor={cursor}", 50),
    "API, status and strategy": ("/api/v1/jobs?status=succeeded&strategy=top_p", 50),
    "API, common word": (f"/api/v1/jobs?q={COMMON}", 150),
    "API, rare word": (f"/api/v1/jobs?q={RARE}", 150),
    "API, two words": (f"/api/v1/jobs?q={COMMON}+{OTHER}", 150),
    "API, common and rare": (f"/api/v1/jobs?q={COMMON}+{RARE}", 150),
    "API, no such word": ("/api/v1/jobs?q=qqqqq", 150),
}


def measure(space: Workspace) -> Section:
    """Request pages of a long history, alternately on SQLite and PostgreSQL."""
    section = Section(
        "history",
        f"from sending a GET to the whole answer, with {NUM_JOBS:,} saved jobs",
        [
            "only web, without other requests; one keep-alive connection; default page size",
            f"rows of about 90 words, bulk-inserted; '{COMMON}' and '{OTHER}' are in about half of"
            f" them each, '{RARE}' in {NUM_JOBS // RARE_EVERY}",
            f"{ROUNDS} alternating rounds of {NUM_REQUESTS} on each database",
        ],
    )
    rows = make_rows()
    products = {}
    for kind in ("sqlite", "postgresql"):
        products[kind] = Product(space, space.new_database(kind))
        _insert(products[kind].database_url, rows)
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for kind, product in products.items():
            with product.running("web"):
                for name, taken in _round(product.url).items():
                    samples.setdefault((name, kind), []).extend(taken)
    for name, (_, goal_ms) in PATHS.items():
        for kind in products:
            section.add(f"{name}, {kind}", "ms", samples[name, kind], f"≤ {goal_ms} ms median")
    return section


def _round(url: str) -> dict[str, list[float]]:
    connection = Connection(url)
    cursor = _deep_cursor(connection)
    taken: dict[str, list[float]] = {}
    for name, (path, _) in PATHS.items():
        path = path.format(cursor=cursor)
        connection.get(path)  # once to warm
        for _ in range(NUM_REQUESTS):
            sent = time.perf_counter()
            connection.get(path)
            taken.setdefault(name, []).append(milliseconds(sent))
    connection.close()
    return taken


def _deep_cursor(connection: Connection) -> str:
    """The cursor after the first thousand rows."""
    cursor = ""
    for _ in range(5):
        page = json.loads(connection.get(f"/api/v1/jobs?limit=200{cursor and '&cursor='}{cursor}"))
        cursor = page["next_cursor"]
    return cursor


def make_rows() -> list[dict[str, Any]]:
    """Finished jobs of the last months, the same at every run."""
    source = random.Random(7)  # noqa: S311 - no secret
    made_up = [f"w{number:x}x" for number in range(NUM_WORDS)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(NUM_WORDS)))
    now = int(time.time() * 1000)
    rows = []
    for number in range(NUM_JOBS):
        words = source.choices(made_up, cum_weights=weights, k=88)
        words += [word for word in (COMMON, OTHER) if source.random() < 0.5]
        if number % RARE_EVERY == 5:
            words.append(RARE)
        source.shuffle(words)
        prompt, written = " ".join(words[:30]), " ".join(words[30:])
        created = now - (NUM_JOBS - number) * 60_000
        rows.append(_row(source, prompt, written, created))
    return rows


def _row(source: random.Random, prompt: str, written: str, created: int) -> dict[str, Any]:
    strategy = source.choice(("greedy", "sampling", "top_k", "top_p"))
    return {
        "id": str(uuid.UUID(int=source.getrandbits(128), version=4)),
        "owner_id": "benchmark",
        "model": "smollm2-135m",
        "prompt": prompt,
        "strategy": strategy,
        "parameters": {"max_new_tokens": 64, "seed": 1, "stop": [], "repetition_penalty": 1.0},
        "has_trace": False,
        "status": source.choices(FINAL_STATUSES, (90, 5, 5))[0],
        "virtual_start": 1,
        "attempt": 1,
        "lost_count": 0,
        "not_before": 0,
        "deadline_at": created + 86_400_000,
        "text": written,
        **search_columns(prompt, written),
        "search_rules": RULES,
        "finish_reason": "length",
        "num_prompt_tokens": 60,
        "num_completion_tokens": 64,
        "created_at": created,
        "started_at": created + 20,
        "first_token_at": created + 120,
        "finished_at": created + 3_000,
    }


def _insert(database_url: str, rows: list[dict[str, Any]]) -> None:
    engine = make_engine(database_url)
    for start in range(0, len(rows), CHUNK_JOBS):
        with writing(engine) as connection:
            connection.execute(insert(Job), rows[start : start + CHUNK_JOBS])
    with writing(engine) as connection:  # autovacuum would do this within a minute
        connection.execute(text("ANALYZE"))
    engine.dispose()
