"""Resident memory of web and worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.client import Connection
from benchmarks.figures import Section
from benchmarks.processes import DEFAULT_MODEL, Product, Workspace, has_default_model

NUM_JOBS = 16
MIB_PER_KIB = 1 / 1024


def measure(space: Workspace) -> Section:
    """Read /proc after the start, and again after some jobs."""
    model = "the default model" if has_default_model() else "a tiny random model"
    section = Section(
        "memory",
        "resident memory (VmRSS) of each service's processes, summed",
        [
            f"{model}, dtype auto, SQLite; after the start, and after {NUM_JOBS} jobs of 64 tokens"
            " at once; peak is VmHWM, which includes loading",
        ],
    )
    if not Path("/proc/self/status").exists():
        section.conditions.append("not measured: this system has no /proc")
        return section
    if not has_default_model():
        _measure(
            section,
            Product(space, space.new_database("sqlite"), models_path=space.tiny_models_file()),
            "",
        )
        return section
    for serve in (DEFAULT_MODEL, ""):
        database_url = space.new_database("sqlite")
        label = ", default model alone" if serve else ", default model and its base"
        _measure(section, Product(space, database_url, serve=serve), label)
    return section


def _measure(section: Section, product: Product, label: str) -> None:
    with product.running(
        "web", "worker"
    ):  # the first start converts the model, which needs more memory
        pass
    with product.running("web", "worker") as processes:
        for name, process in processes.items():
            section.add(f"{name}{label}, after the start", "MiB", [_mib(process, "VmRSS")])
        _work(product.url)
        goals = {"worker": "" if "base" in label else "≤ 1.2 GiB"}
        for name, process in processes.items():
            goal = goals.get(name, "")
            section.add(f"{name}{label}, after work", "MiB", [_mib(process, "VmRSS")], goal)
            section.add(f"{name}{label}, peak", "MiB", [_mib(process, "VmHWM")])


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
