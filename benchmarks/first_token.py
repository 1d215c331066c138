"""From submission to the first token, on an idle worker."""

from __future__ import annotations

import time

from benchmarks.client import Connection
from benchmarks.figures import Section
from benchmarks.processes import Product, Workspace, has_default_model

NUM_JOBS = 30
NUM_TOKENS = 4
PAUSE_SECONDS = 0.3  # the worker is idle again, but does not poll for work yet
PROMPT = "Paper {number}. Attention is all you need: we propose a new network architecture"


def measure(space: Workspace) -> Section:
    """Submit jobs one by one, each to an idle worker, and read its event stream."""
    model = "the default model" if has_default_model() else "a tiny random model"
    section = Section(
        "first_token",
        "from sending a submission to its first token in the event stream",
        [
            f"{model}; {NUM_JOBS} jobs on each database, one after another, each on an idle worker",
            f"greedy, {NUM_TOKENS} tokens, a different prompt of about 15 tokens each time",
            "submit → decoding starts is queued_ms of the job: the database's clock, whole ms",
        ],
    )
    for kind in ("sqlite", "postgresql"):
        first, queued = _samples(space, kind)
        section.add(f"first token, {kind}", "ms", first)
        section.add(f"decoding starts, {kind}", "ms", queued, "≤ 30 ms median")
    return section


def _samples(space: Workspace, kind: str) -> tuple[list[float], list[float]]:
    models = None if has_default_model() else space.tiny_models_file()
    product = Product(space, space.new_database(kind), models_path=models)
    first, queued = [], []
    with product.running("web", "worker"):
        connection = Connection(product.url)
        for number in range(-2, NUM_JOBS):  # two to warm up
            time.sleep(PAUSE_SECONDS)
            sent = time.perf_counter()
            body = {"prompt": PROMPT.format(number=number + 3), "max_new_tokens": NUM_TOKENS}
            job = connection.submit(body)
            seconds = connection.first_token_at(job["id"]) - sent
            job = connection.finished(job["id"])
            if number >= 0:
                first.append(seconds * 1000)
                queued.append(float(job["timings"]["queued_ms"]))
        connection.close()
    return first, queued
