"""Models files and models that break while ``textmill up`` runs must not end anything else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_live_models import Product, await_true
from tests.acceptance.up import FIRST_START_SECONDS, Up, run, up_environment
from tests.processes import descendants
from tests.servers import RedisServer

RECOVERY_SECONDS = 5.0
MODELS = (
    '[[models]]\nname = "tiny"\nsource = "./tiny"\n[[models]]\nname = "neo"\nsource = "./neo"\n'
)


class Fleet(Product):
    """A product with two workers."""

    def ready(self) -> Any:
        """The answer of /readyz, whatever its status."""
        try:
            return self.up.read("/readyz")
        except urllib.error.HTTPError as error:
            with error:
                return json.loads(error.read())

    def problems(self) -> str:
        return " ".join(self.ready().get("problems", ()))

    def workers(self) -> dict[int, list[str]]:
        """The models of each worker, by its process."""
        found = self.up.read("/api/v1/queue")["workers"]
        return {int(worker["id"].split("-")[-2]): worker["models"] for worker in found}

    def logs(self) -> str:
        return "".join(self.up.lines) + "".join(
            f"== {path.name}\n{path.read_text(encoding='utf-8')[-4000:]}"
            for path in sorted((self.home / "logs").glob("*.log"))
        )

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def is_alive(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.up.port}/healthz", timeout=10) as page:
            return bool(page.status == 200)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's processes")


@pytest.fixture
def start_fleet(tmp_path: Path, own_redis: RedisServer) -> Iterator[Callable[..., Fleet]]:
    from tests.tiny_models import build_patient_llama, build_tiny_gpt_neo

    home = tmp_path / "home"
    with contextlib.ExitStack() as stack:

        def start(models: str = MODELS) -> Fleet:
            build_patient_llama(home / "tiny", context_length=8192)
            build_tiny_gpt_neo(home / "neo")
            (home / "models.toml").write_text(models)
            environment = up_environment(
                home, TEXTMILL_WORKERS="2", TEXTMILL_REDIS_URL=own_redis.url, OMP_NUM_THREADS="1"
            )
            up = stack.enter_context(Up(environment).killed_at_the_end())
            up.await_ready(2 * FIRST_START_SECONDS)
            fleet = Fleet(up, home)
            await_true(lambda: len(fleet.workers()) == 2, fleet)
            return fleet

        yield start


def test_a_models_file_that_breaks_stops_nothing_and_a_killed_workers_jobs_run_elsewhere_at_once(
    start_fleet: Callable[..., Fleet],
) -> None:
    fleet = start_fleet()
    file = fleet.home / "models.toml"
    first = fleet.generate("tiny")["text"]
    both = set(fleet.workers())
    job = fleet.post("/jobs", {"model": "tiny", "max_new_tokens": 8000})
    holder = await_holder(fleet, job["id"])
    file.write_text("[[models]\nname=")
    killed_at = time.monotonic()
    fleet.kill(holder)
    # Its jobs run on the other worker within seconds, not after the end of the lease.
    await_true(lambda: attempt(fleet, job["id"]) == 2, fleet)
    assert time.monotonic() - killed_at < RECOVERY_SECONDS, fleet.logs()
    assert holder not in fleet.workers()
    fleet.post(f"/jobs/{job['id']}/cancel", {})
    assert fleet.is_alive()
    assert fleet.generate("tiny")["text"] == first
    await_true(lambda: "is not valid TOML" in fleet.problems(), fleet)
    told = fleet.up.read("/api/v1/queue")["problems"]
    assert [p["name"] for p in told if p["kind"] == "models_file"] == ["models file"]
    with urllib.request.urlopen(f"http://127.0.0.1:{fleet.up.port}/queue", timeout=30) as page:
        assert "is not valid TOML" in page.read().decode()
    doctor = run(fleet.up.environment, "doctor")
    assert "is not valid TOML" in doctor.stdout

    # The new process serves the models of the last valid file, and a new web process knows them.
    await_true(lambda: set(fleet.workers()) - both != set(), fleet)
    for pid in descendants(fleet.up.process.pid):
        if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0web\0"):
            with contextlib.suppress(ProcessLookupError):  # the second goes with the first
                fleet.kill(pid)
    fleet.read_until("web was ended by SIGKILL")
    await_true(lambda: answers(fleet), fleet)
    assert fleet.names() == ["tiny", "neo"]
    assert fleet.generate("tiny")["text"] == first

    file.write_text(MODELS)
    await_true(lambda: "TOML" not in fleet.problems(), fleet)
    fleet.up.process.send_signal(signal.SIGTERM)
    assert fleet.up.finish() == 0, fleet.logs()


def answers(fleet: Fleet) -> bool:
    with contextlib.suppress(OSError):
        return fleet.is_alive()
    return False


def test_a_model_that_cannot_be_loaded_stays_out_alone_and_comes_back_when_it_is_mended(
    start_fleet: Callable[..., Fleet],
) -> None:
    # At the very first start too, where it is the one for requests that name none.
    bad = '[[models]]\nname = "gone"\nsource = "./nowhere"\ndefault = true\n'
    fleet = start_fleet(bad + MODELS)
    assert "gone is left out: There is no model at" in fleet.problems()
    (fleet.home / "models.toml").write_text(MODELS)
    await_true(lambda: "gone" not in fleet.problems(), fleet)
    kept = fleet.home.parent / "kept"
    shutil.copytree(fleet.home / "neo", kept / "neo")
    shutil.copytree(fleet.home / "tiny", kept / "tiny")
    config = json.loads((fleet.home / "neo" / "config.json").read_text())
    (fleet.home / "neo" / "config.json").write_text(json.dumps(config | {"vocab_size": 4_000_000}))
    for pid in list(fleet.workers()):
        fleet.kill(pid)
    await_true(
        lambda: (
            sorted(fleet.workers().values()) == [["tiny"], ["tiny"]]
            and "wte.weight has the shape [400, 48]" in fleet.problems()
        ),
        fleet,
    )
    assert "[4000000, 48]" in fleet.problems()
    assert fleet.generate("tiny")["text"]

    # Now none is left that could be loaded: the workers stay out, and web says why.
    weights = fleet.home / "tiny" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    for pid in list(fleet.workers()):
        fleet.kill(pid)
    fleet.read_until("No model can be loaded")
    await_true(lambda: "it ends before its tensors do" in fleet.problems(), fleet)
    assert fleet.is_alive()
    job = fleet.post("/jobs", {"model": "neo"})
    assert job["status"] == "queued"

    # A corrected file is noticed immediately, during a pause too.
    shutil.copytree(kept / "tiny", fleet.home / "tiny", dirs_exist_ok=True)
    shutil.copytree(kept / "neo", fleet.home / "neo", dirs_exist_ok=True)
    assert fleet.wait(job)["status"] == "succeeded"
    await_true(lambda: "left out" not in fleet.problems(), fleet)
    fleet.up.process.send_signal(signal.SIGTERM)
    assert fleet.up.finish() == 0, fleet.logs()


def attempt(fleet: Fleet, job_id: str) -> int:
    return int(fleet.up.read(f"/api/v1/jobs/{job_id}")["attempt"])


def await_holder(fleet: Fleet, job_id: str) -> int:
    """The process of the worker that runs a job, once it has written something."""

    await_true(lambda: fleet.up.read(f"/api/v1/jobs/{job_id}")["text"] != "", fleet)
    with contextlib.closing(sqlite3.connect(fleet.home / "textmill.db")) as database:
        query = "SELECT worker_id FROM jobs WHERE id = ?"
        [worker_id] = database.execute(query, (job_id,)).fetchone()
    return int(worker_id.split("-")[-2])
