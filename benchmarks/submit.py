"""From submission to 202, at a fixed rate that does not wait for answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.client import Connection, UnexpectedAnswer, milliseconds
from benchmarks.disk import sync_ms
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.processes import Product, Workspace

RATE_PER_SECOND = 50
ROUND_SECONDS = 5
ROUNDS = 2
NUM_OFFERED = RATE_PER_SECOND * ROUND_SECONDS * ROUNDS
SETUPS = {"with worker": ("web", "worker"), "web alone": ("web",)}
NUM_SENDERS = 32  # more than are ever in use; a busy sender would hide a slow answer
MAX_NEW_TOKENS = 8


def measure(space: Workspace) -> Section:
    """Submit at 50 requests per second, alternately on SQLite and PostgreSQL."""
    section = Section(
        "submit",
        "from the instant a submission is due to its 202",
        [
            f"{RATE_PER_SECOND} requests/s, open loop; {ROUNDS} rounds of {ROUND_SECONDS} s of each"
            " kind, alternating; POST /api/v1/jobs over keep-alive connections",
            f"with worker: a worker with a tiny random model runs the jobs, {MAX_NEW_TOKENS}"
            " tokens each; web alone: the jobs stay queued",
        ],
    )
    products = {
        kind: Product(space, space.new_database(kind), models_path=space.tiny_models_file())
        for kind in ("sqlite", "postgresql")
    }
    for setup, names in SETUPS.items():
        samples: dict[str, list[float]] = {kind: [] for kind in products}
        for _ in range(ROUNDS):
            for kind, product in products.items():
                with product.running(*names):
                    _offer(product.url, seconds=1)  # the first requests open connections
                    samples[kind] += _offer(product.url, seconds=ROUND_SECONDS)
        for kind, taken in samples.items():
            section.add(f"{kind}, {setup}", "ms", taken)
            num_refused = NUM_OFFERED - len(taken)
            if num_refused:
                section.add(f"{kind}, {setup}: no 202", "requests", [num_refused])
        ratio = ratio_of_medians(samples["postgresql"], samples["sqlite"])
        section.add(f"postgresql / sqlite, {setup}", "x", [ratio])
    section.add("for scale: one 4 KiB write, synced", "ms", sync_ms(space.folder))
    return section


def _offer(url: str, seconds: int) -> list[float]:
    """Submit at the fixed rate; return the milliseconds from each due time to its 202.

    Measuring from the due time rather than from the sending includes the requests that a stall
    delayed (Gil Tene's "coordinated omission").
    """
    local = threading.local()
    opened: list[Connection] = []

    def send(due: float, number: int) -> float | None:
        if not hasattr(local, "connection"):
            local.connection = Connection(url)
            opened.append(local.connection)
        time.sleep(max(0.0, due - time.perf_counter()))
        body = {"prompt": f"Submission {number}", "max_new_tokens": MAX_NEW_TOKENS}
        try:
            local.connection.submit(body)
        except UnexpectedAnswer:
            return None
        return milliseconds(due)

    start = time.perf_counter() + 0.2
    with ThreadPoolExecutor(NUM_SENDERS) as pool:
        futures = [
            pool.submit(send, start + number / RATE_PER_SECOND, number)
            for number in range(seconds * RATE_PER_SECOND)
        ]
        answers = [future.result() for future in futures]
    for connection in opened:
        connection.close()
    return [taken for taken in answers if taken is not None]
