"""``textmill finetune`` from data to a served model, on a tiny base, as a subprocess."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import build_tiny_llama, tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.strategies import DecodingParameters
from textmill.engine import GenerationRequest, InferenceEngine
from textmill.engine.models.loading import load
from textmill.engine.models.provenance import read_provenance

PATIENCE_SECONDS = 240
COLOURS = ("red", "green", "blue", "black", "white")


def write_csv(path: Path, count: int, first: int = 0) -> Path:
    """Write rows that are easy to learn: the answer repeats the colour of the question."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        for number in range(first, first + count):
            colour = COLOURS[number % len(COLOURS)]
            writer.writerow(
                [f"What is {colour} number {number}?", f"It is {colour} {colour} {colour}."]
            )
    return path


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TEXTMILL_")}
    return kept | {"TEXTMILL_HOME": str(home), "TEXTMILL_KERNELS": "off"}


def finetune(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "textmill.finetune", *arguments],
        cwd=Path(__file__).parents[3],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


@contextmanager
def started(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "textmill.finetune", *arguments],
        cwd=Path(__file__).parents[3],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def await_file(home: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file exists; there is no portable file system event to await."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(home.glob(pattern)):
        assert process.poll() is None, "the process ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def options(tmp_path: Path, **changes: str) -> list[str]:
    """Flags for a training that takes seconds."""
    given = {
        "base": str(tiny_model("llama")),
        "name": "colours",
        "output": str(tmp_path / "out"),
        "train": str(write_csv(tmp_path / "train.csv", 40)),
        "validation": str(write_csv(tmp_path / "held-out.csv", 10, first=100)),
        "max-tokens": "96",
        "rank": "8",
        "learning-rate": "0.02",
        "max-steps": "24",
        "batch-size": "4",
        "accumulation": "1",
        "checkpoint-steps": "8",
        "evaluation-texts": "4",
        "evaluation-max-new-tokens": "12",
        "precision": "float32",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


@contextmanager
def serving(spec: ModelSpec, cache: Path) -> Iterator[Any]:
    model = load(
        spec, cache_dir=cache, dtype="float32", num_slots=2, report=lambda _: None, kernel_dir=None
    )
    engine = InferenceEngine({spec.name: model}, num_slots=2)
    engine.start()
    try:
        yield lambda prompt: engine.submit(
            GenerationRequest("j", spec.name, prompt, DecodingParameters("greedy", 12, seed=0))
        ).result(PATIENCE_SECONDS)
    finally:
        engine.stop(PATIENCE_SECONDS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_csv_becomes_an_adapter_that_is_better_and_can_be_served(tmp_path: Path) -> None:
    done = finetune(tmp_path / "home", *options(tmp_path))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "finetune.toml",
        "finetune.json",
        "loss.svg",
        "ngrams.bin",
        "README.md",
    }
    figures = json.loads((out / "finetune.json").read_text())
    before, after = (figures["metrics"][name]["bits_per_byte"] for name in ("before", "after"))
    assert after < 0.7 * before
    assert figures["training"]["num_steps"] == 24
    assert [file["num_rows"] for file in figures["data"]["files"]] == [40, 10]
    assert all(len(file["sha256"]) == 64 for file in figures["data"]["files"])
    assert f"{after:.4f}" in done.stdout
    ElementTree.fromstring((out / "loss.svg").read_text())
    assert "Bits per byte" in (out / "README.md").read_text()
    problems: list[str] = []
    found = read_provenance([out], problems.append)  # as the worker does
    assert problems == []
    assert found.finetuning is not None
    assert found.finetuning.metrics.after.bits_per_byte == after
    assert found.curve_svg == (out / "loss.svg").read_text()
    assert found.card_markdown == (out / "README.md").read_text()
    with serving(
        ModelSpec("m", str(tiny_model("llama")), str(out), "float32", True, ""), tmp_path / "cache"
    ) as generate:
        result = generate("Question: What is blue number 3?\nAnswer:")
    assert result.error is None
    assert result.text.strip()
    assert list((tmp_path / "home" / "finetune").iterdir()) == []


def test_the_figures_of_a_folder_can_be_reproduced_and_wrong_figures_are_refused(
    tmp_path: Path,
) -> None:
    given = options(tmp_path, evaluation_texts="0", max_steps="8")
    assert finetune(tmp_path / "home", *given).returncode == 0
    out = tmp_path / "out"
    with started(tmp_path / "home", *given, "--evaluate", str(out)) as process:
        await_file(tmp_path / "home", "finetune/*/measured/*", process)
        process.kill()
    again = finetune(tmp_path / "home", *given, "--evaluate", str(out))
    assert again.returncode == 0, again.stderr
    assert "The figures agree" in again.stdout
    assert list((tmp_path / "home" / "finetune").iterdir()) == []
    figures = json.loads((out / "finetune.json").read_text())
    figures["metrics"]["after"]["bits_per_byte"] += 0.1
    (out / "finetune.json").write_text(json.dumps(figures))
    wrong = finetune(tmp_path / "home", *given, "--evaluate", str(out))
    assert wrong.returncode == 2
    assert "was measured" in wrong.stderr


def test_the_written_configuration_reproduces_the_weights(tmp_path: Path) -> None:
    given = options(tmp_path, evaluation_texts="0", max_steps="8")
    assert finetune(tmp_path / "home", *given).returncode == 0
    first = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = tmp_path / "finetune.toml"
    config.write_bytes((tmp_path / "out" / "finetune.toml").read_bytes())
    again = finetune(tmp_path / "home", "--output", str(tmp_path / "again"), str(config))
    assert again.returncode == 0, again.stderr
    second = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_resumes(tmp_path: Path) -> None:
    given = options(tmp_path, evaluation_texts="0", max_steps="40")
    whole = finetune(tmp_path / "other", *given)
    assert whole.returncode == 0, whole.stderr
    undisturbed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    (tmp_path / "out").rename(tmp_path / "undisturbed")

    home = tmp_path / "home"
    with started(home, *given) as process:
        await_file(home, "finetune/*/checkpoints/checkpoint-*/whole", process)
        process.send_signal(signal.SIGSTOP)
        second = finetune(home, *given)
        assert second.returncode == 1
        assert "Another process is running the same fine-tuning" in second.stderr
        process.kill()
    [checkpoints] = home.glob("finetune/*/checkpoints")
    (checkpoints / "checkpoint-39").mkdir()  # torn, as after a power cut
    (checkpoints / "checkpoint-39" / "trainer_state.json").write_text('{"epoch": 1.')

    resumed = finetune(home, *given)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming an earlier training" in resumed.stderr
    figures = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert figures["training"]["num_steps"] == 40
    steps = [step for step, _ in figures["training"]["validation"]]
    assert steps == [8, 16, 24, 32, 40]
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, weights in undisturbed.items():
        torch.testing.assert_close(found[name], weights, rtol=0.02, atol=1e-3)


def test_all_weights_can_be_trained_on_plain_text_and_served(tmp_path: Path) -> None:
    base = build_tiny_llama(tmp_path / "base")
    text = "\n\n".join(
        f"The {colour} fox jumps over number {i}." for i in range(30) for colour in COLOURS
    )
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    home = tmp_path / "home"
    done = finetune(
        home,
        *("--base", str(base), "--name", "fox", "--output", str(tmp_path / "fox")),
        *("--train", str(tmp_path / "book.txt"), "--method", "full", "--learning-rate", "0.003"),
        *("--max-steps", "20", "--max-tokens", "64", "--evaluation-texts", "3"),
        *("--evaluation-max-new-tokens", "8"),
    )
    assert done.returncode == 0, done.stderr
    assert "packed" in done.stdout
    out = tmp_path / "fox"
    assert (out / "model.safetensors").is_file()
    assert not (out / "adapter_config.json").exists()
    with serving(
        ModelSpec("m", str(out), None, "float32", True, ""), tmp_path / "cache"
    ) as generate:
        assert generate("The red fox").error is None


def test_a_dry_run_shows_examples_and_an_estimate_and_writes_no_files(tmp_path: Path) -> None:
    done = finetune(tmp_path / "home", "--dry-run", *options(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--- example") == 3
    assert "[given] 'Question: What is red number 0?\\nAnswer:'" in done.stdout
    assert "[learned] ' It is red red red.'" in done.stdout
    assert "24 steps" in done.stdout
    assert "tokens/s, measured" in done.stdout
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "home").glob("finetune/*"))


def test_an_existing_output_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    done = finetune(tmp_path / "home", *options(tmp_path))
    assert done.returncode == 2
    assert "already exists" in done.stderr
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message", "status"),
    [
        ({"train": "gone.csv"}, "gone.csv", 1),
        ({"base": "/no/such/model"}, "There is no model at", 2),
        ({"max_tokens": "5000"}, "lower it", 2),
        ({"rank": "0"}, "lora.rank", 2),
        ({"targets": "nothing"}, "lora.targets", 2),
    ],
)
def test_an_invalid_option_is_refused_with_one_sentence(
    changes: dict[str, str], message: str, status: int, tmp_path: Path
) -> None:
    done = finetune(tmp_path / "home", *options(tmp_path, **changes))
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_error_about_an_invalid_record_in_a_gzip_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "papers.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('{"title": "A", "abstract": "B"}\n{"title": "C"}\n')
    done = finetune(tmp_path / "home", *options(tmp_path, train=str(path)))
    assert done.returncode == 1
    assert "line 2, field 'abstract'" in done.stderr
