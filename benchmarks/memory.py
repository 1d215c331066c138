"""Resident memory of web and worker, and the times of their starts."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.client import Connection
from benchmarks.figures import Section
from benchmarks.processes import DEFAULT_MODEL, Product, Workspace, has_default_model
from benchmarks.startup import later_starts

NUM_JOBS = 16
NUM_STARTS = 5
MIB_PER_KIB = 1 / 1024


def measure(space: Workspace, isa: str = "auto") -> Section:
    """Read /proc after the start and after some jobs, then time starts.

    Args:
        space: the folder of all files.
        isa: instruction set of the kernels, as in ``TEXTMILL_KERNELS_ISA``.
    """
    model = "the default model" if has_default_model() else "a tiny random model"
    section = Section(
        "memory",
        "resident memory (VmRSS) of each service's processes, summed, and times of starts",
        [
            f"{model}, dtype auto, SQLite; after the start, and after {NUM_JOBS} jobs of 64 tokens"
            " at once; peak is VmHWM, which includes loading",
            "models are converted and kernels built before; the best start is the one that other"
            " programs disturbed least",
        ],
    )
    if not Path("/proc/self/status").exists():
        section.conditions.append("not measured: this system has no /proc")
        return section
    if not has_default_model():
        _measure(section, _product(space, isa), "", "")
        return section
    first = _product(space, isa, DEFAULT_MODEL)
    _measure(section, first, ", default model alone", "≤ 350 MiB")
    _measure(section, _product(space, isa), ", default model and its base", "≤ 600 MiB")
    _time_starts(section, space, first, isa)
    return section


def _product(space: Workspace, isa: str, serve: str = "") -> Product:
    models_path = None if has_default_model() else space.tiny_models_file()
    return Product(
        space,
        space.new_database("sqlite"),
        models_path=models_path,
        serve=serve,
        settings={"TEXTMILL_KERNELS_ISA": isa},
    )


def _measure(section: Section, product: Product, label: str, goal: str) -> None:
    with product.running(
        "web", "worker"
    ):  # the first start converts the model, which needs more memory
        pass
    with product.running("web", "worker") as processes:
        for name, process in processes.items():
            section.add(f"{name}{label}, after the start", "MiB", [_mib(process, "VmRSS")])
        _work(product.url)
        for name, process in processes.items():
            own_goal = goal if name == "worker" else ""
            section.add(f"{name}{label}, after work", "MiB", [_mib(process, "VmRSS")], own_goal)
            section.add(f"{name}{label}, peak", "MiB", [_mib(process, "VmHWM")])
        section.conditions.append(f"instruction set{label}: {_instruction_set(product.url)}")


def _instruction_set(url: str) -> str:
    connection = Connection(url)
    models = json.loads(connection.get("/api/v1/models"))
    connection.close()
    names = {model["instruction_set"] for model in models} - {None}  # of a model that is not served
    return ", ".join(sorted(names)) or "none, PyTorch computes"


def _time_starts(section: Section, space: Workspace, product: Product, isa: str) -> None:
    tokens = [_first_token_seconds(product) for _ in range(NUM_STARTS)]
    _add_starts(section, "worker's process to the first token of a job that waits", tokens, "≤ 1 s")
    ready = later_starts(space, NUM_STARTS, isa)
    _add_starts(section, "`textmill up` until it is ready, both models", ready, "≤ 3 s")


def _add_starts(section: Section, name: str, seconds: Sequence[float], goal: str) -> None:
    section.add(name, "s", seconds, goal)
    section.add(f"{name}, best", "s", [min(seconds)], goal)


def _first_token_seconds(product: Product) -> float:
    """From the start of a worker to the first token of a job that was submitted before."""
    with product.running("web"):
        connection = Connection(product.url)
        job = connection.submit({"prompt": "Title: ducks\nAbstract:", "max_new_tokens": 4})
        started = time.perf_counter()
        with product.starting("worker"):
            seconds = connection.first_token_at(job["id"]) - started
        connection.close()
    return seconds


def _work(url: str) -> None:
    connection = Connection(url)
    bodies = [
        {"prompt": f"Number {number}: once upon a time", "strategy": "sampling", "seed": number}
        for number in range(NUM_JOBS)
    ]
    for job in [connection.submit(body) for body in bodies]:
        connection.finished(job["id"])
    for path in ("/", "/api/v1/jobs", "/api/v1/queue"):
        connection.get(path)
    connection.close()


def _mib(process: subprocess.Popen[bytes], key: str) -> float:
    return sum(_status_kib(pid, key) for pid in _tree(process.pid)) * MIB_PER_KIB


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from _tree(int(child))


def _status_kib(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    return 0  # a process that just ended
