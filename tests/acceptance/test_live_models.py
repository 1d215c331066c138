"""Models that are added, changed and broken while the real product runs."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.up import FIRST_START_SECONDS, Up, run, up_environment
from tests.processes import descendants
from tests.servers import RedisServer
from textmill.core.tickets import queue_name

WAIT_SECONDS = 90
Document = dict[str, Any]


class Product:
    """A running ``textmill up`` with a models file in its state folder."""

    def __init__(self, up: Up, home: Path) -> None:
        self.up = up
        self.home = home

    def register(self, folder: Path, *options: str) -> None:
        done = run(self.up.environment, "register", str(folder), *options)
        assert done.returncode == 0, done.stderr + done.stdout

    def post(self, path: str, body: Document) -> Document:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.up.port}/api/v1{path}",
            json.dumps({"prompt": "The quick brown", "max_new_tokens": 8} | body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            document: Document = json.loads(answer.read())
        return document

    def wait(self, job: Document) -> Document:
        deadline = time.monotonic() + WAIT_SECONDS
        while job["finished_at"] is None:
            assert time.monotonic() < deadline, self.logs()
            job = self.up.read(f"/api/v1/jobs/{job['id']}?wait=10")
        assert job["status"] == "succeeded", job
        return job

    def generate(self, model: str) -> Document:
        return self.wait(self.post("/jobs", {"model": model}))

    def names(self) -> list[str]:
        return [model["name"] for model in self.up.read("/api/v1/models")]

    def worker_id(self) -> str:
        [worker] = self.up.read("/api/v1/queue")["workers"]
        return str(worker["id"])

    def logs(self) -> str:
        return (self.home / "logs" / "worker-1.log").read_text(encoding="utf-8")

    def read_until(self, words: str) -> None:
        """Read the supervisor's output; the suite's time-out is the limit."""
        assert self.up.process.stdout is not None
        for line in self.up.process.stdout:
            self.up.lines.append(line)
            if words in line:
                return
        raise AssertionError(f"{words!r} never came:\n" + "".join(self.up.lines))


def await_true(condition: Callable[[], bool], product: Product) -> None:
    """Poll, because the state of other processes cannot be awaited as an event."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, product.logs()
        time.sleep(0.05)


@pytest.fixture
def product(tmp_path: Path, own_redis: RedisServer) -> Iterator[Product]:
    from tests.tiny_models import build_tiny_llama

    home = tmp_path / "home"
    build_tiny_llama(home / "tiny")
    (home / "models.toml").write_text('# Ours.\n[[models]]\nname = "tiny"\nsource = "./tiny"\n')
    up = Up(up_environment(home, TEXTMILL_REDIS_URL=own_redis.url))
    with up.killed_at_the_end():
        up.await_ready(FIRST_START_SECONDS)
        yield Product(up, home)
        up.process.send_signal(signal.SIGTERM)
        assert up.finish() == 0, "".join(up.lines)


def build_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A PEFT folder as ``textmill finetune`` leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    said = {"name": "faq", "base": "tiny", "method": "lora"}
    (folder / "finetune.json").write_text(json.dumps(said))
    return folder


# PEFT 0.21 asks transformers 5.23 for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of processes")
def test_models_come_change_and_break_while_the_product_runs(
    product: Product, own_redis: RedisServer, tmp_path: Path
) -> None:
    processes, worker = set(descendants(product.up.process.pid)), product.worker_id()
    assert product.generate("tiny")["text"]

    # A new model: the page accepts jobs for it before a worker has loaded it.
    product.register(build_adapter(product.home / "tiny", tmp_path / "faq", seed=1))
    await_true(lambda: product.names() == ["tiny", "faq"], product)
    first = product.generate("faq")
    variants = [{"model": "tiny"}, {"model": "faq"}]
    jobs = [product.wait(job) for job in product.post("/runs", {"variants": variants})["jobs"]]
    assert [job["model"] for job in jobs] == ["tiny", "faq"]
    assert jobs[1]["text"] == first["text"]
    assert jobs[0]["model_revision"] != jobs[1]["model_revision"] == first["model_revision"]
    await_true(lambda: product.up.read("/api/v1/models")[1]["loaded_by"] == 1, product)
    client = redis.Redis.from_url(own_redis.url)
    await_true(lambda: client.llen(queue_name("faq")) == 0, product)  # its tickets are taken
    client.close()
    assert set(descendants(product.up.process.pid)) == processes
    assert product.worker_id() == worker

    # A model that cannot be loaded is reported clearly, and affects no other model.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    (broken / "model.safetensors").write_bytes(b"no weights")
    product.register(broken, "--name", "broken")
    await_true(lambda: "model_not_loaded" in product.logs(), product)
    assert product.generate("faq")["text"] == first["text"]
    assert product.worker_id() == worker

    # A changed model: only the worker ends, regularly, and is restarted.
    product.register(build_adapter(product.home / "tiny", tmp_path / "new", seed=2))
    product.read_until("worker-1 starts again, with the changed models.")
    second = product.generate("faq")
    assert second["model_revision"] != first["model_revision"]
    assert product.generate("tiny")["text"] == jobs[0]["text"]
    await_true(lambda: worker not in json.dumps(product.up.read("/api/v1/queue")), product)
    now = set(descendants(product.up.process.pid))
    worker_pid = int(worker.split("-")[-2])
    assert processes - now == {worker_pid}
    assert "Traceback" not in "".join(product.up.lines)
